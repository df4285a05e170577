"""What the store hands out and takes in: runs, deployments, schedules, pools, queues, workers, limits, log lines, events.

Plain dataclasses, no behaviour beyond what follows from their fields. Times are aware datetimes; ids are UUID text.
``as_json(thing)`` is the one JSON form that the command line and, later, the HTTP API show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from orchestrator.states import TERMINAL, State, StateType


@dataclass(slots=True)
class NewRun:
    """A run to be created.

    ``due`` is None for now. ``parameters`` hold only what msgpack can carry: None, bool, int, float, str, bytes, list, dict.
    ``crash_budget`` is how many starts a run may have when its process dies each time; 1 = never again.
    ``deployment``, ``parent`` and ``id`` are ids; ``priority`` is high, normal or low. ``kind`` is flow, or task for a
    background task run, whose code ``entrypoint`` names; that of a flow run stands in its deployment.
    """

    flow: str
    id: str = ""
    name: str = ""
    deployment: str | None = None
    pool: str = ""
    queue: str = "default"
    priority: str = "normal"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    due: datetime | None = None
    expires: datetime | None = None
    idempotency_key: str | None = None
    crash_budget: int = 3
    parent: str | None = None
    created_by: str = ""
    kind: str = "flow"
    entrypoint: str | None = None


@dataclass(slots=True)
class Created:
    """What became of one NewRun. ``answer``: created; existing (same key or id); conflict (same key, other work)."""

    id: str
    answer: str
    name: str


@dataclass(slots=True)
class HistoryEntry:
    """One past state of a run: the name, when it was entered, under which attempt (0 = before the first), and why."""

    name: str
    at: datetime
    attempt: int
    message: str


@dataclass(slots=True)
class Run:
    """One run as the store knows it.

    ``place`` is due, queued, parked, leased, paused or ended; ``gate`` what a parked run waits for.
    ``worker`` holds it, or held it last. ``attempt`` counts claims and is the fence; ``run_count`` counts starts of the body;
    ``crash_count`` lost processes. ``calls`` are the slots that its code has or waits for.
    """

    id: str
    kind: str
    name: str
    flow: str
    state: State
    place: str
    gate: str | None
    deployment: str | None
    deployment_name: str | None
    pool: str
    queue: str
    priority: str
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    created: datetime
    due: datetime
    started: datetime | None
    ended: datetime | None
    attempt: int
    run_count: int
    crash_count: int
    crash_budget: int
    worker: str | None
    parent: str | None
    schedule: str | None
    created_by: str
    expires: datetime | None
    history: list[HistoryEntry]
    has_result: bool = False
    calls: tuple[Call, ...] = ()
    entrypoint: str | None = None

    @property
    def is_terminal(self) -> bool:
        """The run has ended."""
        return self.state.type in TERMINAL

    @property
    def is_quarantined(self) -> bool:
        """The run ended because its process was lost as often as its crash budget allows; it stays so until someone decides."""
        return self.state.type is StateType.CRASHED and self.crash_count >= self.crash_budget

    @property
    def duration(self) -> timedelta | None:
        """From the first start of the body to the end; None before both are known."""
        return self.ended - self.started if self.started and self.ended else None


@dataclass(slots=True)
class TaskRun:
    """One task run inside a flow run. ``key`` is the task's name, ``index`` counts its calls in this flow run, from 0.

    ``upstream`` holds the ids of task runs whose futures or results went in.
    """

    id: str
    name: str
    key: str
    index: int
    state: State
    started: datetime | None = None
    ended: datetime | None = None
    run_count: int = 0
    upstream: tuple[str, ...] = ()
    parent: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class LogLine:
    """One line of a run's log. ``id`` is its place in the log, for following; ``level`` is a number as in ``logging``.

    ``logger`` is the logger's name, or ``stdout`` and ``stderr`` for captured output.
    """

    at: datetime
    level: int
    logger: str
    message: str
    attempt: int = 0
    task_run: str | None = None
    id: str = ""


CATCH_UP = timedelta(minutes=5)
"""Fires that were missed in an outage no longer than this all become runs; after a longer one ``misfire`` decides."""


@dataclass(slots=True)
class Schedule:
    """When a deployment runs: exactly one of ``cron``, ``interval`` (with ``anchor``) and ``rrule``.

    ``misfire`` says what becomes of fires that were missed in a long outage: ``latest`` runs the last of them, ``all`` the last
    ``misfire_limit``, ``skip`` none.
    ``generation`` and ``mark`` (the last planned fire) are the store's: a pause, resume or change raises the generation.
    """

    slug: str
    cron: str | None = None
    timezone: str = "UTC"
    day_or: bool = True
    interval: timedelta | None = None
    anchor: datetime | None = None
    rrule: str | None = None
    active: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)
    max_scheduled_runs: int = 3
    misfire: str = "latest"
    misfire_limit: int = 100
    generation: int = 0
    mark: datetime | None = None


@dataclass(slots=True)
class Deployment:
    """A flow that can be run elsewhere: where its code is, where it runs, with what, and when.

    ``path`` is the working directory on the worker in which ``entrypoint`` (``file.py:function`` or ``module:function``) is
    looked up after the ``pull`` steps. ``parameter_schema`` is JSON schema. ``revision`` grows with every change.
    """

    name: str
    flow: str
    entrypoint: str
    id: str = ""
    path: str = ""
    description: str = ""
    version: str = ""
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    parameter_schema: dict[str, Any] = field(default_factory=dict)
    enforce_parameter_schema: bool = True
    pool: str = ""
    queue: str = "default"
    job_variables: dict[str, Any] = field(default_factory=dict)
    pull: list[dict[str, Any]] = field(default_factory=list)
    concurrency_limit: int | None = None
    collision_strategy: str = "ENQUEUE"
    crash_budget: int = 3
    paused: bool = False
    schedules: list[Schedule] = field(default_factory=list)
    created: datetime | None = None
    updated: datetime | None = None
    revision: int = 0
    deployed_from: str = ""

    @property
    def slug(self) -> str:
        """The name that people type: ``flow/deployment``."""
        return f"{self.flow}/{self.name}"


@dataclass(slots=True)
class WorkQueue:
    """A lane of a work pool. Lower ``priority`` numbers are read first. ``depth`` counts queued runs."""

    name: str
    pool: str
    priority: int = 1
    concurrency_limit: int | None = None
    paused: bool = False
    description: str = ""
    depth: int = 0


@dataclass(slots=True)
class WorkPool:
    """A named set of workers of one type. ``status`` is READY, NOT_READY (no worker polls it) or PAUSED."""

    name: str
    type: str = "process"
    description: str = ""
    concurrency_limit: int | None = None
    paused: bool = False
    base_job_template: dict[str, Any] = field(default_factory=dict)
    queues: list[WorkQueue] = field(default_factory=list)
    status: str = "NOT_READY"
    workers: int = 0
    slots_used: int = 0
    created: datetime | None = None


@dataclass(slots=True)
class Worker:
    """One worker process as its last heartbeat told. ``status`` is ONLINE, DRAINING or OFFLINE (no heartbeat in time).

    ``clock_skew`` is the worker's wall clock minus Redis's, at that heartbeat. ``agreed`` are the namespace's settings as the
    worker read them when it started; empty where its release does not tell.
    """

    name: str
    pool: str
    type: str
    host: str
    pid: int
    version: str
    python: str
    limit: int
    running: int
    queues: tuple[str, ...]
    started: datetime
    heartbeat: datetime
    status: str
    clock_skew: timedelta
    agreed: dict[str, str] = field(default_factory=dict)

    def polls(self, queue: str) -> bool:
        """Whether it takes runs of this work queue of its pool: it was told of no queues, or of this one."""
        return not self.queues or queue in self.queues


@dataclass(slots=True)
class Scheduler:
    """One scheduler process as its last heartbeat told. A release that tells less leaves the rest empty."""

    name: str
    host: str
    pid: int
    version: str
    agreed: dict[str, str]


@dataclass(slots=True)
class Gate:
    """What runs may have to wait for: ``pool:NAME``, ``queue:POOL:NAME``, ``deployment:ID``, ``tag:NAME``, ``global:ID``.

    ``title`` is what people call it. ``limit`` None = unlimited; one that is not ``active`` is remembered and holds nobody
    back. ``used`` and ``waiting`` count slots, and runs and calls that wait. ``holders`` are run ids with a slot, the oldest
    first; ``waiters`` stand in the order in which they will be woken. ``decay`` makes it a rate limit: so many slots a second
    come back by time, the next one at ``next_free``; nobody holds them. ``defect``: why nobody can read what it is
    set to; then it lets nobody through.
    """

    name: str
    title: str
    limit: int | None
    paused: bool
    used: int
    holders: list[str]
    waiters: list[Waiter]
    waiting: int = 0
    active: bool = True
    decay: float = 0.0
    next_free: datetime | None = None
    defect: str = ""


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits at a gate: a run, or (``call`` > 0) the code of a run that executes."""

    run: str
    call: int = 0


