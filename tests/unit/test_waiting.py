"""Blocking reads in a thread of their own: one at a time, and one that never ends is given up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from harness import eventually
from orchestrator import clock
from orchestrator.engine.waiting import Waiter


class Source:
    """What the reads bring, put there by the test; an exception is raised."""

    def __init__(self) -> None:
        self.brought: queue.Queue[str | BaseException] = queue.Queue()
        self.notified = threading.Semaphore(0)
        self.now = 0.0
        self.name = f"test-{id(self)}"
        self.waiter = Waiter(self.name, self._read, self.notified.release)

    def _read(self) -> str:
        item = self.brought.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def take(self) -> str | Exception | None:
        """What the next read brings."""
        assert self.notified.acquire(timeout=30)
        return self.waiter.take()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    source = Source()
    monkeypatch.setattr(clock, "monotonic", lambda: source.now)
    yield source
    source.brought.put("the end")


def test_each_arming_brings_one_result(source: Source) -> None:
    error = ValueError("x")
    for item in ("a", error, "b"):
        source.waiter.arm()
        source.waiter.arm()
        assert source.waiter.take() is None
        source.brought.put(item)
        assert source.take() == item
        assert not source.waiter.is_armed


def test_a_read_is_overdue_when_it_has_not_ended_in_time(source: Source) -> None:
    limit = timedelta(seconds=10)
    source.now = 100
    assert not source.waiter.is_overdue(limit), "it has not begun"
    source.waiter.arm()
    source.now = 110
    assert not source.waiter.is_overdue(limit)
    source.now = 111
    assert source.waiter.is_overdue(limit)
    source.brought.put("a")
    eventually(lambda: not source.waiter.is_overdue(limit))
    assert source.take() == "a"


def test_what_a_replaced_read_brings_late_is_dropped_and_the_next_one_works(source: Source) -> None:
    source.waiter.arm()
    source.waiter.replace()
    assert not source.waiter.is_armed
    source.brought.put("late")
    eventually(source.brought.empty)
    source.waiter.arm()
    source.brought.put("next")
    assert source.take() == "next"
    assert source.waiter.take() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_died_is_overdue_and_can_be_replaced(source: Source) -> None:
    source.waiter.arm()
    source.brought.put(SystemExit())
    eventually(lambda: not any(thread.name == source.name for thread in threading.enumerate()))
    source.now = 100
    assert source.waiter.is_overdue(timedelta(seconds=10))
    source.waiter.replace()
    source.waiter.arm()
    source.brought.put("a")
    assert source.take() == "a"
