"""A Redis of our own under build/, with nothing in it, and workers on it: what most measures need."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.models import Deployment, NewRun, RunFilter
from orchestrator.settings import Settings
from orchestrator.store import embedded, open_store

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
POOL = "bench"


class Stage:
    """A private server as a newcomer gets it (append-only file, fsync every second) while the block lasts."""

    def __init__(self, name: str) -> None:
        self.home = BUILD / name
        self.settings = Settings(home=self.home)

    def __enter__(self) -> Stage:
        embedded.stop(self.home)
        shutil.rmtree(self.home, ignore_errors=True)
        self.store = open_store(self.settings)
        self.store.pools.create(POOL)
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        embedded.stop(self.home)
        shutil.rmtree(self.home, ignore_errors=True)

    def deploy(self, function: str) -> Deployment:
        """A deployment of one of ``bench.flows``."""
        return self.store.deployments.save(
            Deployment("bench", flow=function, entrypoint=f"bench.flows:{function}", path=str(ROOT), pool=POOL)
        )

    def new_run(self, deployment: Deployment, **parameters: Any) -> NewRun:
        """A run of it, due now."""
        return NewRun(deployment.flow, deployment=deployment.id, pool=POOL, parameters=parameters)

    @contextlib.contextmanager
    def worker(self, limit: int) -> Iterator[subprocess.Popen[bytes]]:
        """A process worker, from when it polls."""
        with self.command("worker", "start", "--pool", POOL, "--limit", str(limit)) as worker:
            wait_until(lambda: self.store.pools.get(POOL).workers == 1, worker)
            yield worker

    @contextlib.contextmanager
    def workers(self, count: int, limit: int) -> Iterator[None]:
        """Several of them, from when all poll."""
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self.command("worker", "start", "--pool", POOL, "--limit", str(limit)))
            wait_until(lambda: self.store.pools.get(POOL).workers == count, seconds=60)
            yield

    @contextlib.contextmanager
    def scheduler(self) -> Iterator[subprocess.Popen[bytes]]:
        """A scheduler, from when it lives."""
        with self.command("scheduler", "start") as scheduler:
            wait_until(lambda: self.store.pools.schedulers(), scheduler)
            yield scheduler

    @contextlib.contextmanager
    def command(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command of ``orch`` in the background."""
        with self.program("orch_cli", *arguments) as process:
            yield process

    @contextlib.contextmanager
    def program(self, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A module in the background, run as a program."""
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.home,
                env=environment(self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def wait_for_completed(self, count: int, seconds: float) -> None:
        """Until so many runs are Completed. Raises TimeoutError."""
        wait_until(lambda: self.store.queries.count(RunFilter(states=("Completed",))) >= count, seconds=seconds)

    def pretend_scheduler(self) -> None:
        """A scheduler's sign of life, so that workers leave its duties alone for a while."""
        self.store.pools.scheduler_heartbeat("bench")

    def used_bytes(self) -> int:
        """What the server's data take."""
        return int(self.store.client.info("memory")["used_memory"])

    def reads(self) -> int:
        """Round trips that clients have made so far, this one included."""
        return int(self.store.client.info("stats")["total_reads_processed"])

    @contextlib.contextmanager
    def counted_calls(self) -> Iterator[dict[str, int]]:
        """Commands that clients send while the block lasts, by name. Those inside scripts are not among them."""
        calls: dict[str, int] = {}
        connection = socket.socket(socket.AF_UNIX)
        url = embedded.url(self.home)
        assert url is not None
        connection.connect(url.removeprefix("unix://").partition("?")[0])
        connection.sendall(b"MONITOR\r\n")
        lines = connection.makefile("rb")
        assert lines.readline() == b"+OK\r\n"

        def count() -> None:
            with contextlib.suppress(OSError, ValueError):
                for line in lines:
                    found = re.match(rb'\+[\d.]+ \[\d+ (\S+)\] "(\w+)"', line)
                    if found and found[1] != b"lua":
                        name = found[2].decode().upper()
                        calls[name] = calls.get(name, 0) + 1

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        yield calls
        connection.shutdown(socket.SHUT_RDWR)
        thread.join()
        lines.close()
        connection.close()


def environment(home: Path) -> dict[str, str]:
    """Our environment without Orch's variables, with this ORCH_HOME."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
    return {**kept, "ORCH_HOME": str(home)}


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None, seconds: float = 20) -> None:
    """Until the condition holds. Raises TimeoutError, or RuntimeError if the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain")
        time.sleep(0.02)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def pss_mb(pid: int) -> float:
    """What a process tree takes: pages shared after a fork are counted once."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
            total += int(found[1]) if found else 0
    return total / 1024
