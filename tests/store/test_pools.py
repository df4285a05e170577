"""Pools, queues and workers."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from floor import Floor
from harness import eventually
from orchestrator._version import __version__
from orchestrator.exceptions import (
    ConfigurationError,
    InvalidName,
    ObjectAlreadyExists,
    ObjectNotFound,
    OrchError,
    Refused,
    StoreUnavailable,
)
from orchestrator.models import NewRun, Scheduler, Worker
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from orchestrator.store.facade import NamespaceSettings

SHORT = timedelta(milliseconds=1)


def worker(floor: Floor, name: str = "w", **fields: object) -> Worker:
    values: dict[str, object] = {
        "pool": "p",
        "type": "process",
        "host": "h",
        "pid": 1,
        "version": "0",
        "python": "3.11",
        "limit": 4,
        "running": 0,
        "queues": ("default",),
        "started": floor.now(),
        "heartbeat": floor.now(),
        "status": "ONLINE",
        "clock_skew": timedelta(0),
    }
    return Worker(name=name, **(values | fields))  # type: ignore[arg-type]


def test_a_pool_is_created_once_with_its_default_queue(frozen_store: Store) -> None:
    pools = frozen_store.pools
    made = pools.create("日本 1", concurrency_limit=3, description="d", base_job_template={"a": [1]}, paused=True)
    assert made == pools.get("日本 1") == pools.all()[0]
    assert (made.concurrency_limit, made.paused, made.status, made.description) == (3, True, "PAUSED", "d")
    assert made.base_job_template == {"a": [1]}
    assert [(queue.name, queue.priority) for queue in made.queues] == [("default", 1)]
    assert (pools.names(), pools.exists("日本 1"), pools.exists("x")) == (["日本 1"], True, False)
    with pytest.raises(ObjectAlreadyExists):
        pools.create("日本 1")
    with pytest.raises(InvalidName):
        pools.create("a:b")
    with pytest.raises(OrchError, match="no work pool type"):
        pools.create("x", "magic")


@pytest.mark.parametrize("call", ["get", "pause", "resume", "delete", "limit", "queue"])
def test_what_does_not_exist_is_not_found(frozen_store: Store, call: str) -> None:
    pools = frozen_store.pools
    calls = {
        "get": lambda: pools.get("x"),
        "pause": lambda: pools.pause("x"),
        "resume": lambda: pools.resume("x"),
        "delete": lambda: pools.delete("x"),
        "limit": lambda: pools.set_concurrency_limit("x", 1),
        "queue": lambda: pools.create_queue("x", "q"),
    }
    with pytest.raises(ObjectNotFound):
        calls[call]()


def test_queues_are_read_in_the_order_of_their_priority(floor: Floor) -> None:
    pools = floor.store.pools
    assert pools.create_queue("p", "later").priority == 2
    pools.create_queue("p", "first", priority=0, concurrency_limit=2, description="d")
    assert [queue.name for queue in pools.queues("p")] == pools.queue_names("p") == ["first", "default", "later"]
    assert (pools.get_queue("p", "first").concurrency_limit, pools.get_queue("p", "first").description) == (2, "d")
    pools.set_queue_limit("p", "first", None)
    assert pools.get_queue("p", "first").concurrency_limit is None
    with pytest.raises(ObjectAlreadyExists):
        pools.create_queue("p", "later")
    with pytest.raises(ObjectNotFound):
        pools.get_queue("p", "nope")


def test_the_depth_of_a_queue_counts_its_queued_runs(floor: Floor) -> None:
    floor.submit()
    floor.submit(priority="high")
    assert floor.store.pools.get_queue("p", "default").depth == 2


def test_an_empty_pool_is_deleted_without_a_trace(floor: Floor) -> None:
    before = set(floor.store.client.scan_iter(f"{floor.store.keys}*")) - {floor.store.keys.events.encode()}
    floor.store.pools.create("q", concurrency_limit=1)
    floor.store.pools.create_queue("q", "side", concurrency_limit=2)
    floor.store.pools.delete("q")
    after = set(floor.store.client.scan_iter(f"{floor.store.keys}*")) - {floor.store.keys.events.encode()}
    assert after == before
    assert floor.store.limits.settings() == {}


@pytest.mark.parametrize("where", ["queued", "resumed", "parked", "parked at the queue", "leased"])
def test_a_pool_with_runs_in_it_is_not_deleted(floor: Floor, where: str) -> None:
    # Runs in `resumed` lost their messages, leased ones their pool.
    run = floor.submit()
    if where == "resumed":
        floor.claim()
        floor.store.runs.hand_back(run, 1, worker="w")
    elif where == "parked":
        floor.store.pools.pause("p")
        floor.claim()
    elif where == "parked at the queue":
        floor.store.pools.pause_queue("p", "default")
        floor.claim()
    elif where == "leased":
        floor.claim()
    with pytest.raises(Refused, match="1 runs are queued or executing"):
        floor.store.pools.delete("p")


def test_a_pool_that_a_worker_polls_is_not_deleted(floor: Floor) -> None:
    floor.store.pools.heartbeat(worker(floor))
    with pytest.raises(Refused, match="1 workers poll"):
        floor.store.pools.delete("p")


def test_a_queue_with_runs_in_it_and_the_default_queue_are_not_deleted(floor: Floor) -> None:
    floor.store.pools.create_queue("p", "side", concurrency_limit=1)
    run = floor.submit(queue="side")
    for queue in ("side", "default"):
        with pytest.raises(Refused):
            floor.store.pools.delete_queue("p", queue)
    floor.store.runs.cancel(run)
    floor.store.pools.delete_queue("p", "side")
    assert floor.store.pools.queue_names("p") == ["default"]
    assert floor.store.limits.settings() == {}
    with pytest.raises(ObjectNotFound):
        floor.store.pools.delete_queue("p", "side")


def test_a_run_that_becomes_due_after_its_pool_is_gone_waits_for_it(floor: Floor) -> None:
    run = floor.submit(due=floor.after(60))
    floor.store.pools.delete("p")
    floor.wait(60)
    floor.store.runs.release_due()
    floor.store.pools.create("p")
    assert [claimed.id for claimed in floor.claim()] == [run]


def test_a_worker_is_known_from_its_heartbeat_until_it_leaves(floor: Floor) -> None:
    answer = floor.store.pools.heartbeat(worker(floor, running=3, queues=("a", "b")))
    assert (answer.scheduler_alive, answer.workers, answer.now_ms) == (False, 1, floor.clock.ms)
    [known] = floor.store.pools.workers("p")
    assert (known.status, known.running, known.queues, known.heartbeat) == ("ONLINE", 3, ("a", "b"), floor.now())
    assert floor.store.pools.get("p").status == "READY"
    assert floor.store.pools.workers("other") == []
    floor.store.pools.leave("w", "p", ["default"])
    assert floor.store.pools.workers() == []
    assert floor.store.pools.get("p").status == "NOT_READY"


def test_a_name_belongs_to_one_worker_as_long_as_that_lives(floor: Floor) -> None:
    pools = floor.store.pools
    first, second = worker(floor, pid=1), worker(floor, pid=2)
    assert pools.join(first) is None
    assert pools.join(first) is None, "the first answer was lost"
    rival = pools.join(second)
    assert rival is not None
    assert (rival.host, rival.pid) == ("h", 1)
    assert pools.join(second, instead_of=rival._replace(pid=3)) == rival, "somebody else has taken the name meanwhile"
    pools.leave(second, "p", ["default"])
    assert [known.pid for known in pools.workers()] == [1], "a worker removed the registration of another"
    assert pools.join(second, instead_of=rival) is None
    floor.wait(31)
    assert pools.join(first) is None, "one that is silent has lost its name"
    pools.leave(first, "p", ["default"])
    assert pools.workers() == []


def test_a_silent_worker_is_offline_and_after_long_forgotten_with_its_consumers(floor: Floor) -> None:
    floor.store.pools.heartbeat(worker(floor))
    floor.claim()
    floor.wait(31)
    assert [known.status for known in floor.store.pools.workers()] == ["OFFLINE"]
    assert floor.store.pools.get("p").status == "NOT_READY"
    assert floor.store.pools.forget_silent_workers() == 0
    floor.wait(3600)
    assert floor.store.pools.forget_silent_workers() == 1
    assert floor.store.pools.workers() == []
    assert floor.store.client.xinfo_consumers(floor.store.keys.resumed("p"), "workers") == []


def test_the_consumers_of_a_silent_worker_are_dropped_long_before_it_is_forgotten(floor: Floor) -> None:
    # A worker that crashes every ten seconds used to leave 360 of them an hour.
    floor.store.pools.heartbeat(worker(floor))
    floor.ended()
    resumed = floor.store.keys.resumed("p")
    assert floor.store.pools.drop_consumers() == 0
    floor.wait(31)
    assert floor.store.pools.drop_consumers() > 0
    assert floor.store.client.xinfo_consumers(resumed, "workers") == []
    assert [known.status for known in floor.store.pools.workers()] == ["OFFLINE"]


def test_a_silent_worker_that_still_holds_messages_keeps_its_consumer(floor: Floor) -> None:
    floor.store.pools.heartbeat(worker(floor))
    floor.submit()
    floor.deliver()
    floor.wait(31)
    floor.store.pools.drop_consumers()
    queue = floor.store.keys.queue("p", "default", "normal")
    assert [consumer["pending"] for consumer in floor.store.client.xinfo_consumers(queue, "workers")] == [1]


def test_a_consumer_that_holds_messages_stays_until_they_are_redelivered(floor: Floor) -> None:
    floor.submit()
    floor.deliver(worker="w")
    stream = floor.store.keys.queue("p", "default", "normal")
    floor.store.pools.leave("w", "p", ["default"])
    assert [consumer["name"] for consumer in floor.store.client.xinfo_consumers(stream, "workers")] == [b"w"]
    floor.store.runs.redeliver("p", ["default"], worker="w", idle=timedelta(0))
    floor.store.pools.leave("w", "p", ["default"])
    assert floor.store.client.xinfo_consumers(stream, "workers") == []


def test_a_worker_that_lives_is_told_to_drain_as_the_process_that_it_is(floor: Floor) -> None:
    pools = floor.store.pools
    with pytest.raises(ObjectNotFound, match="no worker 'w'"):
        pools.drain("w")
    pools.heartbeat(worker(floor))
    pools.drain("w")
    [told] = pools.wait_for_control("w", "0", SHORT)
    assert (told.what, told.run, told.started_ms) == ("drain", "", floor.clock.ms)
    floor.wait(31)
    with pytest.raises(Refused, match="has said nothing since"):
        pools.drain("w")


def test_schedulers_are_known_while_they_speak(floor: Floor) -> None:
    assert floor.store.pools.scheduler_heartbeat("s").scheduler_alive
    assert floor.store.pools.schedulers() == ["s"]
    floor.wait(31)
    assert floor.store.pools.schedulers() == []
    floor.store.pools.scheduler_heartbeat("s")
    floor.store.pools.scheduler_leaves("s")
    assert floor.store.pools.schedulers() == []


def test_workers_and_schedulers_tell_their_release_and_the_settings_that_they_read(floor: Floor) -> None:
    pools, agreed = floor.store.pools, floor.store.settings.stored()
    pools.heartbeat(worker(floor))
    pools.scheduler_heartbeat("s")
    floor.store.write_settings(replace(floor.store.settings, lease=timedelta(seconds=5), durability="replicated"))
    assert [told.agreed for told in pools.workers()] == [agreed]
    [told] = pools.scheduler_processes()
    assert (told.name, told.host, told.pid, told.version, told.agreed) == (
        *("s", socket.gethostname(), os.getpid()),
        *(__version__, agreed),
    )
    pools.scheduler_leaves("s")
    assert pools.scheduler_processes() == []


def test_a_scheduler_of_a_release_that_tells_nothing_is_known_all_the_same(floor: Floor) -> None:
    floor.store.client.zadd(floor.store.keys.schedulers, {"old": floor.clock.ms})
    assert floor.store.pools.scheduler_processes() == [Scheduler("old", "", 0, "", {})]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lease": timedelta(milliseconds=999)}, "A lease of 0.999 s"),
        ({"lease": timedelta(hours=2)}, "A lease of 7200 s"),
        ({"retention": timedelta(seconds=59)}, "A retention of 59 s"),
        ({"durability": "eternal"}, "no durability 'eternal'"),
    ],
)
def test_settings_that_no_process_could_live_with_are_refused(floor: Floor, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        floor.store.write_settings(replace(floor.store.settings, **wrong))
    assert not floor.store.client.exists(floor.store.keys.settings)


def test_settings_are_read_as_they_were_written_and_what_is_unknown_is_left_out(floor: Floor) -> None:
    written = NamespaceSettings(timedelta(seconds=5), timedelta(days=3), "replicated")
    assert NamespaceSettings.read({**written.stored(), "of_a_later_release": "1"}) == written
    assert NamespaceSettings.read({}) == NamespaceSettings()


def test_waiting_ends_with_nothing_when_nothing_comes(floor: Floor) -> None:
    pools = floor.store.pools
    assert pools.wait_for_runs("p", "w", ["default"], SHORT) == []
    assert pools.wait_for_control("w", "0", SHORT) == []
    assert pools.wait_for_signal("0", SHORT) == "0"


def test_what_a_worker_is_told_is_read_once(floor: Floor) -> None:
    runs = [floor.running() for _ in range(2)]
    for run in runs:
        floor.store.runs.cancel(run)
    told = floor.store.pools.wait_for_control("w", "0", SHORT)
    assert [control.run for control in told] == runs
    assert floor.store.pools.wait_for_control("w", told[-1].id, SHORT) == []


def test_a_read_that_was_ended_takes_no_run_along(store: Store, settings: Settings) -> None:
    """A worker's blocked read outlived its goodbye by a moment, and a run that came then was handed to nobody for seconds."""
    store.pools.create("p")
    with open_store(settings) as leaving, ThreadPoolExecutor() as threads:
        reading = threads.submit(leaving.pools.wait_for_runs, "p", "leaver", ["default"], timedelta(seconds=5))
        eventually(lambda: store.client.info("clients")["blocked_clients"])
        leaving.stop_waiting()
        assert isinstance(reading.exception(timeout=20), StoreUnavailable)
        eventually(lambda: not store.client.info("clients")["blocked_clients"])
        [run] = store.runs.create([NewRun("f", pool="p")])
        assert [claimed.id for claimed in store.runs.claim("w", "p", ["default"], 1).claimed] == [run.id]
