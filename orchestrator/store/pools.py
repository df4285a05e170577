"""Work pools, their work queues, and the workers that poll them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgpack

from orchestrator import clock
from orchestrator._version import __version__
from orchestrator.exceptions import ObjectAlreadyExists, ObjectNotFound, OrchError, Refused
from orchestrator.keys import GROUP, PRIORITIES, Keys, check_name, is_short, lengthen
from orchestrator.models import Scheduler, Worker, WorkPool, WorkQueue
from orchestrator.store.answers import Delivery
from orchestrator.store.client import Redis
from orchestrator.store.limits import Limits, pool_gate, queue_gate
from orchestrator.store.scripts import SHARE, Scripts

POOL_TYPES = ("process", "thread")
"""The types of work pool that this release can run."""

_BATCH = 100


class HeartbeatAnswer(NamedTuple):
    """What a heartbeat learns: whether any scheduler lives, how many workers live, Redis's clock in ms, the epoch's number."""

    scheduler_alive: bool
    workers: int
    now_ms: int
    epoch: int


class Rival(NamedTuple):
    """The worker that has a name: where it runs, and since when."""

    host: str
    pid: int
    started_ms: int


class Control(NamedTuple):
    """One message to a worker; ``id`` is the place to read on from.

    ``what`` is cancel, of ``run``; granted, the slots that the call of that number in ``run`` has waited for; or drain, of the
    worker that started at ``started_ms``.
    """

    id: str
    what: str
    run: str = ""
    started_ms: int = 0
    call: int = 0


class Pools:
    """Pools, queues and workers of one namespace.

    ``blocking`` is a connection whose socket timeout is above any block, used by the two waits alone. ``agreed`` are the
    namespace's settings as this process read them; heartbeats tell them.
    """

    def __init__(
        self,
        client: Redis,
        blocking: Redis,
        scripts: Scripts,
        names: Keys,
        limits: Limits,
        silence: timedelta,
        agreed: Mapping[str, str],
    ) -> None:
        self._client = client
        self._blocking = blocking
        self._scripts = scripts
        self._keys = names
        self._limits = limits
        self._silence_ms = round(silence / timedelta(milliseconds=1))
        self._agreed = json.dumps(dict(agreed))

    # --- pools ---------------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        type: str = "process",  # noqa: A002 - the field's name
        *,
        concurrency_limit: int | None = None,
        description: str = "",
        base_job_template: dict[str, Any] | None = None,
        paused: bool = False,
    ) -> WorkPool:
        """Create a pool with its queue ``default``. Raises ObjectAlreadyExists, InvalidName; OrchError for an unknown type."""
        check_name("work pool", name)
        if type not in POOL_TYPES:
            raise OrchError(f"There is no work pool type {type!r}.", hint=f"Types: {', '.join(POOL_TYPES)}")
        fields = ["type", type, "description", description, "template", msgpack.packb(base_job_template or {})]
        if self._create_queue(name, WorkQueue("default", name), fields) == "existing":
            raise ObjectAlreadyExists(
                f"There is a work pool {name!r} already.", hint=f"Look at it with: orch work-pool inspect '{name}'"
            )
        if concurrency_limit is not None:
            self._limits.set(pool_gate(name), concurrency_limit)
        if paused:
            self._limits.pause(pool_gate(name))
        return self.get(name)

    def get(self, name: str) -> WorkPool:
        """One pool with its queues. Raises ObjectNotFound."""
        stored = self._client.hgetall(self._keys.pool(name))
        if not stored:
            raise ObjectNotFound(
                f"There is no work pool {name!r}.", hint=f"Create it with: orch work-pool create '{name}' --type process"
            )
        gate = self._limits.get(pool_gate(name), shown=0)
        polling = [worker for worker in self.workers(name) if worker.status != "OFFLINE"]
        status = "PAUSED" if gate.paused else "READY" if polling else "NOT_READY"
        return WorkPool(
            name=name,
            type=stored[b"type"].decode(),
            description=stored.get(b"description", b"").decode(),
            concurrency_limit=gate.limit,
            paused=gate.paused,
            base_job_template=msgpack.unpackb(stored[b"template"]) if stored.get(b"template") else {},
            queues=self.queues(name),
            status=status,
            workers=len(polling),
            slots_used=gate.used if gate.limit is not None else sum(worker.running for worker in polling),
            created=clock.from_ms(int(stored[b"created"])),
        )

    def names(self) -> list[str]:
        """All pools' names, sorted."""
        return sorted(name.decode() for name in self._client.zrange(self._keys.pools, 0, -1))

    def all(self) -> list[WorkPool]:
        """All pools by name."""
        return [self.get(name) for name in self.names()]

    def exists(self, name: str) -> bool:
        """Whether there is such a pool."""
        return bool(self._client.exists(self._keys.pool(name)))

    def set_concurrency_limit(self, name: str, limit: int | None) -> None:
        """At most so many runs of the pool at once; None = no limit. Waiters go on where there is room."""
        self._require(name)
        self._limits.set(pool_gate(name), limit)

    def pause(self, name: str) -> None:
        """Start no run of the pool until ``resume``. Runs that are queued wait; those that execute go on."""
        self._require(name)
        self._limits.pause(pool_gate(name))

    def resume(self, name: str) -> int:
        """Start runs of the pool again. How many waiters went on at once."""
        self._require(name)
        return self._limits.resume(pool_gate(name))

    def delete(self, name: str) -> None:
        """Remove a pool. Refused while workers poll it or runs are queued or executing in it."""
        pool = self.get(name)
        if pool.workers:
            raise Refused(f"{pool.workers} workers poll the work pool {name!r}.", hint="Stop them first.")
        waiting = self._delete(name, "")
        if waiting:
            raise Refused(
                f"{waiting} runs are queued or executing in the work pool {name!r}.",
                hint=f"Cancel them first: orch flow-run cancel --pool '{name}' --all",
            )

    def _delete(self, pool: str, queue: str) -> int:
        """Remove a work queue or ('') a whole pool, unless runs are there: how many."""
        return int(self._scripts.call("delete_pool", pool=pool, queue=queue)[1])

    def _require(self, name: str) -> None:
        if not self.exists(name):
            self.get(name)

    # --- queues --------------------------------------------------------------------------------------------------------

    def create_queue(
        self, pool: str, name: str, *, priority: int | None = None, concurrency_limit: int | None = None, description: str = ""
    ) -> WorkQueue:
        """Add a work queue. Lower priority numbers are read first; the default is behind all others."""
        check_name("work queue", name)
        self._require(pool)
        others = self.queues(pool)
        if priority is None:
            priority = max((queue.priority for queue in others), default=0) + 1
        if self._create_queue(pool, WorkQueue(name, pool, priority, description=description), []) == "existing":
            raise ObjectAlreadyExists(f"The work pool {pool!r} has a work queue {name!r} already.")
        if concurrency_limit is not None:
            self._limits.set(queue_gate(pool, name), concurrency_limit)
        return self.get_queue(pool, name)

    def _create_queue(self, pool: str, queue: WorkQueue, fields: Sequence[Any]) -> str:
        answer: bytes = self._scripts.call(
            "create_pool",
            pool=pool,
            fields=list(fields),
            queue=queue.name,
            packed_queue=msgpack.packb([queue.priority, queue.description]),
            streams=self._below(pool, [queue.name]),
        )
        return answer.decode()

    def _below(self, pool: str, queues: Sequence[str]) -> list[str]:
        """The streams of work queues, below the prefix, as scripts take them."""
        return [stream.removeprefix(self._keys.prefix) for stream in self._keys.streams(pool, queues)]

    def queues(self, pool: str) -> list[WorkQueue]:
        """A pool's work queues in the order in which workers read them."""
        stored = self._client.hgetall(self._keys.queues(pool))
        settings = self._limits.settings()
        found = []
        for name, packed in stored.items():
            text = name.decode()
            priority, description = msgpack.unpackb(packed)
            gate = settings.get(queue_gate(pool, text), {})
            depth = self._depth(pool, text)
            found.append(WorkQueue(text, pool, priority, gate.get("limit"), bool(gate.get("paused")), description, depth))
        return sorted(found, key=lambda queue: (queue.priority, queue.name))

    def _depth(self, pool: str, queue: str) -> int:
        """How many runs are queued, with those that wait behind their deployment's share of a long queue."""
        lengths = {priority: int(self._client.xlen(self._keys.queue(pool, queue, priority))) for priority in PRIORITIES}
        long = [f"share:{pool}:{queue}:{priority}:" for priority, length in lengths.items() if length >= SHARE]
        deployments = [short.decode() for short in self._client.hvals(self._keys.deployments)] if long else []
        pipeline = self._client.pipeline(transaction=False)
        for share in long:
            for deployment in deployments:
                pipeline.zcard(self._keys.parked(share + deployment))
        return sum(lengths.values()) + sum(map(int, pipeline.execute()))

    def queue_names(self, pool: str) -> list[str]:
        """Names of a pool's work queues in the order in which workers read them. One round trip."""
        stored = self._client.hgetall(self._keys.queues(pool))
        priorities = {name.decode(): msgpack.unpackb(packed)[0] for name, packed in stored.items()}
        return sorted(priorities, key=lambda name: (priorities[name], name))

    def get_queue(self, pool: str, name: str) -> WorkQueue:
        """One work queue. Raises ObjectNotFound."""
        self._require(pool)
        for queue in self.queues(pool):
            if queue.name == name:
                return queue
        raise ObjectNotFound(
            f"The work pool {pool!r} has no work queue {name!r}.",
            hint=f"Create it with: orch work-queue create '{name}' --pool '{pool}'",
        )

    def set_queue_limit(self, pool: str, name: str, limit: int | None) -> None:
        """At most so many runs of the queue at once; None = no limit."""
        self.get_queue(pool, name)
        self._limits.set(queue_gate(pool, name), limit)

    def pause_queue(self, pool: str, name: str) -> None:
        """Start no run of the queue until it is resumed."""
        self.get_queue(pool, name)
        self._limits.pause(queue_gate(pool, name))

    def resume_queue(self, pool: str, name: str) -> int:
        """Start runs of the queue again."""
        self.get_queue(pool, name)
        return self._limits.resume(queue_gate(pool, name))

    def delete_queue(self, pool: str, name: str) -> None:
        """Remove a work queue. Refused for the queue ``default`` and while runs wait in it."""
        self.get_queue(pool, name)
        if name == "default":
            raise Refused(
                f"The work queue 'default' belongs to its pool {pool!r}.", hint="Delete the pool, or pause the queue."
            )
        waiting = self._delete(pool, name)
        if waiting:
            raise Refused(
                f"{waiting} runs are queued or executing in the work queue {name!r} of {pool!r}.",
                hint="Cancel or finish its runs first.",
            )

    # --- workers -------------------------------------------------------------------------------------------------------

    def join(self, worker: Worker, *, instead_of: Rival | None = None) -> Rival | None:
        """Take a worker's name and say that it lives, or answer who has that name and lives. Of two at once one gets it.

        ``instead_of``: that one is known to be dead, whenever it last spoke.
        """
        answer, *taken = self._scripts.call(
            "join",
            name=worker.name,
            own=_identity(worker),
            gone=list(map(str, instead_of)) if instead_of else [],
            fields=self._worker_fields(worker),
            alive_ms=self._silence_ms,
        )
        if answer == b"ok":
            return None
        host, pid, started_ms = taken
        return Rival(host.decode(), int(pid), int(started_ms))

    def heartbeat(self, worker: Worker) -> HeartbeatAnswer:
        """Say that a worker lives, and how it is."""
        return self._heartbeat("workers", worker.name, self._worker_fields(worker))

    def _worker_fields(self, worker: Worker) -> list[Any]:
        return [
            *("pool", worker.pool, "type", worker.type, "host", worker.host, "pid", worker.pid, "version", worker.version),
            *("python", worker.python, "limit", worker.limit, "running", worker.running, "queues", "\n".join(worker.queues)),
            *("started", clock.to_ms(worker.started), "status", worker.status, "clock", clock.now_ms()),
            *("agreed", self._agreed),
        ]

    def scheduler_heartbeat(self, name: str) -> HeartbeatAnswer:
        """Say that a scheduler lives."""
        host, pid = socket.gethostname(), os.getpid()
        fields = ["host", host, "pid", pid, "version", __version__, "agreed", self._agreed]
        return self._heartbeat("schedulers", name, fields)

    def _heartbeat(self, kind: str, name: str, fields: Sequence[Any]) -> HeartbeatAnswer:
        answer = self._scripts.call("heartbeat", kind=kind, name=name, fields=list(fields), alive_ms=self._silence_ms)
        schedulers, workers, now_ms, epoch = map(int, answer)
        return HeartbeatAnswer(schedulers > 0, workers, now_ms, epoch)

    def drain(self, worker: str) -> None:
        """Tell a worker to take no new runs, let those that it has end, however long they take, and stop.

        Raises ObjectNotFound where no worker of that name was ever heard of, Refused where it is silent.
        """
        answer, detail = self._scripts.call("drain", worker=worker, alive_ms=self._silence_ms)
        if answer == b"missing":
            raise ObjectNotFound(f"There is no worker {worker!r}.", hint="List workers with: orch worker ls")
        if answer == b"gone":
            last = clock.from_ms(int(detail))
            raise Refused(
                f"Worker {worker!r} has said nothing since {last:%Y-%m-%d %H:%M:%S} UTC and cannot be told anything.",
                hint="Its runs start elsewhere when their leases are over. List workers with: orch worker ls",
            )

    def leave(self, worker: Worker | str, pool: str, queues: Sequence[str]) -> None:
        """A worker is gone for good: it and its consumers disappear. By a mere name, whoever has it; else only that worker."""
        name, own = (worker, []) if isinstance(worker, str) else (worker.name, _identity(worker))
        below = self._below(pool, queues)
        self._scripts.call("leave", kind="workers", name=name, streams=below, own=own)

    def scheduler_leaves(self, name: str) -> None:
        """A scheduler is gone for good."""
        self._scripts.call("leave", kind="schedulers", name=name, streams=[], own=[])

    def schedulers(self) -> list[str]:
        """Names of the schedulers that live."""
        since = self._scripts.now_ms() - self._silence_ms
        return [name.decode() for name in self._client.zrange(self._keys.schedulers, since, "+inf", byscore=True)]

    def scheduler_processes(self) -> list[Scheduler]:
        """The schedulers that live, with what they say of themselves."""
        names = self.schedulers()
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(self._keys.scheduler(name))
        return [_read_scheduler(name, fields) for name, fields in zip(names, pipeline.execute(), strict=True)]

    def workers(self, pool: str | None = None) -> list[Worker]:
        """Workers heard of in the last hour, by name; those of one pool, or all."""
        names = self._client.zrange(self._keys.workers, 0, -1)
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(self._keys.worker(name.decode()))
        now_ms = self._scripts.now_ms()
        found = [
            self._read_worker(name.decode(), fields, now_ms)
            for name, fields in zip(names, pipeline.execute(), strict=True)
            if fields
        ]
        return sorted((worker for worker in found if pool in (None, worker.pool)), key=lambda worker: worker.name)

    def drop_consumers(self) -> int:
        """Remove the consumers of workers that say nothing; the workers stay known. How many.

        A worker that was killed does not take its own away, and one is reborn under a new name each time.
        """
        dropped = 0
        for pool in self.names():
            below = self._below(pool, self.queue_names(pool))
            while count := int(self._scripts.call("drop_consumers", streams=below, alive_ms=self._silence_ms, limit=_BATCH)):
                dropped += count
        return dropped

    def forget_silent_workers(self, silence: timedelta = timedelta(hours=1)) -> int:
        """Remove workers and schedulers that have been silent for long, with their consumers. How many, 1,000 at most."""
        before = self._scripts.now_ms() - round(silence / timedelta(milliseconds=1))
        silent = self._client.zrange(self._keys.workers, "-inf", before, byscore=True, offset=0, num=10 * _BATCH)
        gone = [name.decode() for name in silent]
        pools = [(pool, self.queue_names(pool)) for pool in self.names()] if gone else []
        for name in gone:
            for pool, queues in pools:
                self.leave(name, pool, queues)
        self._client.zremrangebyscore(self._keys.schedulers, "-inf", before)
        return len(gone)

    def _read_worker(self, name: str, fields: dict[bytes, bytes], now_ms: int) -> Worker:
        heartbeat_ms = int(fields[b"heartbeat"])
        silent = now_ms - heartbeat_ms > self._silence_ms
        queues = fields.get(b"queues", b"").decode()
        return Worker(
            name=name,
            pool=fields[b"pool"].decode(),
            type=fields[b"type"].decode(),
            host=fields[b"host"].decode(),
            pid=int(fields[b"pid"]),
            version=fields[b"version"].decode(),
            python=fields[b"python"].decode(),
            limit=int(fields[b"limit"]),
            running=int(fields[b"running"]),
            queues=tuple(queues.split("\n")) if queues else (),
            started=clock.from_ms(int(fields[b"started"])),
            heartbeat=clock.from_ms(heartbeat_ms),
            status="OFFLINE" if silent else fields[b"status"].decode(),
            clock_skew=timedelta(milliseconds=int(fields[b"clock"]) - heartbeat_ms),
            agreed=json.loads(fields.get(b"agreed", b"{}")),
        )

    # --- waiting -------------------------------------------------------------------------------------------------------

    def wait_for_runs(
        self, pool: str, worker: str, queues: Sequence[str], block: timedelta, *, recover: bool = False
    ) -> list[Delivery]:
        """Block until a run is queued, or the time is over ([]). One message of each stream that has any.

        ``recover`` reads, without blocking, what this worker was handed before its connection broke.
        """
        streams = self._keys.streams(pool, queues)
        block_ms = None if recover else max(1, round(block / timedelta(milliseconds=1)))
        from_id = "0" if recover else ">"
        reply = self._blocking.xreadgroup(
            GROUP, worker, dict.fromkeys(streams, from_id), count=100 if recover else 1, block=block_ms
        )
        return [
            Delivery(stream.decode().removeprefix(self._keys.prefix), entry.decode(), _run_of(fields))
            for stream, entries in reply or []
            for entry, fields in entries
            if fields
        ]

    def wait_for_control(self, worker: str, after: str, block: timedelta) -> list[Control]:
        """Block until this worker is told something behind ``after`` ('0' = from the beginning), or the time is over ([])."""
        block_ms = max(1, round(block / timedelta(milliseconds=1)))
        reply = self._blocking.xread({self._keys.control(worker): after}, count=100, block=block_ms)
        return [
            Control(
                entry.decode(),
                fields[b"c"].decode(),
                lengthen(fields[b"r"]) if fields.get(b"r") else "",
                int(fields.get(b"s", 0)),
                int(fields.get(b"n", 0)),
            )
            for _, entries in reply or []
            for entry, fields in entries
        ]

    def wait_for_signal(self, after: str, block: timedelta) -> str:
        """Block until the next due time may have changed, or the time is over. The place to wait from next ('$' at first)."""
        block_ms = max(1, round(block / timedelta(milliseconds=1)))
        reply = self._blocking.xread({self._keys.signals: after}, block=block_ms)
        return reply[0][1][-1][0].decode() if reply else after


def _read_scheduler(name: str, fields: Mapping[bytes, bytes]) -> Scheduler:
    def text(field: bytes) -> str:
        return fields.get(field, b"").decode()

    return Scheduler(name, text(b"host"), int(text(b"pid") or 0), text(b"version"), json.loads(text(b"agreed") or "{}"))


def _run_of(fields: Mapping[bytes, bytes]) -> str:
    """The run that an entry of a stream of runs stands for; '' for one that cannot be read: claim has a closer look."""
    short = fields.get(b"r", b"").decode(errors="replace")
    return lengthen(short) if len(fields) == 1 and is_short(short) else ""


def _identity(worker: Worker) -> list[str]:
    """What tells a worker from others of its name."""
    return [worker.host, str(worker.pid), str(clock.to_ms(worker.started))]
