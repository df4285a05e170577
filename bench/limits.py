"""What concurrency limits cost: throughput with them and without, and how soon a parked run starts when a slot is free."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from statistics import median

from bench.marks import Marks
from bench.measure import Measure, percentile
from bench.stage import Stage

TAGS = [f"tag-{number}" for number in range(20)]
LIMIT = 2
WORKERS = 2
BODY_MS = 20


def measure(quick: bool) -> list[Measure]:
    """Two workers of four slots. Runs bear one to three of twenty tags, of two slots each; then one tag of one slot."""
    times, count, waiting = (1, 200, 40) if quick else (3, 1_500, 300)
    with Stage("limits") as stage:
        # In turn, so that whatever else the machine does meets both.
        rates = [(_rate(stage, count, limited=False), _rate(stage, count, limited=True)) for _ in range(times)]
        free, limited = (max(rate) for rate in zip(*rates, strict=True))
        gaps = _gaps(stage, waiting)
    what = "from the last line of the body that held the slot to the first of the next one's"
    return [
        Measure(
            "throughput, no limits", free, "runs/s", times * count, "1 to 3 of 20 tags a run, 20 ms each, 2 workers of 4 slots"
        ),
        Measure("throughput, 20 limits", limited, "runs/s", times * count, "the same, when each tag allows two at a time"),
        Measure("throughput kept under limits", 100 * limited / free, "%", times * count, "of that without", 70, is_rate=True),
        Measure("slot handed over p50", median(gaps), "ms", len(gaps), what),
        Measure("slot handed over p99", percentile(gaps, 0.99), "ms", len(gaps), what, 50),
    ]


def _rate(stage: Stage, count: int, *, limited: bool) -> float:
    """Queue runs, start workers, and see how many end a second; the last twentieth, in which workers idle, is left out."""
    chance = random.Random(1)
    for tag in TAGS:
        stage.store.limits.set(f"tag:{tag}", LIMIT if limited else None)
    deployment = stage.deploy("held")
    marks = Marks(stage.home / f"rate-{limited}")
    runs = [stage.new_run(deployment, marks=str(marks.path), milliseconds=BODY_MS) for _ in range(count)]
    for run in runs:
        run.tags = tuple(chance.sample(TAGS, chance.randint(1, 3)))
    stage.store.runs.create(runs)
    with stage.scheduler(), stage.workers(WORKERS, limit=4):
        marks.wait_for(2 * count, 300, pause_s=0.05)
    moments = sorted(marks.all())
    counted = len(moments) * 19 // 20
    return counted / 2 / (moments[counted - 1] - moments[0])


def _gaps(stage: Stage, count: int) -> list[float]:
    """Runs wait for the one slot of a tag: milliseconds from each end of a body to the start of the next one."""
    stage.store.limits.set("tag:single", 1)
    deployment = stage.deploy("held")
    marks = Marks(stage.home / "gaps")
    with stage.scheduler(), stage.workers(WORKERS, limit=4):
        runs = [stage.new_run(deployment, marks=str(marks.path), milliseconds=BODY_MS) for _ in range(count)]
        for run in runs:
            run.tags = ("single",)
        stage.store.runs.create(runs)
        marks.wait_for(2 * count, 120, pause_s=0.05)
        time.sleep(0.2)
    return handovers(marks.all())


def handovers(moments: Sequence[float]) -> list[float]:
    """Of bodies that start and end one after the other: milliseconds from each end to the next start."""
    # The first few meet cold templates.
    first = 2 * (len(moments) // 20)
    return [1000 * (moments[i + 1] - moments[i]) for i in range(first + 1, len(moments) - 1, 2)]
