"""What the operations on runs take and answer: values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from orchestrator.models import LogLine, TaskRun
from orchestrator.states import State


class Delivery(NamedTuple):
    """A message that a blocked read handed to this worker: the stream (below the prefix), the message's id, the run's id.

    The run is '' where the message names none.
    """

    stream: str
    message: str
    run: str


@dataclass(slots=True)
class ClaimedRun:
    """All that a worker needs to execute a run that it now holds under ``attempt``.

    ``run_count`` counts the starts of the body before this one; ``due`` is when the run was meant to start.
    ``revision`` is that of the deployment, for caching what was loaded of it; 0 = the deployment is gone, or there is none.
    """

    id: str
    attempt: int
    run_count: int
    crash_count: int
    kind: str
    flow: str
    name: str
    deployment: str | None
    deployment_name: str | None
    revision: int
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    pool: str
    queue: str
    due: datetime
    parent: str | None
    schedule: str | None
    created_by: str = ""
    entrypoint: str | None = None


@dataclass(slots=True)
class Claims:
    """What a claim brought. ``parked``: (run, gate). ``more``: the script's bound was reached, claim again."""

    claimed: list[ClaimedRun]
    parked: list[tuple[str, str]]
    gone: int
    more: bool


@dataclass(slots=True)
class End:
    """How an attempt ended, ``ago`` before it is told. ``result`` is packed; ``retry_in`` goes with an AwaitingRetry state."""

    run: str
    attempt: int
    state: State
    result: bytes = b""
    retry_in: timedelta | None = None
    ago: timedelta = timedelta(0)


class Start(NamedTuple):
    """The body of a run has started, ``ago`` before this is told; ``name`` is the state's: Running or Retrying."""

    run: str
    attempt: int
    name: str = "Running"
    ago: timedelta = timedelta(0)


class ClaimRequest(NamedTuple):
    """The arguments of ``claim``."""

    worker: str
    pool: str
    queues: Sequence[str]
    free: int
    delivered: Sequence[Delivery] = ()
    start: bool = False


@dataclass(slots=True)
class Turn:
    """Everything for one ``exchange``.

    ``tasks``: (run, attempt, task runs). The claim comes last: its ``free`` may count the slots that ``ends`` make free.
    ``worker`` is who says all this.
    """

    worker: str
    starts: Sequence[Start] = ()
    logs: Mapping[str, Sequence[LogLine]] = field(default_factory=dict)
    tasks: Sequence[tuple[str, int, Sequence[TaskRun]]] = ()
    ends: Sequence[End] = ()
    claim: ClaimRequest | None = None


@dataclass(slots=True)
class Turned:
    """The answers to a Turn: what of starts, logs and tasks was refused; per end as ``finish``; as ``claim``."""

    refused: list[Exception]
    ends: list[str] | Exception
    claims: Claims | Exception | None


@dataclass(frozen=True, slots=True)
class Acquire:
    """Slots that the code of a run asks for, which ``worker`` executes. ``call`` is its number in the attempt, from 1.

    ``names`` are of global limits, or (``of`` = tag) a task run's tags. ``occupy`` slots of each; with ``rate`` only limits
    whose slots come back by time will do; ``strict``: a name without a limit is an error, else it lets everybody through.
    """

    run: str
    attempt: int
    worker: str
    call: int
    names: Sequence[str]
    of: str = "global"
    occupy: int = 1
    rate: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Acquired:
    """The answer to Acquire.

    granted (``detail``: names without a limit, one a line), waiting (what for; if ``retry_ms`` is set, time alone makes room
    and no scheduler lives to see to it: call ``runs.wake()`` then), missing (which name), impossible (what refuses, and what
    it has), no_decay (which name), superseded (the attempt is over).
    """

    answer: str
    detail: str = ""
    retry_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """How many due runs were queued, and when the next one is due (None = none is waiting)."""

    count: int
    next_due: datetime | None


class Lapsed(NamedTuple):
    """What became of runs whose process is gone. ``requeued`` start again, now or in a moment; ``seen`` leases were looked at.

    ``is_braked``: no lease counts as over for now. ``jump_ms``: by how much Redis's clock has left what the caller expected of
    it, if this call saw that; ``now_ms`` is what it shows.
    """

    requeued: int
    crashed: int
    cancelled: int
    seen: int
    is_braked: bool = False
    jump_ms: int = 0
    now_ms: int = 0

    @property
    def jump(self) -> str:
        """For people: what happened to Redis's clock, '' if nothing. A call that waited for Redis to come back looks alike."""
        if self.jump_ms > 0:
            return f"Redis's clock jumped ahead by {self.jump_ms / 1000:g} s, or Redis did not answer for so long"
        return f"Redis's clock went back by {-self.jump_ms / 1000:g} s" if self.jump_ms else ""


class Change(NamedTuple):
    """The answer to a change of one run: ok, refused, superseded or missing; and the run's state."""

    answer: str
    state: str


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer to a plan: created or stale (the schedule changed, or another scheduler was first); and how many are new."""

    answer: str
    count: int
