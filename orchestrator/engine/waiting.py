"""Blocking reads beside a loop: one thread each, which reads only when asked to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

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
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def arm(self) -> None:
        """Read once, if it does not do so already."""
        if not self.is_armed:
            self.is_armed = True
            if not self._thread.is_alive():
                self._thread.start()
            self._armed.set()

    def take(self) -> T | Exception | None:
        """What the last read brought or raised, once; None while it goes on. After that it can be armed again."""
        if not self._results:
            return None
        self.is_armed = False
        return self._results.popleft()

    def _work(self) -> None:
        while True:
            self._armed.wait()
            self._armed.clear()
            try:
                result: T | Exception = self._read()
            except Exception as error:
                result = error
            self._results.append(result)
            self._notify()
