"""The fleet: workers and schedulers as real processes, started again when they are gone, and none of them left in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.stage import environment, tree, wait_until

POOL = "chaos"
MARK = "ORCHCHAOS_HOME"
"""The environment variable by which every process of a trial is found, whoever started it."""


@dataclass(eq=False)
class Member:
    """A worker or a scheduler: how it is started, and the process that it is now."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    is_wanted: bool = True

    @property
    def pid(self) -> int:
        """Of the present process: with a prefix that does not ``exec`` (none of ours), the prefix's."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """The process has not ended; one that is stopped by SIGSTOP runs in this sense."""
        return self.process.poll() is None


@dataclass
class Fleet:
    """All processes of Orch in a trial. They log to ``home/log``, and write their own ORCH_HOME there."""

    home: Path
    redis_url: str
    members: list[Member] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    """Processes that ``kill`` ended: any other one that ends by itself is a complaint."""
    died: list[str] = field(default_factory=list)
    """Complaints: members that ended and should not have."""
    seen: set[int] = field(default_factory=set)
    """Every process of a member that was looked at."""
    may_be_killed: bool = False
    """A member that SIGKILL has ended is no complaint, whoever sent it: a run does that, or the kernel."""
    _count: int = 0

    @property
    def workers(self) -> list[Member]:
        """Those of the members that are workers."""
        return [member for member in self.members if "worker" in member.command]

    @property
    def schedulers(self) -> list[Member]:
        """Those that are schedulers."""
        return [member for member in self.members if "scheduler" in member.command]

    def worker(self, slots: int = 8, *options: str, pool: str = POOL, name: str = "", **how: object) -> Member:
        """Start a worker. ``how``: as ``start``. Unnamed ones get a new name each time they start, as `orch` gives it."""
        named = ("--name", name) if name else ()
        return self.start("worker", "start", "--pool", pool, "--limit", str(slots), *named, *options, **how)  # type: ignore[arg-type]

    def scheduler(self, *options: str, **how: object) -> Member:
        """Start a scheduler. ``how``: as ``start``."""
        return self.start("scheduler", "start", *options, **how)  # type: ignore[arg-type]

    def start(self, *arguments: str, prefix: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> Member:
        """Start ``orch ARGUMENTS`` and keep it running. ``prefix`` comes before the command, ``variables`` before our own."""
        self._count += 1
        command = [*prefix, sys.executable, "-m", "orch_cli", *arguments]
        variables = {**_environment(self.home, self.redis_url), **(variables or {})}
        member = Member(f"{arguments[0]} {self._count}", command, variables, self._spawn(command, variables))
        self.members.append(member)
        return member

    def keep(self) -> None:
        """Start again what is gone and wanted. What went without being killed by us is written to ``died``."""
        for member in self.members:
            if not member.is_wanted or member.is_running:
                continue
            is_excused = self.may_be_killed and member.process.returncode == -signal.SIGKILL
            if member.pid not in self.killed and not is_excused:
                self.died.append(f"{member.name} ended by itself with {member.process.returncode}")
            member.process = self._spawn(member.command, member.environment)

    def kill(self, pids: Iterable[int], number: signal.Signals = signal.SIGKILL) -> list[int]:
        """Send a signal to processes of the fleet; those that it was sent to. Numbers that are others' by now are left out."""
        hit = []
        for pid in pids:
            if self.owns(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    hit.append(pid)
                    if number != signal.SIGCONT:
                        self.killed.add(pid)
        return hit

    def look(self) -> None:
        """Remember every process that the members have now."""
        for member in self.members:
            self.seen.update(tree(member.pid))

    def stop(self) -> list[int]:
        """End all members in order; the processes that outlived them by more than 5 s."""
        self.look()
        for member in self.members:
            member.is_wanted = False
            if member.is_running:
                with suppress(ProcessLookupError):
                    member.process.send_signal(signal.SIGCONT)
                    member.process.send_signal(signal.SIGTERM)
        for member in self.members:
            try:
                member.process.wait(40)
            except subprocess.TimeoutExpired:
                self.died.append(f"{member.name} did not end within 40 s of SIGTERM")
                member.process.kill()
                member.process.wait()
        self.members.clear()
        with suppress(TimeoutError):
            wait_until(lambda: not any(self.owns(pid) for pid in self.seen), seconds=5)
        return [pid for pid in self.seen if self.owns(pid)]

    def owns(self, pid: int) -> bool:
        """The process lives, and it was started for this trial: numbers are given out again. Not the one that asks."""
        return pid != os.getpid() and _is_marked(pid, self.home)

    def _spawn(self, command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.home,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def orch(
    home: Path,
    redis_url: str,
    *arguments: str,
    folder: Path | None = None,
    given: str = "",
    seconds: float = 60,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """``orch ARGUMENTS`` to its end, in ``folder`` or the trial's own, with ``given`` on stdin. Raises TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-m", "orch_cli", *arguments],
        cwd=folder or home,
        env={**_environment(home, redis_url), **(variables or {})},
        input=given,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def sweep(home: Path, seconds: float = 10) -> int:
    """SIGKILL every process of a trial that is still there, its servers too; how many. Raises TimeoutError if one stays."""
    count = 0
    end = time.monotonic() + seconds
    while left := [pid for pid in _all_processes() if pid != os.getpid() and (_is_marked(pid, home) or _is_in(pid, home))]:
        if time.monotonic() > end:
            raise TimeoutError(f"processes {left} of {home} do not die")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                count += 1
        time.sleep(0.05)
    return count


def _environment(home: Path, redis_url: str) -> dict[str, str]:
    return {**environment(home), MARK: str(home), "ORCH_REDIS_URL": redis_url}


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _is_marked(pid: int, home: Path) -> bool:
    try:
        return f"{MARK}={home}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _is_in(pid: int, home: Path) -> bool:
    """It works in a folder of the trial: servers do."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(home)
    except OSError:
        return False
