"""The verdict: what the ledger and the kills say about the runs, and whether Redis says the same.

Lost: a run whose id was given to the submitter and that has no end, or is Completed though no body ended under the accepted
attempt. Double-completed: a body that ended twice under one attempt, an end that was not accepted although nobody harmed its
processes, a start after the accepted end, or more than one accepted end in the run's history. Two attempts at once: a body of
a later attempt starts before the last effect of an earlier one. A restart is only allowed where a process was harmed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.chaos.ledger import Effect, Kill
from bench.measure import percentile
from orchestrator.models import Run

_OUTLIVES_S = 1.0


@dataclass
class Verdict:
    """What happened to the runs. ``problems`` are sentences; an empty list is good news.

    ``most_at_once``: per limit or tag, '' for all bodies, how many there were at the worst moment, killed ones included.
    """

    runs: int = 0
    kills: int = 0
    hits: int = 0
    restarted: int = 0
    lost: int = 0
    doubled: int = 0
    at_once: int = 0
    unexplained: int = 0
    recovery_p99_s: float = 0.0
    most_at_once: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def exceeds(self, limits: Mapping[str, int]) -> list[str]:
        """A sentence on each limit that was not held to, by the intervals of the ledger."""
        found = {name: self.most_at_once.get(name, 0) for name in limits}
        return [
            f"{found[name]} at once where {name or 'the pool'} allows {limits[name]}"
            for name in limits
            if found[name] > limits[name]
        ]

    def line(self) -> str:
        """The figures that every scenario shows."""
        return (
            f"{self.runs:,} runs, {self.hits} faults hit a lease (of {self.kills}), {self.lost} lost, "
            f"{self.doubled} double-completed, {self.at_once} attempts at once, "
            f"{self.restarted} restarted (p99 {self.recovery_p99_s:.1f} s after the fault)"
        )


def judge(
    submitted: Mapping[str, Sequence[str]],
    runs: Mapping[str, Run],
    effects: Sequence[Effect],
    kills: Sequence[Kill],
    *,
    may_restart: bool = False,
) -> Verdict:
    """Judge every submitted run. ``submitted`` maps its id to its tags, ``runs`` to what Redis says of it.

    ``may_restart``: a run may start again though nobody harmed its processes, for the fault was elsewhere (Redis, or a busy
    machine on which a quick form's lease of 1 s was not renewed in time). Such restarts are then counted, and no problem.
    """
    harms = Harms(kills)
    verdict = Verdict(runs=len(submitted), kills=len({kill.at for kill in kills}), hits=count_hits(effects, kills))
    by_run: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        by_run[effect.run].append(effect)
    recoveries: list[float] = []
    held: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run, tags in submitted.items():
        mine, stored = by_run[run], runs.get(run)
        for gate, interval in _intervals(mine, tags, harms):
            held[gate].append(interval)
        if stored is None or _is_lost(stored, mine):
            verdict.lost += 1
            verdict.problems.append(f"lost: run {run} is {stored.state if stored else 'gone'}, but {_brief(mine)}")
            continue
        if _is_double(stored, mine, harms, may_restart):
            verdict.doubled += 1
            verdict.problems.append(f"double: run {run}, accepted attempt {stored.attempt}, {_brief(mine)}")
        recoveries += _judge_restarts(verdict, mine, harms, may_restart)
    verdict.recovery_p99_s = percentile(recoveries, 0.99) if recoveries else 0.0
    verdict.most_at_once = {gate: _most(intervals) for gate, intervals in held.items()}
    return verdict


class Harms:
    """When processes were harmed. Their numbers come round again within minutes, so a harm belongs to those that lived then."""

    def __init__(self, kills: Iterable[Kill]) -> None:
        self._moments: dict[int, list[float]] = defaultdict(list)
        for kill in sorted(kills, key=lambda kill: kill.at):
            self._moments[kill.pid].append(kill.at)

    def of(self, attempt: Sequence[Effect]) -> list[float]:
        """The first harm to each process of an attempt since that began, or just before: a body outlives its worker a bit."""
        since = attempt[0].at - _OUTLIVES_S
        found = ((pid, bisect_left(self._moments[pid], since)) for pid in attempt[0].processes if pid in self._moments)
        return [self._moments[pid][place] for pid, place in found if place < len(self._moments[pid])]


def _is_lost(stored: Run, mine: Sequence[Effect]) -> bool:
    """It did not complete, or no body ended under the attempt that is said to have completed."""
    return not stored.state.is_completed() or not any(e.phase == "end" and e.attempt == stored.attempt for e in mine)


def _is_double(stored: Run, mine: Sequence[Effect], harms: Harms, may_restart: bool) -> bool:
    """More counts of it than one: see the top of this file."""
    times = Counter((effect.phase, effect.attempt) for effect in mine if effect.phase in ("start", "end"))
    last = next(effect.at for effect in mine if effect.phase == "end" and effect.attempt == stored.attempt)
    unharmed = any(
        effect.phase == "end" and effect.attempt != stored.attempt and not _is_harmed(_of(mine, effect.attempt), harms)
        for effect in mine
    )
    completed = sum(entry.name == "Completed" for entry in stored.history)
    started_again = any(effect.phase == "start" and effect.at > last for effect in mine)
    return completed != 1 or max(times.values()) > 1 or (unharmed and not may_restart) or started_again


def _of(effects: Sequence[Effect], attempt: int) -> list[Effect]:
    return [effect for effect in effects if effect.attempt == attempt]


def _is_harmed(attempt: Sequence[Effect], harms: Harms) -> bool:
    """Somebody harmed its processes, or had killed its worker before it wrote down who that was: init stands there then."""
    return bool(harms.of(attempt)) or any(1 in effect.processes for effect in attempt)


def _judge_restarts(verdict: Verdict, mine: Sequence[Effect], harms: Harms, may_restart: bool) -> list[float]:
    """Judge each start after the first; seconds from the first harm to the start that made up for it."""
    recoveries = []
    for earlier, later in pairwise(effect for effect in mine if effect.phase == "start"):
        verdict.restarted += 1
        if any(effect.attempt == earlier.attempt and effect.at > later.at for effect in mine):
            verdict.at_once += 1
            verdict.problems.append(f"two attempts at once: run {later.run}, {_brief(mine)}")
        causes = harms.of(_of(mine, earlier.attempt))
        if causes:
            # One that was hit before waits longer each time: crashes have a back-off.
            recoveries += [later.at - min(causes)] if earlier.attempt == 1 else []
            continue
        if _is_harmed(_of(mine, earlier.attempt), harms):
            continue
        verdict.unexplained += 1
        if not may_restart:
            verdict.problems.append(f"restarted though nobody harmed it: run {later.run}, {_brief(mine)}")
    return recoveries


def _intervals(mine: Sequence[Effect], tags: Sequence[str], harms: Harms) -> Iterable[tuple[str, tuple[float, float]]]:
    """When each attempt held which limit: from its start, or its take, to its end or, with no end, to its processes' death."""
    for attempt in {effect.attempt for effect in mine}:
        effects = _of(mine, attempt)
        deaths = harms.of(effects)
        over = max(effects[-1].at, min(deaths)) if deaths else effects[-1].at
        for effect in effects:
            if effect.phase == "start":
                last = next((other.at for other in effects if other.phase == "end"), over)
                yield from ((gate, (effect.at, last)) for gate in ("", *tags))
            elif effect.phase.startswith("take "):
                name = effect.phase.removeprefix("take ")
                yield name, (effect.at, next((other.at for other in effects if other.phase == f"give {name}"), over))


def count_hits(effects: Sequence[Effect], kills: Iterable[Kill]) -> int:
    """How many faults hit a process that held a lease, as far as the ledger can tell. One moment is one fault."""
    of_process: dict[int, list[Effect]] = defaultdict(list)
    for effect in effects:
        for pid in effect.processes:
            of_process[pid].append(effect)
    hits: set[float] = set()
    last: dict[int, float] = {}
    for kill in sorted(kills, key=lambda kill: kill.at):
        if _hit(kill, last.get(kill.pid, 0.0), of_process[kill.pid]):
            hits.add(kill.at)
        last[kill.pid] = kill.at
    return len(hits)


def _hit(kill: Kill, since: float, effects: Iterable[Effect]) -> bool:
    """A body was between its start and its end under the harmed process: it held a lease. What was before is another's."""
    before = [effect for effect in effects if since < effect.at <= kill.at]
    ended = {(effect.run, effect.attempt) for effect in before if effect.phase == "end"}
    return any(effect.phase == "start" and (effect.run, effect.attempt) not in ended for effect in before)


def _most(intervals: Iterable[tuple[float, float]]) -> int:
    """The largest number of intervals that any moment lies in."""
    steps = sorted((moment, change) for began, last in intervals for moment, change in ((began, 1), (last, -1)))
    now = most = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


def _brief(effects: Iterable[Effect]) -> str:
    """Its effects on a line; of what is written again and again, the last."""
    kept = {(effect.attempt, effect.phase): effect for effect in effects}
    shown = sorted(kept.values(), key=lambda effect: effect.at)
    return ", ".join(f"{effect.phase} {effect.attempt} at {effect.at:.3f}" for effect in shown) or "no effect"
