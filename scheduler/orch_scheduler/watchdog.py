"""The watchdog: says so when work waits, workers are free, and nothing is claimed.

That is never as it should be, and shows nowhere else: every process is up and every queue just does not move.
"""

from __future__ import annotations

import logging

from orchestrator.store import Store
from orchestrator.store.watch import Look, look

log = logging.getLogger(__name__)


class Watchdog:
    """Remembers the last look: what did not move since then is stalled. Each stall is told once, as is its end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._before = Look([], {})
        self._told: set[tuple[str, str]] = set()

    def run_once(self) -> int:
        """Look once. How many work queues are stalled."""
        seen = look(self._store)
        stalls = seen.confirm(self._before)
        self._before = seen
        now = {(stall.pool, stall.queue) for stall in stalls}
        for stall in stalls:
            if (stall.pool, stall.queue) not in self._told:
                log.warning(
                    "%s Restart these workers; they may hang",
                    stall.sentence,
                    extra={"action": "pool_stalled", "work_pool": stall.pool, "work_queue": stall.queue},
                )
                fields = {"p": stall.pool, "q": stall.queue, "waiting": str(stall.waiting), "workers": ", ".join(stall.workers)}
                self._store.events.append("work-pool.stalled", **fields)
        for pool, queue in self._told - now:
            log.info("Work is taken again", extra={"action": "pool_moves", "work_pool": pool, "work_queue": queue})
        self._told = now
        return len(now)
