"""What F8 and F9 share: load on servers that stand in for each other, while these are harmed, and what was lost of it.

A run is at work each time that the servers are harmed. In the end every run that is still known has completed exactly once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import Random
from typing import Any

from bench.chaos import ledger
from bench.chaos.submitter import Submitter
from bench.chaos.trial import Outcome, Trial
from bench.chaos.world import World, spread
from bench.servers import ClusterServers, SentinelServers
from orchestrator import clock
from orchestrator.exceptions import OrchError
from orchestrator.models import NewRun

EXPECTED = (
    "default: lost at most what was acknowledged in the second before, each reported; replicated: 0; runs at work then and all "
    "others complete exactly once; submitters and workers are at work within 5 s of it"
)

LIMIT = timedelta(minutes=75)
"""Each durability gives in 150,000 runs in a quarter of an hour; to look at each, and at every invariant, takes minutes."""

WITHIN_S = 5.0
"""How long after a fail-over submitters and every worker are at work again."""

_EXECUTED_PER_S = 20.0
_QUICK_EXECUTED_PER_S = 8.0
_KEPT_PER_S = 180.0
_QUICK_KEPT_PER_S = 60.0
_AT_WORK_MS = 2_000
"""The body of the run that is at work when the servers are harmed."""

_LAG_S = 1.0
"""What was acknowledged longer than this before a primary died has reached a replica."""

Servers = SentinelServers | ClusterServers


@dataclass
class Harm:
    """One thing done to the servers: what, when, and since when another server does the work."""

    what: str
    began: float
    over: float


@dataclass
class Findings:
    """What one durability's part has shown."""

    durability: str
    harms: list[Harm] = field(default_factory=list)
    submitted: int = 0
    at_work: int = 0
    lost: int = 0
    reported: int = 0
    twice: int = 0
    restarted: int = 0
    again_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _AsOneServer:
    """Several servers as a world sees its server."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._runs = False

    @property
    def url(self) -> str:
        return self._servers.url

    def answers(self) -> bool:
        return self._runs

    def start(self) -> None:
        self._servers.start()
        self._runs = True

    def kill(self) -> None:
        self._servers.stop()


def outcome(
    trial: Trial,
    make: Callable[[], Servers],
    harm: Callable[[Any, int], Harm],
    times: int,
    what: str,
    durabilities: Sequence[str] = ("default", "replicated"),
) -> Outcome:
    """Play each durability, one after the other, with ``times`` harms."""
    found = [_play(trial, durability, make(), harm, times) for durability in durabilities]
    told = "; ".join(
        f"{each.durability}: {each.submitted:,} runs, {_counted(each.harms)} with {each.at_work} runs at work, "
        f"{each.lost} lost ({each.reported} reported), {each.twice} twice, {each.restarted} restarted, "
        f"fail-over {spread([one.over - one.began for one in each.harms])}, at work again {spread(each.again_s)} after it"
        for each in found
    )
    problems = [f"{each.durability}: {problem}" for each in found for problem in each.problems]
    return Outcome(f"{what}; {told}", problems, {each.durability: each.__dict__ | {"harms": len(each.harms)} for each in found})


def _counted(harms: Iterable[Harm]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in Counter(harm.what for harm in harms).items())


def _play(trial: Trial, durability: str, servers: Servers, harm: Callable[[Any, int], Harm], times: int) -> Findings:
    found = Findings(durability)
    with World(trial.part(durability), server=_AsOneServer(servers)) as world:  # type: ignore[arg-type]
        world.store.write_settings(replace(world.store.settings, durability=durability))
        workers = 2 if trial.quick else 3
        world.staff(workers=workers, schedulers=1 if trial.quick else 2, slots=4)
        executed = world.submit(
            _QUICK_EXECUTED_PER_S if trial.quick else _EXECUTED_PER_S,
            lambda chance: world.new_run(milliseconds=chance.randint(50, 300)),
        )
        kept_per_s = _QUICK_KEPT_PER_S if trial.quick else _KEPT_PER_S
        # Far more are given in than a small machine could execute: they stay, due in an hour.
        kept = Submitter(world.open(redis_retry_s=0), lambda _: _later(world), Random(trial.seed), per_s=kept_per_s).start()
        at_work: dict[str, float] = {}
        lost: set[str] = set()
        twice: set[str] = set()
        for number in range(times):
            world.pass_time(1.0 if trial.quick else 3.0)
            at_work.update(_begin_a_run(world))
            done = harm(servers, number)
            found.harms.append(done)
            found.again_s.append(_wait_until_at_work(world, (executed, kept), done, workers) - done.over)
            servers.wait_until_whole()
            _read_report(world, lost, twice)
            trial.say(f"{durability}: {number + 1} of {times}, {done.what}: {done.over - done.began:.1f} s, {len(lost)} lost")
        world.pass_time(1.0)
        for submitter in (executed, kept):
            submitter.stop()
        accepted = executed.accepted | kept.accepted | at_work
        found.problems += _wait_for_ends(world, world.submitted)
        _read_report(world, lost, twice)
        missing = set(accepted) - world.read_runs(accepted).keys()
        found.problems += world.broken()
        found.problems += world.close_fleet()
        verdict = world.verdict(world.submitted.keys() - missing, may_restart=True)
    known = missing | twice
    found.problems += [problem for problem in verdict.problems if not any(run in problem for run in known)]
    found.submitted, found.lost, found.reported = len(accepted), len(missing), len(missing & lost)
    found.at_work = len(at_work)
    found.twice, found.restarted = len(twice), verdict.restarted
    found.problems += _judge(found, missing, lost, accepted)
    return found


def _later(world: World) -> NewRun:
    return world.new_run(due=clock.now() + timedelta(hours=1))


def _begin_a_run(world: World) -> dict[str, float]:
    """A run that works on for two seconds, and when it was acknowledged; returns when its body has started."""
    new = world.new_run(milliseconds=_AT_WORK_MS)
    # Created under the same id again where it was refused: a replica may be late.
    world.wait_until(lambda: world.create([new]), 60, "a run to be accepted")
    accepted = time.monotonic()
    world.wait_until(lambda: any(effect.run == new.id for effect in ledger.executing(world.ledger)), 60, "a run to be at work")
    assert new.id is not None
    return {new.id: accepted}


def _wait_until_at_work(world: World, submitters: Iterable[Submitter], harm: Harm, workers: int) -> float:
    """When every submitter had been answered, and every worker had started a run, since the fail-over."""
    seen: dict[str, float] = {}

    def is_at_work() -> bool:
        for number, submitter in enumerate(submitters):
            assert not submitter.is_done, "a submitter has ended by itself"
            answered = [at for at in list(submitter.accepted.values())[-500:] if at > harm.over]
            seen.update({f"submitter {number}": min(answered)} if answered and f"submitter {number}" not in seen else {})
        for effect in ledger.since(world.ledger, harm.over):
            if effect.phase == "start":
                seen.setdefault(f"worker {effect.supervisor}", effect.at)
        return len(seen) >= workers + 2

    try:
        world.wait_until(is_at_work, 60)
    except TimeoutError as error:
        last = {number: submitter.last_refusal for number, submitter in enumerate(submitters)}
        raise TimeoutError(f"only {', '.join(seen) or 'nobody'} at work again after 60 s; last refusals: {last}") from error
    return max(seen.values())


def _read_report(world: World, lost: set[str], twice: set[str]) -> None:
    """Remember what the namespace's report of its last fail-over says; the next one begins anew."""
    try:
        report = world.store.failover.last()
    except OrchError:
        return
    if report is not None:
        lost.update(report.lost)
        twice.update(report.twice)


