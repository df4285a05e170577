"""When a schedule fires: pure, from a schedule and a moment to the next moment.

A cron expression, an rrule and an interval of a day or more speak of the wall clock in the schedule's timezone, and wall clocks
jump. Their fires are found on the wall clock, without any zone, and each becomes an instant by one rule: **a wall time happens
when the clock first shows it or a later one.** So

* a fire in a gap (02:30 on the night when 02:00 becomes 03:00) happens at the transition;
* a fire in an overlap (01:30 on the night that has two of them) happens once, the first time;
* a job that fires every hour pauses for two hours on that night. One that must not is an interval;
* a date that a zone left out altogether (Apia, 30 December 2011) hands its fires to the transition, unless the day that begins
  there has a fire of its own: a daily job runs once per local day.

An interval under a day counts real time from its anchor and knows nothing of wall clocks.

Instants are aware, in UTC and strictly increasing. ``Cron``, ``Interval`` and ``RRule`` make schedules in code.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from orchestrator.exceptions import InvalidDefinition
from orchestrator.models import Schedule

ANCHOR = datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None)
"""Where intervals without an anchor, and rrules without DTSTART, count from: midnight in their zone. A fixed day, so that
deploying again does not shift the schedule."""

MISFIRES = ("latest", "all", "skip")
"""What a schedule may do about the fires that it missed in a long outage. See ``Schedule``."""

MOST_MADE_UP = 1000
"""No schedule makes up for more missed fires than this."""

_DAY = timedelta(days=1)
_TICK = timedelta(microseconds=1)
_SHORTEST = timedelta(seconds=1)
_LONGEST = timedelta(days=36_525)
_CRON_LENGTH = 500
_RRULE_LENGTH = 6_500  # what Prefect allows
_RRULE_COUNT = 10_000
_RRULE_INTERVAL = 100_000
_RRULE_LAST_YEAR = 2199
_FOUR_CENTURIES = timedelta(days=146_097)
_FIRST_YEAR = 2
_END_OF_TIME = 9_949  # fifty years before datetime's own
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

_ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_CRON_FORM = "It has five fields: minute, hour, day of month, month, day of week; '0 14 * * *' is every day at 14:00."
_FIELDS = (
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of month", "1-31 or L"),
    ("month", "1-12 or JAN-DEC"),
    ("day of week", "0-7 (0 and 7 are Sunday) or SUN-SAT"),
)

Later = Callable[[datetime], datetime | None]
"""From a wall time to the first wall time after it at which the schedule fires. Both naive."""


def next_after(schedule: Schedule, moment: datetime) -> datetime | None:
    """The first fire strictly after ``moment``; None when there is none (an rrule that has ended).

    ``active`` is not looked at. Raises InvalidDefinition for a schedule that ``check`` would refuse.
    """
    return next(_instants(schedule, moment), None)


def fires(schedule: Schedule, after: datetime, *, count: int | None = None, until: datetime | None = None) -> list[datetime]:
    """The fires strictly after ``after``, oldest first: at most ``count`` of them, none later than ``until``.

    At least one of the two bounds is needed.
    """
    if count is None and until is None:
        raise ValueError("fires() needs a count or an until; a schedule never ends by itself.")
    return list(islice(_instants(schedule, after) if until is None else walk(schedule, after, until), count))


def walk(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """The fires strictly after ``after`` and not later than ``until``, oldest first, one at a time."""
    return takewhile(lambda instant: instant <= until, _instants(schedule, after))


def check(schedule: Schedule) -> Schedule:
    """Return the schedule if it can ever fire, else raise InvalidDefinition: what is wrong and what would be right.

    An anchor without an offset is a wall time of the schedule's zone; in the answer it is an instant.
    """
    kinds = [kind for kind in ("cron", "interval", "rrule") if getattr(schedule, kind) is not None]
    if len(kinds) != 1:
        found = " and ".join(kinds) if kinds else "none of them"
        raise InvalidDefinition(
            f"{_called(schedule)} needs exactly one of cron, interval and rrule; it has {found}.",
            hint="For example: cron: '0 9 * * *'",
        )
    zone = _zone(schedule)
    if schedule.cron is not None:
        _check_cron(schedule, schedule.cron)
    elif schedule.interval is not None:
        _check_interval(schedule, schedule.interval)
    if schedule.max_scheduled_runs < 1:
        raise InvalidDefinition(
            f"{_called(schedule)}: max_scheduled_runs is {schedule.max_scheduled_runs}.", hint="It is 1 or more."
        )
    if schedule.misfire not in MISFIRES:
        raise InvalidDefinition(
            f"{_called(schedule)}: there is no misfire policy {ascii(schedule.misfire)[:40]}.",
            hint=f"It is one of {', '.join(MISFIRES)}.",
        )
    if not 1 <= schedule.misfire_limit <= MOST_MADE_UP:
        raise InvalidDefinition(
            f"{_called(schedule)}: misfire_limit is {schedule.misfire_limit}.", hint=f"It is a number from 1 to {MOST_MADE_UP}."
        )
    if next_after(schedule, _LONG_AGO) is None:
        raise InvalidDefinition(
            f"{_called(schedule)}: {describe(schedule)} never fires.", hint="Is there such a day in such a month?"
        )
    return schedule if schedule.anchor is None else replace(schedule, anchor=_anchor(schedule, zone))


def describe(schedule: Schedule) -> str:
    """The schedule in a few words: ``cron 0 14 * * * (Asia/Tokyo)``, ``every 90 min``, ``rrule FREQ=WEEKLY (UTC)``."""
    if schedule.cron is not None:
        return f"cron {schedule.cron} ({schedule.timezone})"
    if schedule.interval is not None:
        zone = f" ({schedule.timezone})" if schedule.interval >= _DAY else ""
        return f"every {_length(schedule.interval)}{zone}"
    return f"rrule {schedule.rrule} ({schedule.timezone})"


def _length(interval: timedelta) -> str:
    """In the largest unit that leaves nothing over: ``1 day``, ``90 min``, ``0.5 s``."""
    for unit, size in (("day", _DAY), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1))):
        count, rest = divmod(interval, size)
        if count and not rest:
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return f"{interval / timedelta(seconds=1):.15g} s"


def Cron(  # noqa: N802 - reads like the schedule it makes
    cron: str,
    /,
    timezone: str | None = None,
    day_or: bool = True,
    active: bool = True,
    parameters: Mapping[str, Any] | None = None,
    slug: str | None = None,
    max_scheduled_runs: int = 3,
    misfire: str = "latest",
    misfire_limit: int = 100,
) -> Schedule:
    """Run when a cron expression says so: minute, hour, day of month, month, day of week.

    ``timezone`` is an IANA name (``Asia/Tokyo``), UTC when not given. When both days are restricted, a day that matches either
    counts; with ``day_or=False`` it has to match both.
    """
    return check(
        Schedule(
            slug or "", cron=cron, timezone=timezone or "UTC", day_or=day_or, active=active,
            parameters=dict(parameters or {}), max_scheduled_runs=max_scheduled_runs,
            misfire=misfire, misfire_limit=misfire_limit,
        )
    )  # fmt: skip


def Interval(  # noqa: N802
    interval: timedelta | float,
    /,
    anchor_date: datetime | None = None,
    timezone: str | None = None,
    active: bool = True,
    parameters: Mapping[str, Any] | None = None,
    slug: str | None = None,
    max_scheduled_runs: int = 3,
    misfire: str = "latest",
    misfire_limit: int = 100,
) -> Schedule:
    """Run every ``interval`` (a timedelta, or seconds), counted from ``anchor_date`` in both directions.

    A day or more keeps the wall time of ``timezone`` through its clock changes; less than a day counts real time.
    """
    try:
        length = interval if isinstance(interval, timedelta) else timedelta(seconds=interval)
    except (OverflowError, ValueError, TypeError):
        raise InvalidDefinition(f"{interval!r} is not an interval.", hint="Give seconds or a timedelta.") from None
    return check(
        Schedule(
            slug or "", interval=length, anchor=anchor_date, timezone=timezone or "UTC", active=active,
            parameters=dict(parameters or {}), max_scheduled_runs=max_scheduled_runs,
            misfire=misfire, misfire_limit=misfire_limit,
        )
    )  # fmt: skip


def RRule(  # noqa: N802
    rrule: str,
    /,
    timezone: str | None = None,
    active: bool = True,
    parameters: Mapping[str, Any] | None = None,
    slug: str | None = None,
    max_scheduled_runs: int = 3,
    misfire: str = "latest",
    misfire_limit: int = 100,
) -> Schedule:
    """Run when an iCalendar recurrence rule (RFC 5545) says so; its times are wall times of ``timezone``."""
    return check(
        Schedule(
            slug or "", rrule=rrule, timezone=timezone or "UTC", active=active,
            parameters=dict(parameters or {}), max_scheduled_runs=max_scheduled_runs,
            misfire=misfire, misfire_limit=misfire_limit,
        )
    )  # fmt: skip


def _instants(schedule: Schedule, moment: datetime) -> Iterator[datetime]:
    """Every fire strictly after ``moment``, without end where the schedule has none."""
    zone = _zone(schedule)
    if schedule.interval is not None and schedule.interval < _DAY:
        _check_interval(schedule, schedule.interval)
        return _in_real_time(schedule.interval, _anchor(schedule, zone), moment.astimezone(UTC))
    return _on_the_wall(_later(schedule, zone), zone, moment.astimezone(UTC))


def _in_real_time(interval: timedelta, anchor: datetime, moment: datetime) -> Iterator[datetime]:
    """Anchor plus whole multiples of the interval, in UTC."""
    step = (moment - anchor) // interval + 1
    while True:
        try:
            yield anchor + step * interval
        except OverflowError:
            return
        step += 1


def _on_the_wall(later: Later, zone: ZoneInfo, moment: datetime) -> Iterator[datetime]:
    """The instants at which the wall times of ``later`` happen."""
    last = moment
    try:
        wall: datetime | None = moment.astimezone(zone).replace(tzinfo=None)
        while wall is not None and (wall := later(wall)) is not None:
            instant, gap = _instant(wall, zone)
            if gap is not None:
                # Everything else in this gap would fall on the same instant.
                opened, shown = gap
                midnight = wall.replace(hour=0, minute=0, second=0, microsecond=0)
                wall = shown - _TICK
                if opened <= midnight and midnight + _DAY <= shown:
                    own = later(wall)
                    if own is not None and own.date() == shown.date():
                        continue
            if instant > last:
                yield instant
                last = instant
    except OverflowError:
        return  # the year 10000


def _instant(wall: datetime, zone: ZoneInfo) -> tuple[datetime, tuple[datetime, datetime] | None]:
    """When the clock in ``zone`` first shows ``wall`` or later; and if that lies in a gap, the wall times around it."""
    first = wall.replace(tzinfo=zone)
    before, after = first.utcoffset() or timedelta(), first.replace(fold=1).utcoffset() or timedelta()
    if before >= after:
        return first.astimezone(UTC), None
    # In a gap the two readings lie on both sides of the transition, which comes at a full second.
    low, high = (wall.replace(microsecond=0) - offset for offset in (after, before))
    while high - low > _SHORTEST:
        middle = low + (high - low) // (2 * _SHORTEST) * _SHORTEST
        if middle.replace(tzinfo=UTC).astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(tzinfo=UTC), (high + before, high + after)


def _later(schedule: Schedule, zone: ZoneInfo) -> Later:
    if schedule.cron is not None:
        return _cron(schedule.cron, schedule.day_or, _called(schedule))
    if schedule.interval is not None:
        interval = schedule.interval
        _check_interval(schedule, interval)
        anchor = _anchor(schedule, zone).astimezone(zone).replace(tzinfo=None)
        return lambda wall: anchor + ((wall - anchor) // interval + 1) * interval
    return _rules(schedule)


def _anchor(schedule: Schedule, zone: ZoneInfo) -> datetime:
    """What an interval counts from, in UTC."""
    anchor = schedule.anchor or ANCHOR
    if not _FIRST_YEAR <= anchor.year <= _END_OF_TIME:
        raise InvalidDefinition(f"{_called(schedule)}: the anchor {anchor} cannot be used.", hint="Use one of this century.")
    return _instant(anchor, zone)[0] if anchor.tzinfo is None else anchor.astimezone(UTC)


def _zone(schedule: Schedule) -> ZoneInfo:
    name = schedule.timezone
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise InvalidDefinition(
            f"{_called(schedule)}: there is no timezone {ascii(name)[:80]}.", hint=_zones_like(str(name)[:80])
        ) from None


def _zones_like(name: str) -> str:
    """A zone that was probably meant: the same in other case or spelling, or by its city alone."""
    by_key = {zone.lower(): zone for zone in available_timezones()}
    by_city = {zone.rpartition("/")[2].lower(): zone for zone in sorted(by_key.values(), reverse=True)}
    wanted = name.strip().lower().replace(" ", "_")
    for known, cutoff in ((by_key, 0.8), (by_city, 0.85)):
        if close := difflib.get_close_matches(wanted, known, n=1, cutoff=cutoff):
            return f"Did you mean {known[close[0]]}?"
    return "Use a name of the IANA database, for example Europe/Paris, Asia/Tokyo or UTC."


def _cron(expression: str, day_or: bool, called: str) -> Later:
    from croniter import croniter
    from croniter.croniter import CroniterBadDateError

    def later(wall: datetime) -> datetime | None:
        # croniter sees naive times only: at a clock change it keeps other promises (a daily job runs twice in an overlap).
        try:
            found: datetime = croniter(expression, wall, day_or=day_or).get_next(datetime)
        except Exception as error:
            if isinstance(error, CroniterBadDateError) or wall.year > _END_OF_TIME:
                return None
            raise InvalidDefinition(f"{called}: {ascii(expression)[:80]} is not a cron expression: {error}") from error
        return found

    return later


def _check_cron(schedule: Schedule, expression: Any) -> None:
    def refuse(why: str, hint: str = "") -> InvalidDefinition:
        return InvalidDefinition(
            f"{_called(schedule)}: the cron expression {ascii(expression)[:80]} {why}.", hint=hint or _CRON_FORM
        )

    if not isinstance(expression, str):
        raise refuse("is not text", "Put it in quotes.")
    if len(expression) > _CRON_LENGTH:
        raise refuse(f"is {len(expression)} characters long; at most {_CRON_LENGTH} are read")
    if expression.startswith("@"):
        if expression.lower() not in _ALIASES:
            raise refuse("is no known abbreviation", f"There are {', '.join(_ALIASES)}.")
        return
    parts = expression.split()
    if len(parts) != len(_FIELDS):
        raise refuse(f"has {len(parts)} field{'' if len(parts) == 1 else 's'}")
    if re.search(r"\b[hr]\b", expression, re.IGNORECASE):
        raise refuse("has a hashed or random field", "Write the minute or hour itself.")
    for place, (part, (field, allowed)) in enumerate(zip(parts, _FIELDS, strict=True)):
        if not _is_cron(*("*",) * place, part, *("*",) * (len(_FIELDS) - 1 - place)):
            raise refuse(
                f"has {ascii(part)[:40]} as its {field}", f"It is {allowed}, *, a list a,b, a range a-b or a step */n."
            )
    if not _is_cron(*parts):
        raise refuse("mixes fields that cannot be combined")


@lru_cache(maxsize=256)
def _is_cron(*parts: str) -> bool:
    from croniter import croniter

    try:
        croniter(" ".join(parts), ANCHOR)
    except Exception:  # croniter lets KeyError, IndexError and the like out for some bad input
        return False
    return True


def _check_interval(schedule: Schedule, interval: Any) -> None:
    if not isinstance(interval, timedelta):
        raise InvalidDefinition(
            f"{_called(schedule)}: {ascii(interval)[:80]} is not an interval.", hint="Give seconds, for example 3600."
        )
    if not _SHORTEST <= interval <= _LONGEST:
        raise InvalidDefinition(
            f"{_called(schedule)}: an interval of {interval} cannot be used.",
            hint="It is 1 second to 100 years long.",
        )


def _rules(schedule: Schedule) -> Later:
    """The wall times of an rrule, or of a set of them.

    dateutil walks a rule from its DTSTART, and one that never fires up to the year 9999. So a rule without COUNT gets a DTSTART
    near the moment that is asked about, whole intervals later; and it is looked up in the last centuries of the calendar,
    which repeats itself every 400 years to the weekday.
    """
    from dateutil.rrule import rruleset

    parsed = _parse_rrule(schedule)

    def later(wall: datetime) -> datetime | None:
        shift = max(0, (_END_OF_TIME - max(wall.year, _RRULE_LAST_YEAR)) // 400) * _FOUR_CENTURIES
        near = rruleset()
        for rule in parsed["_rrule"]:
            near.rrule(_near(rule, wall, shift))
        for date in parsed["_rdate"]:
            near.rdate(date + shift)
        for date in parsed["_exdate"]:
            near.exdate(date + shift)
        found: datetime | None = near.after(wall + shift)
        return None if found is None else found - shift

    return later


def _parse_rrule(schedule: Schedule) -> dict[str, Any]:
    """The ``rruleset`` that the text stands for, taken apart."""
    from dateutil.rrule import SECONDLY, rrulestr

    text = schedule.rrule

    def refuse(why: str) -> InvalidDefinition:
        return InvalidDefinition(
            f"{_called(schedule)}: the rrule {ascii(text)[:80]} {why}.",
            hint="A rule looks like FREQ=WEEKLY;BYDAY=MO,WE;BYHOUR=9;BYMINUTE=0;BYSECOND=0 (RFC 5545).",
        )

    if not isinstance(text, str):
        raise refuse("is not text")
    if len(text) > _RRULE_LENGTH:
        raise refuse(f"is {len(text)} characters long; at most {_RRULE_LENGTH} are read")
    try:
        parsed = vars(rrulestr(text, dtstart=ANCHOR, forceset=True, ignoretz=True))
    except Exception as error:  # besides ValueError, dateutil raises what its parsing happens to run into
        raise refuse(f"cannot be read: {error}") from None
    rules, dates = parsed["_rrule"], parsed["_rdate"]
    if not rules and not dates:
        raise refuse("holds no RRULE")
    if parsed["_exrule"]:
        raise refuse("holds an EXRULE, which RFC 5545 has dropped; use EXDATE")
    if max(date.year for date in (*dates, *parsed["_exdate"], *(rule._dtstart for rule in rules))) > _RRULE_LAST_YEAR:
        raise refuse(f"reaches beyond the year {_RRULE_LAST_YEAR}")
    for rule in rules:
        if rule._freq >= SECONDLY:
            raise refuse("fires every second; MINUTELY is the shortest")
        if rule._byeaster:
            raise refuse("holds BYEASTER, which is not in RFC 5545")
        if not 1 <= rule._interval <= _RRULE_INTERVAL:
            raise refuse(f"has the interval {rule._interval}; 1 to {_RRULE_INTERVAL} are possible")
        if rule._count is not None and (rule._until or not 1 <= rule._count <= _RRULE_COUNT):
            raise refuse(f"has the count {rule._count}; 1 to {_RRULE_COUNT} are possible, and no UNTIL beside it")
    return parsed


def _near(rule: Any, wall: datetime, shift: timedelta) -> Any:
    """The same rule moved by ``shift``, and begun shortly before ``wall`` where that makes no difference."""
    from dateutil.rrule import DAILY, HOURLY, MINUTELY, WEEKLY

    start: datetime = rule._dtstart
    if rule._count is not None:
        return list(islice(rule.replace(dtstart=start + shift, count=None), rule._count))
    steps = {WEEKLY: timedelta(weeks=1), DAILY: _DAY, HOURLY: timedelta(hours=1), MINUTELY: timedelta(minutes=1)}
    if rule._freq in steps and wall > start:
        step = steps[rule._freq] * rule._interval
        start += (wall - start) // step * step
    until = rule._until and min(rule._until, ANCHOR.replace(year=_RRULE_LAST_YEAR)) + shift
    return rule.replace(dtstart=start + shift, until=until)


def _called(schedule: Schedule) -> str:
    return f"Schedule {schedule.slug[:80]!r}" if schedule.slug else "The schedule"
