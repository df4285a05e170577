"""Why is it not running? One sentence for each run, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from shlex import quote
from typing import TYPE_CHECKING

from orchestrator import clock
from orchestrator.keys import lengthen, shorten
from orchestrator.models import Call, Gate, Run, Worker, WorkPool
from orchestrator.store.client import Redis
from orchestrator.store.records import read_fields
from orchestrator.store.watch import PATIENCE

if TYPE_CHECKING:
    from orchestrator.store import Store

_COUNTED = 10_000
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Explanation:
    """``reason`` is a word for programs, ``sentence`` is for people, ``hint`` names the command that helps, where one does.

    Reasons: ended, quarantined, running, cancelling, waiting_for_slot, lease_over, rescue_braked, due_later, awaiting_retry,
    crash_back_off, no_scheduler, no_pool, no_worker, workers_draining, queue_not_polled, workers_busy, stalled, paused, limit,
    share, behind_others, waiting_for_input.
    """

    reason: str
    sentence: str
    hint: str | None = None


def explain(store: Store, run: Run) -> Explanation:
    """Say why a run is not running, or why its code does not go on; of one that runs or has ended, say that."""
    match run.place:
        case "ended":
            return _of_ended(run)
        case "leased":
            return _of_leased(store, run)
        case "due":
            return _of_due(store, run)
        case "paused":
            return _of_paused(store, run)
        case "parked":
            return _of_parked(store, run)
    return _of_queued(store, run)


def _of_ended(run: Run) -> Explanation:
    sentence = f"It ended {run.state.name}: {run.state.message}" if run.state.message else f"It ended {run.state.name}."
    if run.is_quarantined:
        return Explanation("quarantined", sentence, f"Run it again with: orch dead redrive {run.id}")
    return Explanation("ended", sentence)


# --- a worker has it -------------------------------------------------------------------------------------------------------


def _of_leased(store: Store, run: Run) -> Explanation:
    lease = store.client.zscore(store.keys.leases, shorten(run.id))
    now = store.now()
    if lease is not None and clock.from_ms(int(lease)) < now:
        return _of_lease_over(store, run, clock.from_ms(int(lease)), now)
    if run.state.is_cancelling():
        return Explanation("cancelling", f"Worker '{run.worker}' was told to cancel it {_at(run.state.timestamp)}.")
    waiting = [call for call in run.calls if call.waits]
    if waiting:
        return _of_code(store, run, waiting)
    return Explanation("running", f"It is {run.state.name} on '{run.worker}' since {_at(run.state.timestamp)}.")


def _of_lease_over(store: Store, run: Run, over: datetime, now: datetime) -> Explanation:
    sentence = f"Worker '{run.worker}' has not renewed its lease, which was over {_at(over)}"
    brake = store.client.get(store.keys.brake)
    braked_until = clock.from_ms(int(brake)) if brake else now
    if now < braked_until <= now + store.settings.lease:
        return Explanation(
            "rescue_braked",
            f"{sentence}; but the server's clock has jumped, or it was away: workers have until {_at(braked_until)} to renew.",
            "Let NTP set the clock of the server's machine. See it with: orch doctor",
        )
    if not store.pools.schedulers() and not _alive(store):
        return Explanation(
            "no_scheduler",
            f"{sentence}, and no scheduler runs to start it again.",
            "Start one with: orch scheduler start",
        )
    return Explanation("lease_over", f"{sentence}. The next sweep of a scheduler, or of a worker, takes it from there.")


def _of_code(store: Store, run: Run, waiting: Sequence[Call]) -> Explanation:
    """Its code, or task runs of it, wait for slots; the one that waits longest is explained."""
    first = min(waiting, key=lambda call: (call.since, call.number))
    assert first.waits is not None
    gate = store.limits.get(first.waits)
    what = "A task run of it waits" if first.kind == "task" else "Its code waits"
    slots = "a slot" if first.slots == 1 else f"{first.slots} slots"
    places = [place for place, waiter in enumerate(gate.waiters) if (waiter.run, waiter.call) == (run.id, first.number)]
    others = f"; {_count(len(waiting) - 1, 'other call')} of it {_wait(len(waiting) - 1)} too" if len(waiting) > 1 else ""
    return Explanation(
        "waiting_for_slot",
        f"{what} since {_at(first.since)} for {slots} of {_title(store, gate)}: {_taken(store, gate)}; "
        f"{_before(gate, places)}{others}.",
        _help(store, gate),
    )


# --- it waits for a time, or a person ---------------------------------------------------------------------------------------


def _of_due(store: Store, run: Run) -> Explanation:
    is_overdue = run.due <= store.now()
    if is_overdue and not store.pools.schedulers() and not _alive(store):
        return Explanation(
            "no_scheduler",
            f"It was due {_at(run.due)}, and no scheduler runs to queue it.",
            "Start one with: orch scheduler start",
        )
    if run.state.name == "AwaitingRetry":
        return Explanation("awaiting_retry", f"It failed and waits for its retry {_at(run.due)}: {run.state.message}")
    if run.crash_count and run.attempt:
        waits = round((run.due - run.state.timestamp) / timedelta(seconds=1))
        return Explanation(
            "crash_back_off",
            f"It waits {waits} s, until {_at(run.due)}, before it is started again after crash {run.crash_count} of "
            f"{run.crash_budget}: {run.state.message}",
        )
    return Explanation("due_later", f"It is scheduled for {_at(run.due)}.")


def _of_paused(store: Store, run: Run) -> Explanation:
    deadline = store.client.zscore(store.keys.paused, shorten(run.id))
    until = f" until {_at(clock.from_ms(int(deadline)))}" if deadline is not None else ""
    return Explanation(
        "waiting_for_input",
        f"It is {run.state.name} since {_at(run.state.timestamp)} and waits{until} to be resumed.",
        f"Resume it with: orch flow-run resume {run.id}",
    )


# --- it waits at a gate ----------------------------------------------------------------------------------------------------


def _of_parked(store: Store, run: Run) -> Explanation:
    assert run.gate is not None
    gate = store.limits.get(run.gate)
    if gate.name.startswith("share:"):
        return _of_share(store, run, gate)
    if gate.paused:
        noun, name = _command(store, gate)
        return Explanation(
            "paused", f"{_capital(_title(store, gate))} is paused.", f"Resume it with: orch {noun} resume {name}"
        )
    places = [place for place, waiter in enumerate(gate.waiters) if (waiter.run, waiter.call) == (run.id, 0)]
    is_at_limit = gate.active and gate.limit is not None and not gate.defect
    return Explanation(
        "limit",
        f"{_capital(_title(store, gate))}{' is at its limit' if is_at_limit else ''}: {_taken(store, gate)}; "
        f"{_before(gate, places)}.",
        _help(store, gate),
    )


def _of_share(store: Store, run: Run, gate: Gate) -> Explanation:
    """Its queue is long, and enough runs of its deployment stand in it: the next is let in for each that a worker takes."""
    untaken = _polling(store, run)
    if isinstance(untaken, Explanation):
        return untaken
    places = [place for place, waiter in enumerate(gate.waiters) if waiter.run == run.id]
    return Explanation(
        "share",
        f"Work queue '{run.queue}' of '{run.pool}' is long, and {_count(gate.used, 'run')} of its deployment "
        f"{_stand(gate.used)} in it; each that is taken lets the next one in, and {_before(gate, places)}.",
        f"Start another worker with: orch worker start --pool {quote(run.pool)}",
    )


def _taken(store: Store, gate: Gate) -> str:
    """``5/5 held by 'a', 'b', 'c' and 2 more, the longest since ...``; of a rate limit, when its next slot comes back."""
    if gate.defect:
        return f"what it is set to cannot be read ({gate.defect}), and until it is set anew it lets nobody through"
    if not gate.active or gate.limit is None:
        return "it holds nobody back any more, and those who wait go on one after another"
    if gate.limit == 0:
        return "it lets nobody through"
    if gate.decay:
        back = f", and the next slot comes back {_at(gate.next_free)}" if gate.next_free else ""
        return f"{gate.used}/{gate.limit} used{back}"
    slots = store.limits.slots(gate.name)
    holders = list(dict.fromkeys(slot.run for slot in slots))
    if not holders:
        return f"{gate.used}/{gate.limit} used"
    found = store.runs.get_many(holders[:_NAMED])
    names = ", ".join(f"'{run.name}'" if run else holder for holder, run in zip(holders, found, strict=False))
    rest = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
    longest = ", the longest" if len(holders) > 1 else ""
    return f"{gate.used}/{gate.limit} held by {names}{rest}{longest} since {_at(min(slot.since for slot in slots))}"


def _before(gate: Gate, places: Sequence[int]) -> str:
    """How many wait before the one that stands at this place of the waiters that were read."""
    if places:
        return f"{places[0] or 'nobody'} {_wait(places[0] or 1)} before it"
    return f"more than {len(gate.waiters)} wait before it" if gate.waiters else "nobody waits before it"


def _title(store: Store, gate: Gate) -> str:
    kind, _, name = gate.name.partition(":")
    match kind:
        case "pool":
            return f"work pool '{name}'"
        case "queue":
            pool, _, queue = name.partition(":")
            return f"work queue '{queue}' of '{pool}'"
        case "deployment":
            return f"deployment '{_slug(store, name)}'"
        case "global":
            return f"{'rate' if gate.decay else 'global'} limit '{gate.title}'"
    return f"tag '{name}'"


def _command(store: Store, gate: Gate) -> tuple[str, str]:
    """The noun of ``orch`` that this gate belongs to, and how it is named there."""
    kind, _, name = gate.name.partition(":")
    match kind:
        case "pool":
            return "work-pool", quote(name)
        case "queue":
            pool, _, queue = name.partition(":")
            return "work-queue", f"{quote(queue)} --pool {quote(pool)}"
        case "deployment":
            return "deployment", quote(_slug(store, name))
        case "global":
            return "gcl", quote(gate.title)
    return "concurrency-limit", quote(name)


def _help(store: Store, gate: Gate) -> str | None:
    """How to see who has a limit, and how to let more through; nothing for one that has room."""
    if gate.defect:
        return f"Set it anew with: {wider(store, gate)}"
    if not gate.active or gate.limit is None:
        return None
    noun, name = _command(store, gate)
    return f"See who has it with: orch {noun} inspect {name}. Let more through with: {wider(store, gate)}"


def wider(store: Store, gate: Gate) -> str:
    """The command that lets more through a limit."""
    noun, name = _command(store, gate)
    match noun:
        case "gcl":
            return f"orch gcl update {name} {'--slot-decay-per-second D' if gate.decay and gate.limit else '--limit N'}"
        case "deployment":
            return "orch deploy, with another concurrency_limit in orch.yaml"
        case "work-queue":
            queue, pool = name.split(" --pool ")
            return f"orch work-queue set-concurrency-limit {queue} N --pool {pool}"
        case "work-pool":
            return f"orch work-pool set-concurrency-limit {name} N"
    return f"orch concurrency-limit update {name} N"


def _slug(store: Store, short: str) -> str:
    [deployment] = store.deployments.get_many([lengthen(short)])
    return deployment.slug if deployment else lengthen(short)


# --- it is queued ----------------------------------------------------------------------------------------------------------


def _of_queued(store: Store, run: Run) -> Explanation:
    polling = _polling(store, run)
    return polling if isinstance(polling, Explanation) else _of_order(store, run, store.pools.get(run.pool), polling)


def _polling(store: Store, run: Run) -> list[Worker] | Explanation:
    """The workers that take runs of its queue, or why there are none."""
    if not store.pools.exists(run.pool):
        return Explanation(
            "no_pool",
            f"Its work pool '{run.pool}' does not exist any more.",
            f"Create it with: orch work-pool create {quote(run.pool)}",
        )
    start = f"Start one with: orch worker start --pool {quote(run.pool)}"
    known = store.pools.workers(run.pool)
    alive = [worker for worker in known if worker.status != "OFFLINE"]
    if not alive:
        last = max((worker.heartbeat for worker in known), default=None)
        since = f" since {_at(last)}" if last else ""
        return Explanation("no_worker", f"No worker polls work pool '{run.pool}'{since}.", start)
    taking = [worker for worker in alive if worker.status != "DRAINING"]
    if not taking:
        who = "The only worker" if len(alive) == 1 else f"All {len(alive)} workers"
        drain = "drains and takes" if len(alive) == 1 else "drain and take"
        return Explanation("workers_draining", f"{who} of work pool '{run.pool}' {drain} no new runs.", start)
    polling = [worker for worker in taking if worker.polls(run.queue)]
    if not polling:
        return Explanation(
            "queue_not_polled",
            f"{_count(len(taking), 'worker')} {'polls' if len(taking) == 1 else 'poll'} work pool '{run.pool}', but not its "
            f"work queue '{run.queue}'.",
            f"{start} --work-queue {quote(run.queue)}",
        )
    return polling


def _of_order(store: Store, run: Run, pool: WorkPool, polling: list[Worker]) -> Explanation:
    before = _runs_before(store, run, pool)
    running, slots = sum(worker.running for worker in polling), sum(worker.limit for worker in polling)
    if running >= slots:
        all_slots = "The only slot" if slots == 1 else f"All {slots} slots"
        workers = "the only worker" if len(polling) == 1 else f"{len(polling)} workers"
        return Explanation(
            "workers_busy",
            f"{all_slots} of {workers} {'is' if slots == 1 else 'are'} in use, and {_count(before, 'run')} "
            f"{'is' if before == 1 else 'are'} before it.",
            f"Start another worker with: orch worker start --pool {quote(run.pool)}",
        )
    free = f"{slots - running} of {_count(slots, 'slot')} {'is' if slots - running == 1 else 'are'} free"
    since = next((entry.at for entry in reversed(run.history) if entry.name != "Late"), run.state.timestamp)
    if before == 0 and since < store.now() - PATIENCE:
        idle = ", ".join(f"'{worker.name}'" for worker in polling if worker.running < worker.limit)
        return Explanation(
            "stalled",
            f"It is the next in its queue since {_at(since)}, {free}, and nobody takes it: {idle}.",
            "These workers may hang: restart them. Look further with: orch doctor",
        )
    return Explanation("behind_others", f"It is queued behind {_count(before, 'run')}; {free}.")


def _runs_before(store: Store, run: Run, pool: WorkPool) -> int:
    """How many messages workers read before this run's."""
    client: Redis = store.client
    stored = read_fields(client.hget(store.keys.run(shorten(run.id)), "run"))["msg"]
    if not stored:
        return 0
    message, _, stream = stored.partition(" ")
    names = store.keys.streams(pool.name, [queue.name for queue in pool.queues])
    own = store.keys.prefix + stream
    earlier = sum(client.xlen(name) for name in names[: names.index(own)]) if own in names else 0
    return int(earlier) + len(client.xrange(own, "-", f"({message}", count=_COUNTED))


# --- words -----------------------------------------------------------------------------------------------------------------


def _alive(store: Store) -> list[Worker]:
    return [worker for worker in store.pools.workers() if worker.status != "OFFLINE"]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _wait(count: int) -> str:
    return "waits" if count == 1 else "wait"


def _stand(count: int) -> str:
    return "stands" if count == 1 else "stand"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
