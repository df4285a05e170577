"""Limits and pauses: who waits, in which order they go on, and that no slot leaks and no waiter is forgotten."""

from __future__ import annotations

from datetime import timedelta

import pytest

from floor import Floor, named
from orchestrator.exceptions import InvalidName
from orchestrator.keys import new_id, shorten
from orchestrator.models import Deployment, NewRun, Slot, Waiter
from orchestrator.store.answers import Released
from orchestrator.store.limits import deployment_gate, tag_gate


def holders(floor: Floor, gate: str) -> list[str]:
    return floor.store.limits.get(gate).holders


def test_a_run_behind_two_gates_gives_way_to_one_that_fits(floor: Floor) -> None:
    """r1 holds A, r2 holds B, r3 needs both, r4 needs A: when r1 ends, r4 runs."""
    floor.store.limits.set("tag:a", 1)
    floor.store.limits.set("tag:b", 1)
    r1, _ = floor.running(tags=("a",)), floor.running(tags=("b",))
    r3, r4 = floor.submit(tags=("a", "b")), floor.submit(tags=("a",))
    assert floor.claim() == []
    assert floor.store.limits.get("tag:a").waiters == [Waiter(r3), Waiter(r4)]
    floor.finish(r1)
    assert floor.get(r3).gate == "tag:b"
    assert [claimed.id for claimed in floor.claim()] == [r4]


