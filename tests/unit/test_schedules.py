"""When schedules fire: rules on the wall clock, clock changes in six awkward zones, bad input."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.exceptions import InvalidDefinition, OrchError
from orchestrator.models import Schedule
from orchestrator.schedules import Cron, Interval, RRule, check, describe, fires, next_after

ZONES = ("America/New_York", "Europe/Paris", "America/Santiago", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia")
CRONS = (
    "0 9 * * *",
    "30 2 * * *",
    "15 0 * * *",
    "59 23 * * *",
    "*/20 * * * *",
    "0 */6 * * *",
    "0 0 1 * *",
    "30 1 * * SUN",
    "0 12 L * *",
)


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


def on_the_wall(moments: list[datetime], zone: str) -> list[str]:
    return [moment.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M %Z") for moment in moments]


@cache
def clock_changes(zone: str, first: int = 1970, last: int = 2040) -> list[datetime]:
    """Noon UTC two days before each change of the zone's offset, found by looking at every day."""
    info, found = ZoneInfo(zone), []
    moment = utc(first, 1, 1, 12)
    while moment.year < last:
        following = moment + timedelta(days=1)
        if moment.astimezone(info).utcoffset() != following.astimezone(info).utcoffset():
            found.append(moment - timedelta(days=2))
        moment = following
    return found


moments = st.datetimes(datetime(1970, 1, 2), datetime(2040, 1, 1), timezones=st.just(UTC))


def test_a_cron_fires_at_its_time_in_its_zone() -> None:
    assert fires(Cron("0 14 * * *", timezone="Asia/Tokyo"), utc(2026, 1, 1), count=3) == [
        utc(2026, 1, 1, 5),
        utc(2026, 1, 2, 5),
        utc(2026, 1, 3, 5),
    ]


def test_a_fire_is_strictly_after_the_moment() -> None:
    schedule = Cron("0 12 * * *")
    assert next_after(schedule, utc(2026, 1, 1, 12)) == utc(2026, 1, 2, 12)
    assert next_after(schedule, utc(2026, 1, 1, 12) - timedelta(microseconds=1)) == utc(2026, 1, 1, 12)


def test_a_moment_may_be_given_in_any_zone() -> None:
    schedule = Cron("0 12 * * *", timezone="Europe/Paris")
    moment = utc(2026, 7, 1, 9)
    assert (
        next_after(schedule, moment.astimezone(ZoneInfo("Pacific/Apia"))) == next_after(schedule, moment) == utc(2026, 7, 1, 10)
    )


def test_a_fire_in_a_gap_happens_at_the_transition() -> None:
    found = fires(Cron("30 2 * * *", timezone="America/New_York"), utc(2025, 3, 8), count=3)
    assert on_the_wall(found, "America/New_York") == ["03-08 02:30 EST", "03-09 03:00 EDT", "03-10 02:30 EDT"]


def test_a_fire_in_an_overlap_happens_once_and_the_first_time() -> None:
    found = fires(Cron("30 1 * * *", timezone="America/New_York"), utc(2025, 11, 1), count=3)
    assert on_the_wall(found, "America/New_York") == ["11-01 01:30 EDT", "11-02 01:30 EDT", "11-03 01:30 EST"]


def test_asked_inside_the_second_pass_of_an_overlap_the_next_fire_is_after_it() -> None:
    second_pass = utc(2025, 11, 2, 6, 10)
    found = fires(Cron("*/30 * * * *", timezone="America/New_York"), second_pass, count=2)
    assert on_the_wall(found, "America/New_York") == ["11-02 02:00 EST", "11-02 02:30 EST"]


def test_many_fires_in_one_gap_are_one() -> None:
    found = fires(Cron("*/15 * * * *", timezone="America/New_York"), utc(2025, 3, 9, 6, 40), count=3)
    assert on_the_wall(found, "America/New_York") == ["03-09 01:45 EST", "03-09 03:00 EDT", "03-09 03:15 EDT"]


def test_a_gap_at_midnight_moves_the_fire_to_the_first_minute_that_exists() -> None:
    found = fires(Cron("0 0 * * *", timezone="America/Santiago"), utc(2025, 9, 6, 12), count=2)
    assert on_the_wall(found, "America/Santiago") == ["09-07 01:00 -03", "09-08 00:00 -03"]


