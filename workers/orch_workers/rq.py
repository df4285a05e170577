"""The executor's end of ``RQTaskRunner``: the function that RQ workers call. It runs one attempt of one task and tells the
flow's process over Redis what happens, while it happens.

It says ``started``, then that it is ``alive`` four times in ``lost_after`` seconds, and at the end the answer; between these,
``frames`` about log lines and about runs inside the task. When nobody waits any more, it does not begin, or stops.
"""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgpack

from orchestrator import clock
from orchestrator.engine import protocol, remote, termination
from orchestrator.engine.link import Link

_GATHER_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.5
_FORWARDED = frozenset({protocol.LOG, protocol.TASKS, protocol.OPEN, protocol.START, protocol.END})
_ELSEWHERE = "It cannot be done from a task on an RQ worker, which has no connection to Orch."
_HINT = "Do it in the flow, and pass the task what it needs as arguments."


def run_task(envelope: str) -> None:
    """Run one attempt of a task: what ``RQTaskRunner`` enqueues. ``envelope`` is base64 of msgpack.

    Whatever the task does, for RQ the job has succeeded as soon as the flow's process can know the answer.
    """
    from rq import get_current_job

    job = get_current_job()
    assert job is not None, "RQ calls this."
    told: dict[str, Any] = msgpack.unpackb(base64.b64decode(envelope))
    report = _Report(job.connection, told["answers"], told["ttl"], job.id)
    if not job.connection.exists(told["lease"]):
        return
    report.send(["started", job.worker_name or "", socket.gethostname()])
    installed = termination.install()
    stop = termination.stop_thread if installed else _raise_in
    ours, its = socket.socketpair()
    thread = threading.get_ident()
    relay = _Relay(its, report, told["lease"], told["beat"], lambda: _stop(told["task_run"], thread, stop))
    relay.start()
    link = Link(ours, interval=_GATHER_SECONDS)
    # The flow's process has taken the slots of the task's tags; those of tasks inside it hold nothing here.
    link.limited_tags = frozenset()
    try:
        answer = remote.perform(told["call"], link)
    except termination.Terminated:
        answer = ["stopped"]
    finally:
        if installed:
            termination.uninstall()
        link.close()
        relay.join()
    report.send(answer)


class _Report:
    """Messages to the flow's process: entries of a stream that lives as long as somebody may read it."""

    def __init__(self, connection: Any, stream: str, ttl: int, job: str) -> None:
        self._connection = connection
        self._stream = stream
        self._ttl = ttl
        self._job = job

    def send(self, message: list[Any], lease: str = "") -> bool:
        """Tell it, trying for a minute where Redis is away. Whether ``lease`` is there."""
        entry = {"m": msgpack.packb([self._job, *message], unicode_errors="replace")}
        deadline = clock.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                pipeline = self._connection.pipeline(transaction=True)
                pipeline.exists(lease)
                pipeline.xadd(self._stream, entry)
                pipeline.expire(self._stream, self._ttl)
                return bool(pipeline.execute()[0])
            except Exception:  # redis-py's, which only the store knows
                if clock.monotonic() > deadline:
                    raise
                threading.Event().wait(_PAUSE_SECONDS)


class _Relay(threading.Thread):
    """Stands where a recorder would: takes the link's frames, sends on those about logs and runs, answers the others."""

    def __init__(self, sock: socket.socket, report: _Report, lease: str, beat: float, leave: Callable[[], None]) -> None:
        super().__init__(name="orch-rq-relay", daemon=True)
        self._socket = sock
        self._report = report
        self._lease = lease
        self._beat = beat
        self._leave = leave
        sock.settimeout(beat)

    def run(self) -> None:
        """Until the link is closed."""
        frames = protocol.Frames()
        beats_at = clock.monotonic() + self._beat
        while True:
            try:
                received = self._socket.recv(256 * 1024)
            except TimeoutError:
                received = None
            if received == b"":
                return
            forwarded = [frame for frame in frames.feed(received or b"") if self._is_for_the_flow(frame)]
            if forwarded:
                self._report.send(["frames", forwarded])
            if clock.monotonic() >= beats_at:
                beats_at = clock.monotonic() + self._beat
                if not self._report.send(["alive"], self._lease):
                    self._leave()

    def _is_for_the_flow(self, frame: protocol.Frame) -> bool:
        if frame[0] in (protocol.ASK, protocol.ACQUIRE):
            kind = "ConcurrencySlotAcquisitionError" if frame[0] == protocol.ACQUIRE else "OrchError"
            problem = {"type": kind, "message": _ELSEWHERE, "hint": _HINT}
            self._socket.sendall(protocol.pack([protocol.ANSWER, frame[1], False, problem]))
        return frame[0] in _FORWARDED


def _stop(task_run: str, thread: int, stop: Callable[[int], None]) -> None:
    termination.stop_run(task_run, None)
    if not termination.is_watched(task_run):
        stop(thread)


def _raise_in(thread: int) -> None:
    termination.throw(thread, termination.Terminated)
