"""How long it takes until something happens: fresh processes, from their start to their end."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.measure import Measure
from bench.stage import BUILD, environment

FIRST_CALL = """
from orchestrator import flow, task

@task
def one(x: int) -> int:
    return x

@flow
def first(x: int) -> int:
    return one(x)

assert first(1) == 1
"""


def measure(quick: bool) -> list[Measure]:
    """Medians over fresh processes."""
    runs = 7 if quick else 21
    script = Path(sys.executable).with_name("orch")
    orch = [str(script)] if script.exists() else [sys.executable, "-m", "orch_cli"]
    home = BUILD / "startup"
    home.mkdir(parents=True, exist_ok=True)

    def took(name: str, command: Sequence[str], meaning: str, target: float | None = None) -> Measure:
        values = [_milliseconds(command, home) for _ in range(runs + 2)][2:]
        return Measure(name, median(values), "ms", runs, meaning, target)

    python = [sys.executable, "-c"]
    measures = [
        took("python", [*python, "pass"], "a process that does nothing, for comparison"),
        took("orch --help", [*orch, "--help"], "median of fresh processes", 150),
        took("orch version", [*orch, "version"], "median of fresh processes", 150),
        took("import orchestrator", [*python, "import orchestrator"], "median of fresh processes", 150),
        took("first flow call", [*python, FIRST_CALL], "import flow and task, decorate, call once, nothing configured", 400),
    ]
    shutil.rmtree(home)
    return measures


def _milliseconds(command: Sequence[str], home: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        command,
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return 1000 * (time.perf_counter() - start)
