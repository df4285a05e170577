"""orch.yaml: the deployments of one project. ``prefect.yaml`` has the same schema and is read where there is no ``orch.yaml``.

A key that is null counts as not given. Every complaint names file, line and column, and the key that was probably meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.deployments import located, steps
from orchestrator.deployments.located import Place, Value
from orchestrator.exceptions import InvalidDefinition, OrchError
from orchestrator.keys import check_name
from orchestrator.models import Schedule
from orchestrator.schedules import MOST_MADE_UP, check

FILE_NAMES = ("orch.yaml", "orch.yml", "prefect.yaml", "prefect.yml")
"""What a project's file may be called; the first that exists is read."""

COLLISION_STRATEGIES = ("ENQUEUE", "CANCEL_NEW", "CANCEL_RUNNING")

_PROJECT_KEYS = ("name", "prefect-version", "orch-version", "build", "push", "pull", "definitions", "deployments")
_DEPLOYMENT_KEYS = (
    *("name", "version", "version_type", "tags", "description", "schedule", "schedules", "flow_name", "entrypoint"),
    *("parameters", "enforce_parameter_schema", "concurrency_limit", "triggers", "sla", "work_pool", "build", "push", "pull"),
    *("paused", "crash_budget"),
)
_SCHEDULE_KEYS = (
    *("cron", "timezone", "day_or", "interval", "anchor_date", "rrule", "slug", "active", "parameters", "max_scheduled_runs"),
    *("misfire", "misfire_limit"),
    *("replaces", "catchup", "max_active_runs"),
)
_POOL_KEYS = ("name", "work_queue_name", "job_variables")
_LIMIT_KEYS = ("limit", "collision_strategy", "grace_period_seconds")
_WITHOUT_EFFECT = ("triggers", "sla", "version_type")
_WITHOUT_EFFECT_IN_SCHEDULES = ("replaces", "catchup", "max_active_runs")
_NOT_RENDERED = ("triggers", "sla", "pull")

Render = Callable[[str], Any]


@dataclass(slots=True)
class Entry:
    """One item of ``deployments``, its templates filled in. None means that the file leaves it open.

    ``active_unsaid`` names schedules of which the file does not say whether they are active.
    ``ignored`` names keys that are read without effect in this version. ``pull`` None: the code stays where the file is.
    """

    place: Place
    name: str | None = None
    version: str = ""
    description: str | None = None
    flow_name: str | None = None
    entrypoint: str | None = None
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    enforce_parameter_schema: bool = True
    concurrency_limit: int | None = None
    collision_strategy: str = "ENQUEUE"
    crash_budget: int = 3
    paused: bool | None = None
    schedules: list[Schedule] = field(default_factory=list)
    active_unsaid: tuple[str, ...] = ()
    pool: str | None = None
    queue: str | None = None
    job_variables: dict[str, Any] = field(default_factory=dict)
    pull: list[dict[str, Any]] | None = None
    ignored: tuple[str, ...] = ()


@dataclass(slots=True)
class Project:
    """A project's file, read but not rendered: ``deployments`` are handed to ``entry`` one by one."""

    path: Path
    name: str | None
    deployments: list[Value]
    _root: Value

    @property
    def directory(self) -> Path:
        """Where the file is, and where entry points are looked up."""
        return self.path.parent

    def steps(self, deployment: Value, phase: str) -> list[dict[str, Any]]:
        """The ``build``, ``push`` or ``pull`` steps of a deployment, as written: its own, else the project's."""
        return _steps(deployment, phase) or _steps(self._root, phase) or []

    def entry(self, deployment: Value, render: Render, render_pull: Render) -> Entry:
        """A deployment with its templates filled in and every value checked. Raises InvalidDefinition."""
        return _entry(self, deployment, render, render_pull)


def find(directory: Path) -> Path:
    """The project's file in a directory. Raises InvalidDefinition when there is none."""
    for name in FILE_NAMES:
        if (directory / name).is_file():
            return directory / name
    raise InvalidDefinition(f"There is no orch.yaml in {directory}.", hint="Create one with: orch init")


def read(path: Path) -> Project:
    """A project from its file, or from the directory that holds it.

    Raises InvalidDefinition, with line and column, for what is no YAML, or not the YAML of a project.
    """
    path = find(path) if path.is_dir() else path
    return project_of(path.absolute(), located.read(path))


