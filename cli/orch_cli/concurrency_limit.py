"""``orch concurrency-limit``: how many runs with one tag may execute at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from shlex import quote
from typing import TYPE_CHECKING

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun
from orch_cli.completion import complete_limited_tag
from orch_cli.connection import open_store
from orch_cli.options import dry_run_option, yes_option
from orch_cli.output import Column, Lines, Printer, View, Word, plain, relative, shows
from orchestrator.exceptions import ObjectAlreadyExists, ObjectNotFound
from orchestrator.models import Gate, Run, Slot

if TYPE_CHECKING:
    from orchestrator.store import Store


@dataclass(frozen=True)
class Holder:
    """A run that has a slot. ``expires``: its lease, unless renewed; ``reserved``: it was woken, and a worker will claim it."""

    run: str
    name: str
    since: datetime
    expires: datetime | None
    reserved: bool


@dataclass(frozen=True)
class Waiter:
    """A run that waits for a slot."""

    run: str
    name: str
    due: datetime


@dataclass(frozen=True)
class Inspected:
    """A limit, who holds its slots, and who waits, in the order in which they will go on. Of each, the first hundred."""

    limit: Gate
    holders: list[Holder]
    waiters: list[Waiter]


def _tag(limit: Gate) -> str:
    return limit.name.removeprefix("tag:")


def _limit_json(limit: Gate) -> dict[str, object]:
    return {
        "tag": _tag(limit),
        "limit": limit.limit,
        "active": limit.active,
        "used": limit.used,
        "waiting": limit.waiting,
    }


LIMIT: View[Gate] = View(
    name=_tag,
    empty="No tag has a concurrency limit. Let at most 5 runs with a tag run at a time: orch concurrency-limit create TAG 5",
    columns=(
        Column("Tag", _tag, fold=True),
        Column("Used", lambda limit: limit.used),
        Column("Limit", lambda limit: limit.limit),
        Column("Waiting", lambda limit: limit.waiting),
        Column("Status", lambda limit: _status(limit)),
    ),
    json=_limit_json,
)


def _of_its_limit(column: Column[Gate]) -> Column[Inspected]:
    return Column(column.title, lambda found: column.of(found.limit), fold=column.fold)


INSPECTED: View[Inspected] = View(
    name=lambda found: _tag(found.limit),
    columns=tuple(map(_of_its_limit, LIMIT.columns)),
    sheet=(
        Column("Holders", lambda found: _holder_lines(found)),
        Column("Waiters", lambda found: _waiter_lines(found)),
    ),
    json=lambda found: {**_limit_json(found.limit), "holders": plain(found.holders), "waiters": plain(found.waiters)},
)


def _status(limit: Gate) -> Word:
    return Word("Active", "green") if limit.active else Word("Disabled", "magenta")


def _holder_lines(found: Inspected) -> Lines:
    def lease(holder: Holder) -> str:
        if holder.expires is None:
            return "its lease is gone"
        return f"{'reserved until' if holder.reserved else 'lease ends'} {relative(holder.expires)}"

    return _lines([(holder.run, holder.name, holder.since, lease(holder)) for holder in found.holders], found.limit.used)


def _waiter_lines(found: Inspected) -> Lines:
    return _lines([(waiter.run, waiter.name, waiter.due) for waiter in found.waiters], found.limit.waiting)


def _lines(lines: list[tuple[object, ...]], count: int) -> Lines:
    left = count - len(lines)
    return Lines((*lines, (f"and {left} more",)) if left > 0 else tuple(lines))


_tag_argument = click.argument("tag", shell_complete=complete_limited_tag)
_limit_argument = click.argument("limit", type=click.IntRange(min=0))


@click.group(
    "concurrency-limit",
    cls=Noun,
    examples=("orch concurrency-limit create database 5", "orch concurrency-limit inspect database"),
)
def concurrency_limit() -> None:
    """Let at most so many flow runs with a tag run at a time.

    A run takes a slot of the limit of each of its tags, or waits until it can have them all.
    """


@concurrency_limit.command("create", examples=("orch concurrency-limit create database 5",))
@click.argument("tag")
@_limit_argument
@shows(LIMIT)
def create(out: Printer[Gate], tag: str, limit: int) -> None:
    """Let at most LIMIT flow runs with TAG run at a time; 0 lets none."""
    from orchestrator.store.limits import tag_gate

    with open_store() as store:
        if not store.limits.create(tag_gate(tag), limit):
            raise ObjectAlreadyExists(
                f"Tag '{tag}' has a concurrency limit already.",
                hint=f"Change it with: orch concurrency-limit update {quote(tag)} {limit}",
            )
        out.done(f"Flow runs with tag '{tag}' now run at most {limit} at a time.", _found(store, tag))


@concurrency_limit.command("ls", examples=("orch concurrency-limit ls", "orch concurrency-limit ls -o json"))
@shows(LIMIT, many=True)
def ls(out: Printer[Gate]) -> None:
    """List the limits of tags: slots in use, the limit, and runs that wait."""
    from orchestrator.store.limits import tag_gate

    with open_store() as store:
        out.many(store.limits.get_many([tag_gate(tag) for tag in store.limits.tags()]))


@concurrency_limit.command(
    "inspect", examples=("orch concurrency-limit inspect database", "orch concurrency-limit inspect database -o json")
)
@_tag_argument
@shows(INSPECTED)
def inspect(out: Printer[Inspected], tag: str) -> None:
    """Show who holds the slots of a tag's limit, since when, and who waits for one, in order."""
    with open_store() as store:
        limit = _found(store, tag)
        slots = store.limits.slots(limit.name)
        runs = store.runs.get_many([*(slot.run for slot in slots), *limit.waiters])
    names = {run.id: run for run in runs if run is not None}
    holders = [_holder(slot, names.get(slot.run)) for slot in slots]
    waiters = [Waiter(run, names[run].name, names[run].due) for run in limit.waiters if run in names]
    out.one(Inspected(limit, holders, waiters))


