"""``orch work-queue``."""

from __future__ import annotations

from shlex import quote

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun
from orch_cli.completion import complete_pool
from orch_cli.connection import open_store
from orch_cli.holding import Held, held, held_view
from orch_cli.options import dry_run_option, pool_option, yes_option
from orch_cli.output import Printer, shows
from orch_cli.views import QUEUE
from orchestrator.models import WorkQueue

_pool_option = pool_option(required=True)


@click.group(
    "work-queue", cls=Noun, examples=("orch work-queue ls --pool etl", "orch work-queue create urgent --pool etl --priority 1")
)
def work_queue() -> None:
    """Create, show, pause, limit and delete the queues of a work pool.

    Workers start the runs of a queue with a lower priority number first.
    """


@work_queue.command("create", examples=("orch work-queue create urgent --pool etl --priority 1 --concurrency-limit 2",))
@click.argument("name")
@_pool_option
@click.option("--priority", type=click.IntRange(min=1), metavar="N", help="1 is read first; by default the queue comes last.")
@click.option("--description", metavar="TEXT", default="", help="What the queue is for.")
@click.option("--concurrency-limit", type=click.IntRange(min=0), metavar="N", help="At most N runs at a time.")
@shows(QUEUE)
def create(
    out: Printer[WorkQueue], name: str, pool: str, priority: int | None, description: str, concurrency_limit: int | None
) -> None:
    """Create a work queue."""
    with open_store() as store:
        made = store.pools.create_queue(
            pool, name, priority=priority, concurrency_limit=concurrency_limit, description=description
        )
    out.done(f"Created work queue '{name}' in work pool '{pool}'.", made)


@work_queue.command("ls", examples=("orch work-queue ls", "orch work-queue ls --pool etl -o json"))
@click.option("-p", "--pool", metavar="NAME", shell_complete=complete_pool, help="Only queues of this work pool.")
@shows(QUEUE, many=True)
def ls(out: Printer[WorkQueue], pool: str | None) -> None:
    """List work queues."""
    with open_store() as store:
        names = [pool] if pool else [it.name for it in store.pools.all()]
        out.many([queue for name in names for queue in store.pools.queues(name)])


@work_queue.command("inspect", examples=("orch work-queue inspect urgent --pool etl",))
@click.argument("name")
@_pool_option
@shows(held_view(QUEUE))
def inspect(out: Printer[Held[WorkQueue]], name: str, pool: str) -> None:
    """Show everything about a work queue, and who has the slots of its limit and who waits."""
    from orchestrator.store.limits import queue_gate

    with open_store() as store:
        out.one(held(store, store.pools.get_queue(pool, name), store.limits.get(queue_gate(pool, name))))


@work_queue.command("pause", examples=("orch work-queue pause urgent --pool etl",))
@click.argument("name")
@_pool_option
@shows(QUEUE)
def pause(out: Printer[WorkQueue], name: str, pool: str) -> None:
    """Start no more runs of a work queue. Those that run go on."""
    with open_store() as store:
        store.pools.pause_queue(pool, name)
        out.done(
            f"Paused work queue '{name}'. Resume it with: orch work-queue resume {quote(name)} --pool {quote(pool)}",
            store.pools.get_queue(pool, name),
        )


@work_queue.command("resume", examples=("orch work-queue resume urgent --pool etl",))
@click.argument("name")
@_pool_option
@shows(QUEUE)
def resume(out: Printer[WorkQueue], name: str, pool: str) -> None:
    """Start runs of a paused work queue again, those that waited first."""
    with open_store() as store:
        store.pools.resume_queue(pool, name)
        out.done(f"Resumed work queue '{name}'.", store.pools.get_queue(pool, name))


@work_queue.command("set-concurrency-limit", examples=("orch work-queue set-concurrency-limit urgent 2 --pool etl",))
@click.argument("name")
@click.argument("limit", type=click.IntRange(min=0))
@_pool_option
@shows(QUEUE)
def set_concurrency_limit(out: Printer[WorkQueue], name: str, limit: int, pool: str) -> None:
    """Let at most LIMIT runs of a work queue run at a time."""
    with open_store() as store:
        store.pools.set_queue_limit(pool, name, limit)
        out.done(f"Work queue '{name}' now runs at most {limit} at a time.", store.pools.get_queue(pool, name))


@work_queue.command("clear-concurrency-limit", examples=("orch work-queue clear-concurrency-limit urgent --pool etl",))
@click.argument("name")
@_pool_option
@shows(QUEUE)
def clear_concurrency_limit(out: Printer[WorkQueue], name: str, pool: str) -> None:
    """Take a work queue's limit away."""
    with open_store() as store:
        store.pools.set_queue_limit(pool, name, None)
        out.done(f"Work queue '{name}' has no limit now.", store.pools.get_queue(pool, name))


@work_queue.command("delete", examples=("orch work-queue delete urgent --pool etl",))
@click.argument("name")
@_pool_option
@yes_option
@dry_run_option
@shows(QUEUE)
def delete(out: Printer[WorkQueue], name: str, pool: str, yes: bool, dry_run: bool) -> None:
    """Delete a work queue."""
    with open_store() as store:
        queue = store.pools.get_queue(pool, name)
        if dry_run:
            out.one(queue)
            output.say("Nothing was done: this would delete the work queue above.")
            return
        prompts.confirm(f"Delete work queue '{name}' of work pool '{pool}'?", yes)
        store.pools.delete_queue(pool, name)
    out.done(f"Deleted work queue '{name}'.", queue)
