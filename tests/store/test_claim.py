"""claim: who gets which run, in which order, and what happens to those that nobody may have yet."""

from __future__ import annotations

from datetime import timedelta

import pytest

from floor import Floor
from orchestrator.keys import new_id
from orchestrator.models import Deployment, NewRun
from orchestrator.store.answers import Delivery


def test_a_claim_takes_a_lease_and_says_all_that_is_needed_to_run(floor: Floor) -> None:
    deployment = floor.store.deployments.save(Deployment("d", "f", "f.py:f", pool="p"))
    parent = new_id()
    run = floor.submit(name="n", deployment=deployment.id, parameters={"x": 1}, tags=("a", "b"), parent=parent, created_by="me")
    [claimed] = floor.claim(worker="w7")
    assert (claimed.id, claimed.attempt, claimed.run_count, claimed.crash_count) == (run, 1, 0, 0)
    assert (claimed.deployment, claimed.deployment_name, claimed.revision) == (deployment.id, "d", 1)
    assert (claimed.flow, claimed.name, claimed.parameters, claimed.tags) == ("f", "n", {"x": 1}, ("a", "b"))
    assert (claimed.parent, claimed.created_by, claimed.due, claimed.pool) == (parent, "me", floor.now(), "p")
    assert (floor.place(run), floor.get(run).worker) == (("leased", "Pending"), "w7")


def test_a_claim_that_starts_the_body_counts_the_starts_before_it(floor: Floor) -> None:
    # It used to count its own start too.
    run = floor.submit()
    assert [claimed.run_count for claimed in floor.claim(start=True)] == [0]
    found = floor.get(run)
    assert (found.state.name, found.run_count, found.started) == ("Running", 1, floor.now())


def test_no_two_claims_get_the_same_run(floor: Floor) -> None:
    floor.submit()
    assert [len(floor.claim(worker=worker)) for worker in ("a", "b")] == [1, 0]


def test_resumed_runs_come_first_then_queues_and_priorities_in_order(floor: Floor) -> None:
    floor.store.pools.create_queue("p", "urgent")
    back = floor.pending()
    kinds = [(q, p) for q in ("default", "urgent") for p in ("low", "normal", "high")]
    runs = {(queue, priority): floor.submit(queue=queue, priority=priority) for queue, priority in kinds}
    floor.store.runs.hand_back(back, 1, worker="w")
    order = [back, *(runs[q, p] for q in ("urgent", "default") for p in ("high", "normal", "low"))]
    assert [claimed.id for claimed in floor.claim(queues=("urgent", "default"))] == order


def test_a_claim_takes_no_more_than_its_free_slots_and_leaves_the_rest_unread(floor: Floor) -> None:
    runs = [floor.submit() for _ in range(5)]
    assert [claimed.id for claimed in floor.claim(2)] == runs[:2]
    assert floor.claim(0) == []
    assert [claimed.id for claimed in floor.claim(10, worker="other")] == runs[2:]


def test_deliveries_beyond_the_free_slots_go_to_resumed_for_others(floor: Floor) -> None:
    runs = [floor.submit(priority=priority) for priority in ("high", "normal", "low")]
    delivered = floor.deliver()
    assert {delivery.run for delivery in delivered} == set(runs)
    assert [claimed.id for claimed in floor.claim(1, delivered=delivered)] == runs[:1]
    assert {claimed.id for claimed in floor.claim(worker="other")} == set(runs[1:])


def test_a_message_of_a_run_that_is_elsewhere_is_gone(floor: Floor) -> None:
    run = floor.submit()
    delivered = floor.deliver()
    floor.store.runs.cancel(run)
    other = floor.submit()
    made_up = [Delivery("queue:p:default:normal", "1-1", other), *delivered]
    claims = floor.store.runs.claim("w", "p", ["default"], 10, made_up)
    assert (claims.gone, [claimed.id for claimed in claims.claimed]) == (2, [other])


