"""Ends a worker whose loop has stopped turning.

Such a worker renews nothing and claims nothing, and nobody sees it from outside until its heartbeats are missed. Its runs are
killed by their templates before anyone else may start them; what is left to do is to make room for a worker that works. A
service manager, a container's restart policy or a person starts the next one.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta

STATUS = 1
"""The exit status of a worker that was ended here."""

STEPS = 8
"""Of so many steps the patience is made."""

_FRAMES = 6
_MESSAGE_BYTES = 3500  # a pipe that takes anything at all takes 4096 bytes


class LoopWatchdog:
    """Watches one thread's loop from another. ``turned`` is called with each turn of it.

    Time is counted in steps that this thread has lived through: a process that was stopped and goes on (SIGSTOP, SIGCONT, a
    sleeping machine) has missed one step, not all of them.
    """

    def __init__(self, patience: timedelta, who: str, end: Callable[[str], object] | None = None) -> None:
        self._patience = patience
        self._who = who
        self._end = end or _end_process
        self._turns = 0
        self._seen = -1
        self._missed = 0
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="orch-watchdog", daemon=True)

    def start(self) -> None:
        """Begin. Call it from the thread whose loop is watched."""
        self._watched = threading.get_ident()
        self._thread.start()

    def turned(self) -> None:
        """The loop has turned once more."""
        self._turns += 1

    def stop(self) -> None:
        """The loop is over."""
        self._stopped.set()

    def join(self) -> None:
        """Wait until nobody watches any more."""
        self._thread.join()

    def step(self) -> bool:
        """An eighth of the patience has passed. Whether it is at its end."""
        self._missed = self._missed + 1 if self._turns == self._seen else 0
        self._seen = self._turns
        return self._missed >= STEPS

    def _watch(self) -> None:
        while not self._stopped.wait(self._patience.total_seconds() / STEPS):
            if self.step():
                self._end(self._verdict())
                return

    def _verdict(self) -> str:
        frame = sys._current_frames().get(self._watched)
        where = "".join(traceback.format_stack(frame)[-_FRAMES:]) if frame else ""
        what = f"{self._who} ends itself: its loop has not turned for {self._patience.total_seconds():g} s."
        return f"{what} Its runs start elsewhere; start the worker again. It was here:\n{where}"


def _end_process(message: str) -> None:
    # Straight to the descriptor, and only if it takes it: what hangs may be the very pipe that everything is told to.
    if select.select([], [2], [], 0)[1]:
        os.write(2, message.encode(errors="replace")[:_MESSAGE_BYTES])
    os._exit(STATUS)
