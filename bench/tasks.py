"""What a task costs inside a flow, with its states recorded."""

from __future__ import annotations

from bench.measure import Measure
from bench.stage import Stage


def measure(quick: bool) -> list[Measure]:
    """Tasks that do nothing, in a flow that a process worker executes; the best of three flow runs each."""
    count, times = (500, 2) if quick else (2_000, 3)
    figures = {}
    with Stage("tasks") as stage, stage.worker(1):
        completed = 0
        for kind in ("sequential", "submitted"):
            deployment, values = stage.deploy(kind), []
            for number in range(times):
                report = stage.home / f"{kind}-{number}"
                [created] = stage.store.runs.create([stage.new_run(deployment, count=count, report=str(report))])
                completed += 1
                stage.wait_for_completed(completed, 60)
                values.append(float(report.read_text()) / count * 1e6)
                recorded = stage.store.runs.tasks(created.id)
                assert sum(task.state.is_completed() for task in recorded) == count + 1, len(recorded)
            figures[kind] = min(values)
    return [
        Measure("task, called", figures["sequential"], "us", count, "one after another in a flow, states recorded", 150),
        Measure("task, submitted", figures["submitted"], "us", count, "submit() of all, then result(), states recorded"),
    ]
