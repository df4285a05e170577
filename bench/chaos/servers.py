"""Redis servers to mistreat: Orch's embedded binary or Debian's redis-server, on a TCP port of 127.0.0.1, on their own data."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from bench.chaos.trial import CannotRun
from bench.stage import wait_until
from orchestrator.store import embedded

SAFE = (
    *("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"),
    *("--aof-use-rdb-preamble", "no", "--hash-max-listpack-value", "512"),
)
"""Set up as Orch wants it."""


class Server:
    """One server. ``product``: embedded, or redis-server for Debian's. It can be killed and started again on the same data.

    ``flags`` come after those of ``SAFE`` and win. ``host`` is where it listens, for what lives in another network namespace.
    """

    def __init__(self, folder: Path, *flags: str, product: str = "embedded", host: str = "127.0.0.1", port: int = 0) -> None:
        self.folder = folder
        self.host = host
        self.port = port or free_port(host)
        self.binary = binary(product)
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What goes into ORCH_REDIS_URL."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process that runs now. Raises AssertionError where none does."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> Server:
        """Start it, or start it again on its data, and wait until it answers PONG."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [self.binary, "--bind", self.host, "--port", str(self.port), "--dir", str(self.folder)]
        # Its title would write over the environment, by which leftovers are found.
        command += ["--set-proc-title", "no", "--protected-mode", "no", *SAFE, *self._flags]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            wait_until(self.answers, self._process, seconds=30)
        return self

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it by a signal; its data stay."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
                self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: it stops answering, and no connection is closed."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def answers(self) -> bool:
        """Whether it says PONG: it is up and has read its data."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def binary(product: str) -> str:
    """The path of a server's program: embedded, or redis-server. Raises CannotRun."""
    if product == "embedded":
        return str(embedded.find_binary())
    found = shutil.which(product)
    if found is None:
        raise CannotRun(f"needs {product}: apt install {product}")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
