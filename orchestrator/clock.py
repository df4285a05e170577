"""The only module that asks what time it is.

Three clocks, and which to use:

* Redis's clock decides everything that several processes must agree on. Scripts read it themselves.
* ``monotonic`` measures waits and trust inside one process; it never jumps.
* ``now`` and ``now_ms`` are this machine's wall clock, for log lines and for showing ages to people.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


def now() -> datetime:
    """The wall clock of this machine, aware, in UTC."""
    return datetime.now(UTC)


def now_ms() -> int:
    """The wall clock of this machine in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds on a clock that never jumps; only differences mean anything."""
    return time.monotonic()


MONOTONIC = getattr(time, "CLOCK_MONOTONIC", -1)
"""The number by which the kernel knows the clock of ``monotonic``."""


def to_ms(moment: datetime) -> int:
    """An aware moment in milliseconds since 1970. A naive one is an error: nobody could say what it means."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no timezone; add one, for example +00:00")
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))


def from_ms(ms: int) -> datetime:
    """Milliseconds since 1970 as an aware moment in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


@dataclass
class FrozenClock:
    """A clock for tests that stands in for Redis's: it moves only when told to."""

    ms: int

    def advance(self, by: timedelta) -> int:
        """Move forward (or, to test clock jumps, back) and return the new time in milliseconds."""
        self.ms += round(by / timedelta(milliseconds=1))
        return self.ms


class RemoteClock:
    """Redis's clock as seen from here: what it should show now, given what it last showed and ``monotonic``.

    Where it shows something else it has jumped: it was set, its machine slept, or another server has taken over.
    """

    def __init__(self, ticks: Callable[[], float] = monotonic) -> None:
        self._ticks = ticks
        self._showed_ms: int | None = None
        self._seen_at = 0.0

    def showed(self, ms: int) -> None:
        """An answer has just told the time."""
        self._showed_ms, self._seen_at = ms, self._ticks()

    def expected_ms(self) -> int | None:
        """What it should show; None before it was ever seen."""
        return None if self._showed_ms is None else self._showed_ms + round((self._ticks() - self._seen_at) * 1000)

    def is_off(self, ms: int, by: timedelta) -> bool:
        """Whether ``ms``, which it shows now, is that far from what it should show."""
        expected = self.expected_ms()
        return expected is not None and abs(ms - expected) > by / timedelta(milliseconds=1)
