"""An executor process of a worker of type thread: many runs at a time, functions in threads, coroutines on one event loop.

It is a child of a template (``template.py``) that has imported no user code: that one kills it when its runs' leases cannot be
trusted any more, or when the supervisor is gone, whatever user code does to this process. Its first frame says how many threads
it may have and where to mark the runs whose bodies start; ``runs``, ``stop`` and ``close`` follow on the same socket.

The main thread reads that socket. Ends are gathered and written together: by whoever finds nothing else to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import mmap
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from orchestrator import clock
from orchestrator.context import recorded_run
from orchestrator.engine import direct, outcomes, protocol, template, termination
from orchestrator.engine.background import BackgroundCall, Row
from orchestrator.engine.flow_call import FlowCall
from orchestrator.logging import handlers
from orchestrator.states import StateType

if TYPE_CHECKING:
    import asyncio

    from orchestrator.engine.link import Link
    from orchestrator.engine.protocol import Frame
    from orchestrator.flows import Flow
    from orchestrator.tasks import Task

_MOST_ENDS = 50
"""So many ends are written although more runs wait: their slots are wanted."""

_LOGGER = "orchestrator.worker"


def serve(link: Link, spec: Mapping[str, Any]) -> None:
    """Execute runs until the supervisor says that no more will come. ``spec`` is the content of the first frame.

    Call it on the main thread, once per process.
    """
    handlers.prepare(console=False)
    direct.use(link)
    outputs = [Output("stdout", logging.INFO, sys.stdout), Output("stderr", logging.ERROR, sys.stderr)]
    sys.stdout, sys.stderr = outputs
    Executor(link, spec["threads"], _open_marks(spec["marks"]), outputs).serve()


class Executor:
    """What executes the runs of this process. ``marks`` has a byte for each slot: set when the body of its run starts."""

    def __init__(self, link: Link, threads: int, marks: mmap.mmap | bytearray, outputs: Iterable[Output] = ()) -> None:
        self._link = link
        self._marks = marks
        self._outputs = list(outputs)
        self._code = Code(link)
        self._lock = threading.Lock()  # of what is being executed where
        self._items: dict[str, _Item] = {}
        # One more than there are runs at a time, so that there is always one to write the ends of the others.
        self._bodies = Bodies(self._execute, link, threads + 1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_flush_due = False

    def serve(self) -> None:
        """Read until the supervisor is gone or has closed this process."""
        self._link.serve(self.take, on_lost=_die)

    def take(self, frame: Frame) -> None:
        """One frame of the supervisor's."""
        if frame[0] == protocol.RUNS:
            items = [_Item(Row(*fields)) for fields in frame[1]]
            for item in items:
                self._items[item.row.id] = item
            self._route(items)
        elif frame[0] == protocol.STOP:
            self._stop(frame[1])
        else:
            self._close()

    def _route(self, items: list[_Item]) -> None:
        """Coroutines to the loop, all else to threads: what was not imported yet is imported there."""
        plain: list[_Item] = []
        coroutines: list[_Item] = []
        for item in items:
            if item.task is None and item.row.flow is None:
                item.task = self._code.known(item.row.entrypoint)
            (coroutines if item.task is not None and item.task.isasync else plain).append(item)
        if plain:
            self._bodies.put(plain)
        if coroutines:
            self._running_loop().call_soon_threadsafe(self._start_coroutines, coroutines)

    # In a thread

    def _execute(self, item: _Item) -> None:
        """One run, or the import of its code. Nothing that is raised gets out."""
        try:
            try:
                if self._enter(item):
                    Context().run(self._run, item)
            finally:
                self._leave(item)
        except BaseException as problem:
            # Told to stop while the finally clause was at work, or what came in the way of telling the end.
            self._leave(item)
            self._end_anyway(item, problem)

    def _enter(self, item: _Item) -> bool:
        with self._lock:
            item.thread = threading.get_ident()
            if not item.is_stopped:
                return True
        self._end_anyway(item, termination.Terminated())
        return False

    def _leave(self, item: _Item) -> None:
        """From here on nobody stops this thread for the run's sake. May be called again."""
        with self._lock:
            is_handed_on, item.is_handed_on = item.is_handed_on, False
            item.thread = 0
            if item.was_thrown:
                item.was_thrown = False
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)
        if is_handed_on:
            self._route([item])
        elif item.is_over:
            self._forget(item)

    def _run(self, item: _Item) -> None:
        row = item.row
        if row.flow is not None:
            self._run_flow(item, row.flow)
            return
        if item.task is None:
            try:
                item.task = self._code.load_task(row.entrypoint)
            except BaseException as error:  # a module may raise anything, SystemExit included
                if isinstance(error, termination.Terminated):
                    raise
                self._fail(item, *template.describe_failure(error))
                return
            if item.task.isasync:
                item.is_handed_on = True
                return
        item.call = call = BackgroundCall(item.task, row, self._link, self._finish_output)
        self._marks[row.slot] = 1
        item.task.complete(call)
        item.is_over = True

    def _run_flow(self, item: _Item, claimed: dict[str, Any]) -> None:
        try:
            flow = self._code.load_flow(item.row.entrypoint, claimed["path"])
            values = flow.signature.bind_names(item.row.parameters)
        except BaseException as error:
            if isinstance(error, termination.Terminated):
                raise
            self._fail(item, *template.describe_failure(error))
            return
        item.call = call = _ClaimedFlowCall(flow, values, link=self._link, claimed=claimed, return_state=True)
        call.before_end = self._finish_output
        self._marks[item.row.slot] = 1
        try:
            flow.execute(call)
        except Exception:
            if not call.has_told_end:
                raise
        item.is_over = True

    def _fail(self, item: _Item, message: str, log: str) -> None:
        self._link.log(item.row.id, clock.now_ms(), logging.ERROR, _LOGGER, log)
        self._link.gather([protocol.END, item.row.id, StateType.FAILED.value, "Failed", message, b"", None])
        item.is_over = True

    def _end_anyway(self, item: _Item, problem: BaseException) -> None:
        """The run has no end yet: this is it."""
        if not item.is_over:
            item.is_over = True
            if isinstance(item.call, BackgroundCall):
                item.call.stop(problem)
            elif item.call is None or not item.call.has_told_end:
                self._finish_output(item.row.id)
                message = self._link.cancel_message(item.row.id)
                kind = StateType.CRASHED if message is None else StateType.CANCELLED
                told = message or outcomes.describe(problem)
                self._link.gather([protocol.END, item.row.id, kind.value, kind.value.capitalize(), told, b"", None])
        self._forget(item)

    def _forget(self, item: _Item) -> None:
        self._items.pop(item.row.id, None)
        self._link.forget(item.row.id)

    def _finish_output(self, run: str) -> None:
        for output in self._outputs:
            output.finish(run)

    # On the event loop

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            import asyncio

            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="orch-loop", daemon=True).start()
        return self._loop

    def _start_coroutines(self, items: list[_Item]) -> None:
        assert self._loop is not None
        stopped = []
        with self._lock:
            for item in items:
                if item.is_stopped:
                    stopped.append(item)
                else:
                    item.future = self._loop.create_task(self._execute_coroutine(item), context=Context())
        for item in stopped:  # cancelled before its first step a coroutine could not say so itself
            self._end_anyway(item, termination.Terminated())
            self._flush_soon()

    async def _execute_coroutine(self, item: _Item) -> None:
        assert item.task is not None
        try:
            item.call = call = BackgroundCall(item.task, item.row, self._link, self._finish_output)
            self._marks[item.row.slot] = 1
            await item.task.complete_async(call)
            item.is_over = True
            self._forget(item)
        except BaseException as problem:
            self._end_anyway(item, problem)
        self._flush_soon()

    def _flush_soon(self) -> None:
        """When the coroutines that can go on now have done so."""
        if not self._is_flush_due:
            assert self._loop is not None
            self._is_flush_due = True
            self._loop.call_soon(self._flush_from_loop)

    def _flush_from_loop(self) -> None:
        self._is_flush_due = False
        self._link.flush()

    # Stopping

    def _stop(self, run: str) -> None:
        with self._lock:
            item = self._items.get(run)
            if item is None or item.is_over:
                return
            item.is_stopped = True
            if item.future is not None:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(item.future.cancel)
            elif item.thread:
                item.was_thrown = True
                termination.stop_run(run, item.thread)

    def _close(self) -> None:
        """Leave as the interpreter does at a program's end: threads and exit handlers may finish."""
        for output in self._outputs:
            output.finish_all()
        template.leave(self._link, 0)


