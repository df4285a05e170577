"""Submitted tasks in threads of this process."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator import futures
from orchestrator.engine.termination import Terminated, stop_thread
from orchestrator.exceptions import OrchError
from orchestrator.futures import Future
from orchestrator.task_runners.base import TaskRunner, when_all_ended

if TYPE_CHECKING:
    from orchestrator.engine.link import Word
    from orchestrator.engine.task_call import TaskCall
    from orchestrator.tasks import Task

MAX_WORKERS = 128
"""Threads of a runner that was not told how many; they start as they are needed."""

_STOP_SECONDS = 5.0


@dataclass(slots=True)
class _Line:
    """Tasks with the same tags. ``asking`` counts those that asked for their slots and have not begun to run."""

    waiting: deque[tuple[TaskCall, Callable[[], None]]] = field(default_factory=deque)
    asking: int = 0


class ThreadPoolTaskRunner(TaskRunner):
    """Runs tasks in threads of this process, ``max_workers`` at a time.

    A task that waits for another's future gives up its place meanwhile, so that tasks which submit tasks never wait for each
    other for ever, however few workers there are. A task whose inputs are futures takes no thread before these have ended, and
    one whose tags are limited none before it has its slots. Of each set of tags as many as there are workers ask for theirs.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers is {max_workers}; it must be at least 1.")
        self.max_workers = max_workers
        self._limit = max_workers or MAX_WORKERS
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._places = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._unfinished: dict[Future[Any], TaskCall] = {}
        self._ready: deque[Callable[[], None]] = deque()
        self._lines: dict[tuple[str, ...], _Line] = {}
        self._running: dict[Future[Any], int] = {}
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._idle = 0
        self._returning = 0
        self._is_closed = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ThreadPoolTaskRunner) and other.max_workers == self.max_workers

    __hash__ = None  # type: ignore[assignment]

    def duplicate(self) -> ThreadPoolTaskRunner:
        """A fresh runner with as many workers."""
        return ThreadPoolTaskRunner(self.max_workers)

    def submit(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: Iterable[Any] | None = None
    ) -> Future[Any]:
        """Begin one task run as soon as what it needs is there, in a copy of the caller's context."""
        from orchestrator.engine.inputs import pending_futures

        needed = None if wait_for is None else list(wait_for)
        call = task.submitted_call(args, kwargs, needed)
        future: Future[Any] = Future(call.task_run)
        with self._lock:
            self._unfinished[future] = call
        run = partial(contextvars.copy_context().run, self._run, future, call)
        enqueue = partial(self._enqueue, run) if call.slots is None else partial(self._line_up, call, run)
        upstream = pending_futures((*args, *kwargs.values(), *(needed or ())))
        if upstream:
            when_all_ended(upstream, enqueue)
        else:
            enqueue()
        return future

    def finish(self, *, cancel: bool = False) -> None:
        """Wait for all that was submitted, or stop it; then end the threads."""
        if cancel:
            self._cancel()
        # Our own caller may be a task in a thread of another runner.
        with futures.giving_way.get()(), self._lock:
            self._all_done.wait_for(lambda: not self._unfinished, _STOP_SECONDS if cancel else None)
            self._is_closed = True
            self._work.notify_all()
        if not cancel:
            for thread in self._threads:
                thread.join()

    # Below: threads and places. A thread holds a place while it runs a task that does not wait for another one.

    def _enqueue(self, run: Callable[[], None]) -> None:
        with self._lock:
            self._ready.append(run)
            self._use_free_place()

    def _line_up(self, call: TaskCall, run: Callable[[], None]) -> None:
        with self._lock:
            line = self._lines.setdefault(call.task_run.tags, _Line())
            line.waiting.append((call, run))
        self._ask_next(line)

    def _ask_next(self, line: _Line) -> None:
        """Have the next of the line ask for its slots; it becomes ready when it has them."""
        with self._lock:
            if not line.waiting or line.asking >= self._limit:
                return
            line.asking += 1
            call, run = line.waiting.popleft()
        slots = call.slots

        def begin() -> None:
            with self._lock:
                line.asking -= 1
            self._ask_next(line)
            run()

        def hear(word: Word) -> None:
            with suppress(OrchError):  # in its thread it asks once more, and fails there
                if slots is None or not slots.hear(word):
                    return
            self._enqueue(begin)

        if slots is None:  # it was dropped
            self._enqueue(begin)
        else:
            slots.ask(hear)

    def _use_free_place(self) -> None:
        """With the lock held: let a thread take the next task, if there is a place. It passes this on when it has."""
        if not self._ready or self._returning or self._busy >= self._limit:
            return
        if self._idle:
            self._work.notify()
        else:
            thread = threading.Thread(target=self._serve, name=f"orch-task-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            self._idle += 1
            thread.start()

    def _serve(self) -> None:
        with suppress(Terminated):  # it may strike just after the task that it was meant for
            self._serve_on()

    def _serve_on(self) -> None:
        while True:
            with self._lock:
                while not self._ready or self._returning or self._busy >= self._limit:
                    if self._is_closed:
                        return
                    self._work.wait()
                run = self._ready.popleft()
                self._idle -= 1
                self._busy += 1
                self._use_free_place()
            run()
            with self._lock:
                self._idle += 1
                self._leave_place()

    def _leave_place(self) -> None:
        """With the lock held: those who want their place back come first."""
        self._busy -= 1
        if self._returning:
            self._places.notify()
        else:
            self._use_free_place()

    @contextmanager
    def _give_way(self) -> Iterator[None]:
        with self._lock:
            self._leave_place()
        try:
            yield
        finally:
            with self._lock:
                self._returning += 1
                self._places.wait_for(lambda: self._busy < self._limit)
                self._returning -= 1
                self._busy += 1
                self._use_free_place()

    def _run(self, future: Future[Any], call: TaskCall) -> None:
        with self._lock:
            if future not in self._unfinished:  # dropped while it waited
                return
            self._running[future] = threading.get_ident()
        futures.giving_way.set(self._give_way)
        try:
            call.task.complete(call)
        except BaseException as problem:
            # Mostly the call knows already: whatever its task raised is its state.
            call.break_off(problem)
        finally:
            self._end(future)

    def _end(self, future: Future[Any]) -> None:
        future.set_ended()
        with self._lock:
            self._unfinished.pop(future, None)
            self._running.pop(future, None)
            if not self._unfinished:
                self._all_done.notify_all()

    def _cancel(self) -> None:
        with self._lock:
            self._ready.clear()
            self._lines.clear()
            waiting = {future: call for future, call in self._unfinished.items() if future not in self._running}
            self._unfinished = {future: call for future, call in self._unfinished.items() if future in self._running}
            for thread in self._running.values():
                stop_thread(thread)
        for future, call in waiting.items():
            call.drop("Its flow run was stopped before it began.")
            self._end(future)
