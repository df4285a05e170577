"""A server that comes back without its last writes, and real workers, schedulers and flows that remember better."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import DURABLE, RedisServer, eventually, python
from orchestrator.models import Run, RunFilter
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from orchestrator.store.invariants import check
from worker_processes import deploy, environment_of, submit, wait_for_end, wait_until_gone, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FLOWS = """
import os
from orchestrator import flow

@flow
def adds_a_line(folder: str, line: str) -> str:
    with open(f"{folder}/lines", "a") as lines:
        lines.write(f"{line}\\n")
    return line

@flow
def waits(folder: str, line: str) -> str:
    adds_a_line.fn(folder, f"{line} {os.getpid()}")
    with open(f"{folder}/gate {line}") as gate:
        return gate.readline().strip()
"""

HOLDING = """
import sys
from orchestrator import flow
from orchestrator.concurrency.sync import concurrency

@flow
def child():
    with concurrency("db"):
        print("ready", flush=True)
        for line in sys.stdin:
            print(line, end="", flush=True)

@flow
def holding():
    child()

holding()
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server whose data the test may set back."""
    server = RedisServer(*DURABLE).start()
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "flows"
    folder.mkdir()
    (folder / "flows.py").write_text(FLOWS)
    return folder


@pytest.fixture
def settings(server: RedisServer, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", redis_url=server.url)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with open_store(settings) as store:
        yield store


def lines(folder: Path) -> list[str]:
    file = folder / "lines"
    return file.read_text().splitlines() if file.exists() else []


def data_of(server: RedisServer) -> Path:
    return server.folder / "appendonlydir"


def forget(server: RedisServer, kept: Path) -> None:
    """The server dies and comes back with the data of an earlier moment."""
    server.kill()
    shutil.rmtree(data_of(server))
    shutil.copytree(kept, data_of(server))
    server.start()


def test_a_worker_puts_right_what_the_server_forgot(
    server: RedisServer, store: Store, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    with_a_line, waiting = deploy(store, folder, "adds_a_line"), deploy(store, folder, "waits", name="waits")
    for name in ("goes on", "is lost"):
        os.mkfifo(folder / f"gate {name}")
    with worker(settings, limit=3) as steady:
        steady.signal(signal.SIGSTOP)
        ends = submit(store, with_a_line, folder=str(folder), line="ends")
        goes_on = submit(store, waiting, folder=str(folder), line="goes on")
        shutil.copytree(data_of(server), tmp_path / "earlier")
        lost = submit(store, waiting, folder=str(folder), line="is lost")
        steady.signal(signal.SIGCONT)
        assert wait_for_end(store, ends).state.name == "Completed"
        eventually(lambda: len(lines(folder)) == 3)
        [doomed] = [int(line.split()[-1]) for line in lines(folder) if line.startswith("is lost")]
        journal = settings.home / "journal" / "default"
        eventually(lambda: any(ends.encode() in file.read_bytes() for file in journal.glob("*.journal")))

        forget(server, tmp_path / "earlier")
        steady.wait_until_said("Redis is another server than before")
        ended = wait_for_end(store, ends)
        assert (ended.state.name, ended.attempt) == ("Completed", 1)
        assert "Recorded anew" in ended.state.message
        wait_until_gone([doomed])
        found = store.runs.get(goes_on)
        assert (found.place, found.attempt) == ("leased", 1)
        with (folder / "gate goes on").open("w") as gate:
            gate.write("done\n")
        assert wait_for_end(store, goes_on).state.name == "Completed"
        assert len(lines(folder)) == 3, "nothing was started twice"
        report = store.failover.last()
        assert report is not None
        assert (report.epoch.number, report.epoch.how) == (2, "replaced")
        assert (report.lost, report.twice) == ((lost,), ())
        assert set(report.restored) == {ends, goes_on}
        assert eventually(lambda: check(store) == [])


def test_a_plain_process_puts_its_runs_and_their_slots_back(
    server: RedisServer, store: Store, settings: Settings, tmp_path: Path
) -> None:
    """Nobody knew of the runs any more: others were given the slots, and the ends were refused."""
    store.failover.check()
    store.limits.create_global("db", 1)
    shutil.copytree(data_of(server), tmp_path / "earlier")
    (tmp_path / "holding.py").write_text(HOLDING)
    process = python(str(tmp_path / "holding.py"), env=environment_of(settings), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None

    def runs() -> list[Run]:
        found = [store.runs.get(run.id) for run in store.queries.runs(RunFilter()).runs]
        return sorted(found, key=lambda run: run.flow)

    def holders() -> list[str]:
        gate = store.limits.get_global("db")
        assert gate is not None
        return gate.holders

    try:
        assert process.stdout.readline() == "ready\n"
        child, holding = runs()
        assert holders() == [child.id]
        forget(server, tmp_path / "earlier")
        eventually(holders, what="the slot")
        assert holders() == [child.id]
        assert [(run.id, run.place, run.attempt) for run in runs()] == [(run.id, "leased", 1) for run in (child, holding)]
        process.stdin.write("went on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "went on\n"
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert [(run.id, run.state.name, run.attempt, run.run_count) for run in runs()] == [
            (run.id, "Completed", 1, 1) for run in (child, holding)
        ]
        assert holders() == []
        report = store.failover.last()
        assert report is not None
        assert (set(report.restored), report.lost, report.twice) == ({child.id, holding.id}, (), ())
        assert check(store) == []
    finally:
        process.kill()
        process.communicate()


def test_a_worker_and_a_scheduler_end_where_the_data_are_gone(
    server: RedisServer, store: Store, settings: Settings, folder: Path
) -> None:
    deploy(store, folder, "adds_a_line")
    with worker(settings) as idle:
        scheduler = python("-m", "orch_cli", "scheduler", "start", env=environment_of(settings))
        try:
            eventually(lambda: store.pools.schedulers())
            store.client.flushall()
            assert scheduler.wait(timeout=30) == 6
            server.kill()
            server.start()
            assert idle.wait() != 0
            assert scheduler.stderr is not None
            assert "is not on this server any more" in scheduler.stderr.read()
            assert any("DataGone" in line or "is not on this server any more" in line for line in idle.said)
        finally:
            scheduler.kill()
            scheduler.wait()
            for pipe in (scheduler.stdout, scheduler.stderr):
                if pipe is not None:
                    pipe.close()
