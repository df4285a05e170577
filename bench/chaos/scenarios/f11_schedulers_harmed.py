"""F11: schedulers are killed and stopped, two to five at once, while schedules fire."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

from bench.chaos.ledger import Effect
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator import clock, schedules
from orchestrator.models import Schedule

SCHEDULERS = 5


def run(trial: Trial) -> Outcome:
    """50 kills and 50 stops (quick: 4 and 4) while schedules fire every second to every ten seconds."""
    times, every_s, slow_s = (4, 0.7, 2.0) if trial.quick else (50, 1.5, 10.0)
    with World(trial) as world:
        world.staff(workers=1 if trial.quick else 2, schedulers=SCHEDULERS)
        parameters = {"ledger": str(world.ledger), "milliseconds": 5}
        seconds = (1, 2) if trial.quick else (1, 2, 3, 5, 7, 10)
        wanted = {
            f"every-{each}": Schedule("main", interval=timedelta(seconds=each), misfire="all", misfire_limit=1000)
            for each in seconds
        }
        for name, schedule in wanted.items():
            world.deploy("fired", name=name, parameters=parameters, schedules=[schedule], crash_budget=50)
        since = world.store.now()
        counts = _harm(world, times, every_s, slow_s)
        until = world.store.now()
        expected = {
            (name, moment) for name, schedule in wanted.items() for moment in schedules.fires(schedule, since, until=until)
        }
        problems = []
        try:
            world.wait_until(lambda: expected <= _fires(world.effects()).keys(), 60, "all fires")
        except TimeoutError:
            missing = sorted(expected - _fires(world.effects()).keys())
            problems += [f"missed: {name} at {moment:%H:%M:%S}" for name, moment in missing]
        for name in wanted:
            world.store.deployments.pause(f"fired/{name}")
        problems += world.close_fleet() + world.broken()
        found = _fires(world.effects())
    missed = expected - found.keys()
    doubled = {fire: runs for fire, runs in found.items() if len(runs) > 1}
    surprising = [fire for fire in found if fire not in expected and since < fire[1] <= until]
    problems += [f"fired twice: {name} at {moment:%H:%M:%S}: {runs}" for (name, moment), runs in doubled.items()]
    problems += [f"fired though no schedule says so: {name} at {moment}" for name, moment in surprising]
    return Outcome(
        f"{counts['kill']} times SIGKILL and {counts['stop']} times SIGSTOP to two to five of {SCHEDULERS} schedulers at once "
        f"({counts['killed']} and {counts['stopped']} processes): of {len(expected):,} fires {len(missed)} missed, "
        f"{len(doubled)} fired twice",
        problems,
        dict(counts),
    )


def _harm(world: World, times: int, every_s: float, slow_s: float) -> Counter[str]:
    """Kill or stop some schedulers at a time; stopped ones go on after a while, at most ``slow_s``."""
    kinds = ["kill", "stop"] * times
    world.chance.shuffle(kinds)
    counts: Counter[str] = Counter()
    resume: dict[int, float] = {}
    for number, kind in enumerate(kinds):
        running = [member for member in world.fleet.schedulers if member.is_running]
        chosen = world.chance.sample(running, world.chance.randint(2, len(running)))
        counts[kind] += 1
        for member in chosen:
            if kind == "kill":
                counts["killed"] += len(world.fleet.kill([member.pid]))
            else:
                counts["stopped"] += len(world.fleet.kill([member.pid], signal.SIGSTOP))
                resume[member.pid] = time.monotonic() + world.chance.uniform(0.3, slow_s)
        if number % 10 == 9:
            world.trial.say(f"{counts['kill']} times SIGKILL, {counts['stop']} times SIGSTOP")
        end = time.monotonic() + every_s
        while time.monotonic() < end:
            for pid in [pid for pid, moment in resume.items() if moment < time.monotonic()]:
                del resume[pid]
                world.fleet.kill([pid], signal.SIGCONT)
            world.pass_time(0.1)
    world.fleet.kill(resume, signal.SIGCONT)
    return counts


def _fires(effects: Iterable[Effect]) -> dict[tuple[str, datetime], set[str]]:
    """What the bodies have said: (deployment, the moment for which they were planned) -> the runs."""
    found: dict[tuple[str, datetime], set[str]] = {}
    for effect in effects:
        if effect.phase.startswith("fire "):
            _, name, ms = effect.phase.split()
            found.setdefault((name, clock.from_ms(int(ms))), set()).add(effect.run)
    return found


SCENARIO = Scenario("F11", "schedulers killed or stopped", "0 missed and 0 duplicate fires", run)
