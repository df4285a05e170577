"""The rescuer: takes care of whatever stopped moving by itself.

Leases that are over, messages whose reader died, slots that were reserved and not used, runs past their expiry or their
pause, and runs that are late. Every step is one bounded script; any number of rescuers, and workers where no scheduler
lives, may do it at once.
"""

from __future__ import annotations

from orchestrator.store import Store

_BATCH = 100


def run_once(store: Store) -> int:
    """One sweep. How many runs it moved."""
    moved = _lapse(store)
    moved += store.runs.wake()
    moved += store.runs.expire()
    moved += store.runs.time_out_paused()
    moved += store.runs.mark_late()
    for pool in store.pools.names():
        moved += store.runs.redeliver(pool, store.pools.queue_names(pool))
    return moved


def _lapse(store: Store) -> int:
    moved = 0
    while True:
        lapsed = store.runs.lapse(_BATCH)
        moved += lapsed.requeued + lapsed.crashed + lapsed.cancelled
        if lapsed.seen < _BATCH:
            return moved
