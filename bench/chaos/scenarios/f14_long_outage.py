"""F14: everything is stopped for three days, as the server's clock has it; then schedules make up for what they missed."""

from __future__ import annotations

from bench.chaos.faketime import Clock, FakedServer
from bench.chaos.fleet import POOL
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.models import RunFilter, Schedule

OUTAGE_S = 72 * 3600
AT_MOST = 5
POLICIES = {"latest": 1, "all": AT_MOST, "skip": 0}


def run(trial: Trial) -> Outcome:
    """Three cron jobs of a minute, one per policy. The server's clock is moved by 72 h while no process of Orch runs."""
    clock = Clock(trial.home)
    server = FakedServer(trial.home / "redis", clock)
    problems: list[str] = []
    parts = []
    with World(trial, server=server) as world:
        for policy in POLICIES:
            schedule = Schedule("every-minute", cron="* * * * *", misfire=policy, misfire_limit=AT_MOST)
            world.deploy("work", name=policy, schedules=[schedule], parameters={"ledger": str(world.ledger), "milliseconds": 1})
        world.staff(workers=1, schedulers=1)
        found = world.store.deployments.all()
        world.wait_until(lambda: all(_planned(world, d.id) >= 3 for d in found if d.schedules), 30, "the first plans")
        world.fleet.stop()
        ended = world.store.now()
        clock.move(OUTAGE_S)
        server.kill()
        server.start()
        began = world.store.now()
        if (began - ended).total_seconds() < OUTAGE_S:
            problems.append(f"the server's clock only moved by {began - ended}")
        world.fleet.worker(4)
        world.wait_until(lambda: world.store.pools.get(POOL).workers >= 1, 30)
        world.fleet.scheduler()
        skips = {}

        def has_told() -> bool:
            events = world.store.events.latest(1000)
            skips.update({e.fields["deployment"]: e.fields for e in events if e.name == "schedule.skipped"})
            return len(skips) == len(POLICIES)

        world.wait_until(has_told, 60, "the skips to be recorded")
        world.wait_until(lambda: world.store.queries.count(RunFilter(states=("Pending", "Running", "Late"))) == 0, 60)
        world.pass_time(2)
        for policy, wanted in POLICIES.items():
            [deployment] = [d for d in found if d.name == policy]
            runs = world.store.queries.runs(RunFilter(deployment=deployment.id), limit=1000).runs
            made_up = [r for r in runs if r.state.name == "Completed" and ended < r.due <= began]
            left = [r for r in runs if ended < r.due <= began and r.state.name not in ("Completed", "Cancelled")]
            counted = int(skips[deployment.slug]["count"])
            if len(made_up) != wanted or left:
                problems.append(f"{policy}: {len(made_up)} missed fires ran, {wanted} should have; {len(left)} are left")
            missed = int(began.timestamp() // 60) - int(ended.timestamp() // 60)
            if abs(counted + wanted - missed) > 1:
                problems.append(f"{policy}: {counted} skips recorded and {wanted} made up for, of {missed} missed")
            parts.append(f"{policy} {len(made_up)} run and {counted:,} recorded as skipped")
        problems += world.close_fleet() + world.broken()
    return Outcome(f"72 h by the server's clock: {', '.join(parts)}", problems)


def _planned(world: World, deployment: str) -> int:
    return world.store.queries.count(RunFilter(deployment=deployment, states=("Scheduled",)))


SCENARIO = Scenario("F14", "long outage", "by the schedule's policy one run, or at most N, or none; every skip recorded", run)