def test_half_an_hour_is_enough_for_a_gap() -> None:
    found = fires(Cron("15 2 * * *", timezone="Australia/Lord_Howe"), utc(2025, 10, 4), count=2)
    assert on_the_wall(found, "Australia/Lord_Howe") == ["10-05 02:30 +11", "10-06 02:15 +11"]


def test_a_date_that_never_was_has_no_daily_run() -> None:
    found = fires(Cron("0 9 * * *", timezone="Pacific/Apia"), utc(2011, 12, 28), count=4)
    assert [moment.astimezone(ZoneInfo("Pacific/Apia")).date() for moment in found] == [
        date(2011, 12, 28),
        date(2011, 12, 29),
        date(2011, 12, 31),
        date(2012, 1, 1),
    ]


def test_a_yearly_job_on_a_date_that_never_was_runs_at_the_transition() -> None:
    found = fires(Cron("0 9 30 12 *", timezone="Pacific/Apia"), utc(2011, 1, 1), count=2)
    assert found == [utc(2011, 12, 30, 10), utc(2012, 12, 29, 19)]


@pytest.mark.parametrize("zone", ZONES)
def test_around_every_clock_change_a_daily_job_runs_once_per_local_day(zone: str) -> None:
    info = ZoneInfo(zone)
    for number, before in enumerate(clock_changes(zone)):
        for expression in ("30 0 * * *", "30 1 * * *") if number // 2 % 2 else ("0 9 * * *", "30 2 * * *"):
            found = fires(Cron(expression, timezone=zone), before, until=before + timedelta(days=5))
            days = Counter(moment.astimezone(info).date() for moment in found)
            assert set(days.values()) == {1}
            lived = {(before + timedelta(hours=hour)).astimezone(info).date() for hour in range(24, 96)}
            assert lived <= set(days)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("expression", CRONS)
def test_around_every_clock_change_fires_grow_and_are_on_the_wall_or_at_the_transition(zone: str, expression: str) -> None:
    info, schedule = ZoneInfo(zone), Cron(expression, timezone=zone)
    for before in clock_changes(zone)[:: 50 if "*/20" in expression else 10]:
        found = fires(schedule, before + timedelta(days=1), until=before + timedelta(days=4))
        assert all(first < second for first, second in pairwise(found))
        for moment in found:
            shown = moment.astimezone(info)
            assert shown.fold == 0
            if fires(Cron(expression), shown.replace(tzinfo=UTC) - timedelta(seconds=1), count=1) != [
                shown.replace(tzinfo=UTC)
            ]:
                assert (moment - timedelta(seconds=1)).astimezone(info).utcoffset() != shown.utcoffset()


@given(st.sampled_from(ZONES), st.sampled_from(CRONS), moments)
@settings(max_examples=100, deadline=None)
def test_going_on_from_a_fire_or_from_between_gives_the_same_fires(zone: str, expression: str, moment: datetime) -> None:
    schedule = Cron(expression, timezone=zone)
    found = fires(schedule, moment, count=5)
    assert moment < found[0]
    assert all(first < second for first, second in pairwise(found))
    assert [next_after(schedule, earlier) for earlier in (moment, *found[:-1])] == found
    middle = found[1] + (found[2] - found[1]) / 2
    assert next_after(schedule, middle) == found[2]


@given(st.sampled_from(ZONES), moments, st.integers(1, 400), moments)
@settings(max_examples=100, deadline=None)
def test_an_interval_of_days_keeps_the_wall_time(zone: str, moment: datetime, days: int, anchor: datetime) -> None:
    info = ZoneInfo(zone)
    found = fires(Interval(timedelta(days=days), anchor, timezone=zone), moment, count=4)
    wanted = anchor.astimezone(info).time()
    for instant in found:
        shown = instant.astimezone(info)
        in_a_gap = (instant - timedelta(seconds=1)).astimezone(info).utcoffset() != shown.utcoffset()
        assert shown.time() == wanted or in_a_gap
    assert moment < found[0] < found[1] < found[2] < found[3]


