"""Workers of type process: each run in a child process of its own, forked ahead from a template that has its flow imported.

Per deployment revision one template (``orchestrator.engine.template``), started when it is first needed or ahead of that. The
supervisor keeps a socket to each template and, for each child, a socket for frames and the read ends of its stdout and stderr.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from orch_workers.base import Host, Job
from orch_workers.capture import Lines
from orchestrator import clock
from orchestrator.engine import processes
from orchestrator.engine.template import LAST_WORK_S, UNTRUSTED, is_current
from orchestrator.models import Deployment
from orchestrator.settings import child_environment

MAX_TEMPLATES = 8
"""Templates kept at a time; the one unused for longest goes first. Each costs what its flow's module imports."""

LINGER_S = LAST_WORK_S + 5.0
"""How long a child may take to exit after its run's end was recorded: it ends its threads and calls its exit handlers."""

OUTPUT_BYTES_PER_S = 4 * 1024 * 1024
"""A child that prints more has to wait: its pipe is not read for the rest of the second."""

_MARK = "_ORCH_WORKER"
_READ_BYTES = 256 * 1024
_FORKS_PER_MESSAGE = 20  # three descriptors each; the template takes 64 at a time
_TEMPLATE_OUTPUT_BYTES = 64 * 1024


class ProcessExecutor:
    """Executes jobs in forked children. See ``base.Executor`` for the methods' contracts."""

    def __init__(
        self,
        host: Host,
        limit: int,
        environment: Mapping[str, str] | None = None,
        *,
        max_templates: int = MAX_TEMPLATES,
        first_frame: Callable[[Job], dict[str, Any]] | None = None,
    ) -> None:
        self._host = host
        # Whoever descends from a template bears this, also one that has left its session and whose parents are all gone.
        self._mark = f"{_MARK}={os.getpid()}-{os.urandom(4).hex()}"
        name, _, value = self._mark.partition("=")
        self._environment = {**(child_environment() if environment is None else environment), name: value}
        self._limit = limit
        self._first_frame = first_frame or run_frame
        self._max_templates = max_templates
        self._templates: dict[str, _Template] = {}  # deployment id -> the one in use, most recently used last
        self._all: dict[int, _Template] = {}  # by the template's pid, retired ones too
        self._children: dict[Job, _Child] = {}
        self._orphans: dict[int, _Child] = {}  # pid -> child of a template that died first
        self._to_prewarm: deque[Deployment] = deque()
        self._unsafe: set[tuple[str, int]] = set()  # deployment revisions whose module must not be forked
        self._throttled: list[Callable[[], None]] = []
        self._is_held = False
        self._is_closing = False
        processes.adopt_orphans()

    def prewarm(self, deployments: Sequence[Deployment]) -> None:
        """Start templates for these, one after another, up to the number that is kept."""
        self._to_prewarm.extend(deployments[: self._max_templates])
        self._prewarm_next()

    @property
    def is_ready(self) -> bool:
        """Every template in use is loaded."""
        return bool(self._templates) and all(template.is_loaded for template in self._templates.values())

    def start(self, job: Job) -> None:
        """Give the job to a waiting child of its deployment's template, or to the first that there will be."""
        template = self._template_for(job.deployment)
        if template.is_loaded:
            self._give(template, job)
        else:
            template.waiting.append(job)

    def trust(self, jobs: Sequence[Job]) -> None:
        """Pass each job's ``trusted_until`` to its template, which kills at that moment."""
        for job in jobs:
            child = self._children.get(job)
            if child is not None and child.pid:
                child.template.trust[child.pid] = _moment(job)

    def send(self, job: Job, data: bytes) -> None:
        """Write frames to the job's child."""
        child = self._children.get(job)
        if child is not None:
            child.write(data)

    def has_child(self, job: Job) -> bool:
        """There is a child that what is sent to the job arrives at."""
        return job in self._children

    def ended(self, job: Job) -> None:
        """There is no lease to lose any more: only LINGER_S limits what the child still has to do."""
        child = self._children.get(job)
        if child is not None and child.ended_at is None:
            child.ended_at = clock.monotonic()
            child.template.trust[child.pid] = None

    def read_output(self, job: Job) -> None:
        """Read the child's pipes, whatever the loop says."""
        child = self._children.get(job)
        if child is not None:
            child.read_output()

    def terminate(self, job: Job) -> None:
        """SIGTERM to the child's process group."""
        self._signal(job, signal.SIGTERM)

    def kill(self, job: Job) -> None:
        """SIGKILL to the child's process group."""
        self._signal(job, signal.SIGKILL)

    def hold(self, is_held: bool) -> None:
        """Stop or go on reading what children send and print."""
        self._is_held = is_held
        for child in self._children.values():
            child.watch(not is_held)

    def flush(self) -> None:
        """Send each template what has gathered for it: forks, trust, burials."""
        for template in list(self._all.values()):
            if not template.send_gathered():
                self._host.say(f"Killed the template of '{template.deployment.slug}': it did not answer.")
                processes.signal_group(template.pid, signal.SIGKILL)

    def tick(self) -> None:
        """Read throttled output on, kill children that linger, let go of warm children that are no longer needed."""
        throttled, self._throttled = self._throttled, []
        for resume in throttled if not self._is_held else ():
            resume()
        now = clock.monotonic()
        for child in self._children.values():
            if child.pid and child.ended_at is not None and now - child.ended_at > LINGER_S:
                processes.signal_group(child.pid, signal.SIGKILL)
        for template in self._templates.values():
            template.peak = max(len(template.busy), template.peak // 2)
            while len(template.idle) > self._wanted(template):
                template.idle.pop().close_frames()

    def children_ended(self) -> None:
        """Bury this process's own children: templates, and what they left behind when they died."""
        while (pid := _next_to_bury()) is not None:
            template = self._all.pop(pid, None)
            orphan = self._orphans.pop(pid, None)
            if template is not None:
                self._template_ended(template)
            elif orphan is not None:
                processes.signal_group(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if template is not None:
                self._report_template_end(template, status)
            elif orphan is not None:
                self._child_ended(orphan, orphan.orphaned_by)
        self._kill_what_was_left()

    def _kill_what_was_left(self) -> None:
        """Kill what the runs of a killed template had started and hidden from its group. A living template sees to its own."""
        for pid in processes.children_of(os.getpid()):
            if pid not in self._all and pid not in self._orphans and processes.has_in_environment(pid, self._mark):
                processes.kill_tree(pid)

    def close(self) -> None:
        """Close every template's socket, on which it kills its children and exits; wait until all are gone."""
        self._is_closing = True
        for template in list(self._all.values()):
            template.disconnect()
        while self._all or self._orphans:
            try:
                pid = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_pid  # type: ignore[union-attr]
            except ChildProcessError:
                break
            if pid in self._all:
                self._template_ended(self._all.pop(pid))
            self._orphans.pop(pid, None)
            processes.signal_group(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._kill_what_was_left()
        for child in list(self._children.values()):
            child.close()
        self._children.clear()

    # -- templates

    def _template_for(self, deployment: Deployment) -> _Template:
        template = self._templates.pop(deployment.id, None)
        if template is not None and not template.is_current(deployment):
            self._retire(template)
            template = None
        if template is None:
            self._make_room()
            template = self._start_template(deployment)
        self._templates[deployment.id] = template
        return template

    def _make_room(self) -> None:
        unused = [key for key, template in self._templates.items() if not template.busy and not template.waiting]
        for key in unused[: max(0, len(self._templates) + 1 - self._max_templates)]:
            self._retire(self._templates.pop(key))

    def _start_template(self, deployment: Deployment) -> _Template:
        template = _Template(deployment, "spawn" if self._needs_spawn(deployment) else "fork", self._environment)
        self._all[template.pid] = template
        self._host.watch(template.socket.fileno(), lambda: self._receive(template))
        self._host.watch(template.output, template.read_output)
        template.closers.append(lambda: self._host.unwatch(template.socket.fileno()))
        template.closers.append(lambda: self._host.unwatch(template.output))
        return template

    def _needs_spawn(self, deployment: Deployment) -> bool:
        # Steps that fetch code have to run before every run, not once per template.
        fetches = any(not str(next(iter(step), "")).endswith(".set_working_directory") for step in deployment.pull)
        return sys.platform == "darwin" or fetches or (deployment.id, deployment.revision) in self._unsafe

    def _retire(self, template: _Template) -> None:
        """No new runs for this one; it goes when its last run has ended."""
        template.is_retired = True
        if not template.busy:
            template.disconnect()

    def _prewarm_next(self) -> None:
        if self._to_prewarm and not self._is_closing:
            self._template_for(self._to_prewarm.popleft())

    def _receive(self, template: _Template) -> None:
        for kind, *values in template.receive():
            if kind == "exit":
                child = template.by_pid.get(values[0])
                if child is not None:
                    status, reason = values[1:]
                    processes.signal_group(child.pid, signal.SIGKILL)  # what the child itself had started
                    template.gathered.append(["reap", child.pid])
                    self._child_ended(child, reason or processes.describe_status(status))
            elif kind == "child":
                self._child_started(template, *values)
            elif kind == "loaded":
                template.files = [tuple(file) for file in values[0]]
                self._loaded(template)
            elif kind == "unsafe":
                self._unsafe.add((template.deployment.id, template.deployment.revision))
                self._host.say(f"Runs of '{template.deployment.slug}' start slower, each in a fresh interpreter: {values[0]}.")
                self._replace(template)
            elif kind == "failed":
                self._load_failed(template, *values)

    def _loaded(self, template: _Template) -> None:
        template.is_loaded = True
        while template.waiting:
            self._give(template, template.waiting.popleft())
        if template.is_retired:
            self._retire(template)
        else:
            self._replenish(template)
        self._prewarm_next()

    def _replace(self, template: _Template) -> None:
        waiting = list(template.waiting)
        template.waiting.clear()
        was_current = self._templates.get(template.deployment.id) is template
        if was_current:
            del self._templates[template.deployment.id]
        self._retire(template)
        if was_current and not waiting:
            self._template_for(template.deployment)
        for job in waiting:
            self.start(job)

    def _load_failed(self, template: _Template, message: str, traceback: str) -> None:
        waiting = list(template.waiting)
        template.waiting.clear()
        template.read_output()
        if self._templates.get(template.deployment.id) is template:
            del self._templates[template.deployment.id]
        self._retire(template)
        printed = template.printed()
        for job in waiting:
            if printed:
                self._host.output(job, "stdout", printed)
            self._host.failed(job, message, traceback)
        if not waiting:
            self._host.say(f"The flow of '{template.deployment.slug}' does not load: {message}")
        self._prewarm_next()

    def _template_ended(self, template: _Template) -> None:
        """The template is a zombie. Its children are being killed by the kernel; their own descendants are ours to kill."""
        if template.is_connected:
            self._receive(template)
            template.read_output()
        for child in [*template.idle, *template.busy]:
            if child.pid:
                processes.signal_group(child.pid, signal.SIGKILL)
            if child.job is None:
                child.close()
        template.idle.clear()
        template.disconnect()

    def _report_template_end(self, template: _Template, status: int) -> None:
        how = processes.describe_status(status)
        now = clock.monotonic()
        # The kernel has killed it for being stopped while its runs' leases ran out.
        is_late = any(
            child.job is not None and child.ended_at is None and child.job.trusted_until <= now for child in template.busy
        )
        if self._templates.get(template.deployment.id) is template:
            del self._templates[template.deployment.id]
            if not self._is_closing:
                self._host.say(f"The template process of '{template.deployment.slug}' was lost: {how}.")
        reason = f"its template process was {how}" if how.startswith("killed") else f"its template process {how}"
        for child in list(template.busy):
            child.orphaned_by = UNTRUSTED if is_late else reason
            if child.pid and sys.platform == "linux":
                self._orphans[child.pid] = child
            else:
                self._await_end(child)
        waiting = list(template.waiting)
        template.waiting.clear()
        for job in waiting:
            if os.WIFSIGNALED(status):
                self._host.died(job, f"the process that imported its flow was {how}", untrusted=False)
            else:
                message = f"The flow's module ended the process that imported it: {how}."
                self._host.failed(job, message, "\n".join([*template.printed(), message]))
        self._prewarm_next()

    # -- children

    def _give(self, template: _Template, job: Job) -> None:
        child = template.idle.popleft() if template.idle else self._new_child(template)
        child.job = job
        template.busy.add(child)
        template.peak = max(template.peak, len(template.busy))
        self._children[job] = child
        if child.pid:
            template.trust[child.pid] = _moment(job)
        child.watch(not self._is_held)
        child.write(msgpack.packb(["run", self._first_frame(job)]))
        self._replenish(template)

    def _replenish(self, template: _Template) -> None:
        while not template.is_retired and len(template.idle) < self._wanted(template):
            template.idle.append(self._new_child(template))

    def _wanted(self, template: _Template) -> int:
        """As many waiting children as this template has lately had runs at a time: when those end, all successors are ready."""
        return min(self._limit, max(1, template.peak))

    def _new_child(self, template: _Template) -> _Child:
        child = _Child(self._host, template, self._output_throttled)
        template.request(child)
        return child

    def _child_started(self, template: _Template, token: int, pid: int, problem: str) -> None:
        child = template.starting.pop(token)
        if not pid:
            job = child.job
            self._forget(child)
            if job is not None:
                self._host.died(job, f"no process could be started for it: {problem}", untrusted=False)
            return
        child.pid = pid
        template.by_pid[pid] = child
        if child.job is not None:
            template.trust[pid] = _moment(child.job)
            if child.signal_on_start:
                processes.signal_group(pid, child.signal_on_start)

    def _child_ended(self, child: _Child, reason: str) -> None:
        """The child and its group are gone: tell the host all that it left, then that it died."""
        job = child.job
        if job is not None:
            child.drain()
        self._forget(child)
        if job is not None:
            self._host.died(job, reason, untrusted=reason == UNTRUSTED)

    def _forget(self, child: _Child) -> None:
        template = child.template
        child.close()
        template.by_pid.pop(child.pid, None)
        template.trust.pop(child.pid, None)
        template.busy.discard(child)
        if child in template.idle:
            template.idle.remove(child)
        if child.job is not None:
            self._children.pop(child.job, None)
        if template.is_retired and not template.busy and not template.waiting:
            template.disconnect()

    def _await_end(self, child: _Child) -> None:
        """Its template died before it told the child's number: its socket closes when it is gone."""
        child.on_closed = lambda: self._child_ended(child, child.orphaned_by)
        child.read_frames()

    def _signal(self, job: Job, number: signal.Signals) -> None:
        child = self._children.get(job)
        if child is not None:
            if child.pid:
                processes.signal_group(child.pid, number)
            else:
                child.signal_on_start = number
            return
        for template in self._all.values():
            if job in template.waiting:
                template.waiting.remove(job)
                self._host.died(job, "it was stopped before it started", untrusted=False)
                return

    def _output_throttled(self, resume: Callable[[], None]) -> None:
        self._throttled.append(resume)


def _moment(job: Job) -> float | None:
    """When its process is to be killed, as templates are told; None = not, for lack of a lease."""
    return None if job.trusted_until == math.inf else job.trusted_until


def _next_to_bury() -> int | None:
    """A child of this process that has ended and was not waited for."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid


def run_frame(job: Job) -> dict[str, Any]:
    """What a child is told about its run."""
    run, deployment = job.run, job.deployment
    return {
        "id": run.id,
        "attempt": run.attempt,
        "run_count": run.run_count,
        "crash_count": run.crash_count,
        "flow": run.flow,
        "name": run.name,
        "parameters": run.parameters,
        "tags": list(run.tags),
        "due_ms": clock.to_ms(run.due),
        "lease_ms": job.lease_ms,
        "parent": run.parent,
        "deployment": {"id": deployment.id, "name": deployment.name, "slug": deployment.slug},
        **load_spec(deployment),
    }


def load_spec(deployment: Deployment) -> dict[str, Any]:
    """What it takes to load the deployment's flow."""
    return {
        "entrypoint": deployment.entrypoint,
        "path": deployment.path,
        "pull": deployment.pull,
        "env": deployment.job_variables.get("env") or {},
    }


class _Template:
    """One template process, as its supervisor sees it."""

    def __init__(self, deployment: Deployment, mode: str, environment: Mapping[str, str]) -> None:
        self.deployment = deployment
        self.waiting: deque[Job] = deque()
        self.idle: deque[_Child] = deque()  # started or being started, no run yet
        self.busy: set[_Child] = set()
        self.starting: dict[int, _Child] = {}  # token -> child whose number is not known yet
        self.by_pid: dict[int, _Child] = {}
        self.trust: dict[int, float | None] = {}  # pid -> trusted until, to be sent
        self.gathered: list[list[Any]] = []  # messages to be sent
        self.files: list[tuple[str, int, int]] = []
        self.peak = 0
        self.is_loaded = False
        self.is_retired = False
        self.is_connected = True
        self.closers: list[Callable[[], None]] = []
        self._requested: list[tuple[int, tuple[int, int, int]]] = []
        self._token = 0
        self._unpacker = msgpack.Unpacker(raw=False)
        self._printed: deque[str] = deque(maxlen=1000)
        self._lines = Lines()
        self.pid = self._start(mode, environment)

    def _start(self, mode: str, environment: Mapping[str, str]) -> int:
        self.socket, theirs = socket.socketpair()
        self.output, output = os.pipe()
        os.set_blocking(self.output, False)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator.engine.template", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment,
            )
        os.close(output)
        process.returncode = 0  # ``children_ended`` waits for it by its number
        self.socket.sendall(msgpack.packb(["load", {**load_spec(self.deployment), "mode": mode}]))
        self.socket.setblocking(False)
        return process.pid

    def is_current(self, deployment: Deployment) -> bool:
        """The deployment is the one loaded here, and no file that was read has changed since."""
        if self.is_retired or not self.is_connected or self.deployment.revision != deployment.revision:
            return False
        return is_current(self.files)

    def request(self, child: _Child) -> None:
        """Have a process forked for this child with the next ``send_gathered``."""
        self._token += 1
        self.starting[self._token] = child
        self._requested.append((self._token, child.take_remote_ends()))

    def send_gathered(self) -> bool:
        """Send all that waits to be sent; False when the template does not take it."""
        if not self.is_connected or not (self._requested or self.trust or self.gathered):
            return True
        if self.trust:
            self.gathered.append(["trust", list(self.trust.items()), self._margin_s()])
            self.trust = {}
        data = b"".join(map(msgpack.packb, self.gathered))
        self.gathered.clear()
        try:
            while self._requested:
                batch = self._requested[:_FORKS_PER_MESSAGE]
                data += b"".join(msgpack.packb(["fork", token]) for token, _ in batch)
                descriptors = [descriptor for _, ends in batch for descriptor in ends]
                sent = socket.send_fds(self.socket, [data], descriptors)
                del self._requested[: len(batch)]
                for descriptor in descriptors:
                    os.close(descriptor)
                if sent < len(data):
                    return False
                data = b""
            return not data or self.socket.send(data) == len(data)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True  # it died; SIGCHLD tells

    def _margin_s(self) -> float:
        """Half of what lies between the moment at which runs are not trusted any more and the end of their leases."""
        return min((child.job.lease_ms for child in self.busy if child.job is not None), default=0) / 15_000

    def receive(self) -> list[list[Any]]:
        """Every message that has arrived."""
        messages: list[list[Any]] = []
        while self.is_connected:
            try:
                data = self.socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self.closers[0]()  # level-triggered: an end of file would wake the loop for ever
                break
            self._unpacker.feed(data)
            messages.extend(self._unpacker)
        return messages

    def read_output(self) -> None:
        """Keep the last lines that the module printed while it was imported."""
        while self.is_connected:
            try:
                data = os.read(self.output, 65536)
            except BlockingIOError:
                return
            if not data:
                self.closers[1]()
                return
            self._printed.extend(self._lines.feed(data))

    def printed(self) -> list[str]:
        """Those lines, once."""
        lines = [*self._printed, *self._lines.flush()]
        self._printed.clear()
        return lines

    def disconnect(self) -> None:
        """Close the socket; the process kills its children and exits on that."""
        if not self.is_connected:
            return
        for close in self.closers:
            close()
        self.is_connected = False
        self.socket.close()
        os.close(self.output)
        for _, descriptors in self._requested:
            for descriptor in descriptors:
                os.close(descriptor)
        self._requested.clear()
        for child in self.idle:
            child.close()
        self.idle.clear()


@dataclass(eq=False)
class _Child:
    """One child process, waiting for a run or executing one."""

    host: Host
    template: _Template
    throttled: Callable[[Callable[[], None]], None]
    pid: int = 0
    job: Job | None = None
    signal_on_start: int = 0
    orphaned_by: str = ""
    ended_at: float | None = None
    on_closed: Callable[[], None] | None = None
    _pipes: list[_Pipe] = field(default_factory=list)
    _remote_ends: tuple[int, int, int] | None = None
    _unsent: bytes = b""
    _is_open: bool = True

    def __post_init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        writers = []
        for stream in ("stdout", "stderr"):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            self._pipes.append(_Pipe(self, stream, reader))
            writers.append(writer)
        self._remote_ends = (theirs.detach(), writers[0], writers[1])

    def take_remote_ends(self) -> tuple[int, int, int]:
        """The descriptors for the process: frames, stdout, stderr. Whoever takes them closes them."""
        ends, self._remote_ends = self._remote_ends, None
        assert ends is not None
        return ends

    def watch(self, is_watched: bool) -> None:
        """Read what the child sends and prints, or let it wait."""
        if not self._is_open:
            return
        if is_watched:
            self.host.watch(self._socket.fileno(), self.read_frames, self._write_on if self._unsent else None)
        else:
            self.host.unwatch(self._socket.fileno())
        for pipe in self._pipes:
            pipe.watch(is_watched)

    def read_frames(self) -> bool:
        """Pass on what is there; False at the end."""
        assert self.job is not None
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if data:
            self.host.frames(self.job, data)
            return True
        self.host.unwatch(self._socket.fileno())
        if self.on_closed is not None:
            self.on_closed()
        return False

    def read_output(self) -> None:
        """Pass on what has been printed so far."""
        for pipe in self._pipes:
            pipe.read()

    def drain(self) -> None:
        """Pass on all that is left, after the end of the process."""
        self.on_closed = None
        for pipe in self._pipes:
            pipe.drain()
        while self.read_frames():
            pass

    def write(self, data: bytes) -> None:
        """Send frames; what the socket does not take now follows when it does."""
        self._unsent += data
        self._write_on()

    def _write_on(self) -> None:
        was_waiting = bool(self._unsent)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            self.host.watch(self._socket.fileno(), self.read_frames, self._write_on)
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self._unsent = b""  # it died; its end is on the way
        if was_waiting:
            self.host.watch(self._socket.fileno(), self.read_frames)

    def close_frames(self) -> None:
        """Tell a waiting child that no run will come: it exits."""
        self.close()

    def close(self) -> None:
        """Close everything."""
        if not self._is_open:
            return
        self.watch(False)
        self._is_open = False
        self._socket.close()
        for pipe in self._pipes:
            os.close(pipe.file)
        for descriptor in self._remote_ends or ():
            os.close(descriptor)


class _Pipe:
    """One of a child's output streams."""

    def __init__(self, child: _Child, stream: str, file: int) -> None:
        self.file = file
        self._child = child
        self._stream = stream
        self._lines = Lines()
        self._second = 0.0
        self._bytes_this_second = 0
        self._is_open = True

    def watch(self, is_watched: bool) -> None:
        """Be told when there is something to read."""
        if is_watched and self._is_open:
            self._child.host.watch(self.file, self.read)
        else:
            self._child.host.unwatch(self.file)

    def read(self) -> None:
        """Pass on what is there, unless it is too much for one second."""
        if not self._read_once():
            return
        second = clock.monotonic() // 1
        if second != self._second:
            self._second, self._bytes_this_second = second, 0
        if self._bytes_this_second > OUTPUT_BYTES_PER_S:
            self._child.host.unwatch(self.file)
            self._child.throttled(lambda: self._child.watch(True))

    def drain(self) -> None:
        """Pass on all that is left, with the last line."""
        while self._read_once():
            pass
        self._pass_on(self._lines.flush())

    def _read_once(self) -> bool:
        try:
            data = os.read(self.file, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._child.host.unwatch(self.file)
            self._is_open = False
            return False
        self._pass_on(self._lines.feed(data))
        return True

    def _pass_on(self, lines: list[str]) -> None:
        if lines and self._child.job is not None:
            self._bytes_this_second += sum(map(len, lines))
            self._child.host.output(self._child.job, self._stream, lines)
