"""What Orch asks of the operating system about processes: who dies with whom, who buries whom, and how one died.

On Linux through prctl; elsewhere by what comes closest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator import clock

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TIMER_ABSTIME = 1

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")


def die_with_parent(parent: int) -> None:
    """Have this process killed as soon as the one that started it, ``parent``, is gone, however it went.

    On Linux the kernel does it when the thread that forked us ends, so a process that starts others must do that from its main
    thread. Elsewhere a thread waits for the parent's end.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signal.SIGKILL)
    else:
        import threading

        threading.Thread(target=_exit_after, args=(parent,), name="orch-parent", daemon=True).start()


def survive_parent() -> None:
    """Take ``die_with_parent`` back: the caller sees its parent's end some other way and has things to put in order then."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none is left behind unseen (Linux only)."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


class LastMoment:
    """Has the kernel kill this process at a moment, even if it is stopped then and cannot do anything itself (Linux only)."""

    def __init__(self) -> None:
        self._timer: Any = None
        self._moment: float | None = None

    def set(self, moment: float | None) -> None:
        """SIGKILL at ``moment``, monotonic seconds, and at no earlier one; None = never."""
        if moment == self._moment or sys.platform != "linux":
            return
        import ctypes

        if self._timer is None:
            self._timer = ctypes.c_void_p()
            event = (ctypes.c_int * 16)(0, 0, signal.SIGKILL, 0)  # struct sigevent: value, signo, SIGEV_SIGNAL
            if _libc().timer_create(clock.MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)):
                raise OSError("timer_create failed")
        seconds, rest = divmod(moment or 0.0, 1)
        when = (ctypes.c_long * 4)(0, 0, int(seconds), int(rest * 1e9))  # struct itimerspec: no interval, then the moment
        if _libc().timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(when), None):
            raise OSError("timer_settime failed")
        self._moment = moment


def signal_group(leader: int, number: int) -> bool:
    """Send a signal to the process group that ``leader`` leads; False when nobody is left in it.

    Call it only while ``leader`` has not been waited for: after that its number may belong to somebody else.
    """
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS: only zombies are left
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine, one that has ended and was not waited for excepted."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    return True


def children_of(pid: int) -> list[int]:
    """The children of a process, those that have ended and were not waited for included (Linux only, else none)."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_bytes().split())
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all that descend from it. What is started meanwhile comes to whoever adopts orphans."""
    for child in children_of(pid):
        kill_tree(child)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def has_in_environment(pid: int, entry: str) -> bool:
    """Whether a process was started with ``NAME=value`` in its environment (Linux only)."""
    try:
        return entry.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def describe_status(status: int) -> str:
    """A wait status in words: ``killed by SIGSEGV (segmentation fault)``, ``exited with status 3``."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"killed by signal {-code}"
    return f"killed by {name} ({_MEANINGS[name]})" if name in _MEANINGS else f"killed by {name}"


_MEANINGS = {
    "SIGABRT": "aborted",
    "SIGBUS": "bus error",
    "SIGFPE": "arithmetic error",
    "SIGILL": "illegal instruction",
    "SIGSEGV": "segmentation fault",
    "SIGSYS": "forbidden system call",
    "SIGXCPU": "CPU time limit exceeded",
    "SIGXFSZ": "file size limit exceeded",
}


class OutOfMemory:
    """Whether the kernel kills for want of memory here: the count of such kills, looked at now and then and at each death.

    It counts in this control group, or else on this machine.
    """

    def __init__(self) -> None:
        self._before = self._latest = _out_of_memory_kills()
        self._looked_at = clock.monotonic()
        self._blamed = 0

    def look(self) -> None:
        """Forget older kills. Cheap, so it may be called often."""
        now = clock.monotonic()
        if now - self._looked_at >= 1.0:
            # The one before is kept: a large process takes a while to die, and its kill may have been counted already.
            self._before, self._latest, self._looked_at, self._blamed = self._latest, _out_of_memory_kills(), now, 0

    def explains_a_kill(self) -> bool | None:
        """Whether a SIGKILL that was just seen was probably one of them; None where nobody counts."""
        count = _out_of_memory_kills()
        if count is None or self._before is None:
            return None
        if count - self._before <= self._blamed:
            return False
        self._blamed += 1
        return True


def _out_of_memory_kills() -> int | None:
    for source in _oom_counters():
        try:
            text = source.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def _oom_counters() -> list[Path]:
    """Where to look, most exact first: the control group, version 2 or 1, as seen from outside a container or inside; all."""
    groups: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in _CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    own, memory = groups.get("", ""), groups.get("memory", "")
    return [
        _CGROUPS / own / "memory.events",
        _CGROUPS / "memory.events",
        _CGROUPS / "memory" / memory / "memory.oom_control",
        _CGROUPS / "memory" / "memory.oom_control",
        _VMSTAT,
    ]


def _prctl(option: int, value: int) -> None:
    if _libc_prctl()(option, value, 0, 0, 0):
        raise OSError(f"prctl({option}, {value}) failed")


@lru_cache(maxsize=1)
def _libc_prctl() -> Any:
    """Looked up once in a template and not again in each child: that alone would copy some 60 of its pages."""
    import ctypes

    function = _libc().prctl
    function.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    return function


@lru_cache(maxsize=1)
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None)


def _exit_after(parent: int) -> None:  # pragma: no cover - only where there is no prctl
    import select

    kernel: Any = select
    with contextlib.suppress(ProcessLookupError):
        event = kernel.kevent(parent, kernel.KQ_FILTER_PROC, kernel.KQ_EV_ADD, kernel.KQ_NOTE_EXIT)
        kernel.kqueue().control([event], 1)
    os.kill(os.getpid(), signal.SIGKILL)
