"""The stager: queues runs whose time has come. It sleeps until the next is due, and wakes when an earlier one appears."""

from __future__ import annotations

from datetime import datetime

from orchestrator.store import Store

_BATCH = 100


def run_once(store: Store) -> tuple[int, datetime | None]:
    """Queue all due runs, a bounded batch at a time. How many, and when the next one is due."""
    moved = 0
    while True:
        released = store.runs.release_due(_BATCH)
        moved += released.count
        if released.count < _BATCH:
            return moved, released.next_due
