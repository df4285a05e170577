"""The pruner: deletes ended runs after their retention, drops what dead workers leave, and forgets those gone for long.

A TTL of retention and a week stands behind it as a net; it is the pruner that keeps the indexes clean.
"""

from __future__ import annotations

from orchestrator.store import Store

_BATCH = 100


def run_once(store: Store) -> int:
    """Delete at most a few batches of runs past their retention. How many."""
    before = store.now() - store.settings.retention
    deleted = 0
    for _ in range(10):
        batch = store.runs.prune(before, _BATCH)
        deleted += batch
        if batch == 0:
            break
    store.pools.drop_consumers()
    store.pools.forget_silent_workers()
    return deleted