def test_a_waiter_that_moves_to_another_gate_keeps_its_place_in_line(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    floor.store.limits.set("tag:b", 1)
    r1, r2 = floor.running(tags=("a",)), floor.running(tags=("b",))
    moved = floor.submit(tags=("a", "b"))
    floor.wait(1)
    behind = floor.submit(tags=("b",))
    floor.claim()
    floor.finish(r1)
    assert floor.store.limits.get("tag:b").waiters == [Waiter(moved), Waiter(behind)]
    floor.finish(r2)
    assert [claimed.id for claimed in floor.claim()] == [moved]


def test_waiters_go_on_by_priority_then_due_time(floor: Floor) -> None:
    floor.store.pools.set_concurrency_limit("p", 0)
    runs = {}
    for priority in ("low", "normal", "high"):
        for when in ("first", "second"):
            runs[priority, when] = floor.submit(priority=priority)
            floor.wait(1)
    floor.claim()
    order = [runs[priority, when] for priority in ("high", "normal", "low") for when in ("first", "second")]
    floor.store.pools.set_concurrency_limit("p", 1)
    for expected in order:
        assert [claimed.id for claimed in floor.claim()] == [expected]
        floor.finish(expected)


def test_a_slot_is_reserved_for_the_waiter_it_was_given_to(floor: Floor) -> None:
    floor.store.pools.set_concurrency_limit("p", 1)
    first, waiting = floor.running(), floor.submit()
    floor.claim()
    floor.finish(first)
    floor.submit(priority="high")
    assert holders(floor, "pool:p") == [waiting]
    assert [claimed.id for claimed in floor.claim(10)] == [waiting]


def test_a_reservation_that_nobody_uses_is_given_to_the_next(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    first = floor.running(tags=("a",))
    slow, quick = floor.submit(tags=("a",)), floor.submit(tags=("a",), priority="low")
    floor.claim()
    floor.finish(first)
    floor.wait(4)
    assert floor.store.runs.wake() == 0
    floor.wait(1)
    assert floor.store.runs.wake() == 1
    assert holders(floor, "tag:a") == [quick]
    assert floor.place(slow) == ("queued", "Scheduled")
    assert [claimed.id for claimed in floor.claim()] == [quick]
    assert floor.get(slow).gate == "tag:a"


@pytest.mark.parametrize("act", ["cancel", "delete", "set_state", "expire"])
def test_a_reserved_slot_is_free_when_its_run_is_not_run(floor: Floor, act: str) -> None:
    floor.store.limits.set("tag:a", 1)
    first = floor.running(tags=("a",))
    reserved = floor.submit(tags=("a",), expires=floor.after(3))
    waiting = floor.submit(tags=("a",), priority="low")
    floor.claim()
    floor.finish(first)
    assert holders(floor, "tag:a") == [reserved]
    if act == "cancel":
        floor.store.runs.cancel(reserved)
    elif act == "delete":
        floor.store.runs.delete([reserved])
    elif act == "set_state":
        floor.store.runs.set_state(reserved, named("Scheduled"), due=floor.after(60))
    else:
        floor.wait(3)
        assert floor.store.runs.expire() == 1
    assert holders(floor, "tag:a") == [waiting]


def test_a_reservation_does_not_pass_a_pause(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    first, reserved = floor.running(tags=("a",)), floor.submit(tags=("a",))
    floor.claim()
    floor.finish(first)
    floor.store.pools.pause("p")
    assert floor.claim() == []
    assert floor.get(reserved).gate == "pool:p"
    assert holders(floor, "tag:a") == []


@pytest.mark.parametrize("leave", ["finish", "cancel", "lapse", "hand_back", "pause", "set_state", "delete_waiter"])
def test_whoever_makes_room_wakes_who_waits_for_it(floor: Floor, leave: str) -> None:
    floor.store.limits.set("tag:a", 1)
    run, waiting = floor.running(tags=("a",)), floor.submit(tags=("a",))
    if leave == "delete_waiter":
        other = floor.submit(tags=("a",), priority="high")
    floor.claim()
    match leave:
        case "finish":
            floor.finish(run)
        case "cancel":
            floor.store.runs.cancel(run)
            assert floor.place(waiting)[0] == "parked", "a run that is being cancelled still holds its slot"
            floor.finish(run, "Cancelled")
        case "lapse":
            floor.store.runs.report_death(run, 1, "gone", worker="w")
        case "hand_back":
            floor.store.runs.hand_back(run, 1, worker="w")
        case "pause":
            floor.store.runs.pause(run, 1, worker="w")
        case "set_state":
            floor.store.runs.set_state(run, named("Failed"))
        case "delete_waiter":
            assert floor.store.runs.delete([other]) == ["ok"]
            floor.finish(run)
    assert floor.place(waiting) == ("queued", "Scheduled")
    assert holders(floor, "tag:a") == [waiting]


def test_a_call_wakes_a_hundred_and_leaves_the_rest_to_the_sweep(floor: Floor) -> None:
    floor.store.pools.pause("p")
    runs = [created.id for created in floor.store.runs.create([NewRun("f", pool="p") for _ in range(150)])]
    while floor.store.runs.claim("w", "p", ["default"], 1).more:
        pass
    assert floor.store.pools.resume("p") == 100
    assert floor.store.client.zscore(floor.store.keys.wake_due, "pool:p") is not None
    assert floor.store.runs.wake() == 50
    assert floor.store.client.zcard(floor.store.keys.wake_due) == 0
    assert {claimed.id for claimed in floor.claim(100) + floor.claim(100)} == set(runs)


def test_gates_without_room_do_not_keep_the_sweep_from_those_with_some(floor: Floor) -> None:
    # Ten of them stood at the head of wake_due for ever, and a sweep looks at ten.
    for number in range(12):
        floor.store.limits.set(f"tag:full{number}", 0)
        floor.store.client.zadd(floor.store.keys.wake_due, {f"tag:full{number}": number})
    floor.store.pools.pause("p")
    floor.store.runs.create([NewRun("f", pool="p") for _ in range(101)])
    while floor.store.runs.claim("w", "p", ["default"], 1).more:
        pass
    floor.store.pools.resume("p")
    assert [floor.store.runs.wake() for _ in range(2)] == [0, 1]


def test_a_limit_that_comes_later_counts_who_executes_already(floor: Floor) -> None:
    runs = [floor.running(tags=("a",)) for _ in range(3)]
    waiting = floor.submit(tags=("a",))
    floor.store.limits.set("tag:a", 2)
    assert sorted(holders(floor, "tag:a")) == sorted(runs)
    assert floor.claim() == []
    floor.finish(runs[0])
    assert floor.claim() == []
    floor.finish(runs[1])
    assert [claimed.id for claimed in floor.claim()] == [waiting]


def test_a_limit_counts_every_executing_run_however_many(floor: Floor) -> None:
    # Only the first thousand leases were counted.
    floor.store.runs.create([NewRun("f", pool="p", tags=("a",)) for _ in range(1050)])
    while floor.store.runs.claim("w", "p", ["default"], 200).claimed:
        pass
    floor.store.limits.set("tag:a", 5)
    assert floor.store.limits.get("tag:a").used == 1050


def test_a_lowered_limit_lets_nobody_in_until_enough_have_ended(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 3)
    runs = [floor.running(tags=("a",)) for _ in range(3)]
    waiting = floor.submit(tags=("a",))
    floor.store.limits.set("tag:a", 1)
    floor.claim()
    for run in runs[:2]:
        floor.finish(run)
        assert floor.place(waiting)[0] == "parked"
    floor.finish(runs[2])
    assert floor.place(waiting)[0] == "queued"


def test_a_raised_limit_wakes_as_many_as_fit(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 0)
    runs = [floor.submit(tags=("a",)) for _ in range(4)]
    floor.claim()
    assert floor.store.limits.set("tag:a", 3) == 3
    assert {claimed.id for claimed in floor.claim()} == set(runs[:3])


def test_a_limit_that_is_removed_wakes_all_and_its_slots_die_with_their_runs(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    run = floor.running(tags=("a",))
    waiting = [floor.submit(tags=("a",)) for _ in range(2)]
    floor.claim()
    assert floor.store.limits.set("tag:a", None) == 2
    assert {claimed.id for claimed in floor.claim()} == set(waiting)
    floor.store.limits.set("tag:a", 1)
    assert floor.store.limits.get("tag:a").used == 3
    for one in (run, *waiting):
        floor.finish(one)
    assert floor.store.limits.get("tag:a").used == 0


def test_a_disabled_limit_is_remembered_and_holds_nobody_back(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    first = floor.running(tags=("a",))
    waiting = [floor.submit(tags=("a",)) for _ in range(2)]
    floor.claim()
    assert floor.store.limits.disable("tag:a")
    assert [claimed.id for claimed in floor.claim()] == waiting
    assert floor.running(tags=("a",)) != first
    gate = floor.store.limits.get("tag:a")
    assert (gate.limit, gate.active, gate.holders) == (1, False, [first])


def test_a_limit_that_is_enabled_again_counts_who_went_through_meanwhile(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    runs = [floor.running(tags=("a",))]
    floor.store.limits.disable("tag:a")
    runs += [floor.running(tags=("a",)) for _ in range(2)]
    assert floor.store.limits.enable("tag:a")
    assert sorted(holders(floor, "tag:a")) == sorted(runs)
    waiting = floor.submit(tags=("a",))
    for run in runs:
        assert floor.claim() == []
        floor.finish(run)
    assert [claimed.id for claimed in floor.claim()] == [waiting]


def test_a_disabled_limit_may_be_changed_and_a_pause_holds_beside_it(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 0)
    floor.store.limits.disable("tag:a")
    assert floor.store.limits.update("tag:a", 2)
    assert not floor.store.limits.get("tag:a").active
    floor.store.limits.pause("tag:a")
    run = floor.submit(tags=("a",))
    assert floor.claim() == []
    floor.store.limits.resume("tag:a")
    assert [claimed.id for claimed in floor.claim()] == [run]
    assert floor.store.limits.settings() == {"tag:a": {"limit": 2, "disabled": True}}
    assert floor.store.limits.update("tag:a", None)
    assert floor.store.limits.settings() == {}


def test_a_limit_is_created_once_and_changed_only_where_it_is(floor: Floor) -> None:
    limits = floor.store.limits
    for change in (limits.enable, limits.disable, lambda gate: limits.update(gate, 3)):
        assert not change("tag:a")
    assert limits.create("tag:a", 1)
    assert not limits.create("tag:a", 2)
    limits.disable("tag:a")
    assert not limits.create("tag:a", 2)
    limits.create("tag:b c", 0)
    limits.pause("tag:paused")
    limits.set("pool:p", 1)
    assert limits.tags() == ["a", "b c"]
    assert limits.get("tag:a").limit == 1


def test_a_slot_is_shown_with_its_age_and_the_lease_or_reservation_that_holds_it(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    claimed_at = floor.after(0.001)
    first = floor.running(tags=("a",))
    waiting = floor.submit(tags=("a",))
    floor.claim()
    assert floor.store.limits.slots("tag:a") == [Slot(first, claimed_at, claimed_at + timedelta(seconds=15))]
    floor.wait(3)
    floor.finish(first)
    assert floor.store.limits.slots("tag:a") == [Slot(waiting, floor.now(), floor.after(5), is_reserved=True)]


@pytest.mark.parametrize("tag", ["", " a", "a\nb", "a\x1b[0m", "x" * 201])
def test_a_limit_of_what_can_be_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(InvalidName):
        tag_gate(tag)


def test_a_pause_and_a_limit_of_one_gate_are_independent(floor: Floor) -> None:
    floor.store.limits.set("pool:p", 5)
    floor.store.pools.pause("p")
    run = floor.submit()
    floor.claim()
    floor.store.limits.set("pool:p", None)
    assert floor.place(run)[0] == "parked"
    gate = floor.store.limits.get("pool:p")
    assert (gate.limit, gate.paused) == (None, True)
    assert floor.store.pools.resume("p") == 1
    assert floor.store.limits.settings() == {}


def test_a_paused_queue_holds_back_its_own_runs_only(floor: Floor) -> None:
    floor.store.pools.create_queue("p", "side")
    floor.store.pools.pause_queue("p", "side")
    held, free = floor.submit(queue="side"), floor.submit()
    assert [claimed.id for claimed in floor.claim(queues=("side", "default"))] == [free]
    assert floor.get(held).gate == "queue:p:side"
    assert floor.store.pools.resume_queue("p", "side") == 1
    assert [claimed.id for claimed in floor.claim()] == [held]


def test_a_run_that_waits_for_a_slot_and_then_for_a_pause_is_scheduled_again(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    first, waiting = floor.running(tags=("a",)), floor.submit(tags=("a",))
    floor.claim()
    floor.store.pools.pause("p")
    floor.finish(first)
    found = floor.get(waiting)
    assert (found.place, found.gate, found.state.name) == ("parked", "pool:p", "Scheduled")


def test_runs_are_late_in_a_queue_and_behind_a_pause_not_behind_a_limit_or_before_their_time(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 0)
    limited = floor.submit(tags=("a",))
    floor.claim()
    floor.store.pools.pause("p")
    behind_pause = floor.submit()
    floor.claim()
    queued, early = floor.submit(), floor.submit(due=floor.after(60))
    floor.wait(14)
    assert floor.store.runs.mark_late() == 0
    floor.wait(1)
    assert floor.store.runs.mark_late() == 2
    assert floor.store.runs.mark_late() == 0
    names = [floor.get(run).state.name for run in (queued, behind_pause, limited, early)]
    assert names == ["Late", "Late", "AwaitingConcurrencySlot", "Scheduled"]


def test_waiting_runs_past_their_expiry_are_cancelled_wherever_they_wait(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 0)
    parked = floor.submit(tags=("a",), expires=floor.after(5))
    floor.claim()
    queued = floor.submit(expires=floor.after(5))
    due = floor.submit(due=floor.after(4), expires=floor.after(5))
    young = floor.submit(expires=floor.after(6))
    floor.wait(5)
    assert floor.store.runs.expire() == 3
    assert {floor.place(run) for run in (parked, queued, due)} == {("ended", "Cancelled")}
    assert floor.place(young) == ("queued", "Scheduled")


def test_due_runs_are_queued_in_bounded_batches_and_the_next_moment_is_known(floor: Floor) -> None:
    dues = [floor.after(seconds) for seconds in (10, 20, 30)]
    runs = [floor.submit(due=due) for due in dues]
    assert floor.store.runs.release_due() == Released(0, dues[0])
    floor.wait(20)
    assert floor.store.runs.release_due(limit=1) == Released(1, floor.now())
    assert floor.store.runs.release_due() == Released(1, dues[2])
    assert [claimed.id for claimed in floor.claim()] == runs[:2]
    floor.wait(10)
    assert floor.store.runs.release_due() == Released(1, None)


def test_a_gate_shows_its_holders_and_waiters(floor: Floor) -> None:
    deployment = new_id()
    gate = f"deployment:{shorten(deployment)}"
    floor.store.limits.set(gate, 1)
    runs = [floor.submit(deployment=deployment) for _ in range(3)]
    floor.claim()
    shown = floor.store.limits.get(gate)
    assert (shown.limit, shown.used, shown.holders, sorted(waiter.run for waiter in shown.waiters)) == (
        1,
        1,
        runs[:1],
        sorted(runs[1:]),
    )


def test_a_run_that_is_parked_just_before_its_slot_is_given_back_in_the_same_claim_goes_on(floor: Floor) -> None:
    """The waiters are read before anything is written: the run parked in this very claim was not among them, and waited on."""
    floor.store.pools.create_queue("p", "side")
    floor.store.limits.set("tag:b", 1)
    holder = floor.running(tags=("b",))
    reserved = floor.submit(tags=("b",), queue="side")
    floor.claim(queues=("side",))
    floor.finish(holder)
    later = floor.submit(tags=("b",))
    [of_resumed, of_queue] = floor.deliver()
    floor.store.pools.pause_queue("p", "side")
    assert floor.claim(queues=(), delivered=[of_queue, of_resumed]) == []
    assert floor.get(reserved).gate == "queue:p:side"
    floor.store.runs.wake()
    assert [run.id for run in floor.claim()] == [later]


def test_an_event_about_a_limit_calls_it_as_people_do(floor: Floor) -> None:
    """It named the gate only, global:<id> for one that people call 'db'."""
    limits, pools = floor.store.limits, floor.store.pools
    deployment = floor.store.deployments.save(Deployment("nightly", "etl", "f.py:f", pool="p"))
    began = floor.store.events.last_id()
    limits.create_global("db", 5)
    limits.update_global("db", new_name="warehouse")
    limits.delete_global("warehouse")
    limits.set("tag:eu", 1)
    limits.set(deployment_gate(shorten(deployment.id)), 1)
    pools.set_concurrency_limit("p", 3)
    pools.pause_queue("p", "default")
    assert [event.fields["title"] for event in floor.store.events.read(began)] == [
        *("global limit 'db'", "global limit 'warehouse'", "global limit 'warehouse'", "tag 'eu'"),
        *("deployment 'etl/nightly'", "work pool 'p'", "work queue 'default' of 'p'"),
    ]
