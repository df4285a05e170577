"""The planner: turns schedules into runs ahead of their time.

A schedule is a generation and a high-water mark: the last fire that has become a run. Planning is a pure function of the
schedule, the moment and how many runs stand ready; writing it down refuses if anybody else has moved the mark meanwhile.
So any number of planners may run at once, and one that dies half-way has done nothing or everything.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator import clock, names, schedules
from orchestrator.keys import make_id
from orchestrator.models import Deployment, Schedule
from orchestrator.store import Store

log = logging.getLogger(__name__)

CATCH_UP = timedelta(minutes=5)
"""Fires missed by less than this, while no scheduler ran, all become runs. Of older ones only the latest does."""

_BATCH = 100


@dataclass(frozen=True, slots=True)
class Plan:
    """The next runs of a schedule. ``skipped_until``: fires up to there were left out, the schedulers were away too long."""

    fires: list[datetime]
    mark: datetime
    next_plan: datetime | None
    skipped_until: datetime | None = None


def plan(schedule: Schedule, now: datetime, ready: int) -> Plan:
    """What to plan at ``now`` when ``ready`` future runs stand planned already.

    What was missed since the mark comes first, then so many future fires that ``max_scheduled_runs`` stand ready.
    """
    mark = schedule.mark or now
    missed, skipped_until = _missed(schedule, mark, now)
    wanted = max(0, schedule.max_scheduled_runs - ready)
    future = schedules.fires(schedule, max(mark, now), count=wanted) if wanted else []
    fires = missed + future
    new_mark = max([mark, *fires, *([skipped_until] if skipped_until else [])])
    return Plan(fires, new_mark, schedules.next_after(schedule, now), skipped_until)


def _missed(schedule: Schedule, mark: datetime, now: datetime) -> tuple[list[datetime], datetime | None]:
    """The fires in (mark, now] that are made up for, and until when fires were skipped."""
    if mark >= now:
        return [], None
    since = max(mark, now - CATCH_UP)
    found = schedules.fires(schedule, since, until=now)
    if since == mark:
        return found, None
    window = CATCH_UP
    while not found and since > mark:
        window *= 2
        since = max(mark, now - window)
        found = schedules.fires(schedule, since, until=now)[-1:]
    if not found:
        return [], None
    first = schedules.next_after(schedule, mark)
    return found, found[0] if first and first < found[0] else None


def run_id(deployment: str, schedule: Schedule, fire: datetime) -> str:
    """The id of the run for one fire, the same for everybody who plans it: a UUIDv7 of its time, a hash instead of chance."""
    ms = clock.to_ms(fire)
    text = f"{deployment}:{schedule.slug}:{schedule.generation}:{ms}"
    return make_id(ms, hashlib.sha256(text.encode()).digest()[:10])


def run_once(store: Store) -> int:
    """Plan every schedule that wants it. How many runs were created."""
    now = store.now()
    created = 0
    for deployment, schedule in store.deployments.due_for_planning(_BATCH):
        try:
            created += _plan_one(store, deployment, schedule, now)
        except Exception:
            # One schedule that cannot be computed must not stop the others; it is tried again in an hour.
            log.exception("Could not plan a schedule", extra={"deployment": deployment.slug, "schedule": schedule.slug})
            store.deployments.postpone_planning(deployment, schedule, now + timedelta(hours=1))
    return created


def _plan_one(store: Store, deployment: Deployment, schedule: Schedule, now: datetime) -> int:
    planned = plan(schedule, now, store.deployments.planned(deployment, schedule, now))
    fires = [(run_id(deployment.id, schedule, fire), names.generate(), fire) for fire in planned.fires]
    answer = store.runs.plan(deployment, schedule, fires, mark=planned.mark, next_plan=planned.next_plan)
    if answer.answer == "stale":
        return 0
    if planned.skipped_until is not None:
        until = planned.skipped_until.isoformat()
        store.events.append("schedule.skipped", d=deployment.slug, s=schedule.slug, until=until)
        log.warning("Skipped fires that were missed too long ago", extra={"deployment": deployment.slug, "until": until})
    return answer.count