def project_of(path: Path, root: Value) -> Project:
    """A project from YAML that has been read."""
    if root.is_null:
        raise root.error("the file is empty.", "Write a fresh one with: orch init --force")
    _check_keys(root, _PROJECT_KEYS, "a project", extra=_anchor_holders(root))
    deployments = _list(root, "deployments", "deployments", "- name: hello")
    for deployment in deployments:
        _check_keys(deployment, _DEPLOYMENT_KEYS, "a deployment")
    for holder in (root, *deployments):
        for phase in ("build", "push", "pull"):
            _steps(holder, phase)
    return Project(path, _text(root, "name"), deployments, root)


def _anchor_holders(root: Value) -> tuple[str, ...]:
    """Top-level keys that begin with ``.`` or ``x-`` hold anchors, as in other YAML files."""
    return tuple(key for key in root.value if key.startswith((".", "x-"))) if isinstance(root.value, dict) else ()


def _entry(project: Project, deployment: Value, render: Render, render_pull: Render) -> Entry:
    rendered = Value(
        {
            key: value if key in _NOT_RENDERED else value.map_text(render)
            for key, value in deployment.value.items()
        },
        deployment.place,
        None,
        deployment.keys,
    )  # fmt: skip
    pool = _mapping(rendered, "work_pool", _POOL_KEYS, "a work pool")
    limit, strategy = _concurrency(rendered)
    written = _written_schedules(rendered)
    schedules = [_schedule(value) for value in written]
    _name_schedules(schedules, written)
    pull = _steps(deployment, "pull") or _steps(project._root, "pull")
    return Entry(
        place=deployment.place,
        name=_name(rendered, "name", "deployment"),
        version=_text(rendered, "version") or "",
        description=_text(rendered, "description"),
        flow_name=_name(rendered, "flow_name", "flow"),
        entrypoint=_text(rendered, "entrypoint"),
        tags=_tags(rendered),
        parameters=_plain_mapping(rendered, "parameters"),
        enforce_parameter_schema=_flag(rendered, "enforce_parameter_schema", True),
        concurrency_limit=limit,
        collision_strategy=strategy,
        crash_budget=_number(rendered, "crash_budget", minimum=1) or 3,
        paused=None if _given(rendered, "paused") is None else _flag(rendered, "paused", False),
        schedules=schedules,
        active_unsaid=tuple(
            schedule.slug for schedule, value in zip(schedules, written, strict=True) if not _given(value, "active")
        ),
        pool=_name(pool, "name", "work pool") if pool else None,
        queue=_name(pool, "work_queue_name", "work queue") if pool else None,
        job_variables=_plain_mapping(pool, "job_variables") if pool else {},
        pull=None if pull is None else [located.located(step, deployment.place).map_text(render_pull).plain() for step in pull],
        ignored=_ignored(deployment, written),
    )


def _ignored(deployment: Value, schedules: list[Value]) -> tuple[str, ...]:
    """The keys that say something which this version does not do."""
    found = [key for key in _WITHOUT_EFFECT if (value := _given(deployment, key)) and value.value not in ([], {})]
    for schedule in schedules:
        found += [key for key in _WITHOUT_EFFECT_IN_SCHEDULES if (value := _given(schedule, key)) and value.value]
    limit = _given(deployment, "concurrency_limit")
    if limit is not None and isinstance(limit.value, dict) and _given(limit, "grace_period_seconds"):
        found.append("grace_period_seconds")
    return tuple(dict.fromkeys(found))


def _written_schedules(deployment: Value) -> list[Value]:
    single, several = _given(deployment, "schedule"), _given(deployment, "schedules")
    if single is not None and several is not None:
        raise InvalidDefinition(
            f"{deployment.keys['schedule']}: this deployment has both 'schedule' and 'schedules'.",
            hint="Put all of them into 'schedules'.",
        )
    return [single] if single is not None else _list(deployment, "schedules", "schedules", "- cron: '0 9 * * *'")


