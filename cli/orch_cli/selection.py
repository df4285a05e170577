"""Choosing the runs that a command acts on: by name, or by filter, with the questions that the number of them asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orch_cli import output, prompts
from orch_cli.commands import Usage
from orch_cli.output import Printer
from orchestrator.exceptions import OrchError, Refused
from orchestrator.models import Run, RunFilter

if TYPE_CHECKING:
    from orchestrator.store import Store

_PAGE = 500


def matching(store: Store, chosen: RunFilter, limit: int) -> tuple[list[Run], bool]:
    """The newest ``limit`` runs (0 = all) that match, and whether there are more."""
    chosen = with_ids(store, chosen)
    runs: list[Run] = []
    cursor = None
    while True:
        page = store.queries.runs(chosen, limit=min(_PAGE, limit - len(runs)) if limit else _PAGE, cursor=cursor)
        runs += page.runs
        cursor = page.cursor
        if cursor is None or (limit and len(runs) >= limit):
            return runs, cursor is not None


def with_ids(store: Store, chosen: RunFilter) -> RunFilter:
    """The filter with the deployment's id where a person typed its name."""
    if chosen.deployment is None:
        return chosen
    return replace(chosen, deployment=store.deployments.get(chosen.deployment).id)


def named_or_matching(store: Store, names: Sequence[str], chosen: RunFilter, every: bool) -> list[Run]:
    """The runs that were named, or else those that match the filter; all runs only if ``every`` says so."""
    if names and (chosen != RunFilter() or every):
        raise Usage("Runs were named and a filter was given.", hint="Give names or a filter, not both.")
    if names:
        return [store.queries.find(name) for name in names]
    if chosen == RunFilter() and not every:
        raise Usage(
            "No run was named.", hint="Name one (orch flow-run ls shows them), give a filter such as --state late, or --all."
        )
    return matching(store, chosen, limit=0)[0]


def act_on(
    runs: Sequence[Run],
    out: Printer[Run],
    *,
    verb: str,
    done: str | Callable[[Sequence[Run]], Iterable[str]],
    act: Callable[[Run], str | None],
    yes: bool,
    dry_run: bool,
    can: Callable[[Run], bool] = lambda run: True,
) -> int:
    """Do something to each run after asking; answers the exit code.

    ``act`` answers None, or why it was refused. A single refused run is an error of its own; of many, the others go on.
    ``done`` is the verb for what was done, or makes the sentences. Runs of which ``can`` says that ``act`` will refuse them are
    not asked about.
    """
    if dry_run:
        out.many(runs)
        output.say(f"Nothing was done: this would {verb} {counted(runs)}.")
        return 0
    if not runs:
        output.say("No run matches.")
        return 0
    possible = [run for run in runs if can(run)]
    prompts.confirm(f"{verb.capitalize()} {counted(possible)}?", yes or not possible, count=len(possible))
    refused: list[str] = []
    changed: list[Run] = []
    for run in runs:
        try:
            problem = act(run)
        except OrchError as error:
            if len(runs) == 1:
                raise
            problem = str(error)
        if problem is None:
            changed.append(run)
        else:
            refused.append(problem)
    if len(runs) == 1 and refused:
        raise Refused(refused[0], hint=f"See its state with: orch flow-run inspect {runs[0].id}")
    for problem in refused:
        output.warn(problem)
    if out.is_for_people:
        for sentence in [f"{done} {counted(changed)}."] if isinstance(done, str) else done(changed):
            output.say(output.clean(sentence))
    else:
        out.many(changed)
    return 5 if refused else 0


def counted(runs: Sequence[Run]) -> str:
    """``flow run 'x'``, ``2 flow runs``, ``no run``."""
    if not runs:
        return "no run"
    return f"flow run '{runs[0].name}'" if len(runs) == 1 else output.plural(len(runs), "flow run")
