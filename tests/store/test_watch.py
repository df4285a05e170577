"""The watchdog: work waits, workers are free, and nothing is claimed."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from floor import Floor
from orch_scheduler.watchdog import Watchdog
from orchestrator.models import NewRun, Worker
from orchestrator.store import Store
from orchestrator.store.watch import Stall, look, stalled

# Under the frozen clock, which is years ahead of the server's, every message is old.


def join(floor: Floor, name: str = "w", *, running: int = 0, queues: tuple[str, ...] = (), status: str = "ONLINE") -> None:
    """A worker of two slots says how it is."""
    now = floor.now()
    worker = Worker(
        name=name,
        pool="p",
        type="process",
        host="h",
        pid=1,
        version="0",
        python="3",
        limit=2,
        running=running,
        queues=queues,
        started=now,
        heartbeat=now,
        status=status,
        clock_skew=timedelta(0),
    )
    floor.store.pools.heartbeat(worker)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "orch_scheduler.watchdog")
    return caplog


def test_runs_that_free_workers_leave_alone_are_stalled(floor: Floor) -> None:
    join(floor)
    floor.submit()
    floor.submit(priority="low")
    [stall] = stalled(floor.store)
    assert (stall.pool, stall.queue, stall.waiting, stall.workers, stall.free) == ("p", "default", 2, ("w",), 2)
    assert stall.sentence.startswith("2 runs wait in work queue 'default' of work pool 'p' since 20")
    assert stall.sentence.endswith("UTC, 2 slots are free, and nobody takes any: w.")


def test_a_run_that_was_handed_back_and_is_not_taken_is_named_by_its_pool(floor: Floor) -> None:
    floor.store.runs.hand_back(floor.pending(), 1, worker="w")
    join(floor, running=1)
    [stall] = stalled(floor.store)
    assert (stall.queue, stall.free) == ("", 1)
    assert stall.sentence.startswith("1 run waits in work pool 'p' since")


@pytest.mark.parametrize(
    "why", ["nobody polls", "busy", "draining", "silent", "another queue", "paused pool", "paused queue", "no run"]
)
def test_nothing_is_stalled_while_there_is_a_reason_to_wait(floor: Floor, why: str) -> None:
    if why != "no run":
        floor.submit()
    match why:
        case "nobody polls":
            pass
        case "busy":
            join(floor, running=2)
        case "draining":
            join(floor, status="DRAINING")
        case "another queue":
            floor.store.pools.create_queue("p", "other")
            join(floor, queues=("other",))
        case _:
            join(floor)
    if why == "silent":
        floor.wait(60)
    if why == "paused pool":
        floor.store.pools.pause("p")
    if why == "paused queue":
        floor.store.pools.pause_queue("p", "default")
    assert look(floor.store).stalls == []


def test_a_run_that_was_queued_just_now_is_not_stalled(store: Store) -> None:
    store.pools.create("p")
    store.runs.create([NewRun("f", pool="p")])
    now = store.now()
    store.pools.heartbeat(
        Worker("w", "p", "process", "h", 1, "0", "3", 2, 0, (), now, now, "ONLINE", timedelta(0)),
    )
    assert look(store).stalls == []
    assert len(look(store, patience=timedelta(0)).stalls) == 1


def test_a_pool_in_which_anything_moves_is_not_stalled(floor: Floor) -> None:
    join(floor)
    for _ in range(3):
        floor.submit()
    first = look(floor.store)
    assert len(look(floor.store).confirm(first)) == 1
    floor.claim(1)
    assert look(floor.store).confirm(first) == []


def test_a_lost_group_counts_as_nothing_handed_out(floor: Floor) -> None:
    join(floor)
    floor.submit()
    floor.store.client.xgroup_destroy(floor.store.keys.queue("p", "default", "normal"), "workers")
    assert [stall.waiting for stall in stalled(floor.store)] == [1]


def test_the_watchdog_tells_each_stall_once_and_again_when_it_comes_back(floor: Floor, told: pytest.LogCaptureFixture) -> None:
    join(floor)
    floor.submit()
    watchdog = Watchdog(floor.store)
    assert [watchdog.run_once() for _ in range(4)] == [0, 1, 1, 1]
    assert len(told.messages) == 1
    assert "1 run waits in work queue 'default' of work pool 'p'" in told.messages[0]
    event = floor.store.events.latest(1)[0]
    assert (event.name, event.fields["pool"], event.fields["queue"]) == ("work-pool.stalled", "p", "default")
    floor.claim(1)
    assert watchdog.run_once() == 0
    floor.submit()
    assert [watchdog.run_once() for _ in range(2)] == [0, 1]
    assert len(told.messages) == 2


def test_a_stall_says_how_many_wait_and_how_many_slots_are_free(floor: Floor) -> None:
    stall = Stall("p", "q", floor.now(), 1, ("a", "b"), 1)
    assert "1 run waits" in stall.sentence
    assert "1 slot is free" in stall.sentence
    assert stall.sentence.endswith("nobody takes any: a, b.")
