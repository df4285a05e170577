"""What the threads of a process share: the store's memory of what was created, and the connections that follow a primary."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from orchestrator.store.failover import Failover, Submitted
from orchestrator.store.primary import Host, Primary

TIMES = 1000


@pytest.fixture(autouse=True)
def _threads_that_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def beside(work: Callable[[], object], again: Callable[[], object]) -> None:
    """Do ``work`` many times, and ``again`` as often as it goes in another thread."""
    done = threading.Event()
    errors: list[Exception] = []

    def repeat() -> None:
        try:
            while not done.is_set():
                again()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        for _ in range(TIMES):
            work()
    finally:
        done.set()
        thread.join()
    assert errors == []


class Reporter:
    """A fail-over's reporter that looks for the runs it is asked about, and finds all of them."""

    known = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def look(self) -> None:
        """No epoch: another one than that under which the runs were created."""

    def missing(self, runs: list[str], by: str) -> list[str]:
        self.asked = runs
        return []


def test_a_run_that_is_created_while_another_thread_deletes_some_is_remembered() -> None:
    """The memory was built anew without those that were deleted: what was added meanwhile was lost, or broke the delete off."""
    reporter = Reporter()
    connections = iter(range(10**9))
    submitted = Submitted(cast(Failover, reporter), lambda: next(connections))
    submitted.add(f"kept {number}" for number in range(200))
    added = iter(range(10**9))
    beside(lambda: submitted.add([f"new {next(added)}"]), lambda: submitted.forget(["deleted"]))
    submitted._note(0, None)
    submitted._epoch = "before"
    submitted.verify()
    assert reporter.asked[200:] == [f"new {number}" for number in range(TIMES)]


class TwoServers(Primary):
    """The primary is the other one each time that somebody asks."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Host = ("a", 1)

    def find(self) -> Host:
        self.now = ("b", 2) if self.now == ("a", 1) else ("a", 1)
        return self.now

    @property
    def askable(self) -> list[Host]:
        return []


class Connection:
    """Somebody who is told that the primary is another one."""

    address = ("a", 1)

    def cut(self) -> None:
        """It is told, and that is all."""


def test_a_connection_may_be_made_while_another_thread_cuts_those_to_the_primary_before() -> None:
    """The set of them changed its size then, and what had looked for the primary broke off with a RuntimeError."""
    primary = TwoServers()
    kept = [Connection() for _ in range(100)]
    for connection in kept:
        primary.follow(connection)

    def look_again() -> None:
        primary.doubt(primary.address())

    def connect() -> None:
        kept.append(Connection())
        primary.follow(kept[-1])
        del kept[:-100]

    beside(look_again, connect)
