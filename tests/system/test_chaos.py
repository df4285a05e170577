"""`make chaos` in small: SIGKILL under load, judged by a ledger outside Redis."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import python

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(240)
def test_no_run_is_lost_or_counted_twice_while_processes_are_killed() -> None:
    process = python("-m", "bench.chaos", "--quick", "--seed", "7", cwd=ROOT)
    out, err = process.communicate(timeout=220)
    assert process.returncode == 0, out + err
    assert "0 lost, 0 double-completed" in out
    assert out.rstrip().endswith("OK")
