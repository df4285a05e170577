"""Two machines that share nothing but a Redis: one deploys and schedules, the other works."""

from __future__ import annotations

import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from commands import Machine
from harness import RedisServer
from orchestrator import __version__
from orchestrator.store import embedded

PASSWORD = "correct-horse-7"

FLOW = """
from orchestrator import Variable, flow, get_run_logger


@flow
def where(question: str = "where?"):
    get_run_logger().info("%s On {machine}", question)
    Variable.set("answer", [Variable.get("prefix"), "{machine}"], overwrite=True)
"""

PROJECT = """
deployments:
  - name: there
    entrypoint: where.py:where
    work_pool:
      name: shared
"""

FETCHED = """
    pull:
      - orchestrator.deployments.steps.set_working_directory:
          directory: "{{ $FLOWS }}"
"""


def machine(name: str, tmp_path: Path, url: str | None = None) -> Machine:
    """A machine with a working directory that holds its own version of the flow."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "where.py").write_text(FLOW.format(machine=name))
    made = Machine(Path(tempfile.mkdtemp(prefix="orch-home-")), folder)
    made.environment["FLOWS"] = str(folder)
    if url:
        made.environment["ORCH_REDIS_URL"] = url
    return made


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis that listens on TCP and wants a password."""
    server = RedisServer(tcp=True, password=PASSWORD).start()
    yield server
    server.stop()


@pytest.fixture
def office(redis: RedisServer, tmp_path: Path) -> Iterator[Machine]:
    """Where people deploy and where the scheduler runs."""
    made = machine("office", tmp_path, redis.url)
    yield made
    shutil.rmtree(made.home)


@pytest.fixture
def plant(redis: RedisServer, tmp_path: Path) -> Iterator[Machine]:
    """Where the worker runs."""
    made = machine("plant", tmp_path, redis.url)
    yield made
    shutil.rmtree(made.home)


def test_one_machine_deploys_and_schedules_and_the_other_works(office: Machine, plant: Machine) -> None:
    (office.folder / "orch.yaml").write_text(PROJECT + FETCHED)
    office.run("deploy", "--all", "--create-pool", "process")
    office.run("variable", "set", "prefix", "at the")
    with (
        office.beside("scheduler", "start", "--name", "night-watch", until="Scheduler"),
        plant.beside("worker", "start", "--pool", "shared", "--name", "forge", until="polls work pool 'shared'"),
    ):
        # For later, so that the scheduler takes part; the worker's own folder holds another version of the flow.
        run = office.run("deployment", "run", "where/there", "--start-in", "1s", "--watch", "-p", "question=Where now?")
        assert "Where now? On plant" in run.stdout
        # Through the worker's supervisor, which alone is connected.
        assert office.run("variable", "get", "answer").stdout == '["at the", "plant"]\n'

        [worker] = office.json("worker", "ls")
        assert worker["name"] == "forge"
        assert worker["status"] == "ONLINE"
        assert worker["host"] == socket.gethostname()
        assert worker["version"] == __version__
        assert worker["python"] == platform.python_version()

        assert {row["check"]: row["status"] for row in office.json("doctor")}["schedulers"] == "ok"
        [seen] = plant.json("flow-run", "ls")
        assert (seen["state"]["name"], seen["worker"] or "forge") == ("Completed", "forge")
    assert embedded.status(office.home) is None, "a private server was started although a Redis is configured"
    assert embedded.status(plant.home) is None


def test_the_password_is_shown_nowhere(office: Machine) -> None:
    texts = [office.run("server", "status"), office.run("config", "view", "--show-sources"), office.run("doctor", "-o", "json")]
    office.environment["ORCH_REDIS_URL"] = office.environment["ORCH_REDIS_URL"].replace(PASSWORD, "wrong-password")
    texts += [office.run("flow-run", "ls", status=6), office.run("--debug", "flow-run", "ls", status=6)]
    for done in texts:
        assert PASSWORD not in done.stdout + done.stderr
        assert "wrong-password" not in done.stdout + done.stderr
    assert "login" in texts[-1].stderr


def test_a_worker_without_the_code_ends_the_run_failed_and_says_how_to_ship_it(office: Machine, plant: Machine) -> None:
    (office.folder / "orch.yaml").write_text(PROJECT)
    office.run("deploy", "--all", "--create-pool", "process")
    elsewhere = office.folder.rename(office.folder.with_name("only-in-the-office"))
    path, office.folder = office.folder, elsewhere
    with plant.beside("worker", "start", "--pool", "shared", until="polls work pool 'shared'"):
        run = office.run("deployment", "run", "where/there", "--watch", status=1)
        [seen] = office.json("flow-run", "ls")
        assert seen["state"]["name"] == "Failed"
        assert socket.gethostname() in seen["state"]["message"]
        assert str(path) in seen["state"]["message"]
        assert seen["crash_count"] == 0
        for way in ("shared disk", "image", "pull step"):
            assert way in run.stdout, "the log says how to ship code"
        # The worker goes on; once the code is there, the same run can be tried again.
        elsewhere.rename(path)
        office.folder = path
        again = office.run("flow-run", "retry", seen["id"], "--watch")
        assert "where? On office" in again.stdout


def test_deploying_to_other_machines_from_a_private_server_warns(tmp_path: Path) -> None:
    laptop = machine("laptop", tmp_path)
    try:
        (laptop.folder / "orch.yaml").write_text(PROJECT + FETCHED)
        done = laptop.run("deploy", "--all", "--create-pool", "process")
        assert "ORCH_REDIS_URL" in done.stderr
        assert "other machines" in done.stderr
    finally:
        embedded.stop(laptop.home, timeout=timedelta(seconds=20))
        shutil.rmtree(laptop.home)
