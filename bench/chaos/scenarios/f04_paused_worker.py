"""F4: a worker is stopped by SIGSTOP for longer than its leases, and goes on as if nothing had been."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from random import Random

from bench.chaos import ledger
from bench.chaos.ledger import Effect
from bench.chaos.submitter import Submitter
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from bench.stage import tree
from orchestrator.models import NewRun, Run


def run(trial: Trial) -> Outcome:
    """Ten pauses of 60 s (quick: two of 3 s) of a supervisor; every other time of all the processes below it as well."""
    pauses, seconds = (2, 3.0) if trial.quick else (10, 60.0)
    with World(trial) as world:
        world.staff(workers=2 if trial.quick else 3, schedulers=1)
        lost: list[list[Effect]] = []
        load = begin_load(world)
        for number in range(pauses):
            member = world.chance.choice(world.fleet.workers)
            group = number % 2 == 1
            below = tree(member.pid) if group else [member.pid]
            world.wait_until(lambda pid=member.pid: executing_under(world, pid), 30, "a run to disturb")  # type: ignore[misc]
            world.note_kill("SIGSTOP", below)
            world.fleet.kill(below, signal.SIGSTOP)
            lost.append(executing_under(world, member.pid))
            count = len(load.submitted)
            trial.say(f"{member.name} and {len(below) - 1} below it stopped, with {len(lost[-1])} runs; {count:,} runs in all")
            world.pass_time(seconds)
            world.fleet.kill(below, signal.SIGCONT)
            world.pass_time(world.lease.total_seconds())
        return conclude(world, lost, f"{pauses} pauses of {seconds:g} s")


def begin_load(world: World) -> Submitter:
    """Few enough for the workers that are left."""
    return submit_long_ones(world, *((8.0, 0.1) if world.trial.quick else (4.0, 0.05)))


def submit_long_ones(world: World, per_s: float, share: float) -> Submitter:
    """Short runs and, as a ``share`` of all, such as take longer than a lease; they write to the ledger as they execute."""
    deployment = world.deploy("tick", name="ticking")
    long_ms = round(4000 * world.lease.total_seconds() / 3)

    def new(chance: Random) -> NewRun:
        milliseconds = long_ms if chance.random() < share else chance.randint(50, 500)
        return world.new_run(deployment=deployment, milliseconds=milliseconds)

    return world.submit(per_s, new)


def executing_under(world: World, supervisor: int) -> list[Effect]:
    """The starts of bodies that execute in a worker just now."""
    return [effect for effect in ledger.executing(world.ledger, within_s=120) if effect.supervisor == supervisor]


def conclude(world: World, harmed: Sequence[Sequence[Effect]], what: str) -> Outcome:
    """Wait for the end, and judge that the disturbed attempts did not count and were over before their successors began."""
    problems = world.quiesce()
    problems += world.close_fleet()
    verdict = world.verdict(may_restart=world.trial.quick)
    runs = world.read_runs({effect.run for effects in harmed for effect in effects})
    effects = world.effects()
    attempts = [effect for group in harmed for effect in group]
    accepted = [effect for effect in attempts if _is_accepted(runs[effect.run], effect.attempt)]
    gaps = list(_gaps(effects, attempts))
    problems += verdict.problems
    problems += [f"run {effect.run}: attempt {effect.attempt} was accepted though its lease was over" for effect in accepted]
    if not attempts:
        problems.append("no run was disturbed")
    late = sum(gap < 0 for gap in gaps)
    facts = {"disturbed": len(attempts), "accepted": len(accepted), "gaps_s": sorted(gaps)}
    return Outcome(
        f"{what}, {len(attempts)} leases lost with them: {len(accepted)} late reports accepted, {late} runs still at work when "
        f"their successor began (silent for {min(gaps, default=0):.1f} s before it, or more); {verdict.runs:,} runs, "
        f"{verdict.lost} lost, {verdict.doubled} double-completed",
        problems,
        facts,
    )


def _is_accepted(found: Run, attempt: int) -> bool:
    return any(entry.name == "Completed" and entry.attempt == attempt for entry in found.history)


def _gaps(effects: Iterable[Effect], attempts: Iterable[Effect]) -> Iterable[float]:
    """Seconds from the last that a disturbed attempt did to the start of the next one of its run."""
    by_run: dict[str, list[Effect]] = {}
    for effect in effects:
        by_run.setdefault(effect.run, []).append(effect)
    for disturbed in attempts:
        mine = by_run[disturbed.run]
        last = max(effect.at for effect in mine if effect.attempt == disturbed.attempt)
        starts = [effect.at for effect in mine if effect.phase == "start" and effect.attempt > disturbed.attempt]
        if starts:
            yield min(starts) - last


SCENARIO = Scenario(
    "F4",
    "paused worker",
    "late renewals and late ends are refused every time; its runs are dead before their successors start",
    run,
)
