"""Every example runs, with nothing configured and nothing running, and says what its first lines promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from documents import ROOT

EXAMPLES = ROOT / "examples"

SAYS = {
    "concurrency.py": ["The code goes on without slots", "20 files, 194560 bytes"],
    "hello.py": ["Hello, World!"],
    "retries.py": ["retry 1 of 2", "retry 2 of 2", "The price is 41.5"],
    "mapping.py": ["3 texts, 5 words"],
    "nested.py": ["Started flow 'region-total', called by flow run", "The total is 12"],
    "parameters.py": ["7 days from 31 January 2026 for eu, us"],
    "logs.py": ["Flow run 'talk-about-weather'", "This is a warning", "A print inside a task is a log line too"],
}

NEEDS_A_FLEET = ("rq_tasks.py", "background_tasks.py")
"""tests/system/test_rq.py and test_background_tasks.py run these."""


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, *NEEDS_A_FLEET}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_without_a_server(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "ORCH_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = iter(done.stderr.splitlines())
    for text in SAYS[name]:
        assert any(text in line for line in said), f"{text!r} is not in {done.stderr}"
    assert not (tmp_path / "home").exists(), "a server was started"


@pytest.mark.parametrize("name", [*SAYS, *NEEDS_A_FLEET])
def test_an_example_says_what_it_shows_and_how_to_run_it(name: str) -> None:
    source = (EXAMPLES / name).read_text()
    assert source.startswith('"""')
    assert f"\npython {name}\n" in source.split('"""')[1]
