"""Workers of type thread: many runs at a time in few executor processes, for runs that are too small for a process each.

An executor process (``orchestrator.engine.threads``) is to ``ProcessExecutor`` a job like any other, one that takes long: what
kills, buries, watches and reads a run's process does that here for the process of many. Runs travel to it and back over its one
socket, in batches; the supervisor knows which of them have started by a byte for each in a file that both have mapped.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack

from orch_workers.base import Host, Job
from orch_workers.process import ProcessExecutor
from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.engine.background import Row
from orchestrator.engine.template import is_current
from orchestrator.models import Deployment
from orchestrator.store.answers import ClaimedRun

STOP_S = 2.0
"""How long code that was asked to stop may take while others' runs go on in its process; then that is killed."""

_STALE_SHARE = 0.1
"""Of a lease: by so much may the moment until which an idle process is trusted lie before that of its next run."""


class ThreadExecutor:
    """Executes jobs in threads and event loops of executor processes. See ``base.Executor`` for the methods' contracts."""

    def __init__(self, host: Host, limit: int, processes: int, environment: Mapping[str, str] | None = None) -> None:
        self._host = host
        self._limit = limit
        self._count = processes
        # One template, and one process ahead of those that are at work: in the place of one that dies there is another at once.
        self._inner = ProcessExecutor(self, 1, environment, first_frame=self._first_frame)
        self._servers: list[_Server] = []  # those that take runs
        self._all: dict[Job, _Server] = {}
        self._dirty: dict[_Server, None] = {}  # something is to be sent to these
        self._is_closing = False

    # -- what the runner asks for

    def prewarm(self, deployments: Sequence[Deployment]) -> None:
        """Start the executor processes. What runs need is imported with the first of each kind."""
        while len(self._servers) < self._count:
            self._start_server()

    @property
    def is_ready(self) -> bool:
        """Each executor process has imported something of the user's, and more of it is mostly there as well."""
        return len(self._servers) == self._count and all(server.files for server in self._servers)

    def start(self, job: Job) -> None:
        """Give the job to the executor process with the fewest."""
        if refusal := _refusal(job):
            self._host.failed(job, refusal, "")
            return
        server = self._next_server()
        job.place = server, server.take_slot()
        server.is_idle = False
        # Between two batches nothing is said of trust: what was said last holds on, as long as it is not much older.
        until = server.job.trusted_until
        if not server.jobs and (until == math.inf or job.trusted_until - until > job.lease_ms * _STALE_SHARE / 1000):
            server.job.trusted_until, server.job.lease_ms = job.trusted_until, job.lease_ms
            server.is_trust_due = True
        server.jobs[job.run.id] = job
        server.latest = job
        server.rows.append(_row(job, job.place[1]))
        self._dirty[server] = None

    def trust(self, jobs: Sequence[Job]) -> None:
        """An executor process is trusted as long as all of its runs are."""
        moved = {server: None for job in jobs if (server := _server_of(job)) is not None and job.run.id in server.jobs}
        for server in moved:
            server.job.trusted_until = min(job.trusted_until for job in server.jobs.values())
            server.is_trust_due = True
            self._dirty[server] = None

    def send(self, job: Job, data: bytes) -> None:
        """Write frames to the job's executor process."""
        server = _server_of(job)
        if server is not None and server.job in self._all:
            server.unsent.append(data)
            self._dirty[server] = None

    def ended(self, job: Job) -> None:
        """Its process has forgotten it with its end."""

    def read_output(self, job: Job) -> None:
        """What a run prints comes as frames, all of them before its end."""

    def terminate(self, job: Job) -> None:
        """Raise an exception in the job's thread, or cancel its coroutine."""
        self.send(job, msgpack.packb([protocol.STOP, job.run.id]))

    def kill(self, job: Job) -> None:
        """Stop the job: politely, as long as there are others in its process and it was not asked before."""
        server = _server_of(job)
        if server is not None and job.run.id in server.jobs:
            server.doomed[job] = clock.monotonic() + (0.0 if job.cancelled else STOP_S)
            self._dirty[server] = None

    def hold(self, is_held: bool) -> None:
        """Stop or go on reading what executor processes send."""
        self._inner.hold(is_held)

    def flush(self) -> None:
        """Send what has gathered for each executor process, in one write each; kill those of runs that would not stop."""
        for server in list(self._dirty):
            if server.rows and not is_current(server.files):
                self._retire(server)
        dirty, self._dirty = self._dirty, {}
        for server in dirty:
            self._send_gathered(server)
        self._inner.flush()

    def tick(self) -> None:
        """See what takes too long to stop."""
        for server in self._all.values():
            if server.doomed:
                self._dirty[server] = None
        self._inner.tick()

    def children_ended(self) -> None:
        """See ``base.Executor``."""
        self._inner.children_ended()

    def close(self) -> None:
        """See ``base.Executor``."""
        self._is_closing = True
        self._inner.close()
        for server in self._all.values():
            server.close()
        self._all.clear()

    # -- executor processes

    def _next_server(self) -> _Server:
        if len(self._servers) < self._count:
            return self._start_server()
        return min(self._servers, key=lambda server: len(server.jobs))

    def _start_server(self) -> _Server:
        server = _Server(self._limit)
        self._all[server.job] = server
        self._servers.append(server)
        self._inner.start(server.job)
        return server

    def _first_frame(self, job: Job) -> dict[str, Any]:
        return {"entrypoint": "", "threads": self._limit, "marks": self._all[job].marks_path}

    def _retire(self, server: _Server) -> None:
        """A file that it has imported was edited: it gets no more runs, and ends with those that it has."""
        if server in self._servers:
            self._servers.remove(server)
        server.is_retired = True
        rows, server.rows = server.rows, []
        for row in rows:
            job = server.jobs[row.id]
            server.free(job)
            self.start(job)

    def _send_gathered(self, server: _Server) -> None:
        if server.job not in self._all:
            return
        self._look_at_doomed(server)
        if not server.jobs and server.job.trusted_until != math.inf:
            if server.is_idle:
                server.job.trusted_until = math.inf
                server.is_trust_due = True
            else:  # the next batch may be on its way
                server.is_idle = True
                self._dirty[server] = None
        if server.is_trust_due:
            server.is_trust_due = False
            self._inner.trust([server.job])
        if not self._inner.has_child(server.job):
            self._dirty[server] = None  # its template loads; it is sent when there is a process
            return
        data = b"".join(server.unsent)
        server.unsent.clear()
        if server.rows:
            # Before the rest: who is told to stop a run has to have it.
            data = protocol.pack([protocol.RUNS, server.rows]) + data
            server.rows = []
        if server.is_retired and not server.jobs and not server.job.has_ended:
            server.job.has_ended = True
            data += protocol.pack([protocol.CLOSE])
            self._inner.ended(server.job)
        if data:
            self._inner.send(server.job, data)

    def _look_at_doomed(self, server: _Server) -> None:
        if not server.doomed or server.is_killed:
            return
        now = clock.monotonic()
        if len(server.doomed) == len(server.jobs) or any(now >= moment for moment in server.doomed.values()):
            server.is_killed = True
            self._inner.kill(server.job)
            return
        self._dirty[server] = None
        for job in server.doomed:
            if job not in server.asked:
                server.asked.add(job)
                server.unsent.append(protocol.pack([protocol.STOP, job.run.id]))

    # -- what ProcessExecutor tells (its Host)

    def watch(self, file: int, readable: Callable[[], object], writable: Callable[[], object] | None = None) -> None:
        """See ``base.Host``."""
        self._host.watch(file, readable, writable)

    def unwatch(self, file: int) -> None:
        """See ``base.Host``."""
        self._host.unwatch(file)

    def say(self, sentence: str) -> None:
        """See ``base.Host``."""
        self._host.say(sentence)

    def frames(self, job: Job, data: bytes) -> None:
        """An executor process has something to say of its runs."""
        server = self._all[job]
        self._host.received(len(data))
        try:
            for frame in server.frames.feed(data):
                self._take(server, frame)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._host.say(f"Killed executor process: it sent what is no frame ({error}).")
            self._inner.kill(job)

    def received(self, size: int) -> None:
        """See ``base.Host``."""
        self._host.received(size)

    def frame(self, job: Job, frame: list[Any]) -> None:
        """See ``base.Host``; not called, for ``ProcessExecutor`` passes bytes on."""
        self._take(self._all[job], frame)

    def output(self, job: Job, stream: str, lines: Sequence[str]) -> None:
        """What was printed outside of runs, or beside Python."""
        for line in lines:
            self._host.say(f"{stream}: {line}")

    def failed(self, job: Job, message: str, traceback: str) -> None:
        """No executor process can be started."""
        self._lose(job, message, is_innocent=True)

    def died(self, job: Job, reason: str, *, untrusted: bool) -> None:
        """An executor process is gone, and what it had sent is told."""
        self._lose(job, reason, is_innocent=untrusted)

    def _lose(self, job: Job, reason: str, *, is_innocent: bool) -> None:
        """Runs that were killed for others' sake, or had not started, are handed back; others are charged with a crash."""
        server = self._all.pop(job)
        if server in self._servers:
            self._servers.remove(server)
        if not self._is_closing and not server.job.has_ended and not server.is_killed:
            self._host.say(f"An executor process with {len(server.jobs)} runs was lost: {reason}.")
        for victim in list(server.jobs.values()):
            if victim in server.doomed:
                self._host.died(victim, reason, untrusted=is_innocent)
            elif server.is_killed:
                self._host.died(victim, "its executor process was killed to stop another run", untrusted=True)
            elif server.has_started(victim):
                self._host.died(victim, f"its executor process was {reason}", untrusted=is_innocent)
            else:
                self._host.died(victim, f"before it started, its executor process was {reason}", untrusted=True)
        server.close()

    def _take(self, server: _Server, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == protocol.END:
            job = server.jobs.get(frame[1])
            if job is None:
                job = server.nested.pop(frame[1], None)
            else:
                server.free(job)
                self._dirty[server] = None
                if job.is_lost or job.is_given_up:
                    self._host.died(job, "it was stopped", untrusted=False)
                    return
        elif kind == protocol.FILES:
            server.files = [tuple(file) for file in frame[1]]
            return
        elif kind == protocol.ASK:
            job = server.latest
        elif kind == protocol.OPEN:
            parent = frame[2].get("parent")
            job = server.jobs.get(parent) or server.nested.get(parent) or server.latest
            if job is not None:
                server.nested[frame[2]["id"]] = job
        else:
            run = frame[2] if kind == protocol.ACQUIRE else frame[1]
            job = server.jobs.get(run) or server.nested.get(run)
        if job is not None:
            self._host.frame(job, frame)


class _Server:
    """One executor process, as its supervisor sees it; ``job`` is what it is to ``ProcessExecutor``."""

    def __init__(self, slots: int) -> None:
        self.job = Job(_NOBODYS, _NO_DEPLOYMENT, math.inf)
        self.jobs: dict[str, Job] = {}  # those whose end it has not told
        self.nested: dict[str, Job] = {}  # runs that these have opened
        self.latest: Job | None = None
        self.doomed: dict[Job, float] = {}  # to be stopped, until when politely
        self.asked: set[Job] = set()
        self.rows: list[Row] = []  # not sent yet
        self.unsent: list[bytes] = []
        self.frames = protocol.Frames()
        self.files: list[tuple[str, int, int]] = []
        self.is_trust_due = False
        self.is_idle = False  # since the last flush
        self.is_retired = False
        self.is_killed = False
        self._free = list(range(slots))
        file, self.marks_path = tempfile.mkstemp(prefix="orch-marks-")
        os.truncate(file, slots)
        self._marks = mmap.mmap(file, slots)
        os.close(file)

    def take_slot(self) -> int:
        """A slot whose run has not started."""
        slot = self._free.pop()
        self._marks[slot] = 0
        return slot

    def free(self, job: Job) -> None:
        """The job is no longer here."""
        del self.jobs[job.run.id]
        self._free.append(job.place[1])
        if self.doomed:
            self.doomed.pop(job, None)

    def has_started(self, job: Job) -> bool:
        """The job's body has begun."""
        return bool(self._marks[job.place[1]])

    def close(self) -> None:
        """The process is gone."""
        self._marks.close()
        with contextlib.suppress(OSError):  # it has done so itself
            Path(self.marks_path).unlink()


def _server_of(job: Job) -> _Server | None:
    server: _Server | None = job.place[0] if job.place is not None else None
    return server


def _refusal(job: Job) -> str:
    """Why this cannot run beside others in one process; '' if it can."""
    deployment = job.deployment
    fetches = any(not str(next(iter(step), "")).endswith(".set_working_directory") for step in deployment.pull)
    if not fetches and not deployment.job_variables.get("env"):
        return ""
    what = "pull steps that fetch code" if fetches else "environment variables of its own"
    return (
        f"Deployment '{deployment.slug}' has {what}, and a worker of type thread runs many deployments in one process. "
        "Deploy it to a work pool of type process."
    )


def _row(job: Job, slot: int) -> Row:
    run = job.run
    flow = None
    if run.kind != "task":
        deployment = job.deployment
        flow = {
            "id": run.id,
            "attempt": run.attempt,
            "run_count": run.run_count,
            "crash_count": run.crash_count,
            "flow": run.flow,
            "name": run.name,
            "tags": run.tags,
            "due_ms": clock.to_ms(run.due),
            "lease_ms": job.lease_ms,
            "parent": run.parent,
            "deployment": {"id": deployment.id, "name": deployment.name, "slug": deployment.slug},
            "path": deployment.path,
        }
    return Row(
        run.id,
        slot,
        run.attempt,
        run.run_count,
        run.crash_count,
        run.flow,
        run.name,
        job.deployment.entrypoint,
        run.parameters,
        run.tags,
        job.lease_ms,
        job.has_started,
        flow,
    )


_NO_DEPLOYMENT = Deployment(name="executor", flow="thread", entrypoint="", id="threads")
_NOBODYS = ClaimedRun(
    id="",
    attempt=0,
    run_count=0,
    crash_count=0,
    kind="",
    flow="",
    name="",
    deployment=None,
    deployment_name=None,
    revision=0,
    parameters={},
    tags=(),
    pool="",
    queue="",
    due=clock.from_ms(0),
    parent=None,
    schedule=None,
)
"""The run of an executor process, which is nobody's."""