@given(st.sampled_from(ZONES), moments, st.integers(1, 86_399), moments)
@settings(max_examples=100, deadline=None)
def test_an_interval_under_a_day_counts_real_time(zone: str, moment: datetime, seconds: int, anchor: datetime) -> None:
    interval = timedelta(seconds=seconds)
    found = fires(Interval(interval, anchor, timezone=zone), moment, count=3)
    assert moment < found[0] <= moment + interval
    assert (found[0] - anchor) % interval == timedelta()
    assert found[1] - found[0] == found[2] - found[1] == interval


def test_an_hourly_interval_does_not_pause_in_an_overlap() -> None:
    found = fires(Interval(3600, timezone="America/New_York"), utc(2025, 11, 2, 4, 30), count=3)
    assert found == [utc(2025, 11, 2, 5), utc(2025, 11, 2, 6), utc(2025, 11, 2, 7)]


def test_an_interval_without_an_anchor_starts_at_midnight_of_its_zone() -> None:
    assert next_after(Interval(timedelta(days=1), timezone="Asia/Tokyo"), utc(2026, 1, 1)) == utc(2026, 1, 1, 15)


def test_a_naive_anchor_is_a_wall_time_of_the_zone() -> None:
    schedule = Interval(timedelta(days=1), datetime(2026, 1, 1, 9), timezone="Asia/Tokyo")
    assert next_after(schedule, utc(2026, 1, 1)) == utc(2026, 1, 2)


def test_an_anchor_in_the_future_counts_backwards_too() -> None:
    schedule = Interval(timedelta(hours=7), utc(2030, 1, 1))
    assert (utc(2030, 1, 1) - fires(schedule, utc(2026, 1, 1), count=1)[0]) % timedelta(hours=7) == timedelta()


def test_both_days_of_a_cron_are_or_unless_told_otherwise() -> None:
    either = fires(Cron("0 0 13 * FRI"), utc(2026, 2, 1), count=3)
    both = fires(Cron("0 0 13 * FRI", day_or=False), utc(2026, 2, 1), count=3)
    assert [moment.day for moment in either] == [6, 13, 20]
    assert both == [utc(2026, 2, 13), utc(2026, 3, 13), utc(2026, 11, 13)]


def test_an_rrule_fires_on_the_wall_clock() -> None:
    schedule = RRule("FREQ=WEEKLY;BYDAY=MO,WE;BYHOUR=9", timezone="Europe/Paris")
    assert fires(schedule, utc(2026, 3, 26), count=3) == [utc(2026, 3, 30, 7), utc(2026, 4, 1, 7), utc(2026, 4, 6, 7)]


def test_an_rrule_with_a_count_ends() -> None:
    schedule = RRule("DTSTART:20260101T090000\nRRULE:FREQ=DAILY;COUNT=3")
    assert fires(schedule, utc(2026, 1, 1, 12), count=9) == [utc(2026, 1, 2, 9), utc(2026, 1, 3, 9)]
    assert next_after(schedule, utc(2026, 1, 4)) is None


def test_an_rrule_with_an_interval_stays_aligned_far_from_its_start() -> None:
    schedule = RRule("DTSTART:20200106T090000\nRRULE:FREQ=WEEKLY;INTERVAL=3;BYDAY=MO")
    found = next_after(schedule, utc(2035, 5, 5))
    assert found is not None
    assert (found - utc(2020, 1, 6, 9)) % timedelta(weeks=3) == timedelta()


def test_an_rrule_repeats_like_the_calendar_over_the_centuries() -> None:
    schedule = RRule("FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17", timezone="Europe/Paris")
    for year in range(2026, 2190, 8):
        found = fires(schedule, utc(year, 1, 15), until=utc(year, 6, 15))
        assert len(found) == 5
        assert all(moment.astimezone(ZoneInfo("Europe/Paris")).strftime("%a %H") == "Fri 17" for moment in found)


def test_an_rrule_ends_at_its_until() -> None:
    assert len(fires(RRule("FREQ=DAILY;UNTIL=20260103T000000Z"), utc(2025, 12, 31, 12), count=9)) == 3


