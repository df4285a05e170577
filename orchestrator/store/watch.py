"""Work that waits although workers are free to take it: what must never be, and is looked for all the same.

Nothing of this is needed for runs to start. It names what would otherwise show only as a queue that does not move: a worker
whose reading thread hangs, a lost consumer group that nobody recreates, a bug.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator import clock
from orchestrator.keys import GROUP, PRIORITIES
from orchestrator.models import Worker
from orchestrator.store.limits import pool_gate, queue_gate

if TYPE_CHECKING:
    from orchestrator.store import Store

PATIENCE = timedelta(seconds=15)
"""A worker with a free slot is handed a message within milliseconds. One that nobody took for so long is stalled."""

_CONFIRM_S = 1.0
_BEGINNING = b"0-0"


@dataclass(frozen=True, slots=True)
class Stall:
    """A work queue whose runs nobody takes. ``since`` is when the oldest message came, ``waiting`` how many there are.

    ``workers`` could take them: they live, poll this queue, and have ``free`` slots together. ``queue`` is '' for runs that go
    before all queues: those that were handed back, or resumed.
    """

    pool: str
    queue: str
    since: datetime
    waiting: int
    workers: tuple[str, ...]
    free: int

    @property
    def sentence(self) -> str:
        """For people."""
        which = f"work queue '{self.queue}' of work pool '{self.pool}'" if self.queue else f"work pool '{self.pool}'"
        runs = "1 run waits" if self.waiting == 1 else f"{self.waiting} runs wait"
        slots = "1 slot is" if self.free == 1 else f"{self.free} slots are"
        return (
            f"{runs} in {which} since {self.since:%Y-%m-%d %H:%M:%S} UTC, {slots} free, and nobody takes any: "
            f"{', '.join(self.workers)}."
        )


class Look(NamedTuple):
    """One glance at all pools: what seems stalled, and per pool how far its messages have been handed out."""

    stalls: list[Stall]
    progress: dict[str, tuple[bytes, ...]]

    def confirm(self, before: Look) -> list[Stall]:
        """What seemed stalled before and still does, nothing having been handed out in its pool in between."""
        known = {(stall.pool, stall.queue) for stall in before.stalls}
        return [
            stall
            for stall in self.stalls
            if (stall.pool, stall.queue) in known and self.progress[stall.pool] == before.progress.get(stall.pool)
        ]


def stalled(store: Store, patience: timedelta = PATIENCE) -> list[Stall]:
    """Work queues, not paused, in which work waits while workers that poll them are free, and nothing is claimed.

    Takes a few round trips a pool; a second more where something seems stalled, to see whether it moves.
    """
    first = look(store, patience)
    if not first.stalls:
        return []
    threading.Event().wait(_CONFIRM_S)
    return look(store, patience).confirm(first)


def look(store: Store, patience: timedelta = PATIENCE) -> Look:
    """One glance. A busy pool may seem stalled in it: workers tell their free slots only now and then. ``confirm`` it."""
    found: list[Stall] = []
    progress = {}
    before = store.now() - patience
    workers = [worker for worker in store.pools.workers() if worker.status == "ONLINE" and worker.running < worker.limit]
    for pool in store.pools.names():
        able = [worker for worker in workers if worker.pool == pool]
        if able and not store.limits.get(pool_gate(pool), shown=0).paused:
            heads = _heads(store, pool)
            progress[pool] = tuple(delivered for head in heads for delivered in head.delivered)
            found += _stalls(store, pool, heads, able, before)
    return Look(found, progress)


class _Head(NamedTuple):
    """Where a queue stands: how far each of its streams was handed out, the oldest message that was not, how many were not."""

    queue: str
    delivered: list[bytes]
    since: datetime | None
    waiting: int


def _heads(store: Store, pool: str) -> list[_Head]:
    queues = store.pools.queue_names(pool)
    names = {"": [store.keys.resumed(pool)]}
    names |= {queue: [store.keys.queue(pool, queue, priority) for priority in PRIORITIES] for queue in queues}
    client: Any = store.client
    pipeline = client.pipeline(transaction=False)
    streams = [stream for found in names.values() for stream in found]
    for stream in streams:
        pipeline.xinfo_groups(stream)
    delivered = dict(zip(streams, map(_last_delivered, pipeline.execute(raise_on_error=False)), strict=True))
    for stream in streams:
        pipeline.xrange(stream, min=f"({delivered[stream].decode()}", count=_COUNTED)
    waiting = dict(zip(streams, pipeline.execute(), strict=True))
    return [
        _Head(
            queue,
            [delivered[stream] for stream in found],
            min((_moment(waiting[stream][0][0]) for stream in found if waiting[stream]), default=None),
            sum(len(waiting[stream]) for stream in found),
        )
        for queue, found in names.items()
    ]


_COUNTED = 1000
"""Messages of a stream that are counted; a thousand that nobody takes are as bad as a million."""


def _last_delivered(groups: Any) -> bytes:
    """From XINFO GROUPS. Where the stream or its group is gone, everything counts as not handed out."""
    if isinstance(groups, Exception):
        return _BEGINNING
    return next((group["last-delivered-id"] for group in groups if group["name"] == GROUP.encode()), _BEGINNING)


def _moment(entry: bytes) -> datetime:
    return clock.from_ms(int(entry.split(b"-")[0]))


def _stalls(store: Store, pool: str, heads: Sequence[_Head], able: Sequence[Worker], before: datetime) -> Iterator[Stall]:
    for head in heads:
        if head.since is None or head.since > before:
            continue
        polling = [worker for worker in able if not head.queue or worker.polls(head.queue)]
        if polling and not (head.queue and store.limits.get(queue_gate(pool, head.queue), shown=0).paused):
            names = tuple(worker.name for worker in polling)
            free = sum(worker.limit - worker.running for worker in polling)
            yield Stall(pool, head.queue, head.since, head.waiting, names, free)
