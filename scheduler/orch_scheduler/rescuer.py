"""The rescuer: takes care of whatever stopped moving by itself.

Leases that are over, messages whose reader died, slots that were reserved and not used, runs past their expiry or their
pause, and runs that are late. Every step is one bounded script; any number of rescuers, and workers where no scheduler
lives, may do it at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.clock import RemoteClock
from orchestrator.store import Store
from orchestrator.store.answers import Lapsed

log = logging.getLogger(__name__)

_BATCH = 100


def run_once(
    store: Store, redis_clock: RemoteClock | None = None, tell: Callable[[Lapsed], object] = lambda lapsed: None
) -> int:
    """One sweep. How many runs it moved.

    ``redis_clock`` is kept from sweep to sweep: when Redis's clock jumps, no lease counts as over until workers could renew.
    ``tell`` hears what became of runs whose lease was over.
    """
    moved = _lapse(store, redis_clock or RemoteClock(), tell)
    moved += store.runs.wake()
    moved += store.runs.expire()
    moved += store.runs.time_out_paused()
    moved += store.runs.mark_late()
    for pool in store.pools.names():
        moved += store.runs.redeliver(pool, store.pools.queue_names(pool))
    return moved


def _lapse(store: Store, redis_clock: RemoteClock, tell: Callable[[Lapsed], object]) -> int:
    moved = 0
    while True:
        lapsed = store.runs.lapse(_BATCH, expected_ms=redis_clock.expected_ms())
        tell(lapsed)
        redis_clock.showed(lapsed.now_ms)
        if lapsed.jump_ms:
            log.warning(
                "%s; no lease counts as over for %g s",
                lapsed.jump,
                store.settings.lease.total_seconds(),
                extra={"action": "rescue_braked", "jump_ms": lapsed.jump_ms},
            )
        moved += lapsed.requeued + lapsed.crashed + lapsed.cancelled
        if lapsed.seen < _BATCH:
            return moved