def test_an_rrule_leaves_out_its_exceptions() -> None:
    schedule = RRule("DTSTART:20260101T090000\nRRULE:FREQ=DAILY\nEXDATE:20260103T090000")
    assert [moment.day for moment in fires(schedule, utc(2026, 1, 1, 12), count=3)] == [2, 4, 5]


def test_an_rrule_follows_the_same_rules_at_clock_changes() -> None:
    schedule = RRule("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", timezone="America/New_York")
    found = fires(schedule, utc(2025, 3, 8), count=2)
    assert on_the_wall(found, "America/New_York") == ["03-08 02:30 EST", "03-09 03:00 EDT"]


def test_fires_stop_at_until() -> None:
    assert fires(Cron("0 * * * *"), utc(2026, 1, 1), until=utc(2026, 1, 1, 3)) == [utc(2026, 1, 1, hour) for hour in (1, 2, 3)]


def test_fires_without_a_bound_are_refused() -> None:
    with pytest.raises(ValueError, match="never ends"):
        fires(Cron("0 * * * *"), utc(2026, 1, 1))


def test_the_last_moments_of_the_calendar_end_a_schedule() -> None:
    almost = datetime.max.replace(tzinfo=UTC) - timedelta(days=1)
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        for schedule in (
            Cron("0 9 * * *", timezone=zone),
            Interval(5400, timezone=zone),
            Interval(timedelta(days=2), timezone=zone),
        ):
            assert len(fires(schedule, almost, count=50)) < 50


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("0 14 * *", "has 4 fields"),
        ("0 0 14 * * *", "has 6 fields"),
        ("", "has 0 fields"),
        ("61 * * * *", "'61' as its minute"),
        ("* 25 * * *", "'25' as its hour"),
        ("* * 0 * *", "'0' as its day of month"),
        ("* * * 13 *", "'13' as its month"),
        ("* * * * FOO", "'FOO' as its day of week"),
        ("*/0 * * * *", "'*/0' as its minute"),
        ("R R * * *", "random"),
        ("H(0-9) * * * *", "random"),
        ("@reboot", "abbreviation"),
        ("0 0 30 2 *", "never fires"),
        ("1-1000000000 * * * *", "minute"),
        ("9" * 5000 + " * * * *", "characters long"),
        (7, "not text"),
    ],
)
def test_a_bad_cron_is_named_with_what_is_wrong(expression: str, says: str) -> None:
    with pytest.raises(InvalidDefinition, match=r"Schedule 'nightly'") as caught:
        Cron(expression, slug="nightly")
    assert says in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("asia/tokyo", "Did you mean Asia/Tokyo?"),
        ("Tokyo", "Did you mean Asia/Tokyo?"),
        ("Europe/Pari", "Did you mean Europe/Paris?"),
        ("America/New York", "Did you mean America/New_York?"),
        ("Nowhere/Land", "IANA"),
        ("../../etc/passwd", "IANA"),
        ("/etc/localtime", "IANA"),
        ("a\0b", "IANA"),
        ("\ud800", "IANA"),
        ("x" * 100_000, "IANA"),
    ],
)
def test_an_unknown_timezone_is_refused_with_the_one_that_was_meant(zone: str, hint: str) -> None:
    with pytest.raises(InvalidDefinition, match="no timezone") as caught:
        Cron("0 9 * * *", timezone=zone)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("interval", [0, -5, 0.5, float("nan"), float("inf"), 1e300, timedelta(days=999_999), "soon"])
def test_an_interval_that_is_none_is_refused(interval: float) -> None:
    with pytest.raises(InvalidDefinition, match="interval"):
        Interval(interval)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "every day",
        "FREQ=SOMETIMES",
        "FREQ=SECONDLY",
        "FREQ=DAILY;INTERVAL=0",
        "FREQ=DAILY;INTERVAL=-1",
        "FREQ=DAILY;COUNT=0",
        "FREQ=DAILY;COUNT=99999999",
        "FREQ=DAILY;COUNT=3;UNTIL=20300101T000000",
        "FREQ=YEARLY;BYEASTER=0",
        "FREQ=MONTHLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=DAILY;BYSETPOS=366",
        "RRULE:FREQ=DAILY\nEXRULE:FREQ=DAILY",
        "DTSTART:99990101T000000\nRRULE:FREQ=DAILY",
        "DTSTART:99999999T000000\nRRULE:FREQ=DAILY",
        "EXDATE:20260101T000000",
        "FREQ=DAILY;" + "BYHOUR=1;" * 5000,
        "\0",
    ],
)
def test_a_bad_rrule_is_refused(rule: str) -> None:
    with pytest.raises(InvalidDefinition, match="rrule"):
        RRule(rule)


