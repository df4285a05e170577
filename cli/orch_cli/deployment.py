"""``orch deployment`` and ``orch deployment schedule``."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from shlex import quote
from typing import TYPE_CHECKING

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun, Usage
from orch_cli.completion import complete_pool
from orch_cli.connection import open_store
from orch_cli.holding import Held, held, held_view
from orch_cli.options import DURATION, MOMENT, deployment_argument, dry_run_option, yes_option
from orch_cli.output import Printer, absolute, relative, shows
from orch_cli.views import DEPLOYMENT, RUN, SCHEDULE
from orch_cli.watch import explain_waiting, watch_run
from orchestrator import clock
from orchestrator.exceptions import ObjectNotFound, Refused
from orchestrator.keys import PRIORITIES, shorten
from orchestrator.models import Deployment, NewRun, Run, Schedule

if TYPE_CHECKING:
    from orchestrator.store import Store


@click.group("deployment", cls=Noun, examples=("orch deployment ls", "orch deployment run hello-flow/hello_flow --watch"))
def deployment() -> None:
    """Show, run, pause and delete deployments and their schedules.

    A deployment is named FLOW/NAME, or by its id. 'orch deploy' creates and updates them.
    """


@deployment.command("ls", examples=("orch deployment ls", "orch deployment ls --pool gpu -o wide"))
@click.option("--flow", metavar="NAME", help="Only deployments of this flow.")
@click.option("--pool", metavar="NAME", shell_complete=complete_pool, help="Only deployments to this work pool.")
@shows(DEPLOYMENT, many=True)
def ls(out: Printer[Deployment], flow: str | None, pool: str | None) -> None:
    """List deployments."""
    with open_store() as store:
        out.many(store.deployments.all(flow=flow, pool=pool))


@deployment.command("inspect", examples=("orch deployment inspect hello-flow/hello_flow",))
@deployment_argument()
@shows(held_view(DEPLOYMENT))
def inspect(out: Printer[Held[Deployment]], deployment: str) -> None:
    """Show everything about a deployment, and who has the slots of its limit and who waits."""
    from orchestrator.store.limits import deployment_gate

    with open_store() as store:
        found = store.deployments.get(deployment)
        out.one(held(store, found, store.limits.get(deployment_gate(shorten(found.id)))))


@deployment.command(
    "run",
    examples=(
        "orch deployment run hello-flow/hello_flow --watch",
        "orch deployment run etl/nightly -p region=eu -p days=3",
        """orch deployment run etl/nightly --params '{"region": "eu"}' --start-at 'tomorrow 9:00'""",
        "orch deployment run etl/nightly --start-in 2h --idempotency-key 2026-12-31 -o name",
    ),
)
@deployment_argument()
@click.option(
    "-p", "--param", "parameters", multiple=True, metavar="KEY=VALUE", help="A parameter; the value is JSON, or else text."
)
@click.option("--params", "document", metavar="JSON", help="Parameters as a JSON object; - reads it from stdin.")
@click.option("--start-in", type=DURATION, metavar="DURATION", help="Start after this time, such as 90s or 2h.")
@click.option(
    "--start-at", type=MOMENT, metavar="MOMENT", help="Start at this time: 18:00, 'tomorrow 9:00', 2026-12-31T18:00+09:00."
)
@click.option(
    "--expires-in", type=DURATION, metavar="DURATION", help="Cancel the run if it has not started this long after its time."
)
@click.option("--name", metavar="NAME", help="The run's name instead of a generated one.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag beside the deployment's. Can be given again.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True, help="Place in the queue.")
@click.option("--idempotency-key", metavar="KEY", help="The same key twice creates one run.")
@click.option("--watch", "watching", is_flag=True, help="Show the run's log until it ends, and end as it does.")
@click.option("--timeout", type=DURATION, metavar="DURATION", help="With --watch: give up after this time, with exit code 124.")
@shows(RUN)
def run(
    out: Printer[Run],
    deployment: str,
    parameters: tuple[str, ...],
    document: str | None,
    start_in: timedelta | None,
    start_at: datetime | None,
    expires_in: timedelta | None,
    name: str | None,
    tags: tuple[str, ...],
    priority: str,
    idempotency_key: str | None,
    watching: bool,
    timeout: timedelta | None,
) -> int:
    """Run a deployment, now or later.

    While its work pool or work queue is paused, or no worker polls it, the run waits, which a warning says.

    With --watch the exit code is 0 for Completed, 1 for Failed and Crashed, 7 for Cancelled, 124 when --timeout is over.
    """
    from orchestrator.deployments.parameters import parse_parameters
    from orchestrator.names import generate

    if start_in is not None and start_at is not None:
        raise Usage("--start-in and --start-at exclude each other.")
    if timeout is not None and not watching:
        raise Usage("--timeout needs --watch.")
    with open_store() as store:
        found = store.deployments.get(deployment)
        values = parse_parameters(found, parameters, _document(document))
        _require_pool(store, found)
        now = store.now()
        due = start_at or (now + start_in if start_in is not None else None)
        created = store.runs.create(
            [
                NewRun(
                    flow=found.flow,
                    name=name or generate(),
                    deployment=found.id,
                    pool=found.pool,
                    queue=found.queue,
                    priority=priority,
                    parameters=values,
                    tags=tuple(dict.fromkeys((*found.tags, *tags))),
                    due=due,
                    expires=(due or now) + expires_in if expires_in is not None else None,
                    idempotency_key=idempotency_key,
                    crash_budget=found.crash_budget,
                    created_by="command line",
                )
            ]
        )[0]
        made = store.runs.get(created.id)
        _tell(made, created.answer, found, out)
        if watching:
            return watch_run(store, made, timeout, out)
        explain_waiting(store, made)
        if out.is_for_people:
            output.say_hint(f"Watch it with: orch flow-run watch {quote(made.name)}")
        else:
            out.one(made)
    return 0


@deployment.command("pause", examples=("orch deployment pause etl/nightly",))
@deployment_argument()
@shows(DEPLOYMENT)
def pause(out: Printer[Deployment], deployment: str) -> None:
    """Stop all schedules of a deployment. Runs that they have planned and that have not started are deleted."""
    with open_store() as store:
        found = store.deployments.pause(deployment)
    out.done(f"Paused deployment '{found.slug}'. Resume it with: orch deployment resume {quote(found.slug)}", found)


@deployment.command("resume", examples=("orch deployment resume etl/nightly",))
@deployment_argument()
@shows(DEPLOYMENT)
def resume(out: Printer[Deployment], deployment: str) -> None:
    """Let the schedules of a paused deployment go on, from now."""
    with open_store() as store:
        found = store.deployments.resume(deployment)
    out.done(f"Resumed deployment '{found.slug}'.", found)


@deployment.command("delete", examples=("orch deployment delete etl/nightly", "orch deployment delete etl/nightly --yes"))
@click.argument("deployments", nargs=-1, required=True, metavar="DEPLOYMENT...")
@yes_option
@dry_run_option
@shows(DEPLOYMENT)
def delete(out: Printer[Deployment], deployments: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Delete deployments, their schedules and the runs that have not started."""
    with open_store() as store:
        found = [store.deployments.get(name) for name in deployments]
        if dry_run:
            out.many(found)
            output.say("Nothing was done: this would delete the deployments above.")
            return
        names = ", ".join(f"'{it.slug}'" for it in found)
        prompts.confirm(f"Delete deployment {names}?", yes, count=len(found))
        for it in found:
            store.deployments.delete(it.id)
        if out.is_for_people:
            output.say(f"Deleted deployment {names}.")
        else:
            out.many(found)


