"""F13: schedules over every clock change of six zones that have shown the oddest ones."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from bench.chaos.trial import Outcome, Scenario, Trial
from orch_scheduler import planner
from orchestrator import schedules
from orchestrator.keys import new_id
from orchestrator.models import Schedule

ZONES = ("America/New_York", "Europe/Paris", "America/Santiago", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia")
_RRULE = "DTSTART:19690101T000000\nRRULE:FREQ=DAILY;BYHOUR=2;BYMINUTE=15;BYSECOND=0"
LEFT_OUT = {"Pacific/Apia": {date(2011, 12, 30)}}
"""Dates that a zone never had."""


def run(trial: Trial) -> Outcome:
    """1970 to 2040 (quick: 2011, the year of Apia's missing day): walked from fire to fire, and as a planner walks."""
    first, last = (2011, 2011) if trial.quick else (1970, 2040)
    began, until = datetime(first, 1, 1, tzinfo=UTC), datetime(last + 1, 1, 1, tzinfo=UTC)
    problems: list[str] = []
    count = 0
    for name in ZONES:
        zone = ZoneInfo(name)
        trial.say(f"{name} ...")
        for schedule, is_daily in _schedules(name)[:: 3 if trial.quick else 1]:
            fires = list(schedules.walk(schedule, began, until))
            count += len(fires)
            what = f"{schedules.describe(schedule)} in {name}"
            problems += [f"{what}: {later} follows {earlier}" for earlier, later in pairwise(fires) if later <= earlier]
            if is_daily:
                problems += _not_once_a_day(what, fires, zone, began, until, LEFT_OUT.get(name, set()))
            problems += _planned_otherwise(
                what, schedule, fires, began, until if trial.quick else began.replace(year=first + 3)
            )
    days = f"{first} to {last}, {len(ZONES)} zones"
    return Outcome(f"{days}: {count:,} fires, each later than the one before; daily ones once per local day", problems)


def _schedules(zone: str) -> list[tuple[Schedule, bool]]:
    """Schedules with names of their own; and whether each fires once a day."""
    crons = [(f"{minute} {hour} * * *", True) for hour, minute in ((0, 0), (0, 30), (2, 30), (3, 0), (23, 59))]
    found = [(Schedule(cron, cron=cron, timezone=zone), daily) for cron, daily in [*crons, ("15 */6 * * *", False)]]
    found.append((Schedule("rrule", rrule=_RRULE, timezone=zone), True))
    found.append((Schedule("interval", interval=timedelta(days=1), timezone=zone), True))
    return found


def _not_once_a_day(
    what: str, fires: list[datetime], zone: ZoneInfo, began: datetime, until: datetime, left_out: set[date]
) -> list[str]:
    """Local days, the first and the last excepted, with another number of fires than one."""
    days = Counter(fire.astimezone(zone).date() for fire in fires)
    day, end = began.astimezone(zone).date() + timedelta(days=1), until.astimezone(zone).date() - timedelta(days=1)
    found = []
    while day < end:
        wanted = 0 if day in left_out else 1
        if days[day] != wanted:
            found.append(f"{what}: {days[day]} fires on {day}")
        day += timedelta(days=1)
    return found


def _planned_otherwise(what: str, schedule: Schedule, fires: list[datetime], began: datetime, until: datetime) -> list[str]:
    """What a planner makes of it that looks in every eleven hours; all run ids must differ."""
    schedule.mark, now, made = began, began, []
    deployment = new_id()
    while now < until:
        planned = planner.plan(schedule, now, ready=sum(fire > now for fire in made[-10:]))
        made += planned.fires
        schedule.mark = planned.mark
        now += timedelta(hours=11)
    ids = {planner.run_id(deployment, schedule, fire) for fire in made}
    missing = sorted(fire for fire in set(fires) - set(made) if fire <= schedule.mark)
    found = [f"{what}: planned {len(made)} runs under {len(ids)} ids"] if len(ids) < len(made) else []
    known = set(fires)
    found += [f"{what}: planned {fire}, which is no fire" for fire in made if began < fire <= until and fire not in known]
    return found + [f"{what}: never planned {fire}" for fire in missing]


SCENARIO = Scenario("F13", "DST and calendars", "UTC strictly increasing, nothing twice, a daily job once per local day", run)