def _schedule(value: Value) -> Schedule:
    _check_keys(value, _SCHEDULE_KEYS, "a schedule")
    interval = _given(value, "interval")
    try:
        return check(
            Schedule(
                slug=_name(value, "slug", "schedule") or "",
                cron=_text(value, "cron"),
                timezone=_text(value, "timezone") or "UTC",
                day_or=_flag(value, "day_or", True),
                interval=None if interval is None else _seconds(interval),
                anchor=_anchor(value),
                rrule=_text(value, "rrule"),
                active=_flag(value, "active", True),
                parameters=_plain_mapping(value, "parameters"),
                max_scheduled_runs=_number(value, "max_scheduled_runs", minimum=1, maximum=1000) or 3,
                misfire=(_text(value, "misfire") or "latest").lower(),
                misfire_limit=_number(value, "misfire_limit", minimum=1, maximum=MOST_MADE_UP) or 100,
            )
        )
    except InvalidDefinition as error:
        if str(error).startswith(f"{value.place.file}:"):
            raise
        blamed = (
            key for key in ("timezone", "misfire", "cron", "interval", "rrule") if key in str(error) and key in value.value
        )
        kind = next(blamed, None)
        raise InvalidDefinition(f"{value.value[kind].place if kind else value.place}: {error}", hint=error.hint) from error


def _name_schedules(found: list[Schedule], written: list[Value]) -> None:
    """Give a slug to each schedule that has none: the same one at every deploy, whatever stands before or after it."""
    taken: dict[str, Value] = {}
    for schedule, value in zip(found, written, strict=True):
        if schedule.slug in taken and schedule.slug:
            raise value.error(
                f"the slug {schedule.slug!r} names two schedules; the first is on line {taken[schedule.slug].place.line}.",
                "Slugs are unique within a deployment.",
            )
        taken[schedule.slug] = value
    for schedule in found:
        if not schedule.slug:
            schedule.slug = free_slug(schedule, taken)
            taken[schedule.slug] = written[0]


def free_slug(schedule: Schedule, taken: Iterable[str]) -> str:
    """A slug made of what the schedule says: ``cron-0-9-x-x-x``, with a number behind it where that is taken."""
    said = schedule.cron or (f"{schedule.interval.total_seconds():g}s" if schedule.interval else schedule.rrule) or ""
    kind = "cron" if schedule.cron else "every" if schedule.interval else "rrule"
    zone = "" if schedule.timezone == "UTC" else f" {schedule.timezone}"
    words = "".join(c if c.isascii() and c.isalnum() else "x" if c == "*" else "-" for c in f"{kind} {said}{zone}".lower())
    slug = "-".join(word for word in words.split("-") if word)[:60].rstrip("-")
    known, number = set(taken), 1
    while (candidate := slug if number == 1 else f"{slug}-{number}") in known:
        number += 1
    return candidate


def _seconds(value: Value) -> timedelta:
    number = value.value
    if isinstance(number, str):
        try:
            number = float(number)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise value.error(f"an interval is a number of seconds, not {_shown(value)}.", "For example 3600 for an hour.")
    try:
        return timedelta(seconds=number)
    except (OverflowError, ValueError):
        raise value.error(
            f"an interval of {_shown(value)} seconds cannot be used.", "It is 1 second to 100 years long."
        ) from None


def _anchor(schedule: Value) -> datetime | None:
    value = _given(schedule, "anchor_date")
    if value is None:
        return None
    try:
        return datetime.fromisoformat(str(value.text).strip())
    except ValueError:
        raise value.error(
            f"an anchor_date is a date and a time, not {_shown(value)}.",
            "For example 2026-01-01T09:00:00 or 2026-01-01T00:00:00Z.",
        ) from None


def _concurrency(deployment: Value) -> tuple[int | None, str]:
    value = _given(deployment, "concurrency_limit")
    if value is None:
        return None, "ENQUEUE"
    if not isinstance(value.value, dict):
        return _number(deployment, "concurrency_limit", minimum=1), "ENQUEUE"
    _check_keys(value, _LIMIT_KEYS, "a concurrency limit")
    strategy = (_text(value, "collision_strategy") or "ENQUEUE").upper()
    if strategy not in COLLISION_STRATEGIES:
        raise value.value["collision_strategy"].error(
            f"this version has no collision strategy {strategy[:40]!r}.", f"There are {', '.join(COLLISION_STRATEGIES)}."
        )
    return _number(value, "limit", minimum=1), strategy