@deployment.group("schedule", examples=("orch deployment schedule ls hello-flow/hello_flow",))
def schedule() -> None:
    """Show, pause and resume the schedules of a deployment."""


@schedule.command("ls", examples=("orch deployment schedule ls", "orch deployment schedule ls hello-flow/hello_flow -o json"))
@click.argument("deployment", required=False)
@shows(SCHEDULE, many=True)
def schedule_ls(out: Printer[tuple[Deployment, Schedule]], deployment: str | None) -> None:
    """List the schedules of a deployment, or of all."""
    with open_store() as store:
        found = [store.deployments.get(deployment)] if deployment else store.deployments.all()
        out.many([(it, schedule) for it in found for schedule in it.schedules])


@schedule.command("pause", examples=("orch deployment schedule pause hello-flow/hello_flow tokyo-9am",))
@deployment_argument()
@click.argument("slug")
@shows(SCHEDULE)
def schedule_pause(out: Printer[tuple[Deployment, Schedule]], deployment: str, slug: str) -> None:
    """Stop one schedule. Runs that it has planned and that have not started are deleted."""
    with open_store() as store:
        found = store.deployments.get(deployment)
        schedule = store.deployments.pause_schedule(deployment, slug)
    out.done(f"Paused schedule '{slug}' of deployment '{found.slug}'.", (found, schedule))


@schedule.command("resume", examples=("orch deployment schedule resume hello-flow/hello_flow utc-noon",))
@deployment_argument()
@click.argument("slug")
@shows(SCHEDULE)
def schedule_resume(out: Printer[tuple[Deployment, Schedule]], deployment: str, slug: str) -> None:
    """Let a paused schedule go on, from now."""
    with open_store() as store:
        found = store.deployments.get(deployment)
        schedule = store.deployments.resume_schedule(deployment, slug)
    out.done(f"Resumed schedule '{slug}' of deployment '{found.slug}'.", (found, schedule))


def _document(text: str | None) -> str | None:
    return sys.stdin.read() if text == "-" else text


def _require_pool(store: Store, deployment: Deployment) -> None:
    """Refuse a run whose pool is gone: no worker could take it. One that is paused lets it wait."""
    if not store.pools.exists(deployment.pool):
        raise ObjectNotFound(
            f"Deployment '{deployment.slug}' runs in work pool '{deployment.pool}', which does not exist.",
            hint=f"Create it with: orch work-pool create {quote(deployment.pool)} --type process",
        )


def _tell(run: Run, answer: str, deployment: Deployment, out: Printer[Run]) -> None:
    if answer == "conflict":
        raise Refused(
            f"The idempotency key stands for flow run '{run.name}', which has other parameters.",
            hint=f"See it with: orch flow-run inspect {run.id}",
        )
    if not out.is_for_people:
        return
    if answer == "existing":
        output.say(f"Flow run '{run.name}' exists already for this idempotency key; it is {run.state.name}.")
        return
    later = run.due > clock.now() + timedelta(seconds=1)
    when = f"to start {relative(run.due)} ({absolute(run.due)})" if later else "to start now"
    output.say(f"Created flow run '{run.name}' of deployment '{deployment.slug}', {when}.")
