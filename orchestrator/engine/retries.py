"""How often and after what delays a flow or task is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    def of(cls, count: int | None, delay: Delay, jitter: float | None = None, *, whose: str) -> Retries:
        """From what ``@flow`` and ``@task`` take; ``whose`` is the one that was decorated, for messages.

        Raises TypeError and ValueError, naming the argument, for what makes no sense.
        """
        count = 0 if count is None else count
        if not isinstance(count, int):
            raise TypeError(f"{whose}: retries is {count!r}; it must be a whole number.")
        if count < 0:
            raise ValueError(f"{whose}: retries is {count}; it must not be negative.")
        if callable(delay):
            delay = delay(count)
        delays = _as_delays(delay, whose)
        if len(delays) > _MOST_DELAYS:
            raise ValueError(f"{whose}: retry_delay_seconds lists {len(delays)} delays; {_MOST_DELAYS} are the most.")
        if any(seconds < 0 for seconds in delays):
            raise ValueError(f"{whose}: retry_delay_seconds holds a negative delay.")
        if jitter is not None and as_number(jitter, whose, "retry_jitter_factor") < 0:
            raise ValueError(f"{whose}: retry_jitter_factor is {jitter}; it must not be negative.")
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


def as_number(value: Any, whose: str, argument: str) -> float:
    """A number of what was decorated. Raises TypeError, naming both, for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{whose}: {argument} is {value!r}; it must be a number.") from None


def _as_delays(delay: Any, whose: str) -> tuple[float, ...]:
    if delay is None:
        return ()
    if isinstance(delay, (str, bytes)) or not isinstance(delay, Iterable):
        return (as_number(delay, whose, "retry_delay_seconds"),)
    return tuple(as_number(seconds, whose, "retry_delay_seconds") for seconds in delay)
