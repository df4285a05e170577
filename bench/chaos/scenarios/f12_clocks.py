"""F12: wall clocks jump by minutes and hours, on a worker's machine, a scheduler's and Redis's."""

from __future__ import annotations

from datetime import timedelta

from bench.chaos.faketime import Clock, FakedServer
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.models import RunFilter, Schedule

MINUTE = 60
HOUR = 3600


def run(trial: Trial) -> Outcome:
    """Each of three clocks by +-5 min and +-1 h (quick: +-1 h of the server's, and +1 h of the others')."""
    jumps = (HOUR, -HOUR, 5 * MINUTE, -5 * MINUTE, 0)
    clocks = {name: Clock(trial.home, name) for name in ("worker", "scheduler", "server")}
    moves = [(name, jump) for name in clocks for jump in jumps]
    if trial.quick:
        moves = [("worker", HOUR), ("scheduler", HOUR), ("server", HOUR), ("server", 0)]
    problems: list[str] = []
    with World(trial, server=FakedServer(trial.home / "redis", clocks["server"])) as world:
        world.fleet.scheduler(variables=clocks["scheduler"].variables)
        world.fleet.scheduler()
        world.fleet.worker(8, variables=clocks["worker"].variables)
        world.fleet.worker(8)
        world.wait_for_fleet(2, 2)
        schedule = Schedule("often", interval=timedelta(seconds=1 if trial.quick else 5))
        parameters = {"ledger": str(world.ledger), "milliseconds": 10}
        fired = world.deploy("fired", module="clocked", name="clocked", schedules=[schedule], parameters=parameters)
        calm = world.deploy("work", module="clocked", name="clocked")
        world.submit(6.0, lambda chance: world.new_run(deployment=calm, milliseconds=chance.randint(50, 500)))
        pause = world.lease.total_seconds() + 2
        for name, jump in moves:
            world.pass_time(pause)
            clocks[name].move(jump)
            trial.say(f"the {name}'s clock is {jump:+} s off; {len(world.submitted):,} runs")
        world.pass_time(pause)
        world.store.deployments.pause(fired.slug)
        problems += world.quiesce(seconds=4 * world.lease.total_seconds() + 90)
        fires = [effect.phase for effect in world.effects() if effect.phase.startswith("fire ")]
        crashed = world.store.queries.count(RunFilter(deployment=fired.id, states=("Crashed", "Failed")))
        problems += world.close_fleet()
        verdict = world.verdict(may_restart=trial.quick)
    twice = len(fires) - len(set(fires))
    problems += verdict.problems
    if twice and not trial.quick:
        problems.append(f"{twice} fires ran twice")
    if crashed:
        problems.append(f"{crashed} scheduled runs crashed or failed")
    return Outcome(
        f"{len(moves)} jumps: {verdict.runs:,} runs, {verdict.lost} lost, {verdict.doubled} double-completed, "
        f"{verdict.restarted} restarted; {len(fires):,} fires, {twice} of them twice",
        problems,
    )


SCENARIO = Scenario("F12", "clocks", "workers unaffected; no duplicate fire; many leases lapsing at once pause the rescue", run)
