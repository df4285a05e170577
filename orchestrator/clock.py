"""The only module that asks what time it is.

Three clocks, and which to use:

* Redis's clock decides everything that several processes must agree on. Scripts read it themselves.
* ``monotonic`` measures waits and trust inside one process; it never jumps.
* ``now`` and ``now_ms`` are this machine's wall clock, for log lines and for showing ages to people.
"""

from __future__ import annotations

import time
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
