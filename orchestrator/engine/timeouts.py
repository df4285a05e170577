"""Stops synchronous code that takes too long, in whatever thread it runs.

A timer thread raises RunTimedOut in the thread that runs the code: in the main thread through a signal, which also ends a
blocking system call; in others where Python runs its next instruction.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from types import FrameType, TracebackType

from orchestrator.engine import termination
from orchestrator.exceptions import RunTimedOut

_SIGNAL = signal.SIGALRM
_guards: list[TimeLimit] = []


class TimeLimit:
    """``with TimeLimit(seconds, what):`` raises RunTimedOut in the block when it takes longer. Nests."""

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds = seconds
        self._what = what
        self._lock = threading.Lock()
        self._is_over = False
        self._has_fired = False
        self._thread = 0
        self._on_main = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> TimeLimit:
        self._thread = threading.get_ident()
        self._on_main = threading.current_thread() is threading.main_thread()
        if self._on_main:
            if not _guards:
                self._before = signal.signal(_SIGNAL, _raise_first)
            _guards.append(self)
        self._timer = threading.Timer(self._seconds, self._fire)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._on_main:
            _guards.remove(self)
            if not _guards:
                signal.signal(_SIGNAL, self._before)
        elif self._has_fired and not isinstance(problem, RunTimedOut):
            # It ended just as its time was over: take back what has not been raised yet.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), None)

    @property
    def error(self) -> RunTimedOut:
        """What is raised."""
        return RunTimedOut(f"{self._what} took longer than its {self._seconds:g} seconds.")

    def _fire(self) -> None:
        with self._lock:
            if self._is_over:
                return
            self._has_fired = True
            if self._on_main:
                signal.pthread_kill(self._thread, _SIGNAL)
            else:
                termination.throw(self._thread, RunTimedOut)


def _raise_first(signum: int, frame: FrameType | None) -> None:
    for guard in _guards:
        if guard._has_fired and not guard._is_over:
            guard._has_fired = False
            raise guard.error