def test_a_schedule_is_exactly_one_of_the_three() -> None:
    with pytest.raises(InvalidDefinition, match="cron and interval"):
        check(Schedule("both", cron="0 9 * * *", interval=timedelta(hours=1)))
    with pytest.raises(InvalidDefinition, match="none of them"):
        check(Schedule("none"))


def test_a_schedule_keeps_at_least_one_run_ahead() -> None:
    with pytest.raises(InvalidDefinition, match="max_scheduled_runs"):
        Cron("0 9 * * *", max_scheduled_runs=0)


@pytest.mark.parametrize("wrong", [{"misfire": "sometimes"}, {"misfire_limit": 0}, {"misfire_limit": 1001}])
def test_a_schedule_makes_up_for_what_it_missed_in_one_of_three_ways(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidDefinition, match="misfire"):
        Cron("0 9 * * *", **wrong)


def test_a_schedule_describes_itself() -> None:
    assert describe(Cron("0 14 * * *", timezone="Asia/Tokyo")) == "cron 0 14 * * * (Asia/Tokyo)"
    assert describe(Interval(86400)) == "every 1 day (UTC)"
    assert describe(Interval(timedelta(days=14))) == "every 14 days (UTC)"
    assert describe(Interval(3600)) == "every 1 h"
    assert describe(Interval(5400)) == "every 90 min"
    assert describe(Interval(90)) == "every 90 s"
    assert describe(Interval(90061)) == "every 90061 s (UTC)"
    assert describe(RRule("FREQ=WEEKLY")) == "rrule FREQ=WEEKLY (UTC)"


@given(st.text(st.sampled_from("0123456789*/,-LW#?@hrSUNMOJAFEB \t\u3000"), max_size=30) | st.text(max_size=20))
@settings(max_examples=250, deadline=None)
@example("* * L5 * 5#5,l3")
@example("* * ? * L")
@example("* * W * *")
def test_any_text_is_a_cron_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(OrchError):
        assert len(fires(Cron(text), utc(2026, 1, 1), count=2)) == 2


@given(st.text(st.sampled_from("FREQ=DAILYWEKMONTHBYSUC;:,-+0123456789\n"), max_size=60) | st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_text_is_an_rrule_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(OrchError):
        fires(RRule(text), utc(2026, 1, 1), count=2)


@pytest.mark.parametrize(
    "hostile",
    [
        lambda: RRule("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"),
        lambda: RRule("FREQ=MINUTELY;BYMONTH=2;BYMONTHDAY=30"),
        lambda: RRule("FREQ=MINUTELY;INTERVAL=10080;BYDAY=TU"),
        lambda: RRule("FREQ=DAILY;BYSETPOS=300"),
        lambda: RRule("FREQ=MONTHLY;BYSETPOS=366"),
        lambda: RRule("FREQ=HOURLY;BYMINUTE=0;BYHOUR=3;INTERVAL=24;BYDAY=+5FR"),
        lambda: RRule("RDATE:21991231T000000\nRRULE:FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"),
        lambda: RRule("DTSTART:00010101T000000\nRRULE:FREQ=MINUTELY"),
        lambda: RRule("DTSTART:19700101T000000\nRRULE:FREQ=MINUTELY;COUNT=10000"),
        lambda: Cron("*/7,*/5,1-59/3 */5 L,15W * *"),
    ],
)
def test_a_hostile_schedule_costs_little(hostile: Callable[[], Schedule]) -> None:
    began = time.process_time()
    with contextlib.suppress(InvalidDefinition):
        next_after(hostile(), utc(2026, 1, 1))
    assert time.process_time() - began < 2
