"""``orch flow-run``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from orch_cli import output
from orch_cli.commands import Noun, Usage
from orch_cli.connection import open_store
from orch_cli.options import DURATION, all_option, dry_run_option, run_filter_options, state_names, yes_option
from orch_cli.output import Printer, shows
from orch_cli.selection import act_on, counted, matching, named_or_matching
from orch_cli.views import EXPLANATION, LOG, RUN
from orch_cli.watch import TIMED_OUT, RunLog, TimeIsOver, follow, outcome, watch_run
from orchestrator.exceptions import Refused
from orchestrator.models import LogLine, Run, RunFilter
from orchestrator.states import State

if TYPE_CHECKING:
    from orchestrator.store.explain import Explanation

_timeout_option = click.option(
    "--timeout", type=DURATION, metavar="DURATION", help="Give up after this time, with exit code 124."
)


@click.group("flow-run", cls=Noun, examples=("orch flow-run ls", "orch flow-run logs -f brave-otter"))
def flow_run() -> None:
    """Show, watch, cancel, retry and delete flow runs.

    A run is named by its id, by the beginning of its id, or by its name where only one run has it.
    """


@flow_run.command("ls", examples=("orch flow-run ls --state late", "orch flow-run ls --flow etl --since 24h -o json"))
@shows(RUN, many=True, limit=50)
@run_filter_options
def ls(out: Printer[Run], chosen: RunFilter) -> None:
    """List flow runs, newest first."""
    with open_store() as store:
        out.many(*matching(store, chosen, out.limit))


@flow_run.command("inspect", examples=("orch flow-run inspect brave-otter", "orch flow-run inspect brave-otter -o json"))
@click.argument("run")
@shows(RUN)
def inspect(out: Printer[Run], run: str) -> None:
    """Show everything about a flow run, and why it is not running."""
    with open_store() as store:
        found = store.queries.find(run)
        out.one(found)
        if out.is_for_people and not found.is_terminal:
            explanation = store.explain(found)
            output.say(explanation.sentence)
            if explanation.hint:
                output.say_hint(explanation.hint)


@flow_run.command("explain", examples=("orch flow-run explain brave-otter", "orch flow-run explain brave-otter -o json"))
@click.argument("run")
@shows(EXPLANATION)
def explain(out: Printer[Explanation], run: str) -> None:
    """Say why a flow run is not running, and what would help.

    It waits for its time, a retry, a worker, a free slot, the runs before it, or a person; or it runs, or it has ended.
    """
    with open_store() as store:
        out.one(store.explain(store.queries.find(run)))


@flow_run.command("resume", examples=("orch flow-run resume brave-otter",))
@click.argument("run")
@shows(RUN)
def resume(out: Printer[Run], run: str) -> None:
    """Let a paused or suspended flow run go on."""
    with open_store() as store:
        found = store.queries.find(run)
        change = store.runs.resume(found.id)
        if change.answer != "ok":
            raise Refused(f"Flow run '{found.name}' is {change.state}, and only a paused one can be resumed.")
        out.done(f"Resumed flow run '{found.name}'.", store.runs.get(found.id))


@flow_run.command("logs", examples=("orch flow-run logs brave-otter", "orch flow-run logs -f brave-otter -o jsonl"))
@click.argument("run")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the run has ended.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@shows(LOG)
def logs(out: Printer[LogLine], run: str, following: bool, tail: int | None) -> None:
    """Print the log of a flow run."""
    if following and out.format in ("json", "yaml"):
        raise Usage("A log that is still written is no whole document.", hint="Use -o jsonl with --follow.")
    with open_store() as store:
        found = store.queries.find(run)
        lines: list[LogLine] = []
        while page := store.runs.read_log(found.id, after=lines[-1].id if lines else ""):
            lines += page
        shown = lines[len(lines) - min(tail, len(lines)) :] if tail is not None else lines
        log = RunLog(store, found.id)
        if out.is_for_people:
            for line in shown:
                log.write(line)
        else:
            out.many(shown)
        if not following:
            return
        for item in follow(store, found.id, None, after=lines[-1].id if lines else ""):
            if isinstance(item, State):
                continue
            if out.is_for_people:
                log.write(item)
            else:
                out.many([item])


@flow_run.command("watch", examples=("orch flow-run watch brave-otter", "orch flow-run watch brave-otter --timeout 10m"))
@click.argument("run")
@_timeout_option
@shows(RUN)
def watch(out: Printer[Run], run: str, timeout: timedelta | None) -> int:
    """Show a flow run's log and states until it ends, and end as it does.

    The exit code is 0 for Completed, 1 for Failed and Crashed, 7 for Cancelled.
    """
    with open_store() as store:
        return watch_run(store, store.queries.find(run), timeout, out)


@flow_run.command(
    "wait", examples=("orch flow-run wait brave-otter", "orch flow-run wait brave-otter --for completed --timeout 5m")
)
@click.argument("run")
@click.option("--for", "wanted", metavar="STATE", multiple=True, help="Wait for this state instead of any end.")
@_timeout_option
@shows(RUN)
def wait(out: Printer[Run], run: str, wanted: tuple[str, ...], timeout: timedelta | None) -> int:
    """Wait, silently, until a flow run ends or enters a state.

    Without --for the exit code is the run's outcome. With it, 0 once the run is in that state, 1 if it ended otherwise (7 if it
    was cancelled).
    """
    states = {name.upper() for name in state_names(wanted)}
    with open_store() as store:
        found = store.queries.find(run)
        reached = bool(states & {found.state.name.upper(), found.state.type.value})
        try:
            for item in () if reached else follow(store, found.id, timeout):
                if isinstance(item, State) and states & {item.name.upper(), item.type.value}:
                    reached = True
                    break
        except TimeIsOver:
            output.say(f"Flow run '{found.name}' has not got there in {output.duration_text(timeout or timedelta())}.")
            return TIMED_OUT
        found = store.runs.get(found.id)
    if out.is_for_people:
        output.say_state(found.name, found.state)
    else:
        out.one(found)
    if reached:
        return 0
    return (outcome(found.state) or 1) if states else outcome(found.state)


@flow_run.command(
    "cancel", examples=("orch flow-run cancel brave-otter", "orch flow-run cancel --deployment etl/nightly --state late -y")
)
@click.argument("runs", nargs=-1)
@all_option
@yes_option
@dry_run_option
@run_filter_options
@shows(RUN)
def cancel(out: Printer[Run], runs: tuple[str, ...], every: bool, yes: bool, dry_run: bool, chosen: RunFilter) -> int:
    """Cancel flow runs: those that run are asked to stop, then made to."""
    asked: set[str] = set()

    def done(runs: Sequence[Run]) -> Iterator[str]:
        ended, stopping = [run for run in runs if run.id not in asked], [run for run in runs if run.id in asked]
        if ended or not stopping:
            yield f"Cancelled {counted(ended)}."
        if stopping:
            watch = f"watch {stopping[0].id}" if len(stopping) == 1 else "ls --state cancelling"
            pronoun = "it" if len(stopping) == 1 else "them"
            yield f"Asked {counted(stopping)} to stop; watch {pronoun} with: orch flow-run {watch}"

    with open_store() as store:

        def act(run: Run) -> str | None:
            change = store.runs.cancel(run.id, "Cancelled from the command line")
            if change.state == "Cancelling":
                asked.add(run.id)
            return None if change.answer == "ok" else f"Flow run '{run.name}' is {change.state} and cannot be cancelled."

        found = [run for run in named_or_matching(store, runs, chosen, every) if runs or not run.is_terminal]
        return act_on(
            found,
            out,
            verb="cancel",
            done=done,
            act=act,
            yes=yes,
            dry_run=dry_run,
            can=lambda run: not run.is_terminal,
        )


@flow_run.command("retry", examples=("orch flow-run retry brave-otter", "orch flow-run retry brave-otter --watch"))
@click.argument("run")
@click.option("--watch", "watching", is_flag=True, help="Show its log until it ends, and end as it does.")
@_timeout_option
@shows(RUN)
def retry(out: Printer[Run], run: str, watching: bool, timeout: timedelta | None) -> int:
    """Run an ended flow run again, as a new attempt of the same run."""
    with open_store() as store:
        found = store.queries.find(run)
        change = store.runs.retry(found.id)
        if change.answer != "ok":
            raise Refused(
                f"Flow run '{found.name}' is {change.state or found.state.name}; only a run that has ended can be retried.",
                hint=f"Stop it first with: orch flow-run cancel {found.id}",
            )
        found = store.runs.get(found.id)
        if watching:
            return watch_run(store, found, timeout, out)
    out.done(f"Flow run '{found.name}' will run again. Watch it with: orch flow-run watch {found.id}", found)
    return 0


@flow_run.command("delete", examples=("orch flow-run delete brave-otter", "orch flow-run delete --state failed --dry-run"))
@click.argument("runs", nargs=-1)
@all_option
@yes_option
@dry_run_option
@run_filter_options
@shows(RUN)
def delete(out: Printer[Run], runs: tuple[str, ...], every: bool, yes: bool, dry_run: bool, chosen: RunFilter) -> int:
    """Delete flow runs with their logs and task runs."""
    with open_store() as store:

        def act(run: Run) -> str | None:
            if store.runs.delete([run.id]) == ["refused"]:
                return f"Flow run '{run.name}' is {run.state.name}: a worker has it. Cancel it first."
            return None

        found = named_or_matching(store, runs, chosen, every)
        return act_on(found, out, verb="delete", done="Deleted", act=act, yes=yes, dry_run=dry_run)
