"""The verdict: what the ledger and the kills say about the runs, and whether Redis says the same.

Lost: a run whose id was given to the submitter and that has no end, or is Completed though no body ended under the accepted
attempt. Double-completed: a body that ended twice under one attempt, an end that was not accepted although nobody killed its
processes, a start after the accepted end, or more than one accepted end in the run's history. Two attempts at once: a body of
a later attempt starts before the last effect of an earlier one. A restart is only allowed where a process was killed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.chaos.ledger import Effect, Kill
from bench.measure import percentile
from orchestrator.models import Run


@dataclass
class Verdict:
    """What happened to the runs. ``problems`` are sentences; an empty list is good news."""

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


def judge(
    submitted: Mapping[str, Sequence[str]], runs: Mapping[str, Run], effects: Sequence[Effect], kills: Sequence[Kill]
) -> Verdict:
    """Judge every submitted run. ``submitted`` maps its id to its tags, ``runs`` to what Redis says of it."""
    verdict = Verdict(runs=len(submitted), kills=len(kills), hits=count_hits(effects, kills))
    killed = {kill.pid: kill.at for kill in kills}
    by_run: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        by_run[effect.run].append(effect)
    recoveries: list[float] = []
    accepted: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run, tags in submitted.items():
        mine, stored = by_run[run], runs.get(run)
        if stored is None or _is_lost(stored, mine):
            verdict.lost += 1
            verdict.problems.append(f"lost: run {run} is {stored.state if stored else 'gone'}, but {_brief(mine)}")
            continue
        if _is_double(stored, mine, killed):
            verdict.doubled += 1
            verdict.problems.append(f"double: run {run}, accepted attempt {stored.attempt}, {_brief(mine)}")
        recoveries += _judge_restarts(verdict, mine, killed)
        interval = _moment(mine, "start", stored.attempt), _moment(mine, "end", stored.attempt)
        for gate in ("", *tags):
            accepted[gate].append(interval)
    verdict.recovery_p99_s = percentile(recoveries, 0.99) if recoveries else 0.0
    verdict.most_at_once = {gate: _most(intervals) for gate, intervals in accepted.items()}
    return verdict


def _is_lost(stored: Run, mine: Sequence[Effect]) -> bool:
    """It did not complete, or no body ended under the attempt that is said to have completed."""
    return not stored.state.is_completed() or not any(e.phase == "end" and e.attempt == stored.attempt for e in mine)


def _is_double(stored: Run, mine: Sequence[Effect], killed: Mapping[int, float]) -> bool:
    """More counts of it than one: see the top of this file."""
    times = Counter((effect.phase, effect.attempt) for effect in mine)
    last = _moment(mine, "end", stored.attempt)
    unharmed = any(
        effect.phase == "end" and effect.attempt != stored.attempt and not killed.keys() & set(effect.processes)
        for effect in mine
    )
    completed = sum(entry.name == "Completed" for entry in stored.history)
    started_again = any(effect.phase == "start" and effect.at > last for effect in mine)
    return completed != 1 or max(times.values()) > 1 or unharmed or started_again


def _judge_restarts(verdict: Verdict, mine: Sequence[Effect], killed: Mapping[int, float]) -> list[float]:
    """Judge each start after the first; seconds from each kill to the start that made up for it."""
    recoveries = []
    for earlier, later in pairwise(effect for effect in mine if effect.phase == "start"):
        verdict.restarted += 1
        if any(effect.attempt == earlier.attempt and effect.at > later.at for effect in mine):
            verdict.at_once += 1
            verdict.problems.append(f"two attempts at once: run {later.run}, {_brief(mine)}")
        causes = [killed[pid] for pid in earlier.processes if pid in killed]
        if causes:
            recoveries.append(later.at - min(causes))
        else:
            verdict.unexplained += 1
            verdict.problems.append(f"restarted though nobody killed it: run {later.run}, {_brief(mine)}")
    return recoveries


def _moment(mine: Sequence[Effect], phase: str, attempt: int) -> float:
    return next(effect.at for effect in mine if effect.phase == phase and effect.attempt == attempt)


def count_hits(effects: Sequence[Effect], kills: Iterable[Kill]) -> int:
    """How many kills hit a process that held a lease, as far as the ledger can tell."""
    return sum(_hit(kill, effects) for kill in kills)


def _hit(kill: Kill, effects: Iterable[Effect]) -> bool:
    """A body was between its start and its end under the killed process: it held a lease."""
    mine = [effect for effect in effects if kill.pid in effect.processes and effect.at <= kill.at]
    ended = {(effect.run, effect.attempt) for effect in mine if effect.phase == "end"}
    return any(effect.phase == "start" and (effect.run, effect.attempt) not in ended for effect in mine)


def _most(intervals: Iterable[tuple[float, float]]) -> int:
    """The largest number of intervals that any moment lies in."""
    steps = sorted((moment, change) for began, last in intervals for moment, change in ((began, 1), (last, -1)))
    now = most = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


def _brief(effects: Iterable[Effect]) -> str:
    return ", ".join(f"{effect.phase} {effect.attempt} at {effect.at:.3f}" for effect in effects) or "no effect"
