"""Slots that running code asks for: global limits, rate limits, and the tags of task runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from floor import Floor, missing_run
from orchestrator.exceptions import InvalidName
from orchestrator.keys import new_id
from orchestrator.models import NewRun, Waiter
from orchestrator.store.answers import Acquire, Acquired
from orchestrator.store.pools import Control


def ask(floor: Floor, run: str, call: int, *names: str, **more: Any) -> Acquired:
    return floor.store.limits.acquire(Acquire(run, floor.get(run).attempt, "w", call, names, **more))


def release(floor: Floor, run: str, call: int) -> int:
    return floor.store.limits.release([(run, floor.get(run).attempt, call)], worker="w")


def told(floor: Floor, worker: str = "w") -> list[tuple[str, str, int]]:
    """What a worker was told so far."""
    controls: list[Control] = floor.store.pools.wait_for_control(worker, "0", timedelta(milliseconds=1))
    return [(control.what, control.run, control.call) for control in controls]


def used(floor: Floor, name: str) -> int:
    gate = floor.store.limits.get_global(name)
    assert gate is not None
    return gate.used


def test_a_free_slot_is_granted_and_given_back(floor: Floor) -> None:
    floor.store.limits.create_global("db", 2)
    run = floor.running()
    assert ask(floor, run, 1, "db") == Acquired("granted")
    assert used(floor, "db") == 1
    assert release(floor, run, 1) == 1
    assert used(floor, "db") == 0
    assert floor.get(run).calls == ()


def test_the_same_call_again_is_answered_as_it_stands(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    first, second = floor.running(), floor.running()
    assert [ask(floor, first, 1, "db").answer for _ in range(3)] == ["granted"] * 3
    assert [ask(floor, second, 1, "db").answer for _ in range(3)] == ["waiting"] * 3
    assert used(floor, "db") == 1
    assert floor.store.limits.global_limits(10)[0].waiters == [Waiter(second, 1)]


def test_a_waiting_call_is_granted_when_the_slot_is_given_back_and_its_worker_is_told(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    first, second = floor.running(), floor.running()
    ask(floor, first, 1, "db")
    assert ask(floor, second, 7, "db") == Acquired("waiting", "global limit 'db' (1/1 used)")
    assert told(floor) == []
    release(floor, first, 1)
    assert told(floor) == [("granted", second, 7)]
    [call] = floor.get(second).calls
    assert (call.number, call.kind, call.slots, call.waits) == (7, "code", 1, None)
    assert ask(floor, second, 7, "db").answer == "granted"


@pytest.mark.parametrize("end", ["finish", "lapse", "hand_back", "cancel_and_die", "death"])
def test_however_an_attempt_ends_its_code_holds_nothing_and_waits_for_nothing(floor: Floor, end: str) -> None:
    floor.store.limits.create_global("db", 1)
    floor.store.limits.create_global("api", 1)
    run, other = floor.running(), floor.running()
    ask(floor, other, 1, "api")
    ask(floor, run, 1, "db")
    assert ask(floor, run, 2, "api").answer == "waiting"
    if end == "finish":
        floor.finish(run)
    elif end == "lapse":
        floor.wait(10)
        floor.store.runs.renew([(other, 1)], worker="w")
        floor.wait(6)
        floor.store.runs.lapse()
    elif end == "hand_back":
        floor.store.runs.hand_back(run, 1, worker="w")
    elif end == "cancel_and_die":
        floor.store.runs.cancel(run)
        floor.store.runs.report_death(run, 1, "SIGKILL", worker="w")
    else:
        floor.store.runs.report_death(run, 1, "SIGKILL", worker="w")
    assert used(floor, "db") == 0
    gate = floor.store.limits.get_global("api")
    assert gate is not None
    assert (gate.used, gate.waiting) == (1, 0)
    assert floor.get(run).calls == ()


def test_an_attempt_that_is_over_gets_nothing(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    run = floor.running()
    floor.finish(run)
    assert ask(floor, run, 1, "db").answer == "superseded"
    assert floor.store.limits.acquire(Acquire(missing_run(), 1, "w", 1, ["db"])).answer == "superseded"
    assert floor.store.limits.release([(run, 1, 1), (missing_run(), 1, 1)], worker="w") == 0


def test_several_limits_are_taken_all_or_none(floor: Floor) -> None:
    for name in ("a", "b"):
        floor.store.limits.create_global(name, 1)
    first, second, third = floor.running(), floor.running(), floor.running()
    ask(floor, first, 1, "b")
    assert ask(floor, second, 1, "a", "b").answer == "waiting"
    assert used(floor, "a") == 0
    assert ask(floor, third, 1, "a").answer == "granted"
    release(floor, first, 1)
    assert told(floor) == []
    release(floor, third, 1)
    assert told(floor) == [("granted", second, 1)]
    assert (used(floor, "a"), used(floor, "b")) == (1, 1)


def test_a_call_for_many_slots_is_not_overtaken_by_later_ones_for_few(floor: Floor) -> None:
    floor.store.limits.create_global("gpu", 4)
    small, big, late = floor.running(), floor.running(), floor.running()
    ask(floor, small, 1, "gpu", occupy=2)
    assert ask(floor, big, 1, "gpu", occupy=3).answer == "waiting"
    assert ask(floor, late, 1, "gpu").answer == "waiting"
    release(floor, small, 1)
    assert told(floor) == [("granted", big, 1), ("granted", late, 1)]
    assert used(floor, "gpu") == 4


def test_who_waits_no_longer_lets_the_next_ones_through(floor: Floor) -> None:
    floor.store.limits.create_global("gpu", 4)
    small, big, late = floor.running(), floor.running(), floor.running()
    ask(floor, small, 1, "gpu", occupy=2)
    ask(floor, big, 1, "gpu", occupy=3)
    ask(floor, late, 1, "gpu")
    release(floor, big, 1)
    assert told(floor) == [("granted", late, 1)]


def test_calls_wait_by_priority_and_then_in_the_order_of_asking(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    holder, normal, high = floor.running(), floor.running(), floor.running(priority="high")
    ask(floor, holder, 1, "db")
    for number in (1, 2, 10):
        ask(floor, normal, number, "db")
    ask(floor, high, 1, "db")
    gate = floor.store.limits.get_global("db")
    assert gate is not None
    assert gate.waiters == [Waiter(high, 1), *(Waiter(normal, number) for number in (1, 2, 10))]


def test_more_slots_than_there_are_can_never_be_had(floor: Floor) -> None:
    floor.store.limits.create_global("db", 2)
    run = floor.running()
    assert ask(floor, run, 1, "db", occupy=3) == Acquired("impossible", "global limit 'db' has 2 in all")
    floor.store.limits.update_global("db", limit=5000)
    assert ask(floor, run, 1, "db", occupy=1001).answer == "impossible"
    assert ask(floor, run, 1, "db", occupy=1000).answer == "granted"


def test_a_call_for_more_than_a_lowered_limit_has_is_refused_and_lets_those_behind_it_through(floor: Floor) -> None:
    """It waited for ever, and everybody behind it did so too."""
    floor.store.limits.create_global("db", 3)
    holder, big, late = floor.running(), floor.running(), floor.running()
    ask(floor, holder, 1, "db")
    ask(floor, big, 1, "db", occupy=3)
    ask(floor, late, 1, "db")
    floor.store.limits.update_global("db", limit=2)
    assert ask(floor, big, 1, "db", occupy=3) == Acquired("impossible", "global limit 'db' has 2 in all")
    floor.store.runs.wake()
    assert told(floor) == [("granted", late, 1)]
    assert floor.get(big).calls == ()


def test_a_limit_of_none_holds_everybody_until_it_is_raised(floor: Floor) -> None:
    floor.store.limits.create_global("db", 0)
    run = floor.running()
    assert ask(floor, run, 1, "db", occupy=3).answer == "waiting"
    floor.store.limits.update_global("db", limit=3)
    assert told(floor) == [("granted", run, 1)]


def test_a_name_without_a_limit_lets_through_unless_asked_strictly(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    run = floor.running()
    assert ask(floor, run, 1, "db", "nowhere") == Acquired("granted", "nowhere")
    assert ask(floor, run, 2, "db", "nowhere", strict=True) == Acquired("missing", "nowhere")
    assert used(floor, "db") == 1


def test_a_disabled_limit_holds_nobody_back_and_knows_its_holders_when_enabled(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    first, second, third = floor.running(), floor.running(), floor.running()
    ask(floor, first, 1, "db")
    ask(floor, second, 1, "db")
    floor.store.limits.update_global("db", active=False)
    assert told(floor) == [("granted", second, 1)]
    assert ask(floor, third, 1, "db").answer == "granted"
    floor.store.limits.update_global("db", active=True)
    assert used(floor, "db") == 3
    late = floor.running()
    assert ask(floor, late, 1, "db").answer == "waiting"
    for run in (first, second):
        release(floor, run, 1)
    assert told(floor)[1:] == []
    release(floor, third, 1)
    assert told(floor)[1:] == [("granted", late, 1)]


def test_a_renamed_limit_keeps_its_holders_and_waiters(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    first, second = floor.running(), floor.running()
    ask(floor, first, 1, "db")
    ask(floor, second, 1, "db")
    assert floor.store.limits.update_global("db", new_name="base") == "ok"
    assert floor.store.limits.get_global("db") is None
    gate = floor.store.limits.get_global("base")
    assert gate is not None
    assert (gate.title, gate.used, gate.waiters) == ("base", 1, [Waiter(second, 1)])
    assert ask(floor, first, 2, "db", strict=True).answer == "missing"
    release(floor, first, 1)
    assert told(floor) == [("granted", second, 1)]


def test_a_limit_takes_no_name_that_another_has(floor: Floor) -> None:
    limits = floor.store.limits
    assert limits.create_global("a", 1)
    assert not limits.create_global("a", 2)
    assert limits.create_global("b", 1)
    assert limits.update_global("a", new_name="b") == "exists"
    assert limits.update_global("c", limit=1) == "missing"
    assert [gate.title for gate in limits.global_limits()] == ["a", "b"]
    with pytest.raises(InvalidName):
        limits.create_global("a:b", 1)


def test_the_waiters_of_a_deleted_limit_go_on(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    first, second = floor.running(), floor.running()
    ask(floor, first, 1, "db")
    ask(floor, second, 1, "db")
    assert floor.store.limits.delete_global("db")
    assert not floor.store.limits.delete_global("db")
    assert told(floor) == [("granted", second, 1)]
    assert release(floor, first, 1) == 1
    assert floor.store.limits.create_global("db", 1)
    assert used(floor, "db") == 0


def test_a_lowered_limit_lets_its_holders_end_and_nobody_else_in(floor: Floor) -> None:
    floor.store.limits.create_global("db", 3)
    runs = [floor.running() for _ in range(3)]
    for run in runs:
        ask(floor, run, 1, "db")
    floor.store.limits.update_global("db", limit=1)
    late = floor.running()
    ask(floor, late, 1, "db")
    for run in runs[:2]:
        release(floor, run, 1)
    assert told(floor) == []
    release(floor, runs[2], 1)
    assert told(floor) == [("granted", late, 1)]


# --- rate limits ---


def test_the_slots_of_a_rate_limit_come_back_by_time_alone(floor: Floor) -> None:
    floor.store.limits.create_global("api", 2, decay=2.0)
    run = floor.running()
    assert [ask(floor, run, number, "api", rate=True).answer for number in (1, 2, 3)] == ["granted", "granted", "waiting"]
    for number in (1, 2):
        release(floor, run, number)
    gate = floor.store.limits.get_global("api")
    assert gate is not None
    assert (gate.used, gate.decay, gate.next_free) == (2, 2.0, floor.after(0.5))
    floor.wait(0.499)
    floor.store.runs.wake()
    assert told(floor) == []
    floor.wait(0.001)
    assert floor.store.runs.release_due().next_due is None
    assert told(floor) == [("granted", run, 3)]
    floor.wait(10)
    assert used(floor, "api") == 0


def test_the_end_of_a_run_gives_back_nothing_of_a_rate_limit(floor: Floor) -> None:
    floor.store.limits.create_global("api", 1, decay=1.0)
    run = floor.running()
    ask(floor, run, 1, "api", rate=True)
    floor.finish(run)
    late = floor.running()
    assert ask(floor, late, 1, "api", rate=True).answer == "waiting"


def test_whoever_waits_for_time_is_told_when_to_wake_where_no_scheduler_lives(floor: Floor) -> None:
    floor.store.limits.create_global("api", 1, decay=4.0)
    run = floor.running()
    ask(floor, run, 1, "api", rate=True)
    answer = ask(floor, run, 2, "api", rate=True)
    assert answer.answer == "waiting"
    assert answer.retry_ms is not None
    floor.wait(answer.retry_ms / 1000)
    floor.store.runs.wake()
    assert told(floor) == [("granted", run, 2)]
    floor.store.pools.scheduler_heartbeat("s")
    assert ask(floor, run, 3, "api", rate=True).retry_ms is None


def test_a_scheduler_learns_when_time_makes_room(floor: Floor) -> None:
    floor.store.limits.create_global("api", 1, decay=1.0)
    run = floor.running()
    ask(floor, run, 1, "api", rate=True)
    assert floor.store.runs.release_due().next_due is None
    waited_from = floor.now()
    ask(floor, run, 2, "api", rate=True)
    assert floor.store.client.xlen(floor.store.keys.signals) > 0
    due = floor.store.runs.release_due().next_due
    assert due is not None
    assert timedelta(0) < due - waited_from <= timedelta(seconds=1)


def test_a_burst_is_spread_over_time_at_the_pace_of_the_limit(floor: Floor) -> None:
    floor.store.limits.create_global("api", 5, decay=10.0)
    run = floor.running()
    answers = [ask(floor, run, number, "api", rate=True).answer for number in range(1, 26)]
    assert answers == ["granted"] * 5 + ["waiting"] * 20
    granted = []
    for _ in range(30):
        floor.wait(0.1)
        floor.store.runs.release_due()
        granted.append(len(told(floor)))
    assert granted == [min(20, 1 + i) for i in range(30)]


def test_only_a_limit_with_decay_can_limit_a_rate(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    assert ask(floor, floor.running(), 1, "db", rate=True) == Acquired("no_decay", "db")


def test_a_faster_rate_lets_those_who_wait_go_sooner(floor: Floor) -> None:
    floor.store.limits.create_global("api", 1, decay=0.1)
    run = floor.running()
    ask(floor, run, 1, "api", rate=True)
    ask(floor, run, 2, "api", rate=True)
    floor.store.limits.update_global("api", decay=1.0)
    floor.wait(1)
    floor.store.runs.release_due()
    assert told(floor) == [("granted", run, 2)]
    floor.store.limits.update_global("api", decay=0.0)
    assert used(floor, "api") == 0


def test_a_reset_rate_limit_has_all_its_slots_again(floor: Floor) -> None:
    floor.store.limits.create_global("api", 2, decay=0.01)
    run = floor.running()
    for number in (1, 2, 3):
        ask(floor, run, number, "api", rate=True)
    gate = floor.store.limits.get_global("api")
    assert gate is not None
    assert floor.store.limits.reset(gate.name) == 2
    assert told(floor) == [("granted", run, 3)]


def test_a_reset_frees_only_what_nobody_alive_holds(floor: Floor) -> None:
    floor.store.limits.create_global("db", 2)
    run, late = floor.running(), floor.running()
    ask(floor, run, 1, "db")
    gate = floor.store.limits.get_global("db")
    assert gate is not None
    floor.store.client.zadd(floor.store.keys.slots(gate.name), {"gone:1:1:0": 1})
    ask(floor, late, 1, "db")
    assert floor.store.limits.reset(gate.name) == 1
    assert told(floor) == [("granted", late, 1)]
    assert floor.store.limits.reset(gate.name) == 0


# --- tags ---


def test_task_runs_share_the_slots_of_a_tag_with_flow_runs(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    caller = floor.running()
    assert ask(floor, caller, 1, "a", "b", of="tag") == Acquired("granted", "b")
    tagged = floor.submit(tags=("a",))
    assert floor.claim() == []
    other = floor.running()
    assert ask(floor, other, 1, "a", of="tag").detail == "tag 'a' (1/1 used)"
    release(floor, caller, 1)
    assert [run.id for run in floor.claim()] == [tagged]
    floor.finish(tagged)
    assert told(floor) == [("granted", other, 1)]
    [slot] = floor.store.limits.slots("tag:a")
    assert (slot.run, slot.kind, slot.call, slot.occupy) == (other, "task", 1, 1)


def test_a_task_run_takes_no_slot_of_a_tag_whose_slot_its_flow_run_has(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    run = floor.running(tags=("a",))
    assert ask(floor, run, 1, "a", of="tag").answer == "granted"
    child = new_id()
    floor.store.runs.create_leased(NewRun("sub", id=child, parent=run), "w")
    assert ask(floor, child, 1, "a", of="tag").answer == "granted"
    assert floor.store.limits.get("tag:a").used == 1


def test_a_slot_of_many_is_shown_once_with_its_number(floor: Floor) -> None:
    floor.store.limits.create_global("gpu", 4)
    run = floor.running()
    ask(floor, run, 1, "gpu", occupy=3)
    gate = floor.store.limits.get_global("gpu")
    assert gate is not None
    [slot] = floor.store.limits.slots(gate.name)
    assert (slot.run, slot.kind, slot.call, slot.occupy, slot.since) == (run, "code", 1, 3, floor.now())
    assert slot.expires == floor.after(15)


# --- mending ---


def test_lost_slots_and_places_of_code_are_mended(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    first, second = floor.running(), floor.running()
    ask(floor, first, 1, "db")
    ask(floor, second, 1, "db")
    gate = floor.store.limits.get_global("db")
    assert gate is not None
    floor.store.client.delete(floor.store.keys.slots(gate.name), floor.store.keys.parked(gate.name))
    floor.store.client.zadd(floor.store.keys.parked(gate.name), {"gone:1:1": 1})
    mended = dict(floor.store.runs.reconcile_all())
    assert mended["a waiter that did not wait"] == f"parked:{gate.name}"
    floor.store.runs.wake()
    assert told(floor) == []
    release(floor, first, 1)
    assert told(floor) == [("granted", second, 1)]


# --- newer runs first ---


def deployed(floor: Floor, limit: int) -> dict[str, Any]:
    from orchestrator.keys import shorten

    deployment = new_id()
    floor.store.limits.set(f"deployment:{shorten(deployment)}", limit, strategy="CANCEL_RUNNING")
    return {"deployment": deployment}


def test_a_newer_run_cancels_the_oldest_that_executes(floor: Floor) -> None:
    of = deployed(floor, 2)
    first, second = floor.running(**of), floor.running(**of)
    third = floor.submit(**of)
    assert floor.place(first) == ("leased", "Cancelling")
    assert floor.place(second) == ("leased", "Running")
    assert told(floor) == [("cancel", first, 0)]
    assert floor.claim() == []
    assert floor.place(third) == ("parked", "AwaitingConcurrencySlot")
    floor.store.runs.report_death(first, 1, "SIGTERM", worker="w")
    assert [run.id for run in floor.claim()] == [third]
    assert floor.place(first) == ("ended", "Cancelled")


def test_of_several_newer_runs_the_newest_goes_on(floor: Floor) -> None:
    of = deployed(floor, 1)
    first = floor.running(**of)
    second, third = floor.submit(**of), floor.submit(**of)
    floor.claim()
    assert floor.place(first) == ("leased", "Cancelling")
    assert floor.place(second) == ("ended", "Cancelled")
    floor.finish(first, "Cancelled")
    assert [run.id for run in floor.claim()] == [third]


def test_a_run_that_becomes_due_cancels_an_older_one_too(floor: Floor) -> None:
    of = deployed(floor, 1)
    first = floor.running(**of)
    floor.submit(due=floor.after(60), **of)
    assert floor.place(first) == ("leased", "Running")
    floor.wait(10)
    floor.store.runs.renew([(first, 1)], worker="w")
    floor.wait(51)
    floor.store.runs.release_due()
    assert floor.place(first) == ("leased", "Cancelling")


def test_an_older_run_that_comes_late_does_not_cancel_a_newer_one(floor: Floor) -> None:
    of = deployed(floor, 1)
    older = floor.submit(**of)
    newer = floor.submit(priority="high", **of)
    assert [run.id for run in floor.claim(1)] == [newer]
    floor.claim()
    assert floor.place(newer) == ("leased", "Pending")
    assert floor.place(older) == ("parked", "AwaitingConcurrencySlot")


def test_a_run_that_was_woken_and_not_claimed_makes_way_at_once(floor: Floor) -> None:
    of = deployed(floor, 1)
    first, second = floor.running(**of), floor.submit(**of)
    floor.claim()
    floor.finish(first, "Cancelled")
    assert floor.place(second) == ("queued", "Scheduled")
    third = floor.submit(**of)
    assert floor.place(second) == ("ended", "Cancelled")
    assert [run.id for run in floor.claim()] == [third]
