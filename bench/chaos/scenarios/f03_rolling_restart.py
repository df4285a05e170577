"""F3: workers are told to stop one after another under load, some with runs that take longer than the grace."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from functools import partial
from itertools import pairwise

from bench.chaos.fleet import Member
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World, spread
from bench.stage import tree
from orchestrator.models import Run

HANDED_BACK = "handed back"
WITHIN_S = 2.0


def run(trial: Trial) -> Outcome:
    """Three rounds (quick: one) through all workers; each round begins with a long run per slot of a worker."""
    rounds, workers, per_s, long_ms = (1, 2, 10.0, 60_000) if trial.quick else (3, 3, 24.0, 120_000)
    with World(trial) as world:
        world.staff(workers, schedulers=1, slots=8)
        long = world.deploy("tick", name="long")
        submitter = world.submit(per_s)
        for number in range(rounds):
            made = [
                world.new_run(deployment=long, milliseconds=200, parameters={"first_milliseconds": long_ms}) for _ in range(8)
            ]
            held = world.create(made)
            world.wait_until(partial(_have_started, world, held), 60, "the long runs")
            for member in world.fleet.workers[:]:
                trial.say(f"round {number + 1}: {member.name}; {len(submitter.submitted):,} runs")
                _restart(world, member, hurry=trial.quick)
                world.wait_for_fleet(workers, 1)
        problems = world.quiesce()
        problems += world.close_fleet()
        verdict = world.verdict()
        runs = world.read_runs(world.submitted)
        charged = sum(found.crash_count for found in runs.values())
        gaps = list(_gaps(runs.values(), world.moments("start")))
    problems += verdict.problems
    if charged:
        problems.append(f"{charged} crashes charged")
    if not gaps:
        problems.append("no run was handed back")
    problems += [f"a run was handed back and started {gap:.2f} s later" for gap in gaps if gap > WITHIN_S]
    restarted = f"{rounds * workers} restarts of a worker, {len(gaps)} runs handed back and started again after {spread(gaps)}"
    figures = f"{verdict.runs:,} runs, {verdict.lost} lost, {verdict.doubled} double-completed"
    return Outcome(f"{figures}, {charged} crashes charged; {restarted}", problems, {"gaps": gaps})


def _have_started(world: World, runs: set[str]) -> bool:
    return {effect.run for effect in world.effects()} >= runs


def _restart(world: World, member: Member, *, hurry: bool) -> None:
    """SIGTERM and wait for its end; then a new one. ``hurry``: the second signal ends the grace, which is 25 s."""
    world.fleet.seen.update(tree(member.pid))
    world.note_kill("SIGTERM", [member.pid])
    member.process.send_signal(signal.SIGTERM)
    member.is_wanted = False
    began = time.monotonic()
    if hurry:
        world.pass_time(1.0)
        if member.is_running:
            member.process.send_signal(signal.SIGTERM)
    world.wait_until(lambda: not member.is_running, 60, f"the end of {member.name}")
    world.trial.say(f"{member.name} ended after {time.monotonic() - began:.1f} s with {member.process.returncode}")
    if member.process.returncode != 0:
        world.fleet.died.append(f"{member.name} ended with {member.process.returncode} after SIGTERM")
    world.fleet.worker(8)


def _gaps(runs: Iterable[Run], starts: dict[tuple[str, int], float]) -> Iterable[float]:
    """Seconds from each handing back to the start of the next attempt."""
    for found in runs:
        for entry, later in pairwise(found.history):
            if HANDED_BACK in entry.message and later.attempt > entry.attempt and (found.id, later.attempt) in starts:
                yield starts[found.id, later.attempt] - entry.at.timestamp()


SCENARIO = Scenario(
    "F3",
    "rolling restart",
    "0 crashes charged; what the grace ends is handed back and started elsewhere within 2 s",
    run,
)
