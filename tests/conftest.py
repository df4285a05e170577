"""Fixtures for all tests: an environment without Orch's variables, one Redis for the session, a store in a fresh namespace."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import RedisServer, eventually
from orchestrator.settings import Settings
from orchestrator.store import embedded
from server_kinds import KINDS, servers

if TYPE_CHECKING:
    from orchestrator.store import Store

MARK = "ORCHTEST_SESSION"

EVERYWHERE = {"test_create", "test_claim", "test_leases", "test_planning", "test_pools", "test_transitions"}
"""The modules of tests/store that are the quick part of the conformance suite."""


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No variable of the person who runs the tests reaches them, and no process and no folder outlives them."""
    folders = [tmp_path_factory.getbasetemp(), Path(tempfile.mkdtemp(prefix="orch-"))]
    mark = f"{MARK}={uuid.uuid4().hex}"
    home = folders[1] / "home"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ORCH_")]:
            patch.delenv(name)
        for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
            patch.delenv(name, raising=False)
        patch.setattr(tempfile, "tempdir", str(folders[1]))
        patch.setenv("TMPDIR", str(folders[1]))
        patch.setenv("ORCH_HOME", str(home))
        patch.setenv(*mark.split("="))
        yield
        embedded.stop(home)
        _expect_no_process(mark.encode(), [f"{folder}/" for folder in folders])
    shutil.rmtree(folders[1], ignore_errors=True)


@pytest.fixture
def orch_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ORCH_HOME of the test's own; a private server that the test starts there is stopped."""
    home = Path(tempfile.mkdtemp(prefix="orch-home-"))
    monkeypatch.setenv("ORCH_HOME", str(home))
    yield home
    embedded.stop(home, timeout=timedelta(seconds=20))
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One server, or several that are one, for the session: a private Valkey, or what ``--server`` says.

    A test that harms its server starts a ``RedisServer`` of its own.
    """
    kind = getattr(request, "param", None) or request.config.getoption("--server") or "standalone"
    with servers(kind) as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    """On what kind of server to run the tests of the store."""
    parser.addoption("--server", choices=KINDS, help="the kind of server for all tests that have no server of their own")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Without ``--server``, the quick part of the conformance suite runs on Sentinel and Cluster too."""
    if (
        "server" in metafunc.fixturenames
        and metafunc.module.__name__.rpartition(".")[2] in EVERYWHERE
        and not metafunc.config.getoption("--server")
    ):
        metafunc.parametrize("server", ["standalone", "sentinel", "cluster"], indirect=True, scope="session")


@pytest.fixture
def settings(server: RedisServer, tmp_path: Path) -> Settings:
    """Settings for the session's server and a namespace that nobody else uses."""
    return Settings(home=tmp_path, redis_url=server.url, namespace=f"t-{uuid.uuid4().hex[:12]}", redis_retry_s=5.0)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """A store in a fresh namespace. Afterwards every invariant must hold, and nothing is left of it."""
    from orchestrator.store import open_store

    with open_store(settings) as store:
        yield store
        _expect_invariants(store)
    _delete_namespace(settings)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """REQUIRE_ALL=1: a test that could not run is a failure."""
    if os.environ.get("REQUIRE_ALL") == "1" and _skipped(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what could not run here, and what it would need."""
    for place, reason in _skipped(config):
        terminalreporter.write_line(f"could not run {place}: {reason}")
    if os.environ.get("REQUIRE_ALL") == "1" and _skipped(config):
        terminalreporter.write_line("REQUIRE_ALL=1: what could not run counts as failed.")


def _skipped(config: pytest.Config) -> list[tuple[str, str]]:
    """Where a skipped test is, and why it was skipped."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return [(report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: ")) for report in reports]


def _expect_invariants(store: Store) -> None:
    """Fail with each broken invariant."""
    if importlib.util.find_spec("orchestrator.store.invariants") is None:
        return
    broken = importlib.import_module("orchestrator.store.invariants").check(store)
    assert not broken, "\n".join(map(str, broken))


def _delete_namespace(settings: Settings) -> None:
    from orchestrator.keys import Keys
    from orchestrator.store.connection import connect

    assert settings.redis_url is not None
    with connect(settings.redis_url, settings) as client:
        for key in client.scan_iter(f"{Keys(settings.namespace)}*", count=1000):
            client.unlink(key)


def _expect_no_process(mark: bytes, folders: list[str]) -> None:
    """Fail if a process that a test started is still there, and end it. Linux only."""
    if not Path("/proc/self/environ").exists():
        return
    with suppress(pytest.fail.Exception):
        eventually(lambda: not _processes_of(mark, folders), timeout=10)
    left = _processes_of(mark, folders)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    if left:
        pytest.fail(f"Tests left processes behind: {left}")


def _processes_of(mark: bytes, folders: list[str]) -> dict[int, str]:
    """Processes with the session's mark in their environment or, since Redis writes over its own, at work in its folders."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = f"{(process / 'cwd').readlink()}/"
            marked = mark in (process / "environ").read_bytes()
        except OSError:
            continue
        if int(process.name) != os.getpid() and (marked or any(f in command or place.startswith(f) for f in folders)):
            found[int(process.name)] = command
    return found
