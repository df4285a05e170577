"""Planning is a pure function of a schedule, the moment and what stands ready."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from orch_scheduler.planner import CATCH_UP, plan, run_id
from orchestrator import schedules
from orchestrator.models import Schedule

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def every_minute(mark: datetime, kept: int = 3) -> Schedule:
    return Schedule("s", cron="* * * * *", mark=mark, max_scheduled_runs=kept)


def test_a_new_schedule_gets_its_next_three_fires() -> None:
    planned = plan(Schedule("s", cron="0 14 * * *", timezone="Asia/Tokyo", mark=NOW), NOW, ready=0)
    assert planned.fires == [datetime(2026, 3, day, 5, tzinfo=UTC) for day in (15, 16, 17)]
    assert planned.mark == planned.fires[-1]
    assert planned.next_plan == planned.fires[0]


def test_only_what_is_missing_is_added_behind_the_mark() -> None:
    mark = NOW.replace(second=0) + 2 * MINUTE
    planned = plan(every_minute(mark), NOW, ready=2)
    assert planned.fires == [mark + MINUTE]


def test_nothing_is_planned_when_enough_stands_ready_and_the_mark_stays() -> None:
    mark = NOW.replace(second=0) + 3 * MINUTE
    planned = plan(every_minute(mark), NOW, ready=3)
    assert (planned.fires, planned.mark) == ([], mark)


def test_all_fires_of_a_short_outage_are_made_up_for() -> None:
    mark = NOW.replace(second=0) - 3 * MINUTE
    planned = plan(every_minute(mark), NOW, ready=0)
    assert planned.fires[:3] == [mark + MINUTE, mark + 2 * MINUTE, mark + 3 * MINUTE]
    assert len(planned.fires) == 6
    assert planned.skipped_until is None


def test_of_a_long_outage_of_a_frequent_schedule_only_the_last_minutes_run_and_the_rest_is_named_as_skipped() -> None:
    planned = plan(every_minute(NOW - timedelta(hours=72)), NOW, ready=0)
    missed = [fire for fire in planned.fires if fire <= NOW]
    assert missed[0] > NOW - CATCH_UP
    assert len(missed) == 5
    assert planned.skipped_until == missed[0]


def test_of_a_long_outage_of_a_rare_schedule_the_latest_fire_runs() -> None:
    daily = Schedule("s", cron="0 12 * * *", mark=NOW - timedelta(days=30))
    planned = plan(daily, NOW, ready=0)
    assert [fire for fire in planned.fires if fire <= NOW] == [datetime(2026, 3, 14, 12, tzinfo=UTC)]
    assert planned.skipped_until == datetime(2026, 3, 14, 12, tzinfo=UTC)


def test_one_missed_fire_of_a_rare_schedule_runs_and_nothing_is_skipped() -> None:
    daily = Schedule("s", cron="0 12 * * *", mark=NOW - timedelta(days=1))
    planned = plan(daily, NOW, ready=0)
    assert planned.fires[0] == datetime(2026, 3, 14, 12, tzinfo=UTC)
    assert planned.skipped_until is None


@given(
    interval=st.timedeltas(timedelta(seconds=1), timedelta(days=2)),
    gap=st.timedeltas(timedelta(0), timedelta(days=3)),
    kept=st.integers(1, 10),
)
def test_the_mark_never_moves_back_and_no_fire_stands_behind_it_twice(interval: timedelta, gap: timedelta, kept: int) -> None:
    interval = timedelta(seconds=round(interval.total_seconds()))
    schedule = Schedule("s", interval=interval, anchor=NOW - timedelta(days=9), mark=NOW - gap, max_scheduled_runs=kept)
    planned = plan(schedule, NOW, ready=0)
    assert planned.mark >= NOW - gap
    assert planned.fires == sorted(set(planned.fires))
    assert all(fire > NOW - gap for fire in planned.fires)
    assert len([fire for fire in planned.fires if fire > NOW]) == kept
    assert set(planned.fires) <= set(schedules.fires(schedule, planned.fires[0] - timedelta(seconds=1), until=planned.mark))


def test_everybody_gives_a_fire_the_same_run_and_another_generation_another() -> None:
    schedule = every_minute(NOW)
    deployment = "01a2035e-6120-7157-9506-fee9af011a13"
    same = run_id(deployment, schedule, NOW)
    assert same == run_id(deployment, schedule, NOW)
    schedule.generation += 1
    assert run_id(deployment, schedule, NOW) != same
    assert run_id(deployment, schedule, NOW + MINUTE)[:13] > same[:13]
