"""Schedulers as processes: signals, several at once, SIGKILL, and Redis going away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from harness import DURABLE, RedisServer, eventually, python
from orchestrator.models import Deployment, NewRun, Schedule
from orchestrator.settings import Settings, environment
from orchestrator.store import Store, embedded, open_store

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    """Starts scheduler processes on the test's namespace, or with other settings; those left are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(other: Settings | None = None) -> subprocess.Popen[str]:
        options = environment(other or settings) | {"ORCH_NAMESPACE": (other or settings).namespace}
        options["ORCH_REDIS_URL"] = str((other or settings).redis_url)
        started.append(python("-m", "orch_cli", "scheduler", "start", env=options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def every_second(store: Store) -> None:
    store.pools.create("p")
    schedule = Schedule("s", interval=timedelta(seconds=1), max_scheduled_runs=3)
    store.deployments.save(Deployment("d", "f", "f.py:f", pool="p", schedules=[schedule]))


def test_a_scheduler_says_that_it_lives_and_signs_off_on_sigterm(store: Store, start: Start) -> None:
    process = start()
    eventually(store.pools.schedulers)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert store.pools.schedulers() == []


def test_a_run_that_becomes_due_is_queued_by_the_scheduler(store: Store, start: Start) -> None:
    store.pools.create("p")
    start()
    eventually(store.pools.schedulers)
    due = store.now() + timedelta(milliseconds=300)
    [run] = store.runs.create([NewRun("f", pool="p", due=due)])
    eventually(lambda: store.runs.get(run.id).place == "queued")


def test_no_fire_is_missed_or_doubled_while_schedulers_are_killed(store: Store, start: Start) -> None:
    every_second(store)
    first = start()
    eventually(lambda: store.pools.queues("p")[0].depth >= 2)
    start()
    first.kill()
    first.wait()
    third = start()
    eventually(lambda: store.pools.queues("p")[0].depth >= 5)
    third.kill()
    third.wait()
    eventually(lambda: store.pools.queues("p")[0].depth >= 7)
    store.deployments.pause("f/d")
    due = sorted(run.due for run in store.queries.runs().runs)
    assert [later - earlier for earlier, later in pairwise(due)] == [timedelta(seconds=1)] * (len(due) - 1)


def test_a_scheduler_goes_on_by_itself_when_redis_comes_back(start: Start, settings: Settings) -> None:
    own = RedisServer(*DURABLE).start()
    try:
        elsewhere = Settings(home=settings.home, redis_url=own.url, namespace=settings.namespace)
        with open_store(elsewhere) as store:
            every_second(store)
        process = start(elsewhere)
        with open_store(elsewhere) as store:
            eventually(lambda: store.pools.queues("p")[0].depth >= 1)
        own.kill()
        own.start()
        with open_store(elsewhere) as store:
            before = store.pools.queues("p")[0].depth
            eventually(lambda: store.pools.queues("p")[0].depth > before)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        own.stop()


def test_a_private_server_that_dies_under_a_scheduler_is_started_again_and_one_that_is_stopped_is_not(orch_home: Path) -> None:
    scheduler = python("-m", "orch_cli", "scheduler", "start")
    try:
        eventually(lambda: embedded.running(orch_home))
        with open_store(Settings(home=orch_home)) as store:
            eventually(store.pools.schedulers)
            server = embedded.status(orch_home)
            assert server is not None
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: embedded.url(orch_home) and embedded.status(orch_home))
            assert embedded.stop(orch_home)
        scheduler.send_signal(signal.SIGTERM)
        assert scheduler.wait(timeout=30) == 0
        assert not embedded.running(orch_home)
    finally:
        scheduler.kill()
        scheduler.communicate()