class _Item:
    """One run in this process."""

    __slots__ = ("call", "future", "is_handed_on", "is_over", "is_stopped", "row", "task", "thread", "was_thrown")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.task: Task[..., Any] | None = None
        self.call: BackgroundCall | _ClaimedFlowCall | None = None
        self.thread = 0
        self.future: asyncio.Task[None] | None = None
        self.is_stopped = False
        self.was_thrown = False
        self.is_handed_on = False  # to the loop, its code having been imported in a thread
        self.is_over = False


class _ClaimedFlowCall(FlowCall):
    has_told_end = False
    before_end: Callable[[str], object]

    def close(self) -> None:
        """Tell the end."""
        self.before_end(self.run.id)
        super().close()
        self.has_told_end = True


class Bodies:
    """Threads that execute what is ``put``, as many as there is work for, up to ``most``; those that have none flush the link.

    A thread that takes something wakes one other if there is more, and no second one before the first has looked: bodies that
    do nothing but compute for microseconds are left to one thread, those that wait have a thread each at once.
    """

    def __init__(self, execute: Callable[[_Item], object], link: Link, most: int) -> None:
        self._execute = execute
        self._link = link
        self._most = most
        self._lock = threading.Lock()
        self._queue: deque[_Item] = deque()
        self._idle: list[threading.Lock] = []
        self._count = 0
        self._is_waking = False

    def put(self, items: Iterable[_Item]) -> None:
        """Have these executed, in this order."""
        with self._lock:
            self._queue.extend(items)
            self._wake()

    def _wake(self) -> None:
        """Have one more thread look for work, unless one is about to. The lock is held."""
        if self._is_waking:
            return
        if self._idle:
            self._is_waking = True
            self._idle.pop().release()
        elif self._count < self._most:
            self._is_waking = True
            self._count += 1
            threading.Thread(target=self._work, name=f"orch-run-{self._count}", daemon=True).start()

    def _work(self) -> None:
        asleep = threading.Lock()
        asleep.acquire()
        was_woken = True
        while True:
            with self._lock:
                if was_woken:
                    self._is_waking = False
                item = self._queue.popleft() if self._queue else None
                is_idle = item is None and not self._link.gathered
                if is_idle:
                    self._idle.append(asleep)
                elif self._queue or self._link.gathered:
                    self._wake()
            if is_idle:
                asleep.acquire()
                was_woken = True
                continue
            if was_woken or item is None or self._link.gathered >= _MOST_ENDS:
                self._link.flush()  # also the ends of others who are in a body by now
            was_woken = False
            if item is not None:
                self._execute(item)


