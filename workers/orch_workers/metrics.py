"""What a worker counts for Prometheus: it looks on at the frames that runs and their supervisor exchange.

Called from the supervisor's one loop, for every run and every frame. What is to be remembered of a run stands in its job, and
goes with it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sized
from typing import TYPE_CHECKING

from orch_workers.base import Job, Opened
from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.engine.protocol import Frame
from orchestrator.metrics import ENDS, Metrics
from orchestrator.states import TERMINAL

if TYPE_CHECKING:
    from orchestrator.metrics import Distribution
    from orchestrator.store.answers import Lapsed

_LEVELS = (("debug", logging.DEBUG), ("info", logging.INFO), ("warning", logging.WARNING), ("error", logging.ERROR))
_TERMINAL = {kind.value: kind.value.lower() for kind in TERMINAL}


class WorkerMetrics:
    """The metrics of one worker of ``pool`` with ``limit`` slots.

    ``name`` is the one that a person gave it, else '': one that changes with every start would be a new series each time.
    """

    def __init__(self, pool: str, name: str, limit: int, max_series: int) -> None:
        self.metrics = Metrics("worker", max_series, self._refresh)
        self.jobs: Sized = ()
        """What is executed."""
        self.redis_ahead_s = 0.0
        """By how much Redis's clock is ahead of this machine's."""
        self._pool = pool
        self._places: dict[str, tuple[Distribution, Distribution]] = {}
        self._up = self.metrics["orch_worker_up"].value(pool, name)
        self._last = self.metrics["orch_worker_last_heartbeat_timestamp_seconds"].value(pool, name)
        self._used = self.metrics["orch_worker_slots"].value(pool, "used")
        self.metrics["orch_worker_slots"].value(pool, "total").value = limit
        self._expired = self.metrics["orch_leases_expired_total"].value("run")
        recovered = self.metrics["orch_runs_recovered_total"]
        self._recovered = {kind: recovered.value(kind) for kind in ("lease", "process")}
        lines = self.metrics["orch_log_lines_total"]
        self._lines = {level: lines.value(level) for level in (*dict(_LEVELS), "critical")}
        dropped = self.metrics["orch_log_dropped_total"]
        self._dropped = {reason: dropped.value(reason) for reason in ("away", "full")}
        self._flow_runs = self.metrics["orch_flow_runs_total"]
        self._flow_durations = self.metrics["orch_flow_run_duration_seconds"]
        self._task_runs = self.metrics["orch_task_runs_total"]
        self._task_durations = self.metrics["orch_task_run_duration_seconds"]
        self._retries = self.metrics["orch_run_retries_total"]
        self._take = {
            protocol.START: self._start,
            protocol.LOG: self._log,
            protocol.TASKS: self._tasks,
            protocol.OPEN: self._open,
            protocol.END: self._end,
            protocol.ACQUIRE: self._acquire,
        }

    def _refresh(self) -> None:
        self._used.value = len(self.jobs)

    # -- what the supervisor tells

    def beat(self, *, is_up: bool) -> None:
        """Redis has, or has not, heard of the worker just now."""
        self._up.value = is_up
        if is_up:
            self._last.value = clock.now_ms() / 1000

    def claimed(self, job: Job, *, started: bool) -> None:
        """A run was claimed; ``started``: its body starts at once."""
        if started:
            job.began = clock.monotonic()
        run = job.run
        if run.attempt == 1:
            waited = (clock.now() - run.due).total_seconds() + self.redis_ahead_s
            delays, waits = self._places.get(run.queue) or self._place(run.queue)
            delays.observe(waited)
            if started:
                waits.observe(waited)

    def frame(self, job: Job, frame: Frame) -> None:
        """A frame from the process that executes the job. One that makes no sense counts nothing."""
        kind = frame[0]
        if kind == protocol.END and frame[1] == job.run.id and frame[2] in _TERMINAL:
            job.ending = frame[2]
        elif kind in self._take:
            # The relay has a word to say about what cannot be read.
            with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
                self._take[kind](job, frame)

    def reply(self, job: Job, frame: Frame) -> None:
        """A frame to that process."""
        if frame[0] == protocol.ENDED:
            self._ended(job, frame[1], frame[2])
        elif job.asked and frame[0] == protocol.ANSWER and frame[1] in job.asked:
            began, limits = job.asked.pop(frame[1])
            if frame[2] and frame[3][0] == "granted":
                for limit in limits:
                    self.metrics["orch_concurrency_wait_seconds"].distribution(limit).observe(clock.monotonic() - began)

    def line(self, level: int) -> None:
        """A run has logged or printed a line."""
        name = next((name for name, most in _LEVELS if level <= most), "critical")
        self._lines[name].value += 1

    def dropped(self, *, away: int, full: int) -> None:
        """So many log lines have been dropped in all, by the reason."""
        self._dropped["away"].value = away
        self._dropped["full"].value = full

    def lapsed(self, lapsed: Lapsed) -> None:
        """This worker, standing in for a scheduler, has dealt with leases that were over."""
        self._expired.value += lapsed.requeued + lapsed.crashed + lapsed.cancelled
        self._recovered["lease"].value += lapsed.requeued

    # -- frames of runs

    def _place(self, queue: str) -> tuple[Distribution, Distribution]:
        self._places[queue] = found = (
            self.metrics["orch_run_schedule_delay_seconds"].distribution(self._pool, queue),
            self.metrics["orch_run_queue_wait_seconds"].distribution(self._pool, queue),
        )
        return found

    def _start(self, job: Job, frame: Frame) -> None:
        _, run, name, at_ms = frame
        if name == "Retrying":
            self._again(self._of(job, run), "error")
        if run != job.run.id:
            return
        if not job.began and job.run.attempt == 1:
            waits = self._place(job.run.queue)[1]
            waits.observe(at_ms / 1000 + self.redis_ahead_s - job.run.due.timestamp())
        job.began = clock.monotonic()

    def _log(self, _: Job, frame: Frame) -> None:
        for line in frame[2]:
            self.line(line[1])

    def _open(self, job: Job, frame: Frame) -> None:
        fields = frame[2]
        if job.opened is None:
            job.opened = {}
        job.opened[fields["id"]] = Opened(fields["flow"], clock.monotonic())

    def _end(self, job: Job, frame: Frame) -> None:
        """Of a subflow; or of an attempt, which is followed by another."""
        if frame[2] not in _TERMINAL:
            self._again(self._of(job, frame[1]), "error")
        elif job.opened:
            job.opened[frame[1]].ending = frame[2]

    def _acquire(self, job: Job, frame: Frame) -> None:
        _, request, _, of, names, *_ = frame
        if job.asked is None:
            job.asked = {}
        job.asked[request] = clock.monotonic(), [f"{of}:{name}" for name in names]

    def _tasks(self, job: Job, frame: Frame) -> None:
        flow, deployment = self._of(job, frame[1])[0], job.run.deployment_name or ""
        for row in frame[2]:
            _, _, task, _, kind, _, _, _, started, ended, run_count, *_ = row
            if kind not in _TERMINAL:
                continue
            state = _TERMINAL[kind]
            self._task_runs.value(flow, task, deployment, state).value += 1
            if started is not None and ended is not None:
                self._task_durations.distribution(task, state).observe((ended - started) / 1000)
            if run_count > 1:
                self._retries.value(flow, task, "error").value += run_count - 1

    # -- ends

    def _ended(self, job: Job, run: str, answer: str) -> None:
        what: Job | Opened = job
        flow = job.run.flow
        if run != job.run.id:
            if not job.opened or run not in job.opened:
                return
            what = job.opened.pop(run)
            flow = what.flow
        elif answer == "requeued":
            self._recovered["process"].value += 1
            self._again(self._of(job, run), "lost")
        ending, began = what.ending, what.began
        state = _TERMINAL.get(ending) if answer in ("ok", "again") else answer
        if state not in ENDS:
            return
        now = clock.monotonic()
        took = now - (began or now)
        if job.run.kind == "task":
            self._task_runs.value("", flow, job.run.deployment_name or "", state).value += 1
            self._task_durations.distribution(flow, state).observe(took)
        else:
            self._flow_runs.value(flow, job.run.deployment_name or "", state).value += 1
            self._flow_durations.distribution(flow, state).observe(took)

    def _of(self, job: Job, run: str) -> tuple[str, str]:
        """Flow and task of a run that the job executes: one of the two is ''."""
        if run != job.run.id:
            return (job.opened or {})[run].flow, ""
        return ("", job.run.flow) if job.run.kind == "task" else (job.run.flow, "")

    def _again(self, what: tuple[str, str], reason: str) -> None:
        self._retries.value(*what, reason).value += 1
