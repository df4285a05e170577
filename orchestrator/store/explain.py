"""Why is it not running? One sentence for each run, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator import clock
from orchestrator.exceptions import ObjectNotFound
from orchestrator.keys import PRIORITIES, lengthen, shorten
from orchestrator.models import Gate, Run, Worker, WorkPool
from orchestrator.store.client import Redis

if TYPE_CHECKING:
    from orchestrator.store import Store

_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Explanation:
    """``reason`` is a word for programs, ``sentence`` is for people, ``hint`` names the command that helps, where one does.

    Reasons: ended, running, cancelling, due_later, awaiting_retry, no_scheduler, no_pool, no_worker, queue_not_polled,
    workers_busy, paused, limit, behind_others, waiting_for_input.
    """

    reason: str
    sentence: str
    hint: str | None = None


def explain(store: Store, run: Run) -> Explanation:
    """Say why a run is not running; of one that runs or has ended, say that."""
    match run.place:
        case "ended":
            return Explanation(
                "ended",
                f"It ended {run.state.name}: {run.state.message}" if run.state.message else f"It ended {run.state.name}.",
            )
        case "leased":
            return _of_leased(run)
        case "due":
            return _of_due(store, run)
        case "paused":
            return _of_paused(store, run)
        case "parked":
            return _of_parked(store, run)
    return _of_queued(store, run)


def _of_leased(run: Run) -> Explanation:
    if run.state.is_cancelling():
        return Explanation("cancelling", f"Worker '{run.worker}' was told to cancel it {_at(run.state.timestamp)}.")
    return Explanation("running", f"It is {run.state.name} on '{run.worker}' since {_at(run.state.timestamp)}.")


def _of_due(store: Store, run: Run) -> Explanation:
    is_overdue = run.due <= store.now()
    workers = [worker for worker in store.pools.workers() if worker.status != "OFFLINE"]
    if is_overdue and not store.pools.schedulers() and not workers:
        return Explanation(
            "no_scheduler",
            f"It was due {_at(run.due)}, and no scheduler runs to queue it.",
            "Start one with: orch scheduler start",
        )
    if run.state.name == "AwaitingRetry":
        return Explanation("awaiting_retry", f"It failed and waits for its retry {_at(run.due)}: {run.state.message}")
    return Explanation("due_later", f"It is scheduled for {_at(run.due)}.")


def _of_paused(store: Store, run: Run) -> Explanation:
    deadline = store.client.zscore(store.keys.paused, shorten(run.id))
    until = f" until {_at(clock.from_ms(int(deadline)))}" if deadline is not None else ""
    return Explanation(
        "waiting_for_input",
        f"It is {run.state.name} since {_at(run.state.timestamp)} and waits{until} to be resumed.",
        f"Resume it with: orch flow-run resume {run.id}",
    )


def _of_parked(store: Store, run: Run) -> Explanation:
    assert run.gate is not None
    gate = store.limits.get(run.gate)
    title, noun = _gate_title(store, gate)
    if gate.paused:
        return Explanation("paused", f"{title} is paused.", noun or None)
    held = ", held by " + ", ".join(gate.holders[:3]) if gate.holders else ""
    held += f" and {gate.used - 3} more" if gate.used > 3 else ""
    waiting = [waiter.run for waiter in gate.waiters]
    before = waiting.index(run.id) if run.id in waiting else len(waiting)
    return Explanation(
        "limit",
        f"{title} is at its limit, {gate.used}/{gate.limit}{held}; {before} runs wait before it.",
        f"See them with: orch concurrency-limit inspect '{gate.name[4:]}'" if gate.name.startswith("tag:") else None,
    )


def _gate_title(store: Store, gate: Gate) -> tuple[str, str]:
    kind, _, name = gate.name.partition(":")
    match kind:
        case "pool":
            return f"Work pool '{name}'", f"Resume it with: orch work-pool resume '{name}'"
        case "queue":
            pool, _, queue = name.partition(":")
            return f"Work queue '{queue}' of '{pool}'", f"Resume it with: orch work-queue resume '{queue}' --pool '{pool}'"
        case "deployment":
            [deployment] = store.deployments.get_many([lengthen(name)])
            slug = deployment.slug if deployment else lengthen(name)
            return f"Deployment '{slug}'", f"Resume it with: orch deployment resume '{slug}'"
    return f"Tag '{name}'", ""


def _of_queued(store: Store, run: Run) -> Explanation:
    try:
        pool = store.pools.get(run.pool)
    except ObjectNotFound as missing:
        return Explanation("no_pool", f"Its work pool '{run.pool}' does not exist any more.", missing.hint)
    start = f"Start one with: orch worker start --pool '{run.pool}'"
    known = store.pools.workers(run.pool)
    alive = [worker for worker in known if worker.status != "OFFLINE"]
    if not alive:
        last = max((worker.heartbeat for worker in known), default=None)
        since = f" since {_at(last)}" if last else ""
        return Explanation("no_worker", f"No worker polls work pool '{run.pool}'{since}.", start)
    polling = [worker for worker in alive if not worker.queues or run.queue in worker.queues]
    if not polling:
        return Explanation(
            "queue_not_polled",
            f"{len(alive)} workers poll work pool '{run.pool}', none of them its work queue '{run.queue}'.",
            f"{start} --work-queue '{run.queue}'",
        )
    return _of_order(store, run, pool, polling)


def _of_order(store: Store, run: Run, pool: WorkPool, polling: list[Worker]) -> Explanation:
    before = _runs_before(store, run, pool)
    running, slots = sum(worker.running for worker in polling), sum(worker.limit for worker in polling)
    if running >= slots:
        return Explanation(
            "workers_busy",
            f"All {slots} slots of {len(polling)} workers are in use, and {before} runs are before it.",
            f"Start another worker with: orch worker start --pool '{run.pool}'",
        )
    return Explanation("behind_others", f"It is queued behind {before} runs; {slots - running} of {slots} slots are free.")


def _runs_before(store: Store, run: Run, pool: WorkPool) -> int:
    """How many messages workers read before this run's."""
    client: Redis = store.client
    stored = client.hget(store.keys.run(shorten(run.id)), "msg")
    if not stored:
        return 0
    message, _, stream = stored.decode().partition(" ")
    order = [queue.name for queue in pool.queues]
    names = [store.keys.resumed(pool.name), *(store.keys.queue(pool.name, queue, p) for queue in order for p in PRIORITIES)]
    own = store.keys.prefix + stream
    earlier = sum(client.xlen(name) for name in names[: names.index(own)]) if own in names else 0
    return int(earlier) + len(client.xrange(own, "-", f"({message}", count=_COUNTED))


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