class Code:
    """The flows and tasks that were imported here. Tells the supervisor which files that took."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._folder = str(Path.cwd())
        self._tasks: dict[str, Task[..., Any]] = {}
        self._flows: dict[tuple[str, str], Flow[..., Any]] = {}
        self._files: dict[str, list[Any]] = {}
        self._lock = threading.RLock()

    def known(self, entrypoint: str) -> Task[..., Any] | None:
        """The task of this entry point if it was imported before."""
        return self._tasks.get(entrypoint)

    def load_task(self, entrypoint: str) -> Task[..., Any]:
        """The task of this entry point. Raises FlowLoadError."""
        from orchestrator.deployments import entrypoints

        with self._lock:
            task = self._tasks.get(entrypoint)
            if task is None:
                started_ms = clock.now_ms()
                task = entrypoints.load_task(entrypoint, self._folder)
                self._tell_files(started_ms)
                self._tasks[entrypoint] = task
            return task

    def load_flow(self, entrypoint: str, folder: str) -> Flow[..., Any]:
        """The flow of this entry point in its folder. Raises FlowLoadError."""
        from orchestrator.deployments import entrypoints

        with self._lock:
            flow = self._flows.get((entrypoint, folder))
            if flow is None:
                started_ms = clock.now_ms()
                flow = entrypoints.load_flow(entrypoint, folder or self._folder)
                self._tell_files(started_ms)
                self._flows[entrypoint, folder] = flow
            return flow

    def _tell_files(self, started_ms: int) -> None:
        for file in template.project_files(started_ms):
            self._files.setdefault(file[0], file)  # as it was when it was read
        self._link.send([protocol.FILES, list(self._files.values())])


class Output(io.TextIOBase):
    """A stdout or stderr: what runs print goes into their logs line by line, all else where it went before."""

    def __init__(self, name: str, level: int, beyond: IO[str]) -> None:
        self._name = name
        self._level = level
        self._beyond = beyond
        self._partial: dict[str, tuple[Link, str]] = {}

    def write(self, text: str) -> int:
        """Print."""
        found = recorded_run()
        if found is None or found[0] is None:
            return self._beyond.write(text)
        link, run = found
        assert link is not None
        *lines, rest = (self._partial.pop(run, (link, ""))[1] + text).split("\n")
        for line in lines:
            self._log(link, run, line)
        if rest:
            self._partial[run] = link, rest
        return len(text)

    def flush(self) -> None:
        """A line is in the log when it has ended."""
        self._beyond.flush()

    def fileno(self) -> int:
        """The process's own: what is written there directly belongs to no run."""
        return self._beyond.fileno()

    def writable(self) -> bool:
        """It is there to be written to."""
        return True

    def isatty(self) -> bool:
        """No."""
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the process's own stream."""
        return str(getattr(self._beyond, "encoding", "utf-8"))

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """As the process's own stream has it."""
        return str(getattr(self._beyond, "errors", "strict"))

    @property
    def buffer(self) -> Any:
        """For bytes: the process's own."""
        return getattr(self._beyond, "buffer", None)

    def finish(self, run: str) -> None:
        """The run has ended: what is left of its last line."""
        if self._partial and run in self._partial:
            link, rest = self._partial.pop(run)
            self._log(link, run, rest)

    def finish_all(self) -> None:
        """The process ends."""
        for run in list(self._partial):
            self.finish(run)
        with contextlib.suppress(OSError, ValueError):
            self._beyond.flush()

    def _log(self, link: Link, run: str, line: str) -> None:
        link.log(run, clock.now_ms(), self._level, self._name, line.rpartition("\r")[2])


def _open_marks(path: str) -> mmap.mmap:
    with Path(path).open("r+b") as file:
        Path(path).unlink()
        return mmap.mmap(file.fileno(), 0)


def _die(reason: str) -> None:
    """Nobody hears what becomes of the runs: whoever starts them again must find them dead."""
    os._exit(1)
