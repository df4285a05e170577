"""How often and after what delays a flow or task is tried again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Delay = float | Sequence[float] | Callable[[int], Sequence[float] | float] | None

_MOST_DELAYS = 1000


@dataclass(frozen=True, slots=True)
class Retries:
    """``count`` retries; the n-th waits ``delays[n - 1]`` seconds, those beyond the last wait as long as that one.

    With ``jitter`` a delay grows by up to that share of itself, by chance.
    """

    count: int = 0
    delays: tuple[float, ...] = ()
    jitter: float | None = None

    @classmethod
    def of(cls, count: int | None, delay: Delay, jitter: float | None = None) -> Retries:
        """From what ``@flow`` and ``@task`` take. Raises ValueError for what makes no sense."""
        count = count or 0
        if count < 0:
            raise ValueError(f"retries is {count}; it must not be negative.")
        if callable(delay):
            delay = delay(count)
        delays = _as_delays(delay)
        if len(delays) > _MOST_DELAYS:
            raise ValueError(f"retry_delay_seconds lists {len(delays)} delays; {_MOST_DELAYS} are the most.")
        if any(seconds < 0 for seconds in delays):
            raise ValueError("retry_delay_seconds holds a negative delay.")
        if jitter is not None and jitter < 0:
            raise ValueError(f"retry_jitter_factor is {jitter}; it must not be negative.")
        return cls(count, delays, jitter)

    def delay_before(self, retry: int) -> float:
        """Seconds to wait before the ``retry``-th retry, counted from 1."""
        if not self.delays:
            return 0.0
        delay = self.delays[min(retry, len(self.delays)) - 1]
        if self.jitter:
            import random

            delay *= 1 + random.random() * self.jitter
        return delay


def _as_delays(delay: Any) -> tuple[float, ...]:
    if delay is None:
        return ()
    if isinstance(delay, (int, float)):
        return (float(delay),)
    return tuple(float(seconds) for seconds in delay)
