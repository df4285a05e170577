"""From the call that creates a run to the first line of its flow's body."""

from __future__ import annotations

import random
import time
from statistics import median

from bench.marks import Marks
from bench.measure import Measure, percentile
from bench.stage import Stage


def measure(quick: bool) -> list[Measure]:
    """One run at a time with random pauses, a scheduler and a worker running, nobody watching."""
    count = 60 if quick else 200
    chance = random.Random(1)
    with Stage("latency") as stage:
        marks = Marks(stage.home / "marks")
        deployment = stage.deploy("marked")
        with stage.scheduler(), stage.worker(4):

            def once() -> float:
                run, before = stage.new_run(deployment, marks=str(marks.path)), len(marks)
                start = time.time()
                stage.store.runs.create([run])
                marks.wait_for(before + 1, 30)
                return 1000 * (marks.at(before) - start)

            for _ in range(10):
                once()
                time.sleep(0.05)
            values = []
            for _ in range(count):
                values.append(once())
                time.sleep(chance.uniform(0.005, 0.1))
    what = "from create() to the first line of the flow's body, warm process worker"
    return [
        Measure("start latency p50", median(values), "ms", count, what, 5),
        Measure("start latency p99", percentile(values, 0.99), "ms", count, what, 25),
    ]
