"""Blocking reads beside a loop: one thread each, which reads only when asked to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Generic, TypeVar

from orchestrator import clock

T = TypeVar("T")


class Waiter(Generic[T]):
    """Makes one blocking read at a time in a thread of its own.

    ``read`` blocks and returns what came, or raises. ``notify`` is called from the thread when there is something to ``take``;
    it must be safe there. The thread never keeps the process from ending.
    """

    def __init__(self, name: str, read: Callable[[], T], notify: Callable[[], None]) -> None:
        self._read = read
        self._notify = notify
        self._armed = threading.Event()
        self._results: deque[T | Exception] = deque()
        self.is_armed = False
        self._name = name
        self._armed_at = 0.0
        self._thread = self._new_thread()

    def arm(self) -> None:
        """Read once, if it does not do so already."""
        if not self.is_armed:
            self.is_armed = True
            self._armed_at = clock.monotonic()
            if not self._thread.is_alive():
                self._thread.start()
            self._armed.set()

    def is_overdue(self, after: timedelta) -> bool:
        """Whether the read that goes on should have ended: it was begun longer ago than that."""
        return self.is_armed and not self._results and clock.monotonic() - self._armed_at > after.total_seconds()

    def replace(self) -> None:
        """Give up the read that goes on, with its thread: what it may still bring is dropped. It can be armed again."""
        self._armed, self._results = threading.Event(), deque()
        self.is_armed = False
        self._thread = self._new_thread()

    def _new_thread(self) -> threading.Thread:
        arguments = (self._armed, self._results)
        return threading.Thread(target=self._work, args=arguments, name=self._name, daemon=True)

    def take(self) -> T | Exception | None:
        """What the last read brought or raised, once; None while it goes on. After that it can be armed again."""
        if not self._results:
            return None
        self.is_armed = False
        return self._results.popleft()

    def _work(self, armed: threading.Event, results: deque[T | Exception]) -> None:
        while True:
            armed.wait()
            armed.clear()
            try:
                result: T | Exception = self._read()
            except Exception as error:
                result = error
            results.append(result)
            if results is not self._results:
                return  # replaced
            self._notify()