def _wait_for_ends(world: World, runs: Iterable[str]) -> list[str]:
    """Until all that are still there have ended."""
    left = all_of_them = list(runs)

    def have_ended() -> bool:
        nonlocal left
        left = [run.id for run in world.read_runs(left).values() if not run.is_terminal]
        return not left

    seconds = 4 * world.lease.total_seconds() + 60
    try:
        world.wait_until(have_ended, seconds)
    except TimeoutError:
        return [f"{len(left)} of {len(all_of_them)} runs have not ended after {seconds:g} s"]
    return []


def _judge(found: Findings, missing: set[str], lost: set[str], accepted: dict[str, float]) -> list[str]:
    problems = [f"run {run} was lost and nobody says so" for run in sorted(missing - lost)]
    problems += [f"run {run} is reported as lost and is there" for run in sorted((lost & accepted.keys()) - missing)]
    if found.durability == "replicated" and missing:
        problems.append(f"{len(missing)} runs were lost that a replica had confirmed")
    windows = [(harm.began - _LAG_S, harm.over) for harm in found.harms]
    old = [run for run in missing if not any(first <= accepted[run] <= last for first, last in windows)]
    problems += [f"run {run} was lost long after it was acknowledged" for run in old]
    late = [again for again in found.again_s if again > WITHIN_S]
    problems += [f"not everybody was at work {WITHIN_S:g} s after a fail-over, but after {again:.1f} s" for again in late]
    return problems
