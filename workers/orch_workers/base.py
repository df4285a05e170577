"""What every type of worker shares: its options, the job, and the two sides that meet over it.

``runner`` is the *host*: it alone talks to Redis. An *executor* has jobs executed and tells the host what becomes of them. The
host calls an executor from its one loop, and the executor calls the host from there: no locks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.metrics import ADDRESS

if TYPE_CHECKING:
    from orchestrator.models import Deployment
    from orchestrator.settings import Settings
    from orchestrator.store.answers import ClaimedRun

DEFAULT_LIMITS = {"process": 10, "thread": 100}
"""Runs at a time where ``--limit`` is not given, by type. Most mostly wait for something: it is not the number of cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What ``orch worker start`` was told.

    ``queues`` empty = all of the pool's. ``processes``: how many executor processes share the runs of a thread worker.
    ``grace`` is how long runs may go on after the first SIGTERM before they are handed back; ``cancel_grace`` how long a
    cancelled run has between SIGTERM and SIGKILL. ``announce`` gets each sentence meant for the person at the terminal.
    """

    pool: str
    name: str = ""
    type: str = "process"
    limit: int = DEFAULT_LIMITS["process"]
    processes: int = 1
    queues: tuple[str, ...] = ()
    burst: bool = False
    metrics_port: int | None = None
    metrics_address: str = ADDRESS
    grace: timedelta = timedelta(seconds=25)
    cancel_grace: timedelta = timedelta(seconds=10)
    settings: Settings | None = None
    announce: Callable[[str], None] | None = None


@dataclass(slots=True)
class Opened:
    """A subflow, for metrics. ``began`` is a monotonic moment, ``ending`` the type of the state in which it says it ends."""

    flow: str
    began: float
    ending: str = ""


@dataclass(slots=True, eq=False)
class Job:
    """One claimed run while this worker has it.

    ``trusted_until`` is the monotonic moment up to which nobody else can have started the run: counted from when the last
    accepted renewal was sent. ``kill_at`` is when the patience with a cancelled run is over.
    """

    run: ClaimedRun
    deployment: Deployment
    trusted_until: float
    cancelled: set[str] = field(default_factory=set)
    """The run, or runs that it opened, that were told to stop."""
    kill_at: float | None = None
    lease_ms: int = 0
    """Length of the lease: a retry that waits longer goes back to the store meanwhile."""
    is_given_up: bool = False
    """It is being killed because this worker stops: it goes back to its pool."""
    is_lost: bool = False
    """The run is no longer ours: it is being killed, and nothing is to be said about it."""
    has_reported_end: bool = False
    has_ended: bool = False
    """Its end is in Redis."""
    has_started: bool = False
    """It has entered Running with its claim."""
    place: Any = None
    """Where its executor has put it."""
    # For metrics, as in Opened; ``asked`` are calls for slots: since when, of which limits.
    began: float = 0.0
    ending: str = ""
    opened: dict[str, Opened] | None = None
    asked: dict[int, tuple[float, list[str]]] | None = None


class Host(Protocol):
    """What an executor may ask of the runner, and must tell it."""

    def watch(self, file: int, readable: Callable[[], object], writable: Callable[[], object] | None = None) -> None:
        """Call ``readable`` from the loop while the descriptor has something to read, ``writable`` while it takes more.

        A second call for the same descriptor replaces the first.
        """
        ...

    def unwatch(self, file: int) -> None:
        """Stop that, if it was watched at all; always before the descriptor is closed."""
        ...

    def frames(self, job: Job, data: bytes) -> None:
        """The job's process sent these bytes of frames; several frames, or a part of one."""
        ...

    def received(self, size: int) -> None:
        """So many bytes of frames came, which ``frame`` passes on one by one."""
        ...

    def frame(self, job: Job, frame: list[Any]) -> None:
        """A frame of the job's, unpacked already."""
        ...

    def output(self, job: Job, stream: str, lines: Sequence[str]) -> None:
        """The job's process wrote these lines to ``stream`` (stdout or stderr)."""
        ...

    def say(self, sentence: str) -> None:
        """Tell the person at the terminal."""
        ...

    def failed(self, job: Job, message: str, traceback: str) -> None:
        """The job's flow could not be loaded: it ends Failed."""
        ...

    def died(self, job: Job, reason: str, *, untrusted: bool) -> None:
        """The job's process is gone, all that it had sent is told. ``untrusted``: killed because the lease was in doubt."""
        ...


class Executor(Protocol):
    """A type of worker: where and how jobs are executed."""

    def prewarm(self, deployments: Sequence[Deployment]) -> None:
        """Make ready for runs of these, most likely first."""
        ...

    @property
    def is_ready(self) -> bool:
        """A job that starts now reaches its first line within milliseconds: nothing has to be loaded first, as far as known."""
        ...

    def start(self, job: Job) -> None:
        """Have the job executed as soon as can be."""
        ...

    def trust(self, jobs: Sequence[Job]) -> None:
        """The ``trusted_until`` of these jobs has moved. A job is killed at that moment even if the host hangs."""
        ...

    def send(self, job: Job, data: bytes) -> None:
        """Bytes of frames for the job's process."""
        ...

    def ended(self, job: Job) -> None:
        """The job's end is in Redis."""
        ...

    def read_output(self, job: Job) -> None:
        """Tell the host what the job has printed so far, now."""
        ...

    def terminate(self, job: Job) -> None:
        """Ask the job's processes to stop (SIGTERM)."""
        ...

    def kill(self, job: Job) -> None:
        """Stop the job's processes at once (SIGKILL). ``Host.died`` follows."""
        ...

    def hold(self, is_held: bool) -> None:
        """Stop reading what jobs send and print, so that they wait; or go on. For when the host cannot pass it on."""
        ...

    def flush(self) -> None:
        """Send what has been asked for since the last call; the host calls it once per turn of its loop."""
        ...

    def tick(self) -> None:
        """Look after what only time brings about. Called about once a second while jobs run, else every few seconds."""
        ...

    def children_ended(self) -> None:
        """SIGCHLD came: look after this process's children."""
        ...

    def close(self) -> None:
        """Kill and bury everything that is left."""
        ...
