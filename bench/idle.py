"""What a worker costs that has nothing to do, and a cluster of them, and what one run at a time costs Redis."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.marks import Marks
from bench.measure import Measure
from bench.stage import POOL, Stage, pss_mb, wait_until
from orchestrator.models import Deployment


def measure(quick: bool) -> list[Measure]:
    """A worker with one warm child."""
    seconds, count = (10, 30) if quick else (25, 100)
    with Stage("idle") as stage:
        marks = Marks(stage.home / "marks")
        deployment = stage.deploy("marked")
        stage.pretend_scheduler()
        with stage.worker(4) as worker:
            _run(stage, deployment, marks, 3)
            time.sleep(2)
            memory = pss_mb(worker.pid)
            stage.pretend_scheduler()
            beside = _calls_while(stage, lambda: time.sleep(seconds))
            stage.pretend_scheduler()
            reads = stage.reads()
            busy = _calls_while(stage, lambda: _run(stage, deployment, marks, count))
            reads = stage.reads() - reads - 1
        with stage.worker(4):
            stage.store.pools.scheduler_leaves("bench")
            time.sleep(6)
            alone = _calls_while(stage, lambda: time.sleep(seconds))
    many, seconds_of_many = (50, 10) if quick else (200, 40)
    with Stage("cluster") as stage, stage.program("bench.cluster", str(many), POOL):
        with stage.scheduler():
            wait_until(lambda: stage.store.pools.get(POOL).workers == many, seconds=120)
            time.sleep(15)
            cluster = _calls_while(stage, lambda: time.sleep(seconds_of_many))
        time.sleep(15)
        orphans = _calls_while(stage, lambda: time.sleep(seconds_of_many))
    return [
        Measure("idle worker", memory, "MB", 1, "PSS of supervisor, template and one warm child", 100),
        Measure("idle calls", beside / seconds, "/s", seconds, "calls of an idle worker while a scheduler lives", 2),
        Measure(
            "idle calls, no scheduler", alone / seconds, "/s", seconds, "the same, when it has a scheduler's duties too", 2
        ),
        Measure(
            "idle cluster", cluster / seconds_of_many, "/s", many, "calls of so many idle workers and a scheduler", float(many)
        ),
        Measure("idle cluster, no scheduler", orphans / seconds_of_many, "/s", many, "the same when none lives", float(many)),
        Measure("calls per run", busy / count, "calls", count, "one run at a time, create included; not those inside scripts"),
        Measure("round trips per run", reads / count, "trips", count, "one run at a time, create included"),
    ]


def _run(stage: Stage, deployment: Deployment, marks: Marks, count: int) -> None:
    for _ in range(count):
        before = len(marks)
        stage.store.runs.create([stage.new_run(deployment, marks=str(marks.path))])
        marks.wait_for(before + 1, 30)
        time.sleep(0.05)


def _calls_while(stage: Stage, work: Callable[[], None]) -> int:
    with stage.counted_calls() as calls:
        work()
    return sum(calls.values())
