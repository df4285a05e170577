"""How many background task runs a second one thread worker executes, and what CPU time that takes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.measure import Measure
from bench.stage import Stage, tree
from orchestrator.models import NewRun, RunFilter

_POOL = "tasks"
_MODULE = """
from orchestrator import task

@task
def plain(number: int) -> None:
    pass

@task
async def coroutine(number: int) -> None:
    pass
"""


def measure(quick: bool) -> list[Measure]:
    """A queue that is full when the worker comes; the middle of it, the best of three times."""
    count, times = (5_000, 1) if quick else (40_000, 3)
    found = {name: max(_drain(name, count) for _ in range(times)) for name in ("plain", "coroutine")}
    how = f"no-op {{}} tasks, one executor process, {count:,} queued"
    return [
        Measure("drain, functions", found["plain"][0], "runs/s", count, how.format("sync"), 13_000, is_rate=True),
        Measure("drain, coroutines", found["coroutine"][0], "runs/s", count, how.format("async"), 13_000, is_rate=True),
        Measure("worker CPU, functions", -found["plain"][1], "us/run", count, "all processes of the worker", 60),
        Measure("worker CPU, coroutines", -found["coroutine"][1], "us/run", count, "all processes of the worker", 60),
    ]


def _drain(function: str, count: int) -> tuple[float, float]:
    """Runs a second, and microseconds of the worker's CPU time a run, negative."""
    with Stage("drain") as stage:
        (stage.home / "bench_tasks.py").write_text(_MODULE)
        stage.store.pools.create(_POOL, "thread")
        stage.pretend_scheduler()
        runs = [
            NewRun(
                function,
                pool=_POOL,
                kind="task",
                entrypoint=f"bench_tasks:{function}",
                parameters={"args": [number], "kwargs": {}},
            )
            for number in range(count)
        ]
        stage.store.runs.create(runs)
        with stage.command("worker", "start", "--pool", _POOL, "--type", "thread") as worker:
            begun, start, cpu = _wait_for(stage, count // 10), time.monotonic(), _cpu_s(worker.pid)
            ended = _wait_for(stage, count * 9 // 10)
            seconds, cpu = time.monotonic() - start, _cpu_s(worker.pid) - cpu
            stage.wait_for_completed(count, 60)
    return (ended - begun) / seconds, -cpu / (ended - begun) * 1e6


def _wait_for(stage: Stage, count: int) -> int:
    """Until so many runs are Completed; how many it was. Asked seldom: it costs the server time."""
    while (completed := stage.store.queries.count(RunFilter(states=("Completed",)))) < count:
        time.sleep(0.02)
    return completed


def _cpu_s(pid: int) -> float:
    """What a process and all below it have used."""
    ticks = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
