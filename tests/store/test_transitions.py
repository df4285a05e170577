"""Every pair of states on a real server: what the table allows, some operation does; what it does not, none does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from floor import Floor, named
from orchestrator.states import STATE_TYPES, TERMINAL, TRANSITIONS

STATES = tuple(STATE_TYPES)
ENDS = tuple(name for name, kind in STATE_TYPES.items() if kind in TERMINAL)
LEASED = ("Pending", "Running", "Cancelling")

Act = Callable[[Floor, str], object]


def late(floor: Floor) -> str:
    run = floor.submit()
    floor.wait(16)
    assert floor.store.runs.mark_late() == 1
    return run


def awaiting_retry(floor: Floor) -> str:
    run = floor.running()
    assert floor.finish(run, "AwaitingRetry", retry_in=timedelta(minutes=1)) == "ok"
    return run


def awaiting_slot(floor: Floor) -> str:
    floor.store.limits.set("tag:full", 0)
    run = floor.submit(tags=("full",))
    assert floor.claim() == []
    return run


def cancelling(floor: Floor) -> str:
    run = floor.running()
    assert floor.store.runs.cancel(run) == ("ok", "Cancelling")
    return run


def waiting_for_a_person(suspend: bool) -> Callable[[Floor], str]:
    def drive(floor: Floor) -> str:
        run = floor.running()
        assert floor.store.runs.pause(run, 1, suspend=suspend, worker="w").answer == "ok"
        return run

    return drive


def ended(state: str) -> Callable[[Floor], str]:
    return lambda floor: floor.ended(state)


DRIVES: dict[str, Callable[[Floor], str]] = {
    "Scheduled": lambda floor: floor.submit(),
    "Late": late,
    "AwaitingRetry": awaiting_retry,
    "AwaitingConcurrencySlot": awaiting_slot,
    "Pending": lambda floor: floor.pending(),
    "Running": lambda floor: floor.running(),
    "Cancelling": cancelling,
    "Paused": waiting_for_a_person(suspend=False),
    "Suspended": waiting_for_a_person(suspend=True),
    **{state: ended(state) for state in ENDS},
}
"""How a run gets into each state, by operations alone."""


def claim(start: bool) -> Act:
    return lambda floor, run: floor.claim(start=start)


def finish(state: str) -> Act:
    return lambda floor, run: floor.finish(run, state)


awaits_retry = finish("AwaitingRetry")


def decide(state: str) -> Act:
    """An operator's decision."""
    return lambda floor, run: floor.store.runs.set_state(run, named(state))


def report(state: str) -> Act:
    """What the worker that holds the run says."""
    return lambda floor, run: floor.store.runs.set_state(run, named(state), attempt=floor.get(run).attempt, worker="w")


def pause(suspend: bool) -> Act:
    return lambda floor, run: floor.store.runs.pause(run, floor.get(run).attempt, suspend=suspend, worker="w")


def cancel(floor: Floor, run: str) -> None:
    floor.store.runs.cancel(run)


def retry(floor: Floor, run: str) -> None:
    floor.store.runs.retry(run)


def resume(floor: Floor, run: str) -> None:
    floor.store.runs.resume(run)


def hand_back(floor: Floor, run: str) -> None:
    floor.store.runs.hand_back(run, floor.get(run).attempt, worker="w")


def mark_late(floor: Floor, run: str) -> None:
    floor.wait(16)
    floor.store.runs.mark_late()


def release(floor: Floor, run: str) -> None:
    floor.wait(61)
    floor.store.runs.release_due()


def full_gate(floor: Floor, run: str) -> None:
    floor.store.limits.set("pool:p", 0)
    floor.claim()
    floor.store.limits.set("pool:p", None)


def wake(floor: Floor, run: str) -> None:
    floor.store.limits.set("tag:full", None)


