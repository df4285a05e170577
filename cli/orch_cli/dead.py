"""``orch dead``: runs in quarantine, whose process was lost as often as their crash budget allows; and dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun, Usage
from orch_cli.connection import open_store
from orch_cli.options import EVERY, all_option, dry_run_option, stateless_filter_options, yes_option
from orch_cli.output import Column, Printer, View, plural, shows
from orch_cli.selection import act_on, matching, named_or_matching
from orch_cli.views import RUN, deployment_slug
from orchestrator.exceptions import ObjectNotFound
from orchestrator.models import DeadLetter, Run, RunFilter

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

LETTER: View[DeadLetter] = View(
    name=lambda letter: letter.id,
    empty="There are no dead letters. What stands in the place of a run or its message, and cannot be read, becomes one.",
    columns=(
        Column("ID", lambda letter: letter.id),
        Column("When", lambda letter: letter.at),
        Column("Reason", lambda letter: letter.reason, fold=True),
        Column("Run", lambda letter: letter.run),
        Column("Stream", lambda letter: letter.stream, wide=True),
        Column("Message", lambda letter: letter.message, wide=True),
        Column("Content", lambda letter: letter.content, wide=True, fold=True),
    ),
)


@click.group("dead", cls=Noun, examples=("orch dead ls", "orch dead redrive brave-otter"))
def dead() -> None:
    """Show, redrive and drop flow runs whose crash budget is spent.

    The process of such a run was lost again and again: killed, out of memory, gone with its machine. Nothing starts it again
    until someone redrives it. For what could not even be read as a run see: orch dead letter --help
    """


@dead.command("ls", examples=("orch dead ls", "orch dead ls --deployment etl/nightly --since 24h -o json"))
@shows(DEAD, many=True, limit=50)
@stateless_filter_options
def ls(out: Printer[Run], chosen: RunFilter) -> None:
    """List flow runs in quarantine, newest first: why, and how many starts were lost."""
    with open_store() as store:
        out.many(*_quarantined(store, chosen, out.limit))
        letters = store.letters.count()
    if letters and out.is_for_people:
        output.say_hint(f"There {'is' if letters == 1 else 'are'} also {plural(letters, 'dead letter')}: orch dead letter ls")


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


# --- dead letters ----------------------------------------------------------------------------------------------------------


@dead.group("letter", examples=("orch dead letter ls", "orch dead letter drop --all"))
def letter() -> None:
    """Show and drop dead letters: runs and messages that could not be read.

    A program that writes into the namespace, a release that is too new or a broken disk leaves such things. They are set aside
    with a reason, and nothing else is held up. The newest 10,000 are kept.
    """


@letter.command("ls", examples=("orch dead letter ls", "orch dead letter ls -o wide"))
@shows(LETTER, many=True, limit=50)
def ls_letters(out: Printer[DeadLetter]) -> None:
    """List dead letters, newest first: why, and of which run, if that is known."""
    with open_store() as store:
        out.many(store.letters.latest(out.limit + 1 if out.limit else EVERY))


@letter.command("inspect", examples=("orch dead letter inspect 1800000000000-0",))
@click.argument("letter_id", metavar="ID")
@shows(LETTER)
def inspect_letter(out: Printer[DeadLetter], letter_id: str) -> None:
    """Show everything about a dead letter, and the beginning of what stood there."""
    with open_store() as store:
        [found] = _letters(store, [letter_id])
    out.one(found)


@letter.command("drop", examples=("orch dead letter drop 1800000000000-0", "orch dead letter drop --all --yes"))
@click.argument("letters", nargs=-1, metavar="ID...")
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@yes_option
@dry_run_option
@shows(LETTER)
def drop_letters(out: Printer[DeadLetter], letters: tuple[str, ...], every: bool, yes: bool, dry_run: bool) -> None:
    """Delete dead letters, and what is left of the runs that they are about."""
    if bool(letters) == every:
        raise Usage("Name dead letters or give --all, one of the two.", hint="List them with: orch dead letter ls")
    with open_store() as store:
        found = store.letters.latest(EVERY) if every else _letters(store, letters)
        if dry_run:
            out.many(found)
            output.say(f"Nothing was done: this would drop {plural(len(found), 'dead letter')}.")
            return
        prompts.confirm(f"Drop {plural(len(found), 'dead letter')}?", yes or not found, count=len(found))
        dropped = store.letters.drop([letter.id for letter in found])
    if out.is_for_people:
        output.say(f"Dropped {plural(dropped, 'dead letter')}.")
    else:
        out.many(found)


def _letters(store: Store, ids: Sequence[str]) -> list[DeadLetter]:
    """The letters of these ids. Raises ObjectNotFound."""
    known = {letter.id: letter for letter in store.letters.latest(EVERY)}
    unknown = [one for one in ids if one not in known]
    if unknown:
        raise ObjectNotFound(f"There is no dead letter {unknown[0]!r}.", hint="List them with: orch dead letter ls")
    return [known[one] for one in ids]
