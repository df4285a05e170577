"""What metrics cost a worker: of its time per run, and of its throughput."""

from __future__ import annotations

import statistics
import time

from bench.marks import Marks
from bench.measure import Measure
from bench.stage import Stage
from bench.throughput import bodies_per_s
from orch_workers.base import Job
from orch_workers.metrics import WorkerMetrics
from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.models import Deployment
from orchestrator.store.answers import ClaimedRun

PER_RUN_US = 1.5
"""2 % of the 77 us that a run takes a worker that executes 13,000 of them a second."""


def measure(quick: bool) -> list[Measure]:
    """The supervisor's part alone, and one worker after the other with and without: medians."""
    pairs, count, looked_at = (1, 300, 20_000) if quick else (5, 1_500, 100_000)
    with Stage("metrics") as stage:
        marks = Marks(stage.home / "marks")
        deployment = stage.deploy("marked")
        stage.pretend_scheduler()
        bodies_per_s(stage, deployment, marks, count)  # the first one loads what the others find loaded
        lost = []
        for _ in range(pairs):
            without = bodies_per_s(stage, deployment, marks, count)
            lost.append(1 - bodies_per_s(stage, deployment, marks, count, "--metrics-port", "0") / without)
    return [
        Measure(
            "metrics, per run",
            min(_per_run_us(looked_at) for _ in range(5)),
            "us",
            looked_at,
            "of a worker's time: claim, end and what was waited for; the best of five",
            PER_RUN_US,
        ),
        Measure(
            "metrics, throughput lost",
            100 * statistics.median(lost),
            "%",
            pairs * count,
            "no-op flow runs through one process worker, with --metrics-port and without; the median of pairs",
            2,
        ),
    ]


def _per_run_us(count: int) -> float:
    metrics = WorkerMetrics("etl", "", 4, 500)
    ids = [f"{number:036}" for number in range(count)]
    due = clock.now()
    runs = [
        ClaimedRun(run, 1, 0, 0, "flow", "load", "name", "id", "nightly", 1, {}, (), "etl", "default", due, None, None)
        for run in ids
    ]
    ends = [[protocol.END, run, "COMPLETED", "Completed", "", b"", None] for run in ids]
    answers = [[protocol.ENDED, run, "ok"] for run in ids]
    jobs = [Job(run, Deployment("nightly", "load", ""), 0.0) for run in runs]
    began = time.thread_time()
    for job, end, answer in zip(jobs, ends, answers, strict=True):
        metrics.claimed(job, started=True)
        metrics.frame(job, end)
        metrics.reply(job, answer)
    return (time.thread_time() - began) / count * 1e6
