"""Slots of global limits in plain code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.concurrency.request import Request
from orchestrator.exceptions import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError

__all__ = ["AcquireConcurrencySlotTimeoutError", "ConcurrencySlotAcquisitionError", "concurrency", "rate_limit"]


@contextmanager
def concurrency(
    names: str | list[str],
    occupy: int = 1,
    timeout_seconds: float | None = None,
    max_retries: int | None = None,
    lease_duration: float = 300,
    strict: bool = False,
    holder: Any = None,
    raise_on_lease_renewal_failure: bool | None = None,
) -> Iterator[None]:
    """Hold ``occupy`` slots of each of these global limits inside the block; wait until all of them are free.

    names: one or several; an empty list holds nothing.
    timeout_seconds: how long to wait at most; 0 not at all, None as long as it takes.
    max_retries: 0 does not wait either. Any other number changes nothing: who waits stands in line and does not ask again.
    strict: a name without a limit is an error; else it holds nobody back, which is said in a warning.
    lease_duration, holder, raise_on_lease_renewal_failure: accepted for the sake of flows that come from Prefect. The slots
    are held as long as the run's own lease is renewed, and the holder is the run.

    Raises AcquireConcurrencySlotTimeoutError (a TimeoutError), ConcurrencySlotAcquisitionError, MissingContextError outside of
    runs.
    """
    with Request(names, occupy, timeout_seconds, strict=strict, max_retries=max_retries):
        yield


def rate_limit(names: str | list[str], occupy: int = 1, timeout_seconds: float | None = None, strict: bool = False) -> None:
    """Wait until each of these rate limits has ``occupy`` slots, and take them. They come back by time.

    The arguments and errors are those of ``concurrency``; a limit without slot decay is an error too.
    """
    with Request(names, occupy, timeout_seconds, strict=strict, rate=True):
        pass
