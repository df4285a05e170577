"""Futures: task runs that were submitted and may not have ended yet, here or on some worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from orchestrator import clock
from orchestrator.exceptions import MissingResult
from orchestrator.utilities.annotations import allow_failure, quote, unmapped

if TYPE_CHECKING:
    from orchestrator.models import TaskRun
    from orchestrator.states import State
    from orchestrator.store.ends import Ends

__all__ = [
    "DistributedFuture",
    "DoneAndNotDone",
    "Future",
    "FutureList",
    "allow_failure",
    "as_completed",
    "quote",
    "unmapped",
    "wait",
]

R = TypeVar("R")

log = logging.getLogger(__name__)

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
    def name(self) -> str:
        """The name of the task run."""
        return self.task_run.name

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


class DistributedFuture(Future[R]):
    """One run of a task in the background, on whatever worker: ``Task.delay`` gives these.

    ``DistributedFuture(task_run_id)`` is one in any process of the namespace. Waiting needs no polling: one thread a process
    reads the feed of events while somebody waits. Two futures of one run are equal.
    """

    def __init__(self, task_run_id: str, name: str = "") -> None:
        # Nothing more: thousands are made for each one that is waited for.
        self._id = task_run_id
        self._name = name

    _signal: threading.Event | None = None
    _waiting = 0
    _has_ended = False
    _final: State | None = None
    _problem: Exception | None = None
    _told_to: tuple[Callable[[Future[R]], object], ...] = ()

    @property
    def task_run_id(self) -> str:
        """The id of the run."""
        return self._id

    @property
    def name(self) -> str:
        """The name of the run; its id where only that was given."""
        return self._name or self._id

    @property
    def state(self) -> State:
        """The run's present state; asks Redis, until it is the final one. Raises ObjectNotFound, StoreUnavailable."""
        if self._final is None:
            state, packed = _ends().outcome(self._id)
            if not state.is_final():
                self._has_ended = False  # somebody had it tried again
                return state
            self._has_ended = True
            self._final = state.with_data(_value_of(packed)) if state.is_completed() else state
        return self._final

    @property
    def is_done(self) -> bool:
        """The run has ended; asks Redis unless that is known."""
        return self._has_ended or self.state.is_final()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the run has ended, or ``timeout`` seconds. Raises ObjectNotFound if it is deleted, StoreUnavailable."""
        if self._has_ended:
            return
        with giving_way.get()(), self._waited_for():
            has_ended = _watch([self])[0].wait(timeout)
        if has_ended and self._problem is not None:
            raise self._problem

    async def wait_async(self, timeout: float | None = None) -> None:
        """``wait`` for async code."""
        import asyncio

        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def note(_: Future[R]) -> None:
            loop.call_soon_threadsafe(ended.set)

        with self._waited_for():
            await asyncio.to_thread(self.add_done_callback, note)
            try:
                async with asyncio.timeout(timeout):
                    await ended.wait()
            except TimeoutError:
                return
            finally:
                with _lock:
                    self._told_to = tuple(fn for fn in self._told_to if fn is not note)
        if self._problem is not None:
            raise self._problem

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """What the task returned, as plain data; waits for it.

        A run that did not complete raises FailedRun, CrashedRun or CancelledRun with what it said, or returns that with
        ``raise_on_failure=False``. Raises TimeoutError after ``timeout`` seconds, MissingResult for a value that could not be
        kept.
        """
        deadline = None if timeout is None else clock.monotonic() + timeout
        while True:
            self.wait(_left(deadline))
            if not self._has_ended:
                raise self._too_slow(timeout)
            if self.state.is_final():
                return self._result(raise_on_failure)

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """``result`` for async code."""
        import asyncio

        deadline = None if timeout is None else clock.monotonic() + timeout
        while True:
            await self.wait_async(_left(deadline))
            if not self._has_ended:
                raise self._too_slow(timeout)
            if (await asyncio.to_thread(lambda: self.state)).is_final():
                return self._result(raise_on_failure)

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call ``fn(future)`` in some thread when the run has ended, or when nobody can know any more; at once if it has."""
        with _lock:
            is_late = self._has_ended
            if not is_late:
                self._told_to = (*self._told_to, fn)
        if is_late:
            fn(self)
        else:
            _watch([self])

    def _too_slow(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"Run '{self.name}' has not ended within {timeout} seconds.")

    def _result(self, raise_on_failure: bool) -> R:
        value: R = self.state.result(raise_on_failure=raise_on_failure)
        if isinstance(value, MissingResult):
            raise value
        return value

    def _told(self, problem: Exception | None) -> None:
        """The run has ended, or ``problem`` is why nobody will know."""
        with _lock:
            signal, self._problem, self._has_ended = self._signal, problem, problem is None
            self._signal = None
            callbacks, self._told_to = self._told_to, ()
        if signal is not None:
            signal.set()
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("A callback of the future of run '%s' failed", self.name)

    @contextmanager
    def _waited_for(self) -> Iterator[None]:
        """Somebody waits. When the last one does so no more, nobody has to be told of the run's end, but for callbacks."""
        with _lock:
            self._waiting += 1
        try:
            yield
        finally:
            with _lock:
                self._waiting -= 1
                is_left = self._signal is not None and not self._waiting and not self._told_to
                if is_left:
                    self._signal = None
            if is_left:
                _ends().stop_telling(self._id, self._told)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._id, self._name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DistributedFuture) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"DistributedFuture({self.name!r})"


