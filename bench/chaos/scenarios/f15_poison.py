"""F15: a few runs kill the worker that executes them, each time, among many that do not."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from random import Random

from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.models import NewRun

STARTS = 3


def run(trial: Trial) -> Outcome:
    """10 poison runs among 5,000 (quick: 2 among 60), all with the default crash budget."""
    total, poisoned, per_s = (60, 2, 12.0) if trial.quick else (5_000, 10, 40.0)
    # A lease of 1 s that a busy machine does not renew would be charged to runs that have three starts in all.
    lease = timedelta(seconds=3) if trial.quick else trial.lease
    with World(trial, lease=lease) as world:
        world.fleet.may_be_killed = True
        world.staff(workers=3, schedulers=1)
        deployment = world.deploy("poison", name="poison")
        which = set(random.Random(trial.seed).sample(range(total // 2), poisoned))
        numbers = iter(range(total))

        def new(chance: Random) -> NewRun:
            of = deployment if next(numbers) in which else world.deployment
            return world.new_run(deployment=of, milliseconds=chance.randint(50, 500), crash_budget=STARTS)

        submitter = world.submit(per_s, new, total=total)
        world.wait_until(lambda: submitter.is_done, 600, "all runs to be given in")
        problems = world.quiesce()
        problems += world.close_fleet()
        runs = world.read_runs(world.submitted)
        bad = {id_ for id_, found in runs.items() if found.flow == "poison"}
        verdict = world.verdict(world.submitted.keys() - bad, may_restart=trial.quick)
        starts = Counter(effect.run for effect in world.effects() if effect.phase == "start")
    problems += verdict.problems
    for id_ in bad:
        if starts[id_] != STARTS or not runs[id_].state.is_crashed():
            problems.append(f"poison run {id_} started {starts[id_]} times and is {runs[id_].state.name}")
    hit = sum(found.crash_count > 0 for id_, found in runs.items() if id_ not in bad)
    hardest = max((found.crash_count for id_, found in runs.items() if id_ not in bad), default=0)
    quarantined = sum(runs[id_].state.is_crashed() for id_ in bad)
    return Outcome(
        f"{quarantined} of {poisoned} poison runs quarantined after {sorted({starts[id_] for id_ in bad})} starts each; of "
        f"{verdict.runs:,} others {verdict.runs - verdict.lost:,} completed, {hit} were hit by them, one {hardest} times",
        problems,
        {"hit": hit, "hardest": hardest},
    )


SCENARIO = Scenario("F15", "poison", "quarantined after exactly 3 starts each; all others complete", run)
