"""F19: Redis answers late, or not at all for a while, through a proxy that delays what passes."""

from __future__ import annotations

import time
from datetime import timedelta

from bench.chaos.proxy import Proxy
from bench.chaos.scenarios.f04_paused_worker import submit_long_ones
from bench.chaos.servers import Server
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World


def run(trial: Trial) -> Outcome:
    """200 ms and 2 s for 40 s each, pauses of 8 s, which a lease of 15 s must survive, and of 20 s, which it cannot.

    Quick: a lease of 3 s, 200 ms for 3 s, a pause of 1.5 s, one of 5 s.
    """
    lease = timedelta(seconds=3) if trial.quick else trial.lease
    slow = ((0.2, 3.0),) if trial.quick else ((0.2, 40.0), (2.0, 40.0))
    mild, harsh = ((1.5,), (5.0,)) if trial.quick else ((8.0, 8.0, 8.0), (20.0, 20.0, 20.0))
    server = Server(trial.home / "redis").start()
    with Proxy(server.host, server.port) as proxy, World(trial, server=server, lease=lease, url=proxy.url) as world:
        world.staff(workers=2 if trial.quick else 3, schedulers=1)
        submitter = submit_long_ones(world, *((4.0, 0.2) if trial.quick else (3.0, 0.05)))
        world.pass_time(1.0)
        for latency_s, seconds in slow:
            proxy.latency_s = latency_s
            world.pass_time(seconds)
            trial.say(f"{seconds:g} s with {latency_s:g} s a round trip: {len(submitter.submitted):,} runs")
        proxy.latency_s = 0.0
        for seconds in mild:
            _pause(world, proxy, seconds)
        # What began in the mild part has said so by now; what a slow answer has cost shows as a second start.
        mildly = time.monotonic()
        for seconds in harsh:
            _pause(world, proxy, seconds)
        problems = world.quiesce()
        problems += world.close_fleet()
        verdict = world.verdict(may_restart=True)
        early = sum(effect.phase == "start" and effect.attempt > 1 and effect.at < mildly for effect in world.effects())
    problems += verdict.problems
    if early:
        problems.append(f"{early} runs were started again though Redis was away for less than lease - renew")
    delays = ", ".join(f"{latency_s:g} s" for latency_s, _ in slow)
    return Outcome(
        f"{verdict.runs:,} runs; round trips of {delays} and {len(mild)} pauses of {mild[0]:g} s: {early} started again; "
        f"{len(harsh)} pauses of {harsh[0]:g} s: {verdict.restarted - early} started again, {verdict.at_once} attempts at "
        f"once; {verdict.lost} lost, {verdict.doubled} double-completed",
        problems,
        {"early": early, "restarted": verdict.restarted},
    )


def _pause(world: World, proxy: Proxy, seconds: float) -> None:
    proxy.pause()
    world.pass_time(seconds)
    proxy.resume()
    world.trial.say(f"paused for {seconds:g} s")
    world.pass_time(1.2 * world.lease.total_seconds())


SCENARIO = Scenario(
    "F19",
    "slow Redis",
    "no run is started again up to lease - renew; beyond it fenced duplicates only",
    run,
)
