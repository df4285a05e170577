"""``orch demo``, as a newcomer starts it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from harness import python
from orchestrator.store import embedded


def demo(home: Path, **environment: str) -> tuple[int, str, str]:
    process = python("-m", "orch_cli", "demo", env={"ORCH_HOME": str(home), **environment})
    out, err = process.communicate(timeout=90)
    return process.returncode, out, err


@pytest.mark.timeout(200)
def test_the_demonstration_runs_two_flows_checks_their_results_and_leaves_nothing_running(orch_home: Path) -> None:
    for _ in range(2):
        status, out, err = demo(orch_home)
        assert status == 0, err
        assert "Hello, Prefect Flow! (reversed: wolF tceferP)" in out
        assert "IncompleteRead" in out
        assert "hello-flow/hello_flow\tCompleted" in out
        assert "airports/world\tCompleted" in out
        assert out.count("\tright") == 2
        assert "Try next:" in err
        assert "\x1b" not in out + err
        assert not embedded.running(orch_home)
        with closing(sqlite3.connect(orch_home / "demo" / "airports.sqlite")) as connection:
            assert connection.execute("SELECT count(*) FROM region").fetchone() == (10,)


def test_a_configured_redis_is_left_alone(orch_home: Path) -> None:
    status, _, err = demo(orch_home, ORCH_REDIS_URL="redis://127.0.0.1:1/0")
    assert status == 0, err
    assert "A Redis is configured. The demonstration leaves it alone" in err
