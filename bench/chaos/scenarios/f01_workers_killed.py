"""F1: supervisors, templates, children and whole groups are killed under load, with limits on the runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from random import Random

from bench.chaos.fleet import POOL
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.models import NewRun

POOL_LIMIT = 28
TAGS = {"narrow": 4, "wide": 8}
GLOBAL, GLOBAL_LIMIT = "database", 14
"""Half of the slots stand still at any time: those of killed workers until their leases are over."""


def run(trial: Trial) -> Outcome:
    """20,000 runs (quick: a hundred) and a kill every 2 s (0.7 s), with four workers (three) and two schedulers."""
    return play(trial, lambda world: world.staff(workers=3 if trial.quick else 4, schedulers=2, slots=8), share_in_code=0.5)


def play(trial: Trial, staff: Callable[[World], object], *, share_in_code: float) -> Outcome:
    """``staff`` starts the fleet; ``share_in_code`` of the runs take a slot of a global limit in their code."""
    total, per_s, every_s, hits = (100, 14.0, 0.7, 2) if trial.quick else (20_000, 25.0, 2.0, 30)
    with World(trial, pool_limit=POOL_LIMIT) as world:
        for tag, limit in TAGS.items():
            world.store.limits.set(f"tag:{tag}", limit)
        world.store.limits.create_global(GLOBAL, GLOBAL_LIMIT)
        under = world.deploy("work_under", name="under")
        staff(world)

        def new(chance: Random) -> NewRun:
            tags = [tag for tag in TAGS if chance.random() < 0.125]
            milliseconds = chance.randint(50, 500)
            if chance.random() < share_in_code:
                return world.new_run(deployment=under, milliseconds=milliseconds, tags=tags, parameters={"limit": GLOBAL})
            return world.new_run(milliseconds=milliseconds, tags=tags)

        submitter = world.submit(per_s, new, total=total)
        began = time.monotonic()
        count = 0
        while not submitter.is_done:
            world.pass_time(every_s)
            count += world.kill_one() is not None
            trial.say(f"{time.monotonic() - began:.0f} s: {len(submitter.submitted):,} runs, {count} kills")
        gates = [gate.name for gate in world.store.limits.global_limits()]
        problems = world.quiesce(gates=[f"pool:{POOL}", *(f"tag:{tag}" for tag in TAGS), *gates])
        problems += world.close_fleet()
        verdict = world.verdict(may_restart=trial.quick)
    allowed = {"": POOL_LIMIT, **TAGS, GLOBAL: GLOBAL_LIMIT}
    problems += verdict.problems + verdict.exceeds(allowed)
    if verdict.hits < hits:
        problems.append(f"only {verdict.hits} kills hit a lease; at least {hits} are needed")
    if not trial.quick and verdict.recovery_p99_s > world.lease.total_seconds() + 3:
        problems.append(f"recovery p99 is {verdict.recovery_p99_s:.1f} s")
    most = ", ".join(f"{verdict.most_at_once.get(name, 0)} of {limit}" for name, limit in allowed.items())
    return Outcome(f"{verdict.line()}, at most {most} at once, 0 slots leaked", problems, asdict(verdict))


EXPECTED = "0 lost, 0 double-completed, limits never exceeded, 0 slots leaked lease + 2 s after, recovery p99 <= lease + 3 s"

SCENARIO = Scenario(
    "F1",
    "workers killed",
    EXPECTED,
    run,
    limit=timedelta(minutes=40),
)
