"""``orch dead``: runs in quarantine. Their process was lost as often as their crash budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from orch_cli.commands import Noun, Usage
from orch_cli.connection import open_store
from orch_cli.options import all_option, dry_run_option, stateless_filter_options, yes_option
from orch_cli.output import Column, Printer, View, shows
from orch_cli.selection import act_on, matching, named_or_matching
from orch_cli.views import RUN, deployment_slug
from orchestrator.models import Run, RunFilter

if TYPE_CHECKING:
    from orchestrator.store import Store

DEAD: View[Run] = View(
    name=RUN.name,
    empty="No flow run is in quarantine. One goes there when its process was lost as often as its crash budget allows.",
    columns=(
        Column("Name", lambda run: run.name, fold=True),
        Column("Flow", lambda run: run.flow, fold=True),
        Column("Starts lost", lambda run: run.crash_count),
        Column("Reason", lambda run: run.state.message, fold=True),
        Column("Ended", lambda run: run.ended),
        Column("Deployment", deployment_slug, wide=True, fold=True),
        Column("Pool", lambda run: run.pool, wide=True, fold=True),
        Column("Last worker", lambda run: run.worker, wide=True, fold=True),
        Column("Tags", lambda run: run.tags, wide=True),
        Column("ID", lambda run: run.id, wide=True),
    ),
)


@click.group("dead", cls=Noun, examples=("orch dead ls", "orch dead redrive brave-otter"))
def dead() -> None:
    """Show, redrive and drop flow runs whose crash budget is spent.

    The process of such a run was lost again and again: killed, out of memory, gone with its machine. Nothing starts it again
    until someone redrives it.
    """


@dead.command("ls", examples=("orch dead ls", "orch dead ls --deployment etl/nightly --since 24h -o json"))
@shows(DEAD, many=True, limit=50)
@stateless_filter_options
def ls(out: Printer[Run], chosen: RunFilter) -> None:
    """List flow runs in quarantine, newest first: why, and how many starts were lost."""
    with open_store() as store:
        out.many(*_quarantined(store, chosen, out.limit))


@dead.command("redrive", examples=("orch dead redrive brave-otter", "orch dead redrive --flow etl --since 24h --dry-run"))
@click.argument("runs", nargs=-1)
@all_option
@yes_option
@dry_run_option
@stateless_filter_options
@shows(DEAD)
def redrive(out: Printer[Run], runs: tuple[str, ...], every: bool, yes: bool, dry_run: bool, chosen: RunFilter) -> int:
    """Run flow runs in quarantine again, each with a fresh crash budget.

    Make sure first that what killed them is mended.
    """
    with open_store() as store:

        def act(run: Run) -> str | None:
            if not run.is_quarantined:
                return _not_quarantined(run, f"orch flow-run retry {run.id}")
            change = store.runs.retry(run.id, "Redriven from the command line.")
            return None if change.answer == "ok" else f"Flow run '{run.name}' is {change.state or 'gone'} by now."

        found = _chosen(store, runs, chosen, every)
        return act_on(found, out, verb="redrive", done="Redrove", act=act, yes=yes, dry_run=dry_run)


@dead.command("drop", examples=("orch dead drop brave-otter", "orch dead drop --all --dry-run"))
@click.argument("runs", nargs=-1)
@all_option
@yes_option
@dry_run_option
@stateless_filter_options
@shows(DEAD)
def drop(out: Printer[Run], runs: tuple[str, ...], every: bool, yes: bool, dry_run: bool, chosen: RunFilter) -> int:
    """Delete flow runs in quarantine, with their logs and task runs."""
    with open_store() as store:

        def act(run: Run) -> str | None:
            if not run.is_quarantined:
                return _not_quarantined(run, f"orch flow-run delete {run.id}")
            refused = store.runs.delete([run.id]) == ["refused"]
            return f"Flow run '{run.name}' runs again by now." if refused else None

        found = _chosen(store, runs, chosen, every)
        return act_on(found, out, verb="drop", done="Dropped", act=act, yes=yes, dry_run=dry_run)


def _chosen(store: Store, names: Sequence[str], chosen: RunFilter, every: bool) -> list[Run]:
    if names:
        return named_or_matching(store, names, chosen, every)
    if chosen == RunFilter() and not every:
        raise Usage(
            "No run was named.", hint="Name one (orch dead ls shows them), give a filter such as --flow NAME, or --all."
        )
    return _quarantined(store, chosen, limit=0)[0]


def _quarantined(store: Store, chosen: RunFilter, limit: int) -> tuple[list[Run], bool]:
    """The newest ``limit`` runs in quarantine (0 = all), and whether there are more."""
    return matching(store, replace(chosen, quarantined=True), limit)


def _not_quarantined(run: Run, instead: str) -> str:
    return f"Flow run '{run.name}' is {run.state.name}, not in quarantine. If that is meant: {instead}"
