"""What tests share beyond fixtures: a Redis of their own to mistreat, waiting for a condition, programs that may be missing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from orchestrator.store import embedded

T = TypeVar("T")

SAFE = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction")
SAFE += ("--hash-max-listpack-value", "512")

DURABLE = (*SAFE, "--appendfsync", "always")
"""For a server that is killed: under everysec it holds writes back, for two seconds at most, while a slow fsync goes on."""


def eventually(predicate: Callable[[], T], timeout: float = 20.0, what: str = "") -> T:
    """Ask until the answer is true, and return it. The one place where tests poll; the timeout is only there to fail."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"Waited {timeout:g} s in vain for {what or predicate}.")
        pause.wait(0.005)


def needs(program: str, package: str) -> str:
    """The path of a program that pip cannot install; without it the test is skipped, and REQUIRE_ALL=1 fails the session."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}: apt install {package}")
    return path


def python(*arguments: str, env: dict[str, str] | None = None, **options: object) -> subprocess.Popen[str]:
    """A Python process of its own, in a session of its own, with pipes for what it says."""
    settings: dict[str, object] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    settings |= {"env": {**os.environ, **(env or {})}, "start_new_session": True, **options}
    return subprocess.Popen([sys.executable, *arguments], **settings)  # type: ignore[call-overload,no-any-return]


class RedisServer:
    """A real Valkey, our own child, on a unix socket; with ``tcp`` also on a free port of 127.0.0.1.

    Without ``flags`` it is set up as Orch wants it. It dies with the pytest process at the latest.
    """

    def __init__(
        self,
        *flags: str,
        tcp: bool = False,
        password: str = "",
        folder: Path | None = None,
        binary: Path | None = None,
    ) -> None:
        self.binary = binary or embedded.find_binary()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="orch-"))
        self.socket = self.folder / "s.sock"
        self.port = _free_port() if tcp else 0
        self.password = password
        self._flags = (*(flags or SAFE), *(("--requirepass", password) if password else ()))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is: over TCP if it listens there."""
        login = f":{self.password}@" if self.password else ""
        if self.port:
            return f"redis://{login}127.0.0.1:{self.port}/0"
        return f"unix://{login}{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> RedisServer:
        """Start it, or start it again on the same data, and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        command = [str(self.binary), "--port", str(self.port), "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), *self._flags]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._answers, what="the server to answer")
        return self

    def stop(self) -> None:
        """End it and forget its data."""
        # Not SIGTERM: a server that writes its first append-only file refuses to end.
        self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL. The data stay: ``start`` finds them."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It stops answering, without closing a connection."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"The server ended: {(self.folder / 'log').read_text()[-600:]}")
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(timeout=20)
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
