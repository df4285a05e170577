"""LIMITS: twenty tags with limits, runs that bear one to three of them, and workers that are killed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bench import limits
from bench.chaos.fleet import POOL
from bench.chaos.ledger import Effect
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World, spread
from bench.measure import percentile
from orchestrator.models import NewRun

LIMIT = 2
WORKERS = 4
ROUNDS, QUICK_ROUNDS = 150, 15
"""How often at most somebody is killed. A run that is hit again and again waits longer each time: with kills until none is
left, the last ones would take for ever.
"""

KEPT = 0.7
WITHIN_MS = 50.0


def run(trial: Trial) -> Outcome:
    """2,500 runs without limits, as many with them, then 10,000 with kills (quick: 40, 40, 150); and one slot that many want.

    A kill every 2 s (0.3 s) while runs are left, for 300 s at most (4.5 s).

    Throughput and the time from a freed slot to the next body's first line are judged in the full form alone.
    """
    compared, total, waiting, every_s = (40, 150, 30, 0.3) if trial.quick else (2_500, 10_000, 200, 2.0)
    with World(trial) as world:
        world.staff(workers=WORKERS, schedulers=1, slots=4)
        _rate(world, 30)  # cold templates
        free = _rate(world, compared)
        unlimited = set(world.submitted)
        for tag in limits.TAGS:
            world.store.limits.set(f"tag:{tag}", LIMIT)
        limited = _rate(world, compared)
        gaps = _gaps(world, waiting)
        trial.say(f"{free:.0f} runs/s without limits, {limited:.0f} with them; handed over within {spread(gaps, 'ms')}")
        submitter = world.submit(200.0, lambda chance: _tagged(world, chance, chance.randint(20, 200)), total=total)
        world.wait_until(lambda: len(submitter.submitted) >= min(total, 100), 60)
        for _ in range(QUICK_ROUNDS if trial.quick else ROUNDS):
            world.pass_time(every_s)
            world.kill_one()
            trial.say(
                f"{len(submitter.submitted):,} given in, {_left(world):,} left, {len(world.fleet.killed)} processes killed"
            )
            if submitter.is_done and not _left(world):
                break
        world.wait_until(lambda: submitter.is_done, 120, "the submitter")
        problems = world.quiesce(gates=[f"pool:{POOL}", *(f"tag:{tag}" for tag in limits.TAGS)])
        problems += world.close_fleet()
        verdict = world.verdict(world.submitted.keys() - unlimited, may_restart=trial.quick)
    allowed = dict.fromkeys(limits.TAGS, LIMIT)
    problems += verdict.problems + verdict.exceeds({**allowed, "single": 1})
    if not trial.quick and limited < KEPT * free:
        problems.append(f"throughput with limits is {limited / free:.0%} of that without")
    if not trial.quick and percentile(gaps, 0.99) > WITHIN_MS:
        problems.append(f"a freed slot's next run began {percentile(gaps, 0.99):.0f} ms later (p99)")
    most = max(verdict.most_at_once.get(tag, 0) for tag in limits.TAGS)
    return Outcome(
        f"{verdict.line()}; at most {most} of {LIMIT} at once under each of {len(limits.TAGS)} tags; "
        f"{limited:.0f} runs/s with limits, {free:.0f} without ({limited / free:.0%}); "
        f"from a freed slot to the next body {spread(gaps, 'ms')}",
        problems,
        {"free": free, "limited": limited, "gaps_ms": sorted(gaps)},
    )


def _tagged(world: World, chance: Random, milliseconds: int) -> NewRun:
    return world.new_run(milliseconds=milliseconds, tags=chance.sample(limits.TAGS, chance.randint(1, 3)))


def _rate(world: World, count: int) -> float:
    """Bodies a second while the queue is full: the last twentieth is left out."""
    chance = Random(1)
    ids = world.create([_tagged(world, chance, limits.BODY_MS) for _ in range(count)])
    world.wait_until(lambda: len(_ends(world.effects(), ids)) == count, 600, "the runs that are compared")
    ends = _ends(world.effects(), ids)
    counted = max(2, count * 19 // 20)
    return (counted - 1) / (ends[counted - 1] - ends[0])


def _gaps(world: World, count: int) -> list[float]:
    """Many want the one slot of a tag: milliseconds from the end of each body to the start of the next."""
    world.store.limits.set("tag:single", 1)
    ids = world.create([world.new_run(milliseconds=limits.BODY_MS, tags=["single"]) for _ in range(count)])
    world.wait_until(lambda: len(_ends(world.effects(), ids)) == count, 600, "the runs that share one slot")
    return limits.handovers([effect.at for effect in world.effects() if effect.run in ids])


def _ends(effects: Sequence[Effect], ids: set[str]) -> list[float]:
    return [effect.at for effect in effects if effect.phase == "end" and effect.run in ids]


def _left(world: World) -> int:
    """Runs that have not said that they ended."""
    ended = {effect.run for effect in world.effects() if effect.phase == "end"}
    return len(world.submitted.keys() - ended)


SCENARIO = Scenario(
    "LIMITS",
    "limits under load",
    "no limit ever exceeded; >= 70 % of the throughput without limits; a freed slot's next run within 50 ms (p99)",
    run,
)
