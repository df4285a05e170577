"""A server that is nearly full takes in no new runs, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from harness import SAFE, RedisServer
from orch_scheduler import planner
from orchestrator import clock
from orchestrator.clock import FrozenClock
from orchestrator.exceptions import StoreFull
from orchestrator.keys import new_id
from orchestrator.models import Deployment, LogLine, NewRun, Schedule, TaskRun
from orchestrator.settings import Settings
from orchestrator.states import Completed
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End, Turn


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FrozenClock:
    """The monotonic clock of this process."""
    frozen = FrozenClock(0)
    monkeypatch.setattr(clock, "monotonic", lambda: frozen.ms / 1000)
    return frozen


@pytest.fixture
def full(time: FrozenClock) -> Iterator[Store]:
    """A store on a server that has used 90 % of its maxmemory."""
    server = RedisServer(*SAFE).start()
    try:
        with open_store(Settings(redis_url=server.url)) as store:
            store.pools.create("p")
            store.runs.create([NewRun("f", pool="p")])
            fill(store, 0.9)
            time.advance(timedelta(seconds=2))
            yield store
    finally:
        server.stop()


def fill(store: Store, share: float) -> None:
    store.client.config_set("maxmemory", round(int(store.client.info("memory")["used_memory"]) / share))


def test_beyond_four_fifths_nothing_is_submitted_and_the_hint_says_what_to_do(full: Store) -> None:
    with pytest.raises(StoreFull, match=r"has used (89|90|91)% of its maxmemory and takes no new runs") as problem:
        full.runs.create([NewRun("f", pool="p")])
    assert problem.value.hint is not None
    assert "Raise maxmemory" in problem.value.hint
    [claimed] = full.runs.claim("w", "p", ["default"], 1).claimed
    assert full.runs.renew([(claimed.id, 1)], worker="w") == ["ok"]


def test_the_server_is_asked_once_a_second_and_room_is_seen_then(full: Store, time: FrozenClock) -> None:
    with pytest.raises(StoreFull):
        full.runs.room.demand()
    fill(full, 0.5)
    with pytest.raises(StoreFull):
        full.runs.room.demand()
    time.advance(timedelta(seconds=1))
    assert full.runs.create([NewRun("f", pool="p")])[0].answer == "created"


def test_at_maxmemory_a_run_keeps_its_task_runs_and_only_log_lines_are_refused(full: Store) -> None:
    """Task runs were refused as well, and missing in the run for good."""
    [run] = full.runs.claim("w", "p", ["default"], 1).claimed
    full.client.config_set("maxmemory", 1)
    task = TaskRun(id=new_id(), name="t-0", key="t", index=0, state=Completed())
    line = LogLine(full.now(), 20, "x", "hello")
    end = End(run.id, 1, Completed())
    turned = full.runs.exchange(Turn("w", logs={run.id: [line]}, tasks=[(run.id, 1, [task])], ends=[end]))
    assert [type(refusal) for refusal in turned.refused] == [StoreFull]
    assert turned.ends == ["ok"]
    assert [found.name for found in full.runs.tasks(run.id)] == ["t-0"]


def test_at_maxmemory_people_can_mend_the_situation(full: Store) -> None:
    """A limit could not be lowered, nor a pool paused: the ways to let less come in."""
    deployment = full.deployments.save(Deployment("d", "f", "f.py:f", pool="p", schedules=[Schedule("s", cron="* * * * *")]))
    full.pools.create("q")
    full.client.config_set("maxmemory", 1)
    full.pools.pause("p")
    full.pools.set_concurrency_limit("p", 1)
    assert full.limits.create_global("db", 1)
    assert full.limits.reset("pool:p") == 0
    full.deployments.pause_schedule(deployment.id, "s")
    full.pools.delete("q")
    full.runs.reconcile_all()
    assert full.limits.get("pool:p").paused


def test_nothing_is_planned_until_there_is_room(full: Store, time: FrozenClock) -> None:
    full.deployments.save(Deployment("d", "f", "f.py:f", pool="p", schedules=[Schedule("s", cron="* * * * *")]))
    assert planner.run_once(full) == 0
    full.client.config_set("maxmemory", 0)
    time.advance(timedelta(seconds=1))
    [(deployment, schedule)] = [(d, s) for d in full.deployments.all() for s in d.schedules]
    full.deployments.postpone_planning(deployment, schedule, full.now())
    assert planner.run_once(full) == 3