_lock = threading.Lock()


def _value_of(packed: bytes) -> Any:
    """A result as Redis keeps it; MissingResult in place of one that could not be kept."""
    from orchestrator.engine.plain import read_result

    try:
        return read_result(packed)
    except MissingResult as problem:
        return problem


def _ends() -> Ends:
    from orchestrator.engine.submission import submitter

    return submitter().ends


def _watch(futures: Iterable[DistributedFuture[Any]]) -> list[threading.Event]:
    """Learn of the ends of these, of all in one request; an event for each."""
    new: list[DistributedFuture[Any]] = []
    signals = []
    with _lock:
        for future in futures:
            if future._signal is None:
                future._signal = threading.Event()
                new.append(future)
            signals.append(future._signal)
    if new:
        try:
            _ends().tell([(future._id, future._told) for future in new])
        except Exception as problem:
            for future in new:
                future._told(problem)
            raise
    return signals


class FutureList(list[Future[R]]):
    """The futures of one ``map`` or ``delay_many``, in order."""

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all have ended, ``timeout`` seconds in all."""
        wait(self, timeout=timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """The results in order. Raises the first exception in that order, TimeoutError after ``timeout`` seconds in all."""
        deadline = None if timeout is None else clock.monotonic() + timeout
        _expect(self)
        return [future.result(_left(deadline), raise_on_failure=raise_on_failure) for future in self]


class DoneAndNotDone(NamedTuple):
    """The answer of ``wait``."""

    done: set[Future[Any]]
    not_done: set[Future[Any]]


def wait(futures: Iterable[Future[Any]], timeout: float | None = None) -> DoneAndNotDone:
    """Wait until all have ended, or ``timeout`` seconds; which have and which have not."""
    every = set(futures)
    deadline = None if timeout is None else clock.monotonic() + timeout
    _expect(every)
    for future in every:
        future.wait(_left(deadline))
    done = {future for future in every if _is_known_done(future)}
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

    _expect(every)
    for future in every:
        future.add_done_callback(note)
    for _ in range(len(every)):
        with giving_way.get()(), arrived:
            if not arrived.wait_for(lambda: ended, _left(deadline)):
                missing = sum(not future.is_done for future in every)
                raise TimeoutError(f"{missing} of {len(every)} task runs have not ended within {timeout} seconds.")
            future = ended.pop(0)
        yield future


def _expect(futures: Iterable[Future[Any]]) -> None:
    """Have Redis asked once about all runs of workers among these."""
    distributed = [future for future in futures if isinstance(future, DistributedFuture) and not future._has_ended]
    if distributed:
        _watch(distributed)


def _is_known_done(future: Future[Any]) -> bool:
    """Without asking Redis, which has just told."""
    return future._has_ended if isinstance(future, DistributedFuture) else future.is_done


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - clock.monotonic())
