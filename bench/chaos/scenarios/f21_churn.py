"""F21: workers come and go by the thousand, most of them without a word. Played through the store, on a frozen clock."""

from __future__ import annotations

import os
import random
from datetime import timedelta

from bench.chaos.fleet import POOL
from bench.chaos.servers import Server
from bench.chaos.trial import Outcome, Scenario, Trial
from orch_scheduler import pruner, rescuer
from orchestrator import clock
from orchestrator.clock import FrozenClock
from orchestrator.models import NewRun, Worker
from orchestrator.settings import Settings
from orchestrator.states import State, StateType
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End
from orchestrator.store.facade import NamespaceSettings
from orchestrator.store.invariants import check

EVERY = timedelta(seconds=5)
PRUNE_EVERY = 12
"""Incarnations: a minute, as the pruner works."""

MORE = 10
SHORT = timedelta(milliseconds=1)


def run(trial: Trial) -> Outcome:
    """10,000 incarnations (quick: 1,500), one every 5 s: one in four leaves, the others die."""
    total = 1_500 if trial.quick else 10_000
    server = Server(trial.home / "redis").start()
    try:
        return _play(trial, server, total)
    finally:
        server.kill()


def _play(trial: Trial, server: Server, total: int) -> Outcome:
    frozen = FrozenClock(clock.now_ms())
    settings = Settings(home=trial.home, redis_url=server.url)
    with open_store(settings, frozen=frozen) as store:
        store.write_settings(NamespaceSettings(retention=timedelta(minutes=30)))
    problems: list[str] = []
    consumers: list[int] = []
    memory: list[int] = []
    with open_store(settings, frozen=frozen) as store:
        store.pools.create(POOL)
        chance = trial.chance()
        for number in range(total):
            _live_and_die(store, number, chance)
            frozen.advance(EVERY)
            if number % PRUNE_EVERY == PRUNE_EVERY - 1:
                # The rescuer waits for two seconds of the server's own clock, which does not run as fast as ours.
                store.runs.redeliver(POOL, ["default"], idle=timedelta(0))
                rescuer.run_once(store)
                store.runs.release_due()
                pruner.run_once(store)
                living = store.pools.get(POOL).workers
                consumers.append(_consumers(store) - living)
            if number + 1 in (total // 2, total):
                memory.append(_size(store))
            if number % 1000 == 999:
                trial.say(f"{number + 1:,} incarnations, {consumers[-1]} consumers more than living workers")
        _work_off(store, frozen)
        frozen.advance(timedelta(hours=2))
        pruner.run_once(store)
        left = _consumers(store)
        known = len(store.pools.workers())
        problems += [f"invariant broken: {violation}" for violation in check(store)]
    # The first hour fills what is kept for an hour.
    settled, last = memory
    growth = (last - settled) / settled
    if max(consumers) > MORE:
        problems.append(f"up to {max(consumers)} consumers more than living workers")
    if left > MORE or known:
        problems.append(f"two hours later {left} consumers and {known} workers are left")
    # A quick form is hardly longer than the first hour.
    if growth > 0.05 and not trial.quick:
        problems.append(f"memory grew by {growth:.0%} over the second half")
    return Outcome(
        f"{total:,} incarnations; at most {max(consumers)} consumers more than living workers after the pruner, {left} two "
        f"hours later; {settled / 1000:,.0f} kB half-way, {last / 1000:,.0f} kB at the end",
        problems,
        {"consumers": max(consumers), "memory": memory},
    )


def _live_and_die(store: Store, number: int, chance: random.Random) -> None:
    """One incarnation: join, read, claim, finish; it leaves, or dies idle, with a lease or with a message in hand."""
    own = _worker(store, f"w-{number}")
    store.pools.join(own)
    store.runs.create([NewRun("work", pool=POOL, crash_budget=100)])
    store.pools.heartbeat(own)
    delivered = store.pools.wait_for_runs(POOL, own.name, ["default"], SHORT)
    end = chance.choice(("leaves", "dies idle", "dies with a lease", "dies with a message"))
    if end == "dies with a message":
        return
    claims = store.runs.claim(own.name, POOL, ["default"], 20, delivered, start=True)
    if end == "dies with a lease":
        return
    _finish(store, own.name, [(run.id, run.attempt) for run in claims.claimed])
    if end == "leaves":
        store.pools.leave(own, POOL, ["default"])


def _work_off(store: Store, frozen: FrozenClock) -> None:
    """One that lives does what is left."""
    own = _worker(store, "last")
    store.pools.join(own)
    for _ in range(1000):
        frozen.advance(timedelta(seconds=20))
        store.pools.heartbeat(own)
        rescuer.run_once(store)
        store.runs.release_due()
        claims = store.runs.claim(own.name, POOL, ["default"], 100, [], start=True)
        _finish(store, own.name, [(run.id, run.attempt) for run in claims.claimed])
        if not claims.claimed and not claims.more and store.client.zcard(store.keys.due) == 0:
            break
    store.pools.leave(own, POOL, ["default"])


def _finish(store: Store, worker: str, runs: list[tuple[str, int]]) -> None:
    store.runs.finish([End(run, attempt, State(StateType.COMPLETED)) for run, attempt in runs], worker=worker)


def _worker(store: Store, name: str) -> Worker:
    now = store.now()
    return Worker(
        name, POOL, "process", "host", os.getpid(), "", "", 4, 0, (), now, now, "ONLINE", timedelta(0)
    )  # fmt: skip


def _consumers(store: Store) -> int:
    """Of the stream that has the most."""
    streams = [store.keys.resumed(POOL), store.keys.queue(POOL, "default", "normal")]
    return max(len(store.client.xinfo_consumers(stream, "workers")) for stream in streams)


def _size(store: Store) -> int:
    """Bytes of all keys but the feed of events, which is as long as it may be only after a hundred thousand."""
    keys = [key for key in store.client.scan_iter(f"{store.keys.prefix}*", count=1000) if key.decode() != store.keys.events]
    return sum(int(store.client.memory_usage(key, samples=0) or 0) for key in keys)


SCENARIO = Scenario(
    "F21", "churn of workers", "consumers <= living workers + 10 after each round of the pruner; memory flat", run
)
