"""Futures: task runs that were submitted and may not have ended yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from orchestrator import clock
from orchestrator.utilities.annotations import allow_failure, quote, unmapped

if TYPE_CHECKING:
    from orchestrator.models import TaskRun
    from orchestrator.states import State

__all__ = ["DoneAndNotDone", "Future", "FutureList", "allow_failure", "as_completed", "quote", "unmapped", "wait"]

R = TypeVar("R")

giving_way: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("orch_giving_way", default=nullcontext)
"""What a thread does around a wait for a future: one that belongs to a task runner lets another run in its place."""


class Future(Generic[R]):
    """One submitted task run. Task runners make these."""

    def __init__(self, task_run: TaskRun) -> None:
        self.task_run = task_run
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Future[R]], object]] = []

    @property
    def task_run_id(self) -> str:
        """The id of the task run."""
        return self.task_run.id

    @property
    def state(self) -> State:
        """The task run's present state; the final one once it has ended."""
        return self.task_run.state

    @property
    def is_done(self) -> bool:
        """The task run has ended, or cannot run because something before it failed."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task run has ended, or ``timeout`` seconds."""
        if not self._ended.is_set():
            with giving_way.get()():
                self._ended.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """What the task returned; waits for it.

        Its exception is raised, or returned with ``raise_on_failure=False``.
        Raises TimeoutError after ``timeout`` seconds, UnfinishedRun if something that the task needed failed.
        """
        self.wait(timeout)
        if not self._ended.is_set():
            raise TimeoutError(f"Task run '{self.task_run.name}' has not ended within {timeout} seconds.")
        value: R = self.state.result(raise_on_failure=raise_on_failure)
        return value

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call ``fn(future)`` when the task run has ended, in the thread that ran it; at once if it has."""
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(fn)
                return
        fn(self)

    def set_ended(self) -> None:
        """For task runners: the task run has its final state."""
        with self._lock:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def __repr__(self) -> str:
        return f"Future({self.task_run.name!r}, {self.state})"


class FutureList(list[Future[R]]):
    """The futures of one ``map``, in order."""

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all have ended, ``timeout`` seconds in all."""
        wait(self, timeout=timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """The results in order. Raises the first exception in that order, TimeoutError after ``timeout`` seconds in all."""
        deadline = None if timeout is None else clock.monotonic() + timeout
        return [future.result(_left(deadline), raise_on_failure=raise_on_failure) for future in self]


class DoneAndNotDone(NamedTuple):
    """The answer of ``wait``."""

    done: set[Future[Any]]
    not_done: set[Future[Any]]


def wait(futures: Iterable[Future[Any]], timeout: float | None = None) -> DoneAndNotDone:
    """Wait until all have ended, or ``timeout`` seconds; which have and which have not."""
    every = set(futures)
    deadline = None if timeout is None else clock.monotonic() + timeout
    for future in every:
        future.wait(_left(deadline))
    done = {future for future in every if future.is_done}
    return DoneAndNotDone(done, every - done)


def as_completed(futures: Iterable[Future[R]], timeout: float | None = None) -> Iterator[Future[R]]:
    """The futures in the order in which they end. Raises TimeoutError if some have not after ``timeout`` seconds."""
    every = set(futures)
    deadline = None if timeout is None else clock.monotonic() + timeout
    arrived = threading.Condition()
    ended: list[Future[R]] = []

    def note(future: Future[R]) -> None:
        with arrived:
            ended.append(future)
            arrived.notify()

    for future in every:
        future.add_done_callback(note)
    for _ in range(len(every)):
        with giving_way.get()(), arrived:
            if not arrived.wait_for(lambda: ended, _left(deadline)):
                missing = sum(not future.is_done for future in every)
                raise TimeoutError(f"{missing} of {len(every)} task runs have not ended within {timeout} seconds.")
            future = ended.pop(0)
        yield future


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - clock.monotonic())
