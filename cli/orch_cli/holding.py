"""Who holds the slots of a limit, and who waits for one: what ``inspect`` shows of everything that can have a limit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar

from orch_cli.output import Column, Lines, View, plain, plural, relative
from orchestrator.models import Call, Gate, Run, Slot
from orchestrator.models import Waiter as Waiting

if TYPE_CHECKING:
    from orchestrator.store import Store

T = TypeVar("T")

_WHAT = {"run": "run", "code": "code", "task": "task run"}


@dataclass(frozen=True)
class Holder:
    """Who has slots: a run (``what`` = run), its code or a task run of it. ``call`` numbers the latter two within the run.

    ``expires``: its lease, unless renewed; ``reserved``: the run was woken, and a worker will claim it.
    """

    run: str
    name: str
    what: str
    call: int
    slots: int
    since: datetime
    expires: datetime | None
    reserved: bool


@dataclass(frozen=True)
class Waiter:
    """Who waits for slots, since when. Who has the higher priority goes on first; of equals, who was due first."""

    run: str
    name: str
    what: str
    call: int
    slots: int
    since: datetime
    priority: str


@dataclass(frozen=True)
class Held(Generic[T]):
    """A thing, its limit, who holds slots, the oldest first, and who waits, in the order in which they will go on.

    Of each, the first hundred.
    """

    thing: T
    gate: Gate
    holders: list[Holder]
    waiters: list[Waiter]


def held(store: Store, thing: T, gate: Gate) -> Held[T]:
    """Read who holds and who waits. ``gate`` was read with its waiters."""
    slots = store.limits.slots(gate.name)
    ids = list(dict.fromkeys([*(slot.run for slot in slots), *(waiter.run for waiter in gate.waiters)]))
    runs = {run.id: run for run in store.runs.get_many(ids) if run is not None} if ids else {}
    holders = [_holder(slot, runs.get(slot.run)) for slot in slots]
    waiters = [_waiter(waiter, runs[waiter.run]) for waiter in gate.waiters if waiter.run in runs]
    return Held(thing, gate, holders, [waiter for waiter in waiters if waiter is not None])


def _holder(slot: Slot, run: Run | None) -> Holder:
    name = run.name if run else ""
    return Holder(slot.run, name, slot.kind, slot.call, slot.occupy, slot.since, slot.expires, slot.is_reserved)


def _waiter(waiter: Waiting, run: Run) -> Waiter | None:
    if not waiter.call:
        return Waiter(run.id, run.name, "run", 0, 1, run.state.timestamp, run.priority)
    call = next((call for call in run.calls if call.number == waiter.call), None)
    return _waiting_call(run, call) if call else None  # none: it went on, or gave up, between two looks


def _waiting_call(run: Run, call: Call) -> Waiter:
    return Waiter(run.id, run.name, call.kind, call.number, call.slots, call.since, run.priority)


def held_view(view: View[T]) -> View[Held[T]]:
    """The view of a thing, with holders and waiters in its sheet and its JSON."""

    def of_thing(column: Column[T]) -> Column[Held[T]]:
        return Column(column.title, lambda found: column.of(found.thing), wide=column.wide, fold=column.fold)

    return View(
        name=lambda found: view.name(found.thing),
        columns=tuple(map(of_thing, view.columns)),
        sheet=(*map(of_thing, view.sheet), Column("Holders", _holder_lines), Column("Waiters", _waiter_lines)),
        json=lambda found: {**view.json(found.thing), "holders": plain(found.holders), "waiters": plain(found.waiters)},
    )


def _holder_lines(found: Held[T]) -> Lines | None:
    lines: list[tuple[object, ...]] = [
        (holder.run, holder.name, _what(holder), holder.since, _until(holder)) for holder in found.holders
    ]
    left = 0 if found.gate.decay else found.gate.used - sum(holder.slots for holder in found.holders)
    return _lines(lines, plural(left, "slot") if left > 0 else "")


def _waiter_lines(found: Held[T]) -> Lines | None:
    lines: list[tuple[object, ...]] = [(waiter.run, waiter.name, _what(waiter), waiter.since) for waiter in found.waiters]
    left = found.gate.waiting - len(found.waiters)
    return _lines(lines, str(left) if left > 0 else "")


def _what(one: Holder | Waiter) -> str:
    return f"{_WHAT[one.what]}, {one.slots} slots" if one.slots > 1 else _WHAT[one.what]


def _until(holder: Holder) -> str:
    if holder.expires is None:
        return "its lease is gone"
    return f"{'reserved until' if holder.reserved else 'lease ends'} {relative(holder.expires)}"


def _lines(lines: list[tuple[object, ...]], left: str) -> Lines | None:
    all_lines = (*lines, (f"and {left} more",)) if left else tuple(lines)
    return Lines(all_lines) if all_lines else None