def _tags(deployment: Value) -> tuple[str, ...]:
    value = _given(deployment, "tags")
    if value is None:
        return ()
    if isinstance(value.value, str):
        return tuple(dict.fromkeys(tag for part in value.value.split(",") if (tag := part.strip())))
    if not isinstance(value.value, list):
        raise value.error(f"tags are a list, not {_shown(value)}.", "For example: tags: [nightly, eu]")
    tags = []
    for tag in value.value:
        if isinstance(tag.value, dict | list) or not tag.text or tag.is_null:
            raise tag.error(f"a tag is text, not {_shown(tag)}.")
        tags.append(str(tag.text))
    return tuple(dict.fromkeys(tags))


def _steps(parent: Value, phase: str) -> list[dict[str, Any]] | None:
    """The steps of a phase, as written; None when the key is missing or null."""
    if _given(parent, phase) is None:
        return None
    found = _list(parent, phase, "steps", "- orchestrator.deployments.steps.set_working_directory: {directory: /opt/flows}")
    for step in found:
        try:
            steps.parse(step.plain())
        except OrchError as error:
            raise type(error)(f"{step.place}: {error}", hint=error.hint) from error
    return [step.plain() for step in found]


def _check_keys(value: Value, known: tuple[str, ...], what: str, extra: tuple[str, ...] = ()) -> None:
    if not isinstance(value.value, dict):
        raise value.error(f"{what} is a mapping of keys to values, not {_shown(value)}.", f"Its keys: {', '.join(known)}.")
    for key in value.value:
        if key not in known and key not in extra:
            close = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.6)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
            raise InvalidDefinition(f"{value.keys[key]}: {key[:60]!r} is not a key of {what}.", hint=hint)


def _given(parent: Value, key: str) -> Value | None:
    value: Value | None = parent.value.get(key)
    return None if value is None or value.is_null else value


def _list(parent: Value, key: str, what: str, example: str) -> list[Value]:
    value = _given(parent, key)
    if value is None:
        return []
    if not isinstance(value.value, list):
        raise value.error(f"{key!r} is a list of {what}, not {_shown(value)}.", f"Begin each with a dash: {example}")
    return [item for item in value.value if not item.is_null]


def _mapping(parent: Value, key: str, known: tuple[str, ...], what: str) -> Value | None:
    value = _given(parent, key)
    if value is not None:
        _check_keys(value, known, what)
    return value


def _plain_mapping(parent: Value, key: str) -> dict[str, Any]:
    value = _given(parent, key)
    if value is None:
        return {}
    if not isinstance(value.value, dict):
        raise value.error(f"{key!r} is a mapping of names to values, not {_shown(value)}.")
    found: Mapping[str, Any] = value.plain()
    return dict(found)


def _text(parent: Value, key: str) -> str | None:
    """A text; a number or the like counts as it was written."""
    value = _given(parent, key)
    if value is None:
        return None
    if isinstance(value.value, dict | list):
        raise value.error(f"{key!r} is text, not {_shown(value)}.")
    return value.text or None


def _name(parent: Value, key: str, kind: str) -> str | None:
    text = _text(parent, key)
    if text is None:
        return None
    try:
        return check_name(kind, text)
    except OrchError as error:
        raise type(error)(f"{parent.value[key].place}: {error}", hint=error.hint) from error


def _flag(parent: Value, key: str, default: bool) -> bool:
    value = _given(parent, key)
    if value is None:
        return default
    text = str(value.text).strip().lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise value.error(f"{key!r} is true or false, not {_shown(value)}.")


def _number(parent: Value, key: str, minimum: int, maximum: int = 1_000_000) -> int | None:
    value = _given(parent, key)
    if value is None:
        return None
    number = value.value
    if isinstance(number, str) and number.strip().isascii() and number.strip().isdecimal() and len(number) < 10:
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not minimum <= number <= maximum:
        raise value.error(f"{key!r} is a whole number from {minimum} to {maximum}, not {_shown(value)}.")
    return number


def _shown(value: Value) -> str:
    if isinstance(value.value, dict):
        return "a mapping"
    if isinstance(value.value, list):
        return "a list"
    return ascii(value.text if value.text is not None else value.value)[:60]
