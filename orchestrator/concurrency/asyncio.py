"""Slots of global limits in async code: who waits holds up neither the event loop nor a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from orchestrator.concurrency.request import Request
from orchestrator.exceptions import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError

__all__ = ["AcquireConcurrencySlotTimeoutError", "ConcurrencySlotAcquisitionError", "concurrency", "rate_limit"]


@asynccontextmanager
async def concurrency(
    names: str | list[str],
    occupy: int = 1,
    timeout_seconds: float | None = None,
    max_retries: int | None = None,
    lease_duration: float = 300,
    strict: bool = False,
    holder: Any = None,
    raise_on_lease_renewal_failure: bool | None = None,
) -> AsyncIterator[None]:
    """As ``orchestrator.concurrency.sync.concurrency``, for ``async with``."""
    async with Request(names, occupy, timeout_seconds, strict=strict, max_retries=max_retries):
        yield


async def rate_limit(
    names: str | list[str], occupy: int = 1, timeout_seconds: float | None = None, strict: bool = False
) -> None:
    """As ``orchestrator.concurrency.sync.rate_limit``, to be awaited."""
    async with Request(names, occupy, timeout_seconds, strict=strict, rate=True):
        pass
