"""The scheduler's duties, one round each, on a real server with a frozen clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from orch_scheduler import planner, pruner, rescuer, stager
from orchestrator import clock
from orchestrator.clock import FrozenClock
from orchestrator.models import Deployment, NewRun, RunFilter, Schedule
from orchestrator.settings import Settings
from orchestrator.states import Completed
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


@pytest.fixture
def frozen() -> FrozenClock:
    return FrozenClock(clock.to_ms(NOON))


@pytest.fixture
def timed(store: Store, settings: Settings, frozen: FrozenClock) -> Iterator[Store]:
    """The namespace of ``store``, seen through the frozen clock; with a pool ``p``."""
    with open_store(settings, frozen=frozen) as timed:
        timed.pools.create("p")
        yield timed


def deploy(store: Store, *schedules: Schedule) -> Deployment:
    return store.deployments.save(Deployment("d", "f", "f.py:f", pool="p", schedules=list(schedules)))


def due_times(store: Store) -> list[datetime]:
    return sorted(run.due for run in store.queries.runs(RunFilter(states=("SCHEDULED",))).runs)


def hours(*numbers: int) -> list[datetime]:
    return [NOON + timedelta(hours=number) for number in numbers]


def test_the_next_three_runs_stand_ready_and_each_one_that_starts_is_replaced(timed: Store, frozen: FrozenClock) -> None:
    deploy(timed, Schedule("hourly", cron="0 * * * *"))
    assert planner.run_once(timed) == 3
    assert due_times(timed) == hours(1, 2, 3)
    assert planner.run_once(timed) == 0
    frozen.advance(timedelta(hours=1))
    assert stager.run_once(timed) == (1, NOON + timedelta(hours=2))
    assert planner.run_once(timed) == 1
    assert due_times(timed) == hours(1, 2, 3, 4)


def test_two_planners_at_once_create_each_run_once(timed: Store, settings: Settings, frozen: FrozenClock) -> None:
    deployment = deploy(timed, Schedule("hourly", cron="0 * * * *"))
    [(_, as_first_read)] = timed.deployments.due_for_planning()
    planner.run_once(timed)
    fires = [(planner.run_id(deployment.id, as_first_read, at), "late", at) for at in hours(1, 2, 3)]
    answer = timed.runs.plan(deployment, as_first_read, fires, mark=hours(3)[0], next_plan=None)
    assert answer.answer == "stale"
    assert due_times(timed) == hours(1, 2, 3)


def test_a_paused_schedule_loses_its_runs_and_a_resumed_one_starts_from_now(timed: Store, frozen: FrozenClock) -> None:
    deploy(timed, Schedule("hourly", cron="0 * * * *"))
    planner.run_once(timed)
    timed.deployments.pause_schedule("f/d", "hourly")
    assert due_times(timed) == []
    assert planner.run_once(timed) == 0
    frozen.advance(timedelta(hours=10))
    timed.deployments.resume_schedule("f/d", "hourly")
    assert planner.run_once(timed) == 3
    assert due_times(timed) == hours(11, 12, 13)


def test_a_changed_schedule_replaces_its_runs_that_are_not_due_and_keeps_the_others(timed: Store, frozen: FrozenClock) -> None:
    deploy(timed, Schedule("s", cron="0 * * * *"))
    planner.run_once(timed)
    frozen.advance(timedelta(hours=1))
    stager.run_once(timed)
    deploy(timed, Schedule("s", cron="30 * * * *"))
    planner.run_once(timed)
    assert due_times(timed) == [NOON + timedelta(minutes=minutes) for minutes in (60, 90, 150, 210)]


def test_deploying_the_same_again_leaves_the_planned_runs_alone(timed: Store) -> None:
    deploy(timed, Schedule("s", cron="0 * * * *"))
    planner.run_once(timed)
    before = {run.id for run in timed.queries.runs().runs}
    deploy(timed, Schedule("s", cron="0 * * * *"))
    assert planner.run_once(timed) == 0
    assert {run.id for run in timed.queries.runs().runs} == before


def test_a_schedule_that_leaves_the_deployment_takes_its_planned_runs_with_it(timed: Store) -> None:
    deploy(timed, Schedule("a", cron="0 * * * *"), Schedule("b", cron="30 * * * *"))
    planner.run_once(timed)
    deploy(timed, Schedule("a", cron="0 * * * *"))
    assert {run.schedule for run in timed.queries.runs().runs} == {"a"}


def test_fires_missed_for_days_become_one_run_and_the_skip_is_told(timed: Store, frozen: FrozenClock) -> None:
    deploy(timed, Schedule("daily", cron="0 6 * * *", max_scheduled_runs=1))
    planner.run_once(timed)
    frozen.advance(timedelta(days=30))
    stager.run_once(timed)
    planner.run_once(timed)
    overdue = [due for due in due_times(timed) if due <= timed.now()]
    assert overdue == [NOON - timedelta(hours=6) + timedelta(days=day) for day in (30,)]
    [skip] = [event for event in timed.events.latest() if event.name == "schedule.skipped"]
    assert (skip.fields["since"], skip.fields["until"]) == tuple(
        (NOON + timedelta(days=day, hours=-6)).isoformat() for day in (1, 29)
    )
    assert skip.fields["count"] == "29"


@pytest.mark.parametrize(("misfire", "limit", "made_up"), [("latest", 1, 1), ("all", 5, 5), ("skip", 1, 0)])
def test_after_a_long_outage_a_schedule_makes_up_for_what_its_policy_says_whoever_comes_back_first(
    timed: Store, frozen: FrozenClock, misfire: str, limit: int, made_up: int
) -> None:
    deploy(timed, Schedule("s", cron="* * * * *", misfire=misfire, misfire_limit=limit))
    planner.run_once(timed)
    frozen.advance(timedelta(hours=72))
    assert timed.runs.release_due().count == 0  # a worker that is back before the schedulers are
    planner.run_once(timed)
    stager.run_once(timed)
    assert len(timed.queries.runs(RunFilter(states=("Scheduled",), until=timed.now())).runs) == made_up
    cancelled = timed.queries.runs(RunFilter(states=("Cancelled",))).runs
    assert len(cancelled) == 3
    assert all("Missed" in run.state.message for run in cancelled)
    [skip] = [event for event in timed.events.latest() if event.name == "schedule.skipped"]
    assert skip.fields["count"] == str(72 * 60 - made_up)
    planner.run_once(timed)
    assert len([event for event in timed.events.latest() if event.name == "schedule.skipped"]) == 1


def test_a_schedule_that_cannot_be_computed_does_not_stop_the_others(timed: Store) -> None:
    deploy(timed, Schedule("bad", cron="no cron at all"), Schedule("good", cron="0 * * * *"))
    assert planner.run_once(timed) == 3
    assert planner.run_once(timed) == 0


def test_the_rescuer_brings_back_a_run_whose_worker_fell_silent(timed: Store, frozen: FrozenClock) -> None:
    [created] = timed.runs.create([NewRun("f", pool="p")])
    timed.runs.claim("w", "p", ["default"], 1)
    frozen.advance(timed.settings.lease + timedelta(milliseconds=1))
    rescuer.run_once(timed)
    run = timed.runs.get(created.id)
    assert (run.place, run.state.name, run.crash_count) == ("queued", "Scheduled", 1)


def test_the_rescuer_marks_runs_late_and_cancels_those_that_expired(timed: Store, frozen: FrozenClock) -> None:
    expires = NOON + timedelta(minutes=1)
    waiting, expiring = timed.runs.create([NewRun("f", pool="p"), NewRun("f", pool="p", expires=expires)])
    frozen.advance(timedelta(seconds=16))
    rescuer.run_once(timed)
    assert timed.runs.get(waiting.id).state.name == "Late"
    frozen.advance(timedelta(minutes=1))
    rescuer.run_once(timed)
    assert timed.runs.get(expiring.id).state.name == "Cancelled"


def test_the_pruner_deletes_what_ended_before_the_retention_and_nothing_else(timed: Store, frozen: FrozenClock) -> None:
    old, young = timed.runs.create([NewRun("f", pool="p"), NewRun("f", pool="p")])
    claims = timed.runs.claim("w", "p", ["default"], 2).claimed
    timed.runs.finish([End(old.id, claims[0].attempt, Completed())], worker="w")
    frozen.advance(timed.settings.retention)
    timed.runs.finish([End(young.id, claims[1].attempt, Completed())], worker="w")
    frozen.advance(timedelta(seconds=1))
    assert pruner.run_once(timed) == 1
    assert [run.id for run in timed.queries.runs().runs] == [young.id]
