"""The mender: schedules after a fail-over that has forgotten runs, marks or both; who mends, and what is told of it."""

from __future__ import annotations

from datetime import datetime

import pytest

from floor import Floor
from forgetting import Past
from orch_scheduler import mender, planner, stager
from orch_scheduler.service import Scheduler
from orchestrator.keys import shorten
from orchestrator.models import Deployment, RunFilter, Schedule
from orchestrator.store.invariants import check


def deployed(floor: Floor) -> Deployment:
    schedule = Schedule("s", cron="* * * * *")
    return floor.store.deployments.save(Deployment("d", "f", "f.py:f", pool="p", schedules=[schedule]))


def due_times(floor: Floor) -> list[datetime]:
    return sorted(run.due for run in floor.store.queries.runs(RunFilter()).runs)


def fail_over(floor: Floor, past: Past) -> None:
    """The server forgets, a scheduler sees it, mends and plans."""
    past.return_to()
    Scheduler(floor.store).run_once()
    Scheduler(floor.store).run_once()


def test_fires_whose_runs_and_mark_were_lost_become_the_same_runs_again(floor: Floor) -> None:
    deployed(floor)
    past = Past(floor.store)
    planner.run_once(floor.store)
    planned = {run.id for run in floor.store.queries.runs(RunFilter()).runs}
    assert len(planned) == 3
    fail_over(floor, past)
    assert {run.id for run in floor.store.queries.runs(RunFilter()).runs} == planned
    assert "namespace.failover" in {event.name for event in floor.store.events.latest(50)}


def test_a_schedule_whose_first_plan_was_lost_is_planned_ahead_at_once_and_not_when_its_next_fire_is_due(floor: Floor) -> None:
    """Where the mender was faster than the planner, it used to put the planner off until then: nothing stood ready."""
    deployed(floor)
    mender.plan_again(floor.store)
    assert due_times(floor) == []
    planner.run_once(floor.store)
    assert [(due - floor.now()).total_seconds() for due in due_times(floor)] == [60, 120, 180]


@pytest.mark.parametrize("left", ["nothing", "its place", "its indexes"])
def test_runs_that_were_lost_while_the_mark_was_kept_are_found_and_planned_again(floor: Floor, left: str) -> None:
    deployment = deployed(floor)
    planner.run_once(floor.store)
    before = due_times(floor)
    lost = floor.store.queries.runs(RunFilter()).runs[0]
    client, names = floor.store.client, floor.store.keys
    client.delete(floor.key("run", lost.id))
    if left != "its place":
        client.zrem(names.due, shorten(lost.id))
        client.zrem(names.planned(shorten(deployment.id), "s"), shorten(lost.id))
    if left != "its indexes":
        client.zrem(names.index("deployment", shorten(deployment.id)), shorten(lost.id))
    fail_over(floor, Past(floor.store))
    assert due_times(floor) == before
    assert floor.get(lost.id).due == lost.due
    assert check(floor.store) == []


def test_a_due_fire_that_was_lost_is_planned_again_only_if_something_is_left_of_it(floor: Floor) -> None:
    deployed(floor)
    planner.run_once(floor.store)
    floor.wait(130)
    stager.run_once(floor.store)
    lost, deleted = (run.id for run in floor.store.queries.runs(RunFilter(), limit=10).runs[1:3])
    assert {floor.place(run)[0] for run in (lost, deleted)} == {"queued"}
    floor.store.runs.delete([deleted])
    floor.store.client.delete(floor.key("run", lost))
    fail_over(floor, Past(floor.store))
    assert floor.place(lost)[0] == "queued"
    assert floor.store.runs.get_many([deleted]) == [None]


def test_a_schedule_that_nobody_would_plan_any_more_is_planned_again(floor: Floor) -> None:
    deployed(floor)
    planner.run_once(floor.store)
    floor.store.client.delete(floor.store.keys.planning)
    fail_over(floor, Past(floor.store))
    floor.wait(61)
    assert planner.run_once(floor.store) == 1


def test_a_fire_whose_run_has_started_is_not_planned_twice(floor: Floor) -> None:
    deployed(floor)
    planner.run_once(floor.store)
    floor.wait(61)
    stager.run_once(floor.store)
    [claimed] = floor.claim()
    fail_over(floor, Past(floor.store))
    assert floor.get(claimed.id).attempt == 1
    assert len(set(due_times(floor))) == len(due_times(floor))


def test_what_is_broken_is_mended_once_and_told(floor: Floor) -> None:
    run = floor.submit()
    past = Past(floor.store)
    past.return_to()
    floor.store.client.xtrim(floor.store.keys.queue("p", "default", "normal"), maxlen=0, approximate=False)
    epoch = floor.store.failover.check(mend=True)
    assert mender.mend(floor.store, epoch) > 0
    report = floor.store.failover.last()
    assert report is not None
    assert report.mended
    assert [claimed.id for claimed in floor.claim()] == [run]
    [told] = [event for event in floor.store.events.latest() if event.name == "namespace.failover"]
    assert (told.fields["epoch"], told.fields["before"]) == ("2", "before")
