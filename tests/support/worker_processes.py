"""Worker processes for tests: started for real, looked into through /proc, always gone in the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import eventually, python
from orchestrator.models import Deployment, NewRun, Run
from orchestrator.settings import NAMES, PREFIX, Settings
from orchestrator.store import Store

_WORK = """
import sys
import datetime
from orch_workers.base import WorkerOptions
from orch_workers.runner import run_worker

options = eval(sys.argv[1])
sys.exit(run_worker(WorkerOptions(announce=lambda sentence: print(sentence, file=sys.stderr, flush=True), **options)))
"""


WAITING = '''
import os

def note_start(folder: str) -> None:
    with open(f"{folder}/started", "a") as started:
        started.write(f"{os.getpid()}\\n")

def wait_at_gate(folder: str) -> str:
    """Waits for a line in a named pipe. Of several that wait there, a line lets one go."""
    gate = os.open(f"{folder}/gate", os.O_RDWR)  # for writing too, so that no line is lost while others wait
    line = os.read(gate, len("let go\\n"))
    os.close(gate)
    return line.decode().strip()
'''
"""What flows of tests begin with that wait until they are ``let_go``."""


class WorkerProcess:
    """One worker, ``options`` as in WorkerOptions (durations as text of Python: they cross a command line)."""

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self.process = python("-c", _WORK, repr(options), env=environment_of(settings))
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_said(self, text: str) -> None:
        """Wait for a sentence on its stderr that holds ``text``."""
        eventually(lambda: any(text in line for line in self.said) or self._fail_if_gone(text), what=f"{text!r} in {self.said}")

    def templates(self) -> list[int]:
        """Its template processes."""
        return children_of(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor alone."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Its exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def end(self) -> None:
        """Kill it, if it is still there."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())

    def _fail_if_gone(self, text: str) -> bool:
        assert self.process.poll() is None, f"The worker has ended without saying {text!r}: {self.said}"
        return False


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that give a process these settings, defaults and all."""
    values = {name: getattr(settings, name) for name in NAMES}
    return {PREFIX + name.upper(): str(value) for name, value in values.items() if value is not None}


@contextmanager
def worker(settings: Settings, pool: str = "pool", **options: Any) -> Iterator[WorkerProcess]:
    """A worker that has begun to poll."""
    started = WorkerProcess(settings, {"pool": pool, "limit": 2, **options})
    try:
        started.wait_until_said("polls work pool")
        yield started
    finally:
        started.end()


def make_project(folder: Path, flows: str) -> Path:
    """Make a folder a project: ``flows``, which may wait as in WAITING, in ``flows.py``, and the gate at which they do."""
    folder.mkdir(exist_ok=True)
    (folder / "flows.py").write_text(WAITING + flows)
    os.mkfifo(folder / "gate")
    return folder


def let_go(folder: Path) -> None:
    """Let one body go that waits at the gate."""
    with (folder / "gate").open("w") as gate:
        gate.write("let go\n")


def numbers(file: Path) -> list[int]:
    """The process numbers in a file, none before it is there."""
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def wait_for_start(folder: Path, count: int = 1) -> int:
    """Wait until so many bodies have noted their start; the process of the last."""
    eventually(lambda: len(numbers(folder / "started")) >= count, what=f"{count} starts")
    return numbers(folder / "started")[count - 1]


def deploy(store: Store, folder: Path, function: str, *, name: str = "test", **fields: Any) -> Deployment:
    """A deployment of ``flows.py:function`` in a pool that is created if need be."""
    if not store.pools.exists("pool"):
        store.pools.create("pool")
    return store.deployments.save(
        Deployment(name=name, flow=function, entrypoint=f"flows.py:{function}", path=str(folder), pool="pool", **fields)
    )


def submit(store: Store, deployment: Deployment, *, crash_budget: int = 3, **parameters: Any) -> str:
    """Create a run for now; its id."""
    new = NewRun(
        flow=deployment.flow,
        deployment=deployment.id,
        pool=deployment.pool,
        queue=deployment.queue,
        parameters=parameters,
        crash_budget=crash_budget,
    )
    return store.runs.create([new])[0].id


def wait_for_state(store: Store, run: str, *states: str, timeout: float = 30) -> Run:
    """Wait until the run is in one of these states."""
    eventually(lambda: store.runs.get(run).state.name in states, timeout, f"{run} to be {' or '.join(states)}")
    return store.runs.get(run)


def wait_for_end(store: Store, run: str, timeout: float = 30) -> Run:
    """Wait for the run's end."""
    return wait_for_state(store, run, "Completed", "Failed", "Crashed", "Cancelled", timeout=timeout)


def log_of(store: Store, run: str) -> list[tuple[str, str]]:
    """The run's log as (logger, message)."""
    return [(line.logger, line.message) for line in store.runs.read_log(run)]


def children_of(pid: int) -> list[int]:
    """A process's children."""
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []


def descendants_of(pid: int) -> list[int]:
    """All below a process."""
    found = []
    for child in children_of(pid):
        found += [child, *descendants_of(child)]
    return found


def is_alive(pid: int) -> bool:
    """It exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    """Wait until none of these is alive."""
    eventually(lambda: not [pid for pid in pids if is_alive(pid)], what=f"the end of {pids}")


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