def _holder(slot: Slot, run: Run | None) -> Holder:
    return Holder(slot.run, run.name if run else "", slot.since, slot.expires, slot.is_reserved)


@concurrency_limit.command("update", examples=("orch concurrency-limit update database 8",))
@_tag_argument
@_limit_argument
@shows(LIMIT)
def update(out: Printer[Gate], tag: str, limit: int) -> None:
    """Change the limit of a tag.

    Above the old limit, waiting runs go on at once. Below the number of runs that execute, these end in peace, and no
    other starts until enough of them have.
    """
    with open_store() as store:
        _change(tag, lambda gate: store.limits.update(gate, limit))
        changed = _found(store, tag)
        out.done(f"Flow runs with tag '{tag}' now run at most {limit} at a time.{_while_disabled(changed)}", changed)


@concurrency_limit.command("disable", examples=("orch concurrency-limit disable database",))
@_tag_argument
@shows(LIMIT)
def disable(out: Printer[Gate], tag: str) -> None:
    """Let all runs with a tag through, and remember the limit. Those that wait go on."""
    with open_store() as store:
        _change(tag, store.limits.disable)
        out.done(
            f"The limit of tag '{tag}' holds nobody back now. Enable it with: orch concurrency-limit enable {quote(tag)}",
            _found(store, tag),
        )


@concurrency_limit.command("enable", examples=("orch concurrency-limit enable database",))
@_tag_argument
@shows(LIMIT)
def enable(out: Printer[Gate], tag: str) -> None:
    """Hold to a disabled limit again. Runs that execute by now are counted."""
    with open_store() as store:
        _change(tag, store.limits.enable)
        enabled = _found(store, tag)
        out.done(f"The limit of tag '{tag}' is in force: {enabled.used} of {enabled.limit} slots are in use.", enabled)


@concurrency_limit.command(
    "delete", examples=("orch concurrency-limit delete database", "orch concurrency-limit delete database --yes")
)
@_tag_argument
@yes_option
@dry_run_option
@shows(LIMIT)
def delete(out: Printer[Gate], tag: str, yes: bool, dry_run: bool) -> None:
    """Delete the limit of a tag. Runs that wait for it go on."""
    with open_store() as store:
        limit = _found(store, tag)
        if dry_run:
            out.one(limit)
            output.say("Nothing was done: this would delete the limit above.")
            return
        prompts.confirm(f"Delete the limit of tag '{tag}' and let {output.plural(limit.waiting, 'waiting run')} go on?", yes)
        _change(tag, lambda gate: store.limits.update(gate, None))
    out.done(f"Deleted the limit of tag '{tag}'.", limit)


def _change(tag: str, change: Callable[[str], bool]) -> None:
    """Make a change that needs a limit. Raises ObjectNotFound where the tag has none."""
    from orchestrator.store.limits import tag_gate

    if not change(tag_gate(tag)):
        raise _no_limit(tag)


def _found(store: Store, tag: str) -> Gate:
    """The limit of a tag. Raises ObjectNotFound."""
    from orchestrator.store.limits import tag_gate

    found = store.limits.get(tag_gate(tag))
    if found.limit is None:
        raise _no_limit(tag)
    return found


def _no_limit(tag: str) -> ObjectNotFound:
    return ObjectNotFound(
        f"Tag '{tag}' has no concurrency limit.",
        hint=f"List limits with: orch concurrency-limit ls, or create one with: orch concurrency-limit create {quote(tag)} 5",
    )


def _while_disabled(limit: Gate) -> str:
    return "" if limit.active else f" The limit is disabled; enable it with: orch concurrency-limit enable {quote(_tag(limit))}"
