"""``orch server``, ``orch scheduler``, ``orch worker`` and ``orch dev`` as processes that people start and stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from harness import DURABLE, RedisServer, eventually, python
from orch_cli.main import main
from orchestrator.models import NewRun
from orchestrator.settings import child_environment
from orchestrator.store import embedded, open_store

Capture = pytest.CaptureFixture[str]


def orch(*words: str) -> subprocess.Popen[str]:
    return python("-m", "orch_cli", *words)


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def live(kind: str) -> int:
    done = orch("server", "status", "-o", "json")
    return int(json.loads(done.communicate(timeout=60)[0])[kind] or 0)


def test_the_server_is_started_by_what_needs_it_and_stays_until_it_is_stopped(orch_home: Path, capsys: Capture) -> None:
    assert main(["server", "status"]) == 6
    assert main(["server", "stop"]) == 0
    capsys.readouterr()
    assert main(["work-pool", "ls"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "private Valkey" in line]) == 1
    assert main(["work-pool", "ls"]) == 0
    assert main(["server", "status", "-o", "json"]) == 0
    assert main(["server", "stop"]) == 0
    assert not embedded.running(orch_home)


def test_the_server_is_not_stopped_under_a_worker_unless_forced(orch_home: Path, capsys: Capture) -> None:
    main(["work-pool", "create", "etl"])
    worker = orch("worker", "start", "--pool", "etl")
    eventually(lambda: live("workers") == 1, timeout=30)
    capsys.readouterr()
    assert main(["server", "stop"]) == 5
    assert "1 worker is still connected" in capsys.readouterr().err
    assert stop(worker)[0] == 0
    assert main(["server", "stop"]) == 0


def test_a_server_in_the_foreground_runs_a_scheduler_and_stops_with_it(orch_home: Path) -> None:
    server = orch("server", "start")
    eventually(lambda: embedded.running(orch_home) and live("schedulers") == 1, timeout=30)
    code, said = stop(server, signal.SIGINT)
    assert (code, "Stopped the server" in said) == (0, True)
    assert not embedded.running(orch_home)


def test_a_server_in_the_foreground_stays_for_the_workers_of_others(orch_home: Path) -> None:
    main(["work-pool", "create", "etl"])
    server = orch("server", "start", "--no-scheduler")
    worker = orch("worker", "start", "--pool", "etl")
    eventually(lambda: live("workers") == 1, timeout=30)
    assert server.stderr is not None
    eventually(lambda: "Ctrl-C stops it" in server.stderr.readline())
    code, said = stop(server)
    assert (code, "goes on: 1 worker is still connected" in said) == (0, True)
    assert embedded.running(orch_home)
    stop(worker)


def test_a_worker_needs_a_pool_that_exists(orch_home: Path, capsys: Capture) -> None:
    main(["work-pool", "create", "etl"])
    assert main(["worker", "start", "--pool", "nope"]) == 3
    assert "orch work-pool create nope" in capsys.readouterr().err.replace("'", "")
    assert main(["worker", "start"]) == 2


def test_a_worker_in_burst_ends_when_nothing_is_left(orch_home: Path) -> None:
    main(["work-pool", "create", "etl"])
    worker = orch("worker", "start", "--pool", "etl", "--burst")
    worker.communicate(timeout=60)
    assert worker.returncode == 0


def test_dev_runs_all_in_one_and_ctrl_c_stops_all(orch_home: Path, tmp_path: Path) -> None:
    child = pexpect.spawn(sys.executable, ["-m", "orch_cli", "dev"], cwd=tmp_path, env=child_environment(), timeout=60)
    child.expect("Created work pool 'default'")
    child.expect("polls work pool 'default'")
    eventually(lambda: (live("workers"), live("schedulers")) == (1, 1), timeout=30)
    child.sendintr()
    child.expect("Stopped the server")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert not embedded.running(orch_home)


def test_dev_ends_when_one_of_its_parts_does(orch_home: Path) -> None:
    dev = orch("dev", "--pool", "etl")
    eventually(lambda: embedded.running(orch_home) and live("workers") == 1, timeout=60)
    workers = json.loads(
        subprocess.run([sys.executable, "-m", "orch_cli", "worker", "ls", "-o", "json"], capture_output=True, check=True).stdout
    )
    os.kill(workers[0]["pid"], signal.SIGKILL)
    _, said = dev.communicate(timeout=60)
    assert dev.returncode == 1
    assert "The worker of 'etl' ended" in said


def test_names_are_completed_from_the_server(orch_home: Path) -> None:
    main(["work-pool", "create", "etl"])
    main(["work-pool", "create", "gpu"])

    def names() -> list[str]:
        environment = child_environment(_ORCH_COMPLETE="bash_complete", COMP_WORDS="orch work-pool inspect ", COMP_CWORD="3")
        return subprocess.run(
            [sys.executable, "-m", "orch_cli"], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    # A machine under load may need more than the 300 ms that completion allows itself, and then completes nothing.
    assert eventually(names, timeout=60) == ["plain,etl", "plain,gpu"]


def test_watching_goes_on_when_the_server_was_away(orch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RedisServer(*DURABLE).start()
    monkeypatch.setenv("ORCH_REDIS_URL", server.url)
    try:
        with open_store() as store:
            store.pools.create("etl")
            [created] = store.runs.create([NewRun(flow="load", name="brave-otter", pool="etl")])
        watcher = orch("flow-run", "watch", created.id)
        assert watcher.stderr is not None
        eventually(lambda: "No worker polls" in watcher.stderr.readline())
        eventually(lambda: "is Scheduled" in watcher.stderr.readline())
        server.kill()
        eventually(lambda: "does not answer" in watcher.stderr.readline())
        server.start()
        with open_store() as store:
            assert store.runs.cancel(created.id).answer == "ok"
        _, said = watcher.communicate(timeout=60)
        assert (watcher.returncode, "is Cancelled" in said) == (7, True)
    finally:
        server.stop()
