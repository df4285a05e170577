"""F20: a queue with a million runs; claims and sweeps are as fast as with none."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.chaos.fleet import POOL
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from bench.measure import percentile
from orchestrator.models import NewRun
from orchestrator.states import Completed
from orchestrator.store.answers import End

SWEEP_MS = 5.0
LOAD_S = 300.0


def run(trial: Trial) -> Outcome:
    """A million queued runs (quick: 10,000), half of them of one deployment; 2,000 claims of each kind (quick: 200)."""
    runs, times = (10_000, 200) if trial.quick else (1_000_000, 2_000)
    problems: list[str] = []
    with World(trial) as world:
        world.store.pools.scheduler_heartbeat("nobody")
        empty = [_claim_one(world, submit=True) for _ in range(times)]
        began = time.monotonic()
        while (left := runs - _created(world)) > 0:
            world.store.runs.create([_new(world, number) for number in range(min(1000, left))])
            if _created(world) % 100_000 == 0:
                trial.say(f"{time.monotonic() - began:.0f} s: {_created(world):,} runs")
        load_s = time.monotonic() - began
        full = [_claim_one(world, submit=False) for _ in range(times)]
        sweeps = _sweeps(world, 50 if trial.quick else 200)
        used_mb = int(world.store.client.info("memory")["used_memory"]) / 1e6
    high_empty, high_full = percentile(empty, 0.99), percentile(full, 0.99)
    if high_full > 2 * high_empty and not trial.quick:
        problems.append(f"claim p99 is {high_full:.2f} ms, {high_full / high_empty:.1f} times that of an empty queue")
    problems += [f"{name} takes {took:.1f} ms a call" for name, took in sweeps.items() if took > SWEEP_MS]
    if load_s > LOAD_S:
        problems.append(f"loading took {load_s:.0f} s")
    worst = max(sweeps, key=lambda name: sweeps[name])
    facts = {"empty_ms": [percentile(empty, p) for p in (0.5, 0.99)], "full_ms": [percentile(full, p) for p in (0.5, 0.99)]}
    return Outcome(
        f"{runs:,} queued runs loaded in {load_s:.0f} s ({used_mb:,.0f} MB); claim p50 {percentile(full, 0.5):.2f} ms, "
        f"p99 {high_full:.2f} ms ({high_full / high_empty:.2f} times that of an empty queue); slowest duty {worst}: "
        f"{sweeps[worst]:.2f} ms of the server's time a call",
        problems,
        {**facts, "sweeps_ms": sweeps, "load_s": load_s, "used_mb": used_mb},
    )


def _new(world: World, number: int) -> NewRun:
    if number % 2:
        return world.new_run(milliseconds=1)
    return NewRun("work", pool=POOL, parameters={"ledger": "", "milliseconds": 1})


def _created(world: World) -> int:
    return int(world.store.client.zcard(world.store.keys.index("all")))


def _claim_one(world: World, *, submit: bool) -> float:
    """Milliseconds that a claim of one run takes."""
    if submit:
        world.store.runs.create([_new(world, 0)])
    began = time.perf_counter()
    [claimed] = world.store.runs.claim("w", POOL, ["default"], 1).claimed
    took = (time.perf_counter() - began) * 1000
    world.store.runs.finish([End(claimed.id, claimed.attempt, Completed())], worker="w")
    world.store.runs.delete([claimed.id])
    return took


def _sweeps(world: World, times: int) -> dict[str, float]:
    """Milliseconds of the server's own time that each duty takes a call: neighbours on the machine do not show in it."""
    runs = world.store.runs
    duties: dict[str, Callable[[], object]] = {
        "release_due": runs.release_due,
        "lapse": runs.lapse,
        "wake": runs.wake,
        "expire": runs.expire,
        "mark_late": runs.mark_late,
        "time_out_paused": runs.time_out_paused,
        "redeliver": lambda: runs.redeliver(POOL, ["default"]),
        "epoch": world.store.failover.check,
    }
    found = {}
    for name, duty in duties.items():
        before = _server_ms(world)
        for _ in range(times):
            duty()
        found[name] = (_server_ms(world) - before) / times
    return found


def _server_ms(world: World) -> float:
    used = world.store.client.info("cpu")
    return (float(used["used_cpu_user"]) + float(used["used_cpu_sys"])) * 1000


SCENARIO = Scenario("F20", "backlog", "claim p99 <= 2 x that of an empty queue; sweep <= 5 ms a call; loaded in 5 minutes", run)
