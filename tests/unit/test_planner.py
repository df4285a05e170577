"""Planning is a pure function of a schedule, the moment and what stands ready."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from orch_scheduler.planner import Skip, plan, run_id
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
    assert planned.skip is None


def test_of_a_long_outage_the_latest_fire_runs_and_the_rest_is_counted_as_skipped() -> None:
    last = NOW.replace(second=0)
    planned = plan(every_minute(last - timedelta(hours=72)), NOW, ready=0)
    assert [fire for fire in planned.fires if fire <= NOW] == [last]
    assert planned.skip == Skip(last - timedelta(hours=72) + MINUTE, last - MINUTE, 72 * 60 - 1)


def test_a_schedule_that_skips_runs_nothing_that_was_missed_for_long_and_all_of_a_short_outage() -> None:
    last = NOW.replace(second=0)
    planned = plan(replace(every_minute(last - timedelta(hours=72)), misfire="skip"), NOW, ready=0)
    assert [fire for fire in planned.fires if fire <= NOW] == []
    assert planned.skip == Skip(last - timedelta(hours=72) + MINUTE, last, 72 * 60)
    assert planned.mark >= last
    planned = plan(replace(every_minute(last - 4 * MINUTE), misfire="skip"), NOW, ready=0)
    assert len([fire for fire in planned.fires if fire <= NOW]) == 4
    assert planned.skip is None


def test_a_schedule_that_makes_up_for_n_gets_the_last_n_a_hundred_at_a_time_and_one_skip() -> None:
    last = NOW.replace(second=0)
    schedule = replace(every_minute(last - timedelta(hours=72)), misfire="all", misfire_limit=250)
    made: list[datetime] = []
    skips = []
    while True:
        planned = plan(schedule, NOW, ready=0)
        made += [fire for fire in planned.fires if fire <= NOW]
        skips.append(planned.skip)
        schedule.mark = planned.mark
        if planned.next_plan != NOW:
            break
    assert made == [last - number * MINUTE for number in reversed(range(250))]
    assert [skip for skip in skips if skip] == [Skip(last - timedelta(hours=72) + MINUTE, last - 250 * MINUTE, 72 * 60 - 250)]


def test_what_was_planned_before_the_outage_counts_among_what_was_missed() -> None:
    last = NOW.replace(second=0)
    began = last - timedelta(hours=72)
    overdue = [began + MINUTE, began + 2 * MINUTE, began + 3 * MINUTE]
    schedule = every_minute(overdue[-1])
    planned = plan(schedule, NOW, ready=0, overdue=overdue)
    assert (planned.released, planned.dropped) == ([], overdue)
    assert planned.skip == Skip(overdue[0], last - MINUTE, 72 * 60 - 1)
    planned = plan(replace(schedule, misfire="all", misfire_limit=1000), last - timedelta(hours=70), ready=0, overdue=overdue)
    assert (planned.released, planned.dropped) == (overdue, [])
    assert planned.skip is None


def test_where_all_that_was_missed_had_been_planned_the_latest_of_it_runs() -> None:
    daily = Schedule("s", cron="0 12 * * *", mark=NOW + timedelta(days=1))
    overdue = [datetime(2026, 3, day, 12, tzinfo=UTC) for day in (12, 13, 14)]
    planned = plan(daily, NOW, ready=1, overdue=overdue)
    assert (planned.released, planned.dropped) == (overdue[2:], overdue[:2])
    assert planned.skip == Skip(overdue[0], overdue[1], 2)


def test_of_a_long_outage_of_a_rare_schedule_the_latest_fire_runs() -> None:
    daily = Schedule("s", cron="0 12 * * *", mark=NOW - timedelta(days=30))
    planned = plan(daily, NOW, ready=0)
    assert [fire for fire in planned.fires if fire <= NOW] == [datetime(2026, 3, 14, 12, tzinfo=UTC)]
    assert planned.skip is not None
    assert (planned.skip.last, planned.skip.count) == (datetime(2026, 3, 13, 12, tzinfo=UTC), 29)


def test_one_missed_fire_of_a_rare_schedule_runs_and_nothing_is_skipped() -> None:
    daily = Schedule("s", cron="0 12 * * *", mark=NOW - timedelta(days=1))
    planned = plan(daily, NOW, ready=0)
    assert planned.fires[0] == datetime(2026, 3, 14, 12, tzinfo=UTC)
    assert planned.skip is None


@given(
    interval=st.timedeltas(timedelta(seconds=4), timedelta(days=2)),
    gap=st.timedeltas(timedelta(0), timedelta(days=3)),
    kept=st.integers(1, 10),
    misfire=st.sampled_from(schedules.MISFIRES),
    limit=st.integers(1, 90),
)
def test_the_mark_never_moves_back_and_no_fire_stands_behind_it_twice(
    interval: timedelta, gap: timedelta, kept: int, misfire: str, limit: int
) -> None:
    interval = timedelta(seconds=round(interval.total_seconds()))
    schedule = Schedule("s", interval=interval, anchor=NOW - timedelta(days=9), mark=NOW - gap, max_scheduled_runs=kept)
    schedule.misfire, schedule.misfire_limit = misfire, limit
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
