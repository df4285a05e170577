"""``orch work-pool``."""

from __future__ import annotations

from datetime import timedelta
from shlex import quote

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun
from orch_cli.completion import complete_pool
from orch_cli.connection import open_store
from orch_cli.holding import Held, held, held_view
from orch_cli.options import DURATION, EVERY, dry_run_option, yes_option
from orch_cli.output import Printer, shows
from orch_cli.views import POOL, RUN
from orchestrator.models import Run, WorkPool

POOL_TYPES = ("process", "thread")
"""The types of workers that can be started."""

_pool_argument = click.argument("name", shell_complete=complete_pool)


@click.group("work-pool", cls=Noun, examples=("orch work-pool ls", "orch work-pool create etl"))
def work_pool() -> None:
    """Create, show, pause, limit and delete work pools.

    A work pool is a named set of workers; deployments name the pool that runs them.
    """


@work_pool.command(
    "create", examples=("orch work-pool create etl", "orch work-pool create gpu --type process --concurrency-limit 2")
)
@click.argument("name")
@click.option(
    "--type", "kind", type=click.Choice(POOL_TYPES), default="process", show_default=True, help="How its workers run flows."
)
@click.option("--concurrency-limit", type=click.IntRange(min=0), metavar="N", help="At most N runs at a time.")
@click.option("--description", metavar="TEXT", default="", help="What the pool is for.")
@click.option("--paused", is_flag=True, help="Start nothing until the pool is resumed.")
@shows(POOL)
def create(out: Printer[WorkPool], name: str, kind: str, concurrency_limit: int | None, description: str, paused: bool) -> None:
    """Create a work pool."""
    with open_store() as store:
        made = store.pools.create(name, kind, concurrency_limit=concurrency_limit, description=description, paused=paused)
    out.done(f"Created work pool '{name}'. Start a worker for it with: orch worker start --pool {quote(name)}", made)


@work_pool.command("ls", examples=("orch work-pool ls", "orch work-pool ls -o json"))
@shows(POOL, many=True)
def ls(out: Printer[WorkPool]) -> None:
    """List work pools."""
    with open_store() as store:
        out.many(store.pools.all())


@work_pool.command("inspect", examples=("orch work-pool inspect etl",))
@_pool_argument
@shows(held_view(POOL))
def inspect(out: Printer[Held[WorkPool]], name: str) -> None:
    """Show everything about a work pool, and who has the slots of its limit and who waits."""
    from orchestrator.store.limits import pool_gate

    with open_store() as store:
        out.one(held(store, store.pools.get(name), store.limits.get(pool_gate(name))))


@work_pool.command("pause", examples=("orch work-pool pause etl",))
@_pool_argument
@shows(POOL)
def pause(out: Printer[WorkPool], name: str) -> None:
    """Start no more runs of a work pool. Those that run go on."""
    with open_store() as store:
        store.pools.pause(name)
        out.done(f"Paused work pool '{name}'. Resume it with: orch work-pool resume {quote(name)}", store.pools.get(name))


@work_pool.command("resume", examples=("orch work-pool resume etl",))
@_pool_argument
@shows(POOL)
def resume(out: Printer[WorkPool], name: str) -> None:
    """Start runs of a paused work pool again, those that waited first."""
    with open_store() as store:
        store.pools.resume(name)
        out.done(f"Resumed work pool '{name}'.", store.pools.get(name))


@work_pool.command("set-concurrency-limit", examples=("orch work-pool set-concurrency-limit etl 5",))
@_pool_argument
@click.argument("limit", type=click.IntRange(min=0))
@shows(POOL)
def set_concurrency_limit(out: Printer[WorkPool], name: str, limit: int) -> None:
    """Let at most LIMIT runs of a work pool run at a time."""
    with open_store() as store:
        store.pools.set_concurrency_limit(name, limit)
        out.done(f"Work pool '{name}' now runs at most {limit} at a time.", store.pools.get(name))


@work_pool.command("clear-concurrency-limit", examples=("orch work-pool clear-concurrency-limit etl",))
@_pool_argument
@shows(POOL)
def clear_concurrency_limit(out: Printer[WorkPool], name: str) -> None:
    """Take a work pool's limit away."""
    with open_store() as store:
        store.pools.set_concurrency_limit(name, None)
        out.done(f"Work pool '{name}' has no limit now.", store.pools.get(name))


@work_pool.command("preview", examples=("orch work-pool preview etl", "orch work-pool preview etl --within 24h -o json"))
@_pool_argument
@click.option("--within", type=DURATION, default=timedelta(days=7), metavar="DURATION", help="Look this far ahead (7 days).")
@shows(RUN, many=True, limit=50)
def preview(out: Printer[Run], name: str, within: timedelta) -> None:
    """List the runs that a work pool will start next."""
    with open_store() as store:
        store.pools.get(name)
        runs = store.queries.upcoming(pool=name, until=store.now() + within, limit=out.limit + 1 if out.limit else EVERY)
    if runs or not out.is_for_people:
        out.many(runs)
    else:
        output.say(f"Work pool '{name}' has nothing to start within {output.duration_text(within)}.")


@work_pool.command("delete", examples=("orch work-pool delete etl", "orch work-pool delete etl --yes"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_pool)
@yes_option
@dry_run_option
@shows(POOL)
def delete(out: Printer[WorkPool], names: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Delete work pools that no worker polls and in which no run waits."""
    with open_store() as store:
        found = [store.pools.get(name) for name in names]
        if dry_run:
            out.many(found)
            output.say("Nothing was done: this would delete the work pools above.")
            return
        shown = ", ".join(f"'{name}'" for name in names)
        prompts.confirm(f"Delete work pool {shown}?", yes, count=len(found))
        for name in names:
            store.pools.delete(name)
    if out.is_for_people:
        output.say(f"Deleted work pool {shown}.")
    else:
        out.many(found)
