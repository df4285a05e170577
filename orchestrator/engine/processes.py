"""What Orch asks of the operating system about processes: who dies with whom, who buries whom, and how one died.

On Linux through prctl; elsewhere by what comes closest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


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


def describe_status(status: int) -> str:
    """A wait status in words: ``killed by SIGSEGV``, ``exited with status 3``."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def out_of_memory_kills() -> int:
    """How often the kernel has killed a process for want of memory, in this control group or else on this machine.

    A process killed by SIGKILL while this number grew was most likely one of them. 0 where nobody counts.
    """
    for source in _oom_counters():
        try:
            text = source.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def _oom_counters() -> list[Path]:
    places = [Path("/proc/vmstat")]
    try:
        line = Path("/proc/self/cgroup").read_text().splitlines()[-1]
    except (OSError, IndexError):
        return places
    return [Path("/sys/fs/cgroup", line.rpartition(":")[2].lstrip("/"), "memory.events"), *places]


def _prctl(option: int, value: int) -> None:
    if _libc_prctl()(option, value, 0, 0, 0):
        raise OSError(f"prctl({option}, {value}) failed")


@lru_cache(maxsize=1)
def _libc_prctl() -> Callable[..., int]:
    """Looked up once in a template and not again in each child: that alone would copy some 60 of its pages."""
    import ctypes

    function = ctypes.CDLL(None).prctl
    function.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    return function


def _exit_after(parent: int) -> None:  # pragma: no cover - only where there is no prctl
    import select

    kernel: Any = select
    with contextlib.suppress(ProcessLookupError):
        event = kernel.kevent(parent, kernel.KQ_FILTER_PROC, kernel.KQ_EV_ADD, kernel.KQ_NOTE_EXIT)
        kernel.kqueue().control([event], 1)
    os.kill(os.getpid(), signal.SIGKILL)
