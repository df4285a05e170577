"""`make bench` in small: every subject can be measured, and nobody else's settings matter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import python

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(240)
def test_throughput_and_tasks_are_measured_and_shown_with_their_targets() -> None:
    only = ("--only", "throughput", "--only", "tasks")
    process = python("-m", "bench", "--quick", *only, cwd=ROOT, env={"ORCH_REDIS_URL": "redis://127.0.0.1:1"})
    out, err = process.communicate(timeout=220)
    assert process.returncode == 0, err
    assert ">= 250" in out
    assert "<= 150" in out
    assert not (ROOT / "build" / "bench" / "throughput").exists()
