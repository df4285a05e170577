"""How many runs a second one process worker executes, each in a process of its own, and what that costs Redis."""

from __future__ import annotations

import time

from bench.marks import Marks
from bench.measure import Measure
from bench.stage import POOL, Stage


def measure(quick: bool) -> list[Measure]:
    """A queue that is full when the worker comes."""
    count = 300 if quick else 1_500
    with Stage("throughput") as stage:
        marks = Marks(stage.home / "marks")
        deployment = stage.deploy("marked")
        stage.pretend_scheduler()
        stage.store.runs.create([stage.new_run(deployment, marks=str(marks.path)) for _ in range(count)])
        with stage.counted_calls() as calls:
            reads = stage.reads()
            # Nobody else asks Redis anything meanwhile.
            with stage.command("worker", "start", "--pool", POOL, "--limit", "4"):
                marks.wait_for(count, 120)
                time.sleep(0.5)
            reads = stage.reads() - reads - 1
        stage.wait_for_completed(count, 20)
        moments = marks.all()
    return [
        Measure(
            "throughput, 4 slots",
            (count - 1) / (max(moments) - min(moments)),
            "runs/s",
            count,
            "no-op flow runs through one process worker, a process for each",
            250,
            is_rate=True,
        ),
        Measure(
            "calls per run, full queue",
            (sum(calls.values()) - 2) / count,
            "calls",
            count,
            "commands that the worker sends; those inside scripts are not among them",
        ),
        Measure("round trips per run, full queue", reads / count, "trips", count, "reads of Redis from its clients' sockets"),
    ]