@pytest.mark.parametrize("junk", [{"r": "nobody"}, {"x": ""}, {"r": "a", "more": "b"}])
def test_an_entry_that_is_no_message_is_thrown_away(floor: Floor, junk: dict[str, str]) -> None:
    floor.store.client.xadd(floor.store.keys.queue("p", "default", "high"), junk)  # type: ignore[arg-type]
    run = floor.submit()
    claims = floor.store.runs.claim("w", "p", ["default"], 10)
    assert (claims.gone, [claimed.id for claimed in claims.claimed]) == (1, [run])


def test_a_run_that_expired_before_its_first_start_is_cancelled(floor: Floor) -> None:
    run = floor.submit(expires=floor.after(10))
    floor.wait(10)
    assert floor.claim() == []
    assert floor.place(run) == ("ended", "Cancelled")


def test_a_run_that_has_begun_does_not_expire(floor: Floor) -> None:
    # The claim after a crash used to cancel it.
    run = floor.pending(expires=floor.after(10))
    floor.wait(20)
    assert floor.store.runs.lapse().requeued == 1
    assert [claimed.attempt for claimed in floor.claim()] == [2]
    assert floor.store.runs.expire() == 0
    assert floor.place(run) == ("leased", "Pending")


def test_a_run_behind_a_full_gate_is_parked_and_does_not_hold_up_the_next(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    first, second, third = floor.submit(tags=("a",)), floor.submit(tags=("a",)), floor.submit()
    claims = floor.store.runs.claim("w", "p", ["default"], 10)
    assert [claimed.id for claimed in claims.claimed] == [first, third]
    assert claims.parked == [(second, "tag:a")]
    found = floor.get(second)
    assert (found.place, found.state.name, found.gate) == ("parked", "AwaitingConcurrencySlot", "tag:a")


def test_a_claim_takes_all_slots_or_none(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    floor.store.limits.set("tag:b", 0)
    both = floor.submit(tags=("a", "b"))
    assert floor.claim() == []
    assert floor.store.limits.get("tag:a").used == 0
    assert floor.get(both).gate == "tag:b"
    one = floor.submit(tags=("a",))
    assert [claimed.id for claimed in floor.claim()] == [one]
    assert floor.store.limits.get("tag:a").holders == [one]


def test_every_kind_of_gate_holds_back(floor: Floor) -> None:
    deployment = new_id()
    gates = ["pool:p", "queue:p:default", f"deployment:{floor.key('', deployment).rsplit(':', 1)[1]}", "tag:a"]
    for gate in gates:
        floor.store.limits.set(gate, 0)
        run = floor.submit(deployment=deployment, tags=("a",))
        assert floor.store.runs.claim("w", "p", ["default"], 10).parked == [(run, gate)]
        floor.store.runs.delete([run])
        floor.store.limits.set(gate, None)


def test_a_paused_pool_parks_its_runs_in_the_state_they_were_in(floor: Floor) -> None:
    floor.store.pools.pause("p")
    run = floor.submit()
    assert floor.store.runs.claim("w", "p", ["default"], 10).parked == [(run, "pool:p")]
    assert floor.place(run) == ("parked", "Scheduled")
    assert floor.store.pools.resume("p") == 1
    assert [claimed.id for claimed in floor.claim()] == [run]


def test_a_slot_that_a_claim_frees_reaches_whom_it_parked_just_before(floor: Floor) -> None:
    # It did not stand among the waiters yet when they were asked, and nobody woke it ever after.
    floor.store.limits.set("tag:a", 1)
    first, expiring = floor.running(tags=("a",)), floor.submit(tags=("a",), expires=floor.after(3))
    floor.claim()
    floor.finish(first)
    parked = floor.submit(tags=("a",))
    delivered = sorted(floor.deliver(), key=lambda delivery: delivery.run != parked)
    floor.wait(3)
    assert floor.store.runs.claim("w", "p", ["default"], 2, delivered).parked == [(parked, "tag:a")]
    assert floor.place(expiring) == ("ended", "Cancelled")
    floor.store.runs.wake()
    assert floor.place(parked) == ("queued", "Scheduled")


def test_cancel_new_cancels_what_is_claimed_over_the_limit(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1, strategy="CANCEL_NEW")
    first, second = floor.store.runs.create([_new("a"), _new("a")])
    assert [claimed.id for claimed in floor.claim()] == [first.id]
    assert floor.place(second.id) == ("ended", "Cancelled")


def test_a_stream_that_lost_its_group_gets_a_new_one_and_no_run_is_lost(floor: Floor) -> None:
    runs = [floor.submit() for _ in range(3)]
    assert [claimed.id for claimed in floor.claim(1)] == runs[:1]
    floor.store.client.xgroup_destroy(floor.store.keys.queue("p", "default", "normal"), "workers")
    assert [claimed.id for claimed in floor.claim()] == runs[1:]


def test_a_claim_looks_at_a_hundred_messages_and_says_that_there_may_be_more(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 0)
    for _ in range(2):
        floor.store.runs.create([_new("a") for _ in range(60)])
    claims = floor.store.runs.claim("w", "p", ["default"], 1)
    assert (len(claims.parked), claims.more) == (100, True)
    claims = floor.store.runs.claim("w", "p", ["default"], 1)
    assert (len(claims.parked), claims.more) == (20, False)


def test_a_message_whose_reader_died_is_delivered_again(floor: Floor) -> None:
    run = floor.submit()
    lost = floor.deliver(worker="dead")
    assert floor.claim(worker="alive") == []
    assert floor.store.runs.redeliver("p", ["default"], idle=timedelta(0)) == 1
    assert [claimed.id for claimed in floor.claim(worker="alive")] == [run]
    late = floor.store.runs.claim("dead", "p", ["default"], 1, lost)
    assert (late.claimed, late.gone) == ([], 1)


def test_a_worker_finds_what_it_was_handed_before_its_connection_broke(floor: Floor) -> None:
    run = floor.submit()
    floor.deliver(worker="w")
    found = floor.store.pools.wait_for_runs("p", "w", ["default"], timedelta(seconds=5), recover=True)
    assert [claimed.id for claimed in floor.claim(delivered=found)] == [run]


def test_a_worker_that_leaves_has_its_own_deliveries_given_to_others(floor: Floor) -> None:
    mine, theirs = floor.submit(priority="high"), floor.submit(priority="low")
    floor.deliver(worker="w", queues=["default"])
    other = floor.submit(priority="high")
    floor.deliver(worker="other")
    assert floor.store.runs.redeliver("p", ["default"], worker="w", idle=timedelta(0)) == 2
    assert {claimed.id for claimed in floor.claim(worker="third")} == {mine, theirs}
    assert floor.place(other) == ("queued", "Scheduled")
    floor.store.pools.leave("w", "p", ["default"])
    consumers = floor.store.client.xinfo_consumers(floor.store.keys.queue("p", "default", "high"), "workers")
    assert {consumer["name"] for consumer in consumers} == {b"other", b"third"}


def test_a_delivery_that_is_young_is_left_to_its_reader(floor: Floor) -> None:
    floor.submit()
    floor.deliver()
    assert floor.store.runs.redeliver("p", ["default"]) == 0


def _new(tag: str) -> NewRun:
    return NewRun("f", pool="p", tags=(tag,))


def test_a_large_claim_sweeps_its_queue_but_not_what_another_worker_was_handed(floor: Floor) -> None:
    runs = [floor.submit() for _ in range(30)]
    [handed] = floor.deliver("w1")
    floor.store.runs.cancel(runs[25])
    claimed = floor.claim(20, worker="w2")
    assert [run.id for run in claimed] == runs[1:21]
    stream = f"{floor.store.keys.prefix}{handed.stream}"
    assert floor.store.client.xlen(stream) == 9, "the one handed to w1, and eight that nobody has read"
    assert [run.id for run in floor.claim(1, worker="w1", delivered=[handed])] == runs[:1]
    assert [run.id for run in floor.claim(20, worker="w2")] == [*runs[21:25], *runs[26:]]
    assert floor.store.client.xlen(stream) == 0
