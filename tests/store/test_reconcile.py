"""reconcile: each thing broken by hand as a lost write would break it, seen by the invariants, and mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from floor import Floor, missing_run, named
from orchestrator.keys import shorten
from orchestrator.store.invariants import check
from tampering import tamper

Break = Callable[[Floor], str]


def of_key(floor: Floor, name: str) -> str:
    return floor.store.keys.prefix + name


def remove(name: str, drive: Callable[[Floor], str]) -> Break:
    """A run that has fallen out of a sorted set."""

    def do(floor: Floor) -> str:
        run = drive(floor)
        assert floor.store.client.zrem(of_key(floor, name), shorten(run)) == 1
        return run

    return do


def add(name: str, drive: Callable[[Floor], str]) -> Break:
    """A run that stands in a sorted set where it has no business."""

    def do(floor: Floor) -> str:
        run = drive(floor)
        floor.store.client.zadd(of_key(floor, name), {shorten(run): 5})
        return run

    return do


def dangling(name: str) -> Break:
    """A member of a sorted set that is no run."""

    def do(floor: Floor) -> str:
        run = missing_run()
        floor.store.client.zadd(of_key(floor, name), {shorten(run): 5})
        return run

    return do


def due(floor: Floor) -> str:
    return floor.submit(due=floor.after(60), tags=("a",), expires=floor.after(90))


def queued(floor: Floor) -> str:
    return floor.submit(expires=floor.after(90), idempotency_key="k")


def paused(floor: Floor) -> str:
    run = floor.running()
    floor.store.runs.pause(run, 1, worker="w")
    return run


def parked(floor: Floor) -> str:
    floor.store.limits.set("tag:a", 0)
    run = floor.submit(tags=("a",))
    floor.claim()
    return run


def holder(floor: Floor) -> str:
    floor.store.limits.set("tag:a", 1)
    return floor.running(tags=("a",))


def reserved(floor: Floor) -> str:
    first, run = holder(floor), floor.submit(tags=("a",))
    floor.claim()
    floor.finish(first)
    return run


def ended(floor: Floor) -> str:
    return floor.ended(idempotency_key="k")


def lost_message(floor: Floor) -> str:
    run = floor.submit()
    floor.store.client.xtrim(floor.store.keys.queue("p", "default", "normal"), maxlen=0, approximate=False)
    return run


def lost_slot(floor: Floor) -> str:
    run = holder(floor)
    floor.store.client.delete(floor.store.keys.slots("tag:a"))
    return run


def lost_reserved_slot(floor: Floor) -> str:
    run = reserved(floor)
    floor.store.client.delete(floor.store.keys.slots("tag:a"))
    return run


def slot_of_an_older_attempt(floor: Floor) -> str:
    run = holder(floor)
    floor.store.client.zadd(floor.store.keys.slots("tag:a"), {f"{shorten(run)}:0:0:0": 1})
    return run


def slot_of_nobody(floor: Floor) -> str:
    floor.store.limits.set("tag:a", 1)
    floor.store.client.zadd(floor.store.keys.slots("tag:a"), {f"{shorten(missing_run())}:1:0:0": 1, "junk": 2})
    return floor.submit()


def gates_without_a_lease(floor: Floor) -> str:
    run = floor.submit()
    tamper(floor.store, run, gates="tag:a")
    return run


def no_ttl(kind: str) -> Break:
    def do(floor: Floor) -> str:
        run = ended(floor)
        floor.store.runs.append_log({run: []})
        floor.store.client.persist(floor.store.keys.idempotency("f", "k") if kind == "idempotency" else floor.key(kind, run))
        return run

    return do


def ttl_on_a_live_run(floor: Floor) -> str:
    run = floor.submit()
    floor.store.client.pexpire(floor.key("run", run), 60_000)
    return run


def lost_key(drive: Callable[[Floor], str]) -> Break:
    def do(floor: Floor) -> str:
        run = drive(floor)
        floor.store.client.delete(floor.store.keys.idempotency("f", "k"))
        return run

    return do


def key_of_another_run(floor: Floor) -> str:
    other, run = floor.ended(), queued(floor)
    floor.store.client.set(floor.store.keys.idempotency("f", "k"), shorten(other))
    return run


def entry_of_nobody(floor: Floor) -> str:
    run = floor.submit()
    floor.store.client.xadd(floor.store.keys.queue("p", "default", "low"), {"r": shorten(run)})
    floor.store.client.xadd(floor.store.keys.resumed("p"), {"junk": "x"})
    return run


def delivery_of_a_lost_entry(floor: Floor) -> str:
    run = floor.submit()
    floor.deliver()
    floor.store.client.xtrim(floor.store.keys.queue("p", "default", "normal"), maxlen=0, approximate=False)
    return run


def lost_run(floor: Floor) -> str:
    run = queued(floor)
    floor.store.client.hset(floor.key("tasks", run), "x", "x")
    floor.store.client.delete(floor.key("run", run))
    return run


def plan_of_no_schedule(floor: Floor) -> str:
    floor.store.client.zadd(floor.store.keys.planning, {f"{shorten(missing_run())}:hourly": 5, "junk": 5})
    return floor.submit()


BREAKS: dict[str, Break] = {
    "a due run fell out of due": remove("due", due),
    "a leased run fell out of leases": remove("leases", lambda floor: floor.running()),
    "a paused run fell out of paused": remove("paused", paused),
    "a parked run fell out of its gate": remove("parked:tag:a", parked),
    "a run that may expire fell out of expires": remove("expires", queued),
    "a reserved run fell out of reservations": remove("reservations", reserved),
    "a run fell out of the index of all": remove("index:all", queued),
    "a run fell out of the index of its state": remove("index:state:Scheduled", queued),
    "a run fell out of the index of its tag": remove("index:tag:a", due),
    "a run fell out of the index of its flow": remove("index:flow:f", ended),
    "a queued run stands in due": add("due", queued),
    "an ended run stands in leases": add("leases", ended),
    "an ended run stands in expires": add("expires", ended),
    "a queued run stands in paused": add("paused", queued),
    "a queued run stands at a gate": add("parked:tag:b", queued),
    "a queued run stands in reservations": add("reservations", queued),
    "a queued run stands in the index of another state": add("index:state:Running", queued),
    "due holds what is no run": dangling("due"),
    "leases holds what is no run": dangling("leases"),
    "paused holds what is no run": dangling("paused"),
    "expires holds what is no run": dangling("expires"),
    "reservations holds what is no run": dangling("reservations"),
    "an index holds what is no run": dangling("index:flow:f"),
    "an index by state holds what is no run": dangling("index:state:Late"),
    "a gate holds a waiter that is no run": dangling("parked:tag:a"),
    "a plan holds what is no run": dangling("planned:x:s"),
    "an index of another flow holds a run": add("index:flow:other", queued),
    "a message is lost": lost_message,
    "an entry is left that is nobody's message": entry_of_nobody,
    "a delivery is left of an entry that is lost": delivery_of_a_lost_entry,
    "a run is lost and its keys are left": lost_run,
    "a schedule is lost and its plan is left": plan_of_no_schedule,
    "a slot is lost": lost_slot,
    "a reserved slot is lost": lost_reserved_slot,
    "a slot of an older attempt is left": slot_of_an_older_attempt,
    "a slot is left that nobody holds": slot_of_nobody,
    "a queued run names gates": gates_without_a_lease,
    "an ended run has no TTL": no_ttl("run"),
    "the key of an ended run has no TTL": no_ttl("idempotency"),
    "a live run has a TTL": ttl_on_a_live_run,
    "the key of a live run is lost": lost_key(queued),
    "the key of an ended run is lost": lost_key(ended),
    "the key of a run is another's": key_of_another_run,
}


@pytest.mark.parametrize("broken", BREAKS)
def test_what_is_broken_is_seen_and_mended(floor: Floor, broken: str) -> None:
    BREAKS[broken](floor)
    assert check(floor.store) != []
    assert floor.store.runs.reconcile_all() != []
    assert check(floor.store) == []
    assert floor.store.runs.reconcile_all() == []


@pytest.mark.parametrize("drive", [due, queued, paused, parked, holder, reserved, ended])
def test_a_healthy_run_needs_no_mending(floor: Floor, drive: Callable[[Floor], str]) -> None:
    run = drive(floor)
    seen = floor.get(run)
    assert floor.store.runs.reconcile([run, missing_run()]) == []
    assert floor.store.runs.reconcile_all() == []
    assert floor.get(run) == seen


def test_a_run_that_lost_its_lease_is_started_again(floor: Floor) -> None:
    run = remove("leases", lambda floor: floor.running())(floor)
    floor.store.runs.reconcile([run])
    assert floor.store.runs.lapse().requeued == 1


def test_a_run_that_lost_its_message_is_claimed(floor: Floor) -> None:
    run = lost_message(floor)
    assert floor.claim() == []
    floor.store.runs.reconcile([run])
    assert [claimed.id for claimed in floor.claim()] == [run]


def test_a_paused_run_that_lost_its_timeout_is_not_timed_out_at_once(floor: Floor) -> None:
    # It failed at the next sweep.
    run = remove("paused", paused)(floor)
    floor.store.runs.reconcile([run])
    assert floor.store.runs.time_out_paused() == 0
    assert floor.store.runs.resume(run).answer == "ok"


def test_an_ended_run_keeps_the_time_of_its_end(floor: Floor) -> None:
    # It got a new one, and was kept that much longer.
    run = no_ttl("run")(floor)
    at = floor.get(run).ended
    floor.wait(60)
    floor.store.runs.reconcile([run])
    assert floor.get(run).ended == at


def test_who_waits_for_a_slot_that_nobody_held_goes_on(floor: Floor) -> None:
    slot_of_nobody(floor)
    floor.store.client.zrem(floor.store.keys.slots("tag:a"), "junk")
    waiting = floor.submit(tags=("a",))
    floor.claim()
    assert floor.place(waiting)[0] == "parked"
    floor.store.runs.reconcile_all()
    assert floor.store.runs.wake() == 1
    assert floor.place(waiting)[0] == "queued"


def test_a_restored_backup_runs_again_what_it_forgot_the_end_of(floor: Floor) -> None:
    run = floor.submit()
    dump = floor.store.client.dump(floor.key("run", run))
    floor.claim()
    floor.finish(run)
    floor.store.client.restore(floor.key("run", run), 0, dump, replace=True)  # type: ignore[no-untyped-call]
    assert check(floor.store) != []
    floor.store.runs.reconcile_all()
    assert check(floor.store) == []
    assert [claimed.id for claimed in floor.claim()] == [run]
    assert floor.finish(run) == "ok"


# --- what the check sees that only a bug could bring about ---


def of_hash(**fields: Any) -> Break:
    def do(floor: Floor) -> str:
        run = floor.pending()
        tamper(floor.store, run, **fields)
        return run

    return do


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"msg": "1-1 queue:p:default:normal"}, "has the message"),
        ({"gate": "tag:a"}, "waits at the gate"),
        ({"reserved": 5}, "has slots reserved"),
        ({"gates": "tag:a"}, "does not stand in slots:tag:a"),
        ({"attempt": 0}, "its fence is 0"),
    ],
)
def test_the_check_sees_a_hash_that_contradicts_itself(floor: Floor, fields: dict[str, Any], what: str) -> None:
    run = of_hash(**fields)(floor)
    assert any(what in str(violation) and violation.subject == run for violation in check(floor.store))
    floor.store.client.flushdb()


@pytest.mark.parametrize("fields", [{"place": "nowhere"}, {"state": "Late", "label": ""}])
def test_the_check_sees_a_hash_that_nobody_can_work_with(floor: Floor, fields: dict[str, Any]) -> None:
    run = of_hash(**fields)(floor)
    name = floor.key("run", run).removeprefix(floor.store.keys.prefix)
    assert (name, "belongs to no run that can be read") in [(found.subject, found.what) for found in check(floor.store)]
    floor.store.client.flushdb()


def test_the_check_sees_a_history_that_the_table_forbids(floor: Floor) -> None:
    run = floor.ended()
    entry = msgpack.packb(["Running", 5, 1, ""])
    history = floor.snapshot(run)[b"history"]
    floor.store.client.hset(floor.key("run", run), "history", history + entry)
    assert any("went from Completed to Running" in violation.what for violation in check(floor.store))
    floor.store.client.flushdb()


def test_the_check_sees_keys_that_would_stay_for_ever(floor: Floor) -> None:
    for name in ("forgotten", "worker:w", f"log:{shorten(missing_run())}"):
        floor.store.client.set(of_key(floor, name), "x")
    floor.store.client.expire(floor.store.keys.pools, 60)
    assert {violation.subject.split(":")[0] for violation in check(floor.store)} == {"forgotten", "worker", "log", "pools"}
    floor.store.client.flushdb()


def test_the_check_sees_messages_of_nobody_and_a_waiter_that_nobody_wakes(floor: Floor) -> None:
    parked(floor)
    stream = floor.store.keys.queue("p", "default", "high")
    floor.store.client.xadd(stream, {"r": "nobody"})
    floor.deliver()
    floor.store.client.xadd(stream, {"r": "nobody"})
    floor.store.client.xtrim(stream, maxlen=1, approximate=False)
    floor.store.client.hdel(floor.store.keys.limits, "tag:a")
    floor.store.client.zadd(floor.store.keys.planning, {"x:s": 1})
    found = " ".join(map(str, check(floor.store)))
    for what in ("is not the message of", "is gone", "nobody wakes them", "is no schedule"):
        assert what in found
    floor.store.client.flushdb()


def test_the_check_sees_more_holders_than_the_limit_lets_in(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 2)
    for _ in range(2):
        floor.running(tags=("a",))
    floor.store.client.hset(floor.store.keys.limits, "tag:a", '{"limit": 1}')
    assert [violation.what for violation in check(floor.store)] == ["2 hold a slot, the limit is 1"]
    floor.store.limits.set("tag:a", None)


def test_an_operator_may_set_a_state_in_a_namespace_that_was_mended(floor: Floor) -> None:
    run = remove("index:state:Scheduled", queued)(floor)
    floor.store.runs.reconcile_all()
    assert floor.store.runs.set_state(run, named("Failed")).answer == "ok"
