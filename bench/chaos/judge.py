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
    verdict = Verdict(runs=len(submitted), kills=len(kills), hits=sum(_hit(kill, effects) for kill in kills))
    killed = {kill.pid: kill.at for kill in kills}
    by_run: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        by_run[effect.run].append(effect)
    recoveries: list[float] = []
    accepted: list[tuple[str, float, float]] = []
    for run in submitted:
        mine, stored = by_run.get(run, []), runs.get(run)
        if stored is None or not stored.state.is_completed():
            verdict.lost += 1
            verdict.problems.append(f"lost: run {run} is {stored.state if stored else 'gone'} with {_brief(mine)}")
            continue
        starts = [effect for effect in mine if effect.phase == "start"]
        ends = [effect for effect in mine if effect.phase == "end"]
        if stored.attempt not in {end.attempt for end in ends}:
            verdict.lost += 1
            verdict.problems.append(f"lost: run {run} is Completed under attempt {stored.attempt}, but {_brief(mine)}")
            continue
        last = max(end.at for end in ends if end.attempt == stored.attempt)
        completed = sum(entry.name == "Completed" for entry in stored.history)
        if (
            completed != 1
            or max(Counter(end.attempt for end in ends).values()) > 1
            or max(Counter(start.attempt for start in starts).values()) > 1
            or any(start.at > last for start in starts)
            or any(end.attempt != stored.attempt and not killed.keys() & set(end.processes) for end in ends)
        ):
            verdict.doubled += 1
            verdict.problems.append(f"double: run {run}, accepted attempt {stored.attempt}, {completed} ends, {_brief(mine)}")
        for earlier, later in pairwise(starts):
            verdict.restarted += 1
            if any(effect.attempt == earlier.attempt and effect.at > later.at for effect in mine):
                verdict.at_once += 1
                verdict.problems.append(f"two attempts at once: run {run}, {_brief(mine)}")
            causes = [killed[pid] for pid in earlier.processes if pid in killed]
            if causes:
                recoveries.append(later.at - min(causes))
            else:
                verdict.unexplained += 1
                verdict.problems.append(f"restarted though nobody killed it: run {run}, {_brief(mine)}")
        began = next(start.at for start in starts if start.attempt == stored.attempt)
        accepted += [(gate, began, last) for gate in ("", *submitted[run])]
    verdict.recovery_p99_s = percentile(recoveries, 0.99) if recoveries else 0.0
    for gate in {gate for gate, _, _ in accepted}:
        verdict.most_at_once[gate] = _most([(began, last) for name, began, last in accepted if name == gate])
    return verdict


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
