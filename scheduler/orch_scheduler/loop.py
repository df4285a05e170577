"""Runs duties, each at its own pace, in one thread, until told to stop."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator import clock
from orchestrator.exceptions import StoreUnavailable

log = logging.getLogger(__name__)

_JITTER = 0.25
_LONGEST_PAUSE_S = 2.0


@dataclass
class Duty:
    """Something to do again and again: every ``every``, give or take a quarter."""

    name: str
    every: timedelta
    run_once: Callable[[], object]
    next_at: float = field(default=0.0, init=False)
    late_s: float = field(default=0.0, init=False)
    """How long after its time the last turn began."""
    last_success: datetime | None = field(default=None, init=False)

    def reschedule(self, now: float) -> None:
        """Set the next time, with jitter, so that several processes do not do it in step."""
        self.next_at = now + self.every.total_seconds() * random.uniform(1 - _JITTER, 1 + _JITTER)


class Loop:
    """One thread that does what is due and sleeps in ``wait`` between.

    ``wait(seconds)`` sleeps at most so long and may return early when there is news. While Redis is away, duties pause and
    are tried again, with growing pauses, and ``revive`` may do something about it; nothing else stops the loop but ``stop``.
    """

    def __init__(
        self, duties: Sequence[Duty], wait: Callable[[float], None], revive: Callable[[], bool] = lambda: False
    ) -> None:
        self._duties = duties
        self._wait = wait
        self._revive = revive
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Finish the duty in hand, then return from ``run``. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Work until ``stop``."""
        pause_s = 0.0
        while not self._stopping.is_set():
            try:
                self.run_due()
                if self._stopping.is_set():
                    return
                self._wait(self._idle_s())
                if pause_s:
                    log.warning("Redis answers again; the scheduler goes on")
                pause_s = 0.0
            except StoreUnavailable as error:
                if not pause_s:
                    log.warning("Redis is away; the scheduler waits for it", extra={"error": str(error)})
                if self._revive():
                    log.warning("The private Redis had died and was started again")
                pause_s = min(_LONGEST_PAUSE_S, max(0.1, pause_s * 2))
                self._stopping.wait(pause_s * random.uniform(0.5, 1))

    def run_due(self) -> None:
        """Do every duty whose time has come, once."""
        for duty in self._duties:
            now = clock.monotonic()
            if duty.next_at > now or self._stopping.is_set():
                continue
            duty.late_s = now - duty.next_at if duty.next_at else 0.0
            duty.reschedule(now)
            duty.run_once()
            duty.last_success = clock.now()

    def _idle_s(self) -> float:
        return max(0.0, min(duty.next_at for duty in self._duties) - clock.monotonic())
