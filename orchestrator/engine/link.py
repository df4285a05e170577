"""The engine's end of the socket to its recorder.

Task states and log lines are only noted here, for about a microsecond each; a thread that starts with the first of them packs
and sends what has gathered, 25 times a second. Every other frame goes out at once, after all that was noted before it.

A recorder that is gone or stuck never stops user code: the link is then lost, says so once, and swallows what follows.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.engine.protocol import Frame, Wanted
from orchestrator.exceptions import OrchError, StoreUnavailable
from orchestrator.models import TaskRun

INTERVAL = 0.04
"""Seconds that task states and log lines gather before they are sent."""

_LOG_LINES = 10_000
_CHUNK_LINES = 500
_MOST_TASKS = 1000
_MESSAGE_CHARACTERS = 64 * 1024
_SEND_SECONDS = 30
_ENDS_KEPT = 1000
_FOR_EXECUTORS = frozenset({protocol.RUNS, protocol.STOP, protocol.CLOSE})
_RECEIVE_BYTES = 256 * 1024

_LogLine = tuple[str, int, int, str, str, str | None]

Word = tuple[str, Any]
"""What is heard of a call for slots: ``waits`` and for what; then, as the last, what the store answered with its detail, or
``error`` with the exception, or ``lost`` with why the recorder cannot be reached."""


class Link:
    """Frames to and from one recorder; any thread may use it.

    ``on_lost`` is called once, with the reason, when the recorder can no longer be reached, ``on_unfit`` instead when it said
    that it can never record; ``on_cancel`` with a run and a message for every request to stop one, but only after ``listen``.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        interval: float = INTERVAL,
        on_lost: Callable[[str], None] | None = None,
        on_cancel: Callable[[str, str], None] | None = None,
        on_trouble: Callable[[str], None] | None = None,
        on_unfit: Callable[[str], None] | None = None,
    ) -> None:
        # A kernel timeout, because a Python one would make the reader's blocking recv time out too.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        self._socket = sock
        self._interval = interval
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_trouble = on_trouble
        self._on_unfit = on_unfit
        self.lost: str | None = None
        self.trouble: str | None = None
        self.is_unfit = False
        self._frames = protocol.Frames()
        self._tasks: deque[tuple[str, TaskRun]] = deque()
        self._log: deque[_LogLine] = deque()
        self._dropped: dict[str, int] = {}
        self._sending = threading.RLock()
        self._reading = threading.Lock()
        self._noted = threading.Event()
        self._closing = threading.Event()
        self._flusher: threading.Thread | None = None
        self._reader: threading.Thread | None = None
        self._arrived = threading.Condition()
        self._inbox: deque[Frame] = deque()
        self._answers: dict[int, tuple[bool, Any]] = {}
        self._ended: dict[str, str] = {}
        self._cancelled: dict[str, str] = {}
        self._told_ends: set[str] = set()
        self._gathered: deque[bytes] = deque()
        self._serve: Callable[[Frame], object] | None = None
        self.limited_tags: frozenset[str] | None = None
        """The tags that have limits, as far as known: they were seconds ago."""
        self._requests = itertools.count(1)
        self._calls: dict[int, Callable[[Word], object]] = {}
        _links.add(self)

    # Noting and sending

    def task(self, run: str, task: TaskRun) -> None:
        """Note that a task run changed. Its fields are read when the note is sent, so only the latest state travels."""
        self._tasks.append((run, task))
        if not self._noted.is_set():
            self._rouse()
        elif len(self._tasks) >= _MOST_TASKS:
            self.flush()  # each holds its task's result, which may be large

    def log(self, run: str, at_ms: int, level: int, logger: str, message: str, task_run: str | None = None) -> None:
        """Note one log line. Beyond 10,000 unsent ones, lines are counted instead of kept."""
        if len(self._log) >= _LOG_LINES:
            self._dropped[run] = self._dropped.get(run, 0) + 1
            return
        if len(message) > _MESSAGE_CHARACTERS:
            message = f"{message[:_MESSAGE_CHARACTERS]}... ({len(message) - _MESSAGE_CHARACTERS} more characters)"
        self._log.append((run, at_ms, level, logger, message, task_run))
        if not self._noted.is_set():
            self._rouse()

    def send(self, frame: Frame) -> None:
        """Send a frame now, after everything noted so far."""
        with self._sending:
            self._write(b"".join((*self._noted_frames(), protocol.pack(frame))))
        if frame[0] == protocol.END and self._serve is None:
            self._told_ends.add(frame[1])

    def has_told_end(self, run: str) -> bool:
        """Whether the end of a run was sent."""
        return run in self._told_ends

    def gather(self, frame: Frame) -> None:
        """Have a frame sent with the next ``flush`` or ``send``, after all that was noted before."""
        self._gathered.append(protocol.pack(frame))

    @property
    def gathered(self) -> int:
        """How many frames wait for the next ``flush``."""
        return len(self._gathered)

    def flush(self) -> None:
        """Send what has been noted and gathered so far."""
        with self._sending:
            if noted := b"".join(self._noted_frames()):
                self._write(noted)

    def forget(self, run: str) -> None:
        """The run has ended, and this link goes on."""
        self._cancelled.pop(run, None)

    def close(self) -> None:
        """Send what is left and close the socket. The recorder takes a run without an end for crashed."""
        self.flush()
        self._closing.set()
        self._noted.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    # Receiving

    def receive(self, timeout: float | None = None) -> Frame | None:
        """The next frame that is no answer to anything: a worker's child gets its ``run`` frame this way.

        None when the recorder closed the socket or ``timeout`` seconds passed.
        """
        deadline = None if timeout is None else clock.monotonic() + timeout
        while not self._inbox and self._read(_left(deadline)):
            pass
        return self._inbox.popleft() if self._inbox else None

    def listen(self) -> None:
        """Read in the background from now on, so that ``on_cancel`` and ``on_lost`` are called by themselves."""
        with self._arrived:
            if self._reader is None:
                self._reader = threading.Thread(target=self._read_on, name="orch-link-reader", daemon=True)
                self._reader.start()

    def serve(
        self,
        take: Callable[[Frame], object],
        on_lost: Callable[[str], None] | None = None,
        on_cancel: Callable[[str, str], None] | None = None,
    ) -> None:
        """Read in this thread until the recorder is gone. ``take`` gets ``runs``, ``stop`` and ``close``, in any thread."""
        self._serve, self._on_lost, self._on_cancel = take, on_lost, on_cancel
        with self._arrived:
            self._reader = threading.current_thread()
        while self._inbox:
            take(self._inbox.popleft())
        self._read_on()

    def ask(self, what: str, *arguments: Any, timeout: float = 30.0) -> Any:
        """Have the recorder do something and return its answer.

        Raises what the recorder met: an OrchError of the same name, StoreUnavailable when there was no answer.
        """
        request = next(self._requests)
        self.send([protocol.ASK, request, what, list(arguments)])
        answer = self._wait_for(self._answers, request, timeout)
        if answer is None:
            raise StoreUnavailable(
                f"There was no answer to {what!r} within {timeout:g} seconds.", hint="Is Redis up? orch doctor"
            )
        ok, value = answer
        if not ok:
            raise as_exception(value)
        return value

    def new_call(self) -> int:
        """The number for a call for slots."""
        return next(self._requests)

    def acquire(self, call: int, run: str, wanted: Wanted, tell: Callable[[Word], object]) -> None:
        """Ask for slots. ``tell`` is called with each word about them, by the thread that reads: it must not block."""
        self.listen()
        with self._arrived:
            lost = self.lost
            if lost is None:
                self._calls[call] = tell
        if lost is not None:
            tell(("lost", lost))
        else:
            self.send([protocol.ACQUIRE, call, run, *wanted])

    def release(self, call: int, run: str) -> None:
        """Give the slots of a call back, or wait for them no longer: nothing more is told. Waits for nobody."""
        with self._arrived:
            self._calls.pop(call, None)
        self.send([protocol.RELEASE, run, call])

    def wait_ended(self, run: str, timeout: float, *, timeout_in_trouble: float) -> str | None:
        """Wait until the end of a run is in Redis: ok, again or superseded. None if that was not confirmed in time.

        ``timeout_in_trouble`` holds from when the recorder has said that it cannot reach Redis.
        """
        answer: str | None = self._wait_for(self._ended, run, timeout, or_trouble=True)
        if answer is None and self.trouble is not None:
            answer = self._wait_for(self._ended, run, timeout_in_trouble)
        return answer

    def cancel_message(self, run: str) -> str | None:
        """What the request to stop this run said; None if nobody asked for that. One that has arrived counts, read or not."""
        while self._read(0):
            pass
        return self._cancelled.get(run)

    # Below: how

    def _rouse(self) -> None:
        if self._flusher is None:
            with self._sending:
                if self._flusher is None and not self._closing.is_set():
                    self._flusher = threading.Thread(target=self._flush_on, name="orch-link", daemon=True)
                    self._flusher.start()
        self._noted.set()

    def _flush_on(self) -> None:
        while not self._closing.is_set():
            self._noted.wait()
            self._closing.wait(self._interval)
            # Cleared before the flush: what is noted during it wakes us again.
            self._noted.clear()
            self.flush()

    def _noted_frames(self) -> list[bytes]:
        # Taken first: whatever was noted before one of these was gathered goes before it.
        gathered = [self._gathered.popleft() for _ in range(len(self._gathered))]
        frames: list[bytes] = []
        while self._log:
            lines: dict[str, list[list[Any]]] = {}
            size = 0
            for _ in range(min(len(self._log), _CHUNK_LINES)):
                run, at_ms, level, logger, message, task_run = self._log.popleft()
                lines.setdefault(run, []).append([at_ms, level, logger, message, task_run])
                size += len(message)
                if size > _MESSAGE_CHARACTERS:
                    break
            frames.extend(protocol.pack([protocol.LOG, run, of_run]) for run, of_run in lines.items())
        while self._dropped:
            run, count = self._dropped.popitem()
            told = f"{count} log lines were dropped here: they came faster than they could be sent."
            line = [clock.now_ms(), logging.WARNING, "orchestrator", told, None]
            frames.append(protocol.pack([protocol.LOG, run, [line]]))
        while self._tasks:
            rows: dict[str, dict[str, list[Any]]] = {}
            changed: dict[str, tuple[str, TaskRun]] = {}
            for _ in range(min(len(self._tasks), _CHUNK_LINES)):
                run, task = self._tasks.popleft()
                changed[task.id] = run, task
            for run, task in changed.values():
                rows.setdefault(run, {})[task.id] = protocol.task_row(task)
            frames.extend(protocol.pack([protocol.TASKS, run, list(of_run.values())]) for run, of_run in rows.items())
        return frames + gathered

    def _write(self, packed: bytes) -> None:
        if self.lost is not None:
            return
        try:
            self._socket.sendall(packed)
        except BlockingIOError:
            # Half a frame may be out: nothing sensible can follow it.
            self._lose(f"it took nothing for {_SEND_SECONDS} seconds")
        except OSError as problem:
            self._lose(problem.strerror or str(problem))

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            with self._arrived:
                self.lost = reason
                calls, self._calls = self._calls, {}
                self._arrived.notify_all()
            for tell in calls.values():
                tell(("lost", reason))
            if self._on_lost is not None and not self._closing.is_set() and not self.is_unfit:
                self._on_lost(reason)

    def _read(self, timeout: float | None) -> bool:
        """Take in what arrives within ``timeout``; False when nothing did or nothing more can."""
        if self.lost is not None:
            return False
        try:
            is_there = bool(select.select([self._socket], [], [], timeout)[0])
            # Who comes here while another thread reads gets what that one has read.
            with self._reading:
                return is_there and self._read_now()
        except (OSError, ValueError) as problem:
            self._lose(str(problem))
            return False

    def _read_now(self) -> bool:
        if not select.select([self._socket], [], [], 0)[0]:
            return True  # another thread has read it
        received = self._socket.recv(_RECEIVE_BYTES)
        for frame in self._frames.feed(received):
            self._take(frame)
        if not received:
            self._lose("it has closed the socket")
        return bool(received)

    def _read_on(self) -> None:
        while self._read(None):
            pass

    def _take(self, frame: Frame) -> None:
        if self._serve is not None and frame[0] in _FOR_EXECUTORS:
            self._serve(frame)
            return
        match frame:
            case [protocol.WAITS, int(request), str(detail)]:
                if tell := self._calls.get(request):
                    tell((protocol.WAITS, detail))
                return
            case [protocol.LIMITED, list(tags)]:
                self.limited_tags = frozenset(tags)
                return
            case [protocol.ANSWER, int(request), bool(ok), value] if tell := self._calls.pop(request, None):
                tell((str(value[0]), str(value[1])) if ok else ("error", as_exception(value)))
                return
        with self._arrived:
            match frame:
                case [protocol.ANSWER, int(request), bool(ok), value]:
                    self._answers[request] = (ok, value)
                case [protocol.ENDED, str(run), str(answer)]:
                    self._ended[run] = answer
                    if len(self._ended) > _ENDS_KEPT:
                        del self._ended[next(iter(self._ended))]  # nobody waits for those of subflows
                case [protocol.CANCEL, str(run), str(message)]:
                    self._cancelled[run] = message
                case [protocol.TROUBLE, str(message)]:
                    self.trouble = message or None
                case _:
                    self._inbox.append(frame)
            self._arrived.notify_all()
        match frame:
            case [protocol.CANCEL, str(run), str(message)] if self._on_cancel is not None:
                self._on_cancel(run, message)
            case [protocol.TROUBLE, str(message)] if message and self._on_trouble is not None:
                self._on_trouble(message)
            case [protocol.UNFIT, str(message)]:
                self.is_unfit = True
                if self._on_unfit is not None:
                    self._on_unfit(message)  # before the link is lost: nobody waits then, and the process may end
                self._lose(message)
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _wait_for(self, where: dict[Any, Any], key: Any, timeout: float, *, or_trouble: bool = False) -> Any:
        self.listen()
        with self._arrived:
            self._arrived.wait_for(
                lambda: key in where or self.lost is not None or (or_trouble and self.trouble is not None), timeout
            )
            return where.pop(key, None)

    def _abandon(self) -> None:
        """In a forked child: leave the socket to the parent, whose frames this process would cut in two."""
        self.lost = "this process is a fork of the one that runs the flow"
        self._sending = threading.RLock()
        self._arrived = threading.Condition()
        self._socket.close()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - clock.monotonic())


def as_exception(value: Any) -> OrchError:
    """The exception of ours that another process described: ``type``, ``message``, ``hint``."""
    from orchestrator import exceptions

    kind = getattr(exceptions, str(value.get("type")), OrchError)
    if not (isinstance(kind, type) and issubclass(kind, OrchError)):
        kind = OrchError
    return kind(value.get("message"), hint=value.get("hint"))


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _abandon_all() -> None:
    for link in list(_links):
        link._abandon()


os.register_at_fork(after_in_child=_abandon_all)
