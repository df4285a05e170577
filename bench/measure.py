"""One measured figure, and the arithmetic that all subjects share."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measure:
    """A figure: ``runs`` is how often it was taken, or over how many things; ``target`` is the bound that must hold, if any.

    ``is_rate`` tells which side of the bound is the good one: at least it for rates, at most it for everything else.
    """

    name: str
    value: float
    unit: str
    runs: int
    meaning: str
    target: float | None = None
    is_rate: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.is_rate else self.value <= self.target


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all values (0..1) do not exceed: nearest rank, no interpolation."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def machine() -> dict[str, str | int | float]:
    """Where the figures come from."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(_cores()),
        "cpu": _cpu(),
        "load": os.getloadavg()[0],
    }


def table(measures: Sequence[Measure]) -> str:
    """All figures as text columns."""
    titles = ("name", "value", "unit", "runs", "target", "", "what it means")
    rows = [titles, *(_row(measure) for measure in measures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles) - 1)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in (1, 3) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _row(measure: Measure) -> tuple[str, ...]:
    target = "" if measure.target is None else f"{'>=' if measure.is_rate else '<='} {measure.target:g}"
    verdict = {None: "", True: "ok", False: "MISSED"}[measure.holds]
    return (measure.name, _number(measure.value), measure.unit, f"{measure.runs:,}", target, verdict, measure.meaning)


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
