"""The planner: turns schedules into runs ahead of their time.

A schedule is a generation and a high-water mark: the last fire that has become a run. Planning is a pure function of the
schedule, the moment and how many runs stand ready; writing it down refuses if anybody else has moved the mark meanwhile.
So any number of planners may run at once, and one that dies half-way has done nothing or everything.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from orchestrator import clock, names, schedules
from orchestrator.exceptions import StoreFull
from orchestrator.keys import make_id
from orchestrator.models import CATCH_UP, Deployment, Schedule
from orchestrator.store import Store

log = logging.getLogger(__name__)

_BATCH = 100
"""Schedules a round, and runs a plan: a script's loops are bounded."""

_COUNTED = 10_000
_WHILE_FULL = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Skip:
    """Fires that become no run: the first, the last, and how many there are, as far as they were counted."""

    first: datetime
    last: datetime
    count: int

    @property
    def counted(self) -> str:
        """How many, for people."""
        return str(self.count) if self.count < _COUNTED else f"{_COUNTED} or more"


@dataclass(frozen=True, slots=True)
class Plan:
    """The next runs of a schedule. ``released`` and ``dropped`` are fires that had runs before an outage."""

    fires: list[datetime]
    mark: datetime
    next_plan: datetime | None
    released: list[datetime] = field(default_factory=list)
    dropped: list[datetime] = field(default_factory=list)
    skip: Skip | None = None


def plan(schedule: Schedule, now: datetime, ready: int, overdue: Sequence[datetime] = ()) -> Plan:
    """What to plan at ``now`` when ``ready`` future runs stand planned already, and ``overdue`` ones were never queued.

    What was missed since the mark comes first, as the schedule's ``misfire`` wants it; then so many future fires that
    ``max_scheduled_runs`` stand ready. At most 100 at once: then the mark stops before now, and ``next_plan`` is now.
    """
    mark = schedule.mark or now
    released, dropped, missed, skip = _missed(schedule, mark, now, overdue)
    if len(missed) > _BATCH:
        missed = missed[:_BATCH]
        return Plan(missed, missed[-1], now, released, dropped, skip)
    wanted = max(0, schedule.max_scheduled_runs - ready)
    future = schedules.fires(schedule, max(mark, now), count=wanted) if wanted else []
    fires = missed + future
    new_mark = max([mark, *fires, *([skip.last] if skip else [])])
    return Plan(fires, new_mark, schedules.next_after(schedule, now), released, dropped, skip)


def _missed(
    schedule: Schedule, mark: datetime, now: datetime, overdue: Sequence[datetime]
) -> tuple[list[datetime], list[datetime], list[datetime], Skip | None]:
    """The overdue runs to release, and those to drop; the fires in (mark, now] that are made up for; what is skipped."""
    first = schedules.next_after(schedule, mark) if mark < now else None
    unplanned = first is not None and first <= now
    oldest = min([*overdue, *([first] if first is not None and unplanned else [])], default=None)
    if oldest is None or now - oldest <= CATCH_UP:
        return [], [], schedules.fires(schedule, mark, until=now) if unplanned else [], None
    wanted = {"latest": 1, "skip": 0}.get(schedule.misfire, schedule.misfire_limit)
    newest = _newest(schedule, mark, now, wanted + 1) if unplanned else []
    kept = newest[max(0, len(newest) - wanted) :]
    released = sorted(overdue)[-(wanted - len(kept)) :] if wanted > len(kept) else []
    dropped = sorted(set(overdue) - set(released))
    if len(newest) <= wanted:
        return released, dropped, kept, Skip(dropped[0], dropped[-1], len(dropped)) if dropped else None
    last = newest[-wanted - 1]
    count = sum(1 for _ in islice(schedules.walk(schedule, mark, last), _COUNTED))
    return released, dropped, kept, Skip(oldest, last, count + len(dropped))


def _newest(schedule: Schedule, mark: datetime, now: datetime, count: int) -> list[datetime]:
    """The last fires in (mark, now], oldest first. Looked for from the end: an outage may have been long."""
    window = CATCH_UP
    while True:
        since = max(mark, now - window)
        found = schedules.fires(schedule, since, until=now)
        if len(found) >= count or since == mark:
            return found[-count:]
        window *= 2


def run_id(deployment: str, schedule: Schedule, fire: datetime) -> str:
    """The id of the run for one fire, the same for everybody who plans it: a UUIDv7 of its time, a hash instead of chance."""
    ms = clock.to_ms(fire)
    text = f"{deployment}:{schedule.slug}:{schedule.generation}:{ms}"
    return make_id(ms, hashlib.sha256(text.encode()).digest()[:10])


def run_once(store: Store) -> int:
    """Plan every schedule that wants it. How many runs were created."""
    now = store.now()
    created = 0
    wanted = store.deployments.due_for_planning(_BATCH)
    if wanted and not _has_room(store):
        for deployment, schedule in wanted:
            store.deployments.postpone_planning(deployment, schedule, now + _WHILE_FULL)
        return 0
    for deployment, schedule in wanted:
        try:
            created += _plan_one(store, deployment, schedule, now)
        except Exception:
            # One schedule that cannot be computed must not stop the others; it is tried again in an hour.
            log.exception("Could not plan a schedule", extra={"deployment": deployment.slug, "schedule": schedule.slug})
            store.deployments.postpone_planning(deployment, schedule, now + timedelta(hours=1))
    return created


def _has_room(store: Store) -> bool:
    try:
        store.runs.room.demand()
    except StoreFull as error:
        log.warning("No runs are planned: %s", error, extra={"action": "planning_paused"})
        return False
    return True


def _plan_one(store: Store, deployment: Deployment, schedule: Schedule, now: datetime) -> int:
    overdue = store.deployments.overdue(deployment, schedule, now)
    ready = store.deployments.planned(deployment, schedule, now)
    planned = plan(schedule, now, ready, [due for _, due in overdue])
    fires = [(run_id(deployment.id, schedule, fire), names.generate(), fire) for fire in planned.fires]
    decided = dict.fromkeys(planned.released, True) | dict.fromkeys(planned.dropped, False)
    answer = store.runs.plan(
        deployment,
        schedule,
        fires,
        mark=planned.mark,
        next_plan=planned.next_plan,
        overdue=[(run, decided[due]) for run, due in overdue if due in decided],
    )
    if answer.answer == "stale":
        return 0
    if planned.skip is not None:
        _tell(store, deployment, schedule, planned.skip)
    return answer.count


def _tell(store: Store, deployment: Deployment, schedule: Schedule, skip: Skip) -> None:
    """Record what was left out: in the feed, and in the log."""
    first, last = skip.first.isoformat(), skip.last.isoformat()
    store.events.append("schedule.skipped", d=deployment.slug, s=schedule.slug, since=first, until=last, count=skip.counted)
    log.warning(
        "Schedule '%s' of %s missed fires that it does not make up for: %s, from %s to %s",
        schedule.slug, deployment.slug, skip.counted, first, last,
        extra={"action": "schedule_skipped", "deployment": deployment.slug, "schedule": schedule.slug},
    )  # fmt: skip
