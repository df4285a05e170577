"""Slots of global limits inside flows and tasks: ``concurrency`` and ``rate_limit``, for plain code in ``sync``, for async
code in ``asyncio``. The limits themselves are made with ``orch gcl create``.
"""

from orchestrator.exceptions import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError

__all__ = ["AcquireConcurrencySlotTimeoutError", "ConcurrencySlotAcquisitionError"]