@dataclass(slots=True)
class Slot:
    """Who holds a slot of a gate: since when, and until when its lease (or, where it ``is_reserved``, the reservation) lasts.

    ``expires`` None: the lease is gone, and the next sweep frees the slot. ``kind``: run (the run itself), code
    (``concurrency()`` in it) or task (a task run with the tag); a ``call`` may ``occupy`` several slots.
    """

    run: str
    since: datetime
    expires: datetime | None
    is_reserved: bool = False
    kind: str = "run"
    call: int = 0
    occupy: int = 1


@dataclass(frozen=True, slots=True)
class Call:
    """Slots that a run's code has, or waits for at the gate ``waits`` (None = it has them), since when; of which gates.

    ``kind``: code (``concurrency()``, ``rate_limit()``) or task (a task run with tags).
    """

    number: int
    kind: str
    slots: int
    waits: str | None
    since: datetime
    gates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something that stood in the place of a run, or of its message, and could not be read.

    ``run`` is its id, where one was named. ``stream`` and ``message``: where the message stood, '' where there was none.
    ``content`` is the beginning of what stood there, bytes that are no text escaped.
    """

    id: str
    at: datetime
    reason: str
    run: str | None
    stream: str
    message: str
    content: str


@dataclass(slots=True)
class Event:
    """Something that happened: ``name`` (``run.Completed``), when, and its fields. ``id`` is its place in the feed."""

    id: str
    name: str
    at: datetime
    fields: dict[str, str]


@dataclass(slots=True)
class RunFilter:
    """Which runs: every given part must match, any value within a part. Empty = all.

    ``states`` are state names (``Late``) or types (``SCHEDULED``). ``name`` matches a part of the run's name. ``quarantined``:
    only runs whose crash budget is spent.
    """

    states: tuple[str, ...] = ()
    flow: str | None = None
    deployment: str | None = None
    pool: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None
    name: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    quarantined: bool = False


@dataclass(slots=True)
class Page:
    """Some runs, newest first by due time, and the cursor for the next page (None at the end)."""

    runs: list[Run]
    cursor: str | None


def as_json(thing: Any) -> Any:
    """Any of these, or a list or dict of them, in plain JSON types: ISO times, seconds for durations, states as objects."""
    match thing:
        case State():
            return {
                "type": thing.type.value,
                "name": thing.name,
                "message": thing.message,
                "timestamp": as_json(thing.timestamp),
            }
        case datetime():
            return thing.isoformat().replace("+00:00", "Z")
        case timedelta():
            return thing.total_seconds()
        case Enum():
            return thing.value
        case Mapping():
            return {str(key): as_json(value) for key, value in thing.items()}
        case list() | tuple() | set() | frozenset():
            return [as_json(value) for value in thing]
        case bytes():
            return f"<{len(thing)} bytes>"
        case _ if is_dataclass(thing) and not isinstance(thing, type):
            return {f.name: as_json(getattr(thing, f.name)) for f in fields(thing)}
        case _:
            return thing