PERFORMERS: dict[tuple[str, str], Act] = {
    ("Scheduled", "Scheduled"): decide("Scheduled"),
    ("Scheduled", "Late"): mark_late,
    ("Scheduled", "Pending"): claim(start=False),
    ("Scheduled", "Running"): claim(start=True),
    ("Late", "Scheduled"): decide("Scheduled"),
    ("Late", "Pending"): claim(start=False),
    ("Late", "Running"): claim(start=True),
    ("AwaitingRetry", "Scheduled"): release,
    ("AwaitingConcurrencySlot", "Scheduled"): wake,
    ("Pending", "Running"): report("Running"),
    ("Pending", "Scheduled"): hand_back,
    ("Pending", "AwaitingRetry"): awaits_retry,
    ("Pending", "Cancelling"): cancel,
    ("Running", "Running"): report("Running"),
    ("Running", "Scheduled"): hand_back,
    ("Running", "AwaitingRetry"): awaits_retry,
    ("Running", "Cancelling"): cancel,
    ("Running", "Paused"): pause(suspend=False),
    ("Running", "Suspended"): pause(suspend=True),
    ("Paused", "Scheduled"): resume,
    ("Suspended", "Scheduled"): resume,
    **{(state, "AwaitingConcurrencySlot"): full_gate for state in ("Scheduled", "Late")},
    **{(state, end): finish(end) for state in LEASED for end in ENDS},
    **{(state, end): decide(end) for state in STATES if state not in (*LEASED, *ENDS) for end in ENDS if end != "Cancelled"},
    **{(state, "Cancelled"): cancel for state in STATES if state not in (*LEASED, *ENDS)},
    **{(end, "Scheduled"): retry for end in ENDS},
}
"""For each pair that the table allows, an operation that performs it."""

ENTRANCES: dict[str, tuple[Act, ...]] = {
    "Scheduled": (decide("Scheduled"), report("Scheduled"), resume, retry, hand_back),
    "Late": (decide("Late"), report("Late")),
    "AwaitingRetry": (decide("AwaitingRetry"), report("AwaitingRetry"), awaits_retry),
    "AwaitingConcurrencySlot": (decide("AwaitingConcurrencySlot"), report("AwaitingConcurrencySlot"), full_gate),
    "Pending": (decide("Pending"), report("Pending"), claim(start=False)),
    "Running": (decide("Running"), report("Running"), claim(start=True)),
    "Cancelling": (decide("Cancelling"), report("Cancelling")),
    "Paused": (decide("Paused"), report("Paused"), pause(suspend=False)),
    "Suspended": (decide("Suspended"), report("Suspended"), pause(suspend=True)),
    **{end: (decide(end), report(end), finish(end)) for end in ENDS if end != "Cancelled"},
    "Cancelled": (decide("Cancelled"), report("Cancelled"), finish("Cancelled"), cancel),
}
"""For each state, every operation by which somebody may ask for it, the one that ends an attempt in any case last."""


def test_every_pair_that_the_table_allows_has_an_operation_and_no_other_pair_has_one() -> None:
    allowed = {(before, after) for before, following in TRANSITIONS.items() for after in following}
    assert set(PERFORMERS) == allowed
    assert set(TRANSITIONS) == set(STATES) == set(DRIVES) == set(ENTRANCES)


@pytest.mark.parametrize("before", STATES)
def test_a_run_gets_into_each_state_by_operations(floor: Floor, before: str) -> None:
    assert floor.get(DRIVES[before](floor)).state.name == before


@pytest.mark.parametrize(("before", "after"), [(b, a) for b in STATES for a in STATES if a in TRANSITIONS[b]])
def test_an_allowed_transition_is_performed(floor: Floor, before: str, after: str) -> None:
    run = DRIVES[before](floor)
    entries = len(floor.get(run).history)
    PERFORMERS[before, after](floor, run)
    entered = floor.get(run).history[entries:]
    assert [entry.name for entry in entered][:1] == [after]


@pytest.mark.parametrize(("before", "after"), [(b, a) for b in STATES for a in STATES if a not in TRANSITIONS[b]])
def test_a_transition_that_is_not_allowed_leaves_the_run_as_it_was(floor: Floor, before: str, after: str) -> None:
    run = DRIVES[before](floor)
    seen = floor.get(run)
    for enter in ENTRANCES[after]:
        enter(floor, run)
        found = floor.get(run)
        if before == "Cancelling" and enter in (hand_back, awaits_retry):
            # The attempt is over all the same; but a run that is being cancelled does not go on.
            assert [entry.name for entry in found.history[len(seen.history) :]] == ["Cancelled"]
        else:
            assert found == seen
