"""How many runs a second one process worker executes, each in a process of its own, and what that costs Redis."""

from __future__ import annotations

import os
import time

from bench.marks import Marks
from bench.measure import Measure
from bench.stage import POOL, Stage
from orchestrator.models import Deployment


def measure(quick: bool) -> list[Measure]:
    """A queue that is full when the worker comes; the best of three times."""
    times, count, counted = (1, 300, 100) if quick else (3, 1_500, 300)
    with Stage("throughput") as stage:
        marks = Marks(stage.home / "marks")
        deployment = stage.deploy("marked")
        stage.pretend_scheduler()
        empty = stage.used_bytes()
        rates = [bodies_per_s(stage, deployment, marks, count) for _ in range(times)]
        stage.wait_for_completed(times * count, 20)
        ended_bytes = (stage.used_bytes() - empty) / (times * count)
        # Apart from the rest: being watched command by command costs Redis time.
        stage.pretend_scheduler()
        reads = stage.reads()
        with stage.counted_calls() as calls:
            bodies_per_s(stage, deployment, marks, counted)
        reads = stage.reads() - reads - 1
    return [
        Measure(
            "throughput, 4 slots",
            max(rates),
            "runs/s",
            times * count,
            "no-op flow runs through one process worker, a process for each",
            250,
            is_rate=True,
        ),
        Measure("fork, exit, wait", _forks_per_s(), "/s", 500, "by this small process alone, for comparison"),
        Measure("calls per run, full queue", sum(calls.values()) / counted, "calls", counted, _CALLS),
        Measure("round trips per run, full queue", reads / counted, "trips", counted, "the same, counting a pipeline once"),
        Measure(
            "ended run, through a worker",
            ended_bytes,
            "bytes",
            times * count,
            "Redis memory of a no-op run, with all it left there",
        ),
    ]


_CALLS = "commands by the worker, its start and end included; those inside scripts are not among them"


def bodies_per_s(stage: Stage, deployment: Deployment, marks: Marks, count: int, *options: str) -> float:
    """Queue runs, then start a worker for them; how many bodies began a second. Nobody else asks Redis anything meanwhile."""
    before = len(marks)
    stage.store.runs.create([stage.new_run(deployment, marks=str(marks.path)) for _ in range(count)])
    with stage.command("worker", "start", "--pool", POOL, "--limit", "4", *options):
        marks.wait_for(before + count, 120, pause_s=0.01)
        time.sleep(0.5)
    moments = marks.all()[before:]
    return (count - 1) / (max(moments) - min(moments))


def _forks_per_s(count: int = 500) -> float:
    start = time.perf_counter()
    for _ in range(count):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    return count / (time.perf_counter() - start)
