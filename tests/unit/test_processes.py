"""How a process died, in words; and what descends from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import clock
from orchestrator.engine import processes

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with status 0"),
        (3 << 8, "exited with status 3"),
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV, "killed by SIGSEGV (segmentation fault)"),
        (signal.SIGABRT | 0x80, "killed by SIGABRT (aborted)"),
        (63, "killed by signal 63"),
    ],
)
def test_a_wait_status_is_told_in_words(status: int, words: str) -> None:
    assert processes.describe_status(status) == words


class Counter:
    """A kernel's count of processes killed for want of memory, under a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int | None = 7) -> None:
        self.count = count
        self.now = 100.0
        monkeypatch.setattr(processes, "_out_of_memory_kills", lambda: self.count)
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)


def test_a_kill_that_the_kernel_has_just_counted_was_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    memory = processes.OutOfMemory()
    assert memory.explains_a_kill() is False
    counter.count = 8
    assert [memory.explains_a_kill() for _ in range(2)] == [True, False], "one count explains one death"
    counter.count = 10
    assert [memory.explains_a_kill() for _ in range(3)] == [True, True, False]


def test_a_kill_counted_long_before_a_death_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    memory = processes.OutOfMemory()
    counter.count = 8
    for _ in range(2):
        counter.now += 5
        memory.look()
    assert memory.explains_a_kill() is False


def test_a_process_may_take_a_while_to_die_of_a_kill_that_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    memory = processes.OutOfMemory()
    counter.count = 8
    counter.now += 5
    memory.look()
    memory.look()
    assert memory.explains_a_kill() is True


def test_where_nobody_counts_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    Counter(monkeypatch, None)
    assert processes.OutOfMemory().explains_a_kill() is None


@linux
def test_the_kernel_counts_here() -> None:
    assert processes.OutOfMemory().explains_a_kill() is not None


@linux
@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/system.slice/orch.service", "system.slice/orch.service/memory.events"),
        ("0::/", "memory.events"),
        ("4:memory:/docker/1\n0::/", "memory/docker/1/memory.oom_control"),
        ("4:cpu,memory:/docker/1\n0::/", "memory/memory.oom_control"),
    ],
    ids=["version 2", "version 2 in a container", "version 1", "version 1 in a container"],
)
def test_the_control_group_is_asked_before_the_machine(
    cgroup: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("low 0\noom_kill 41\n")
    (tmp_path / "vmstat").write_text("oom_kill 99\n")
    monkeypatch.setattr(processes, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(processes, "_CGROUPS", tmp_path)
    monkeypatch.setattr(processes, "_VMSTAT", tmp_path / "vmstat")
    assert processes._out_of_memory_kills() == 41
    (tmp_path / file).unlink()
    assert processes._out_of_memory_kills() == 99


_FAMILY = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
print(child.pid, flush=True)
signal.pause()
"""


@linux
def test_a_tree_is_killed_with_what_has_left_its_session() -> None:
    with subprocess.Popen([sys.executable, "-c", _FAMILY], stdout=subprocess.PIPE, env={**os.environ, "MARK": "m"}) as family:
        assert family.stdout is not None
        child = int(family.stdout.readline())
        assert processes.children_of(family.pid) == [child]
        assert processes.has_in_environment(child, "MARK=m")
        assert not processes.has_in_environment(child, "MARK=")
        end = os.pidfd_open(child)
        processes.kill_tree(family.pid)
        assert family.wait() == -signal.SIGKILL
    import select

    assert select.select([end], [], [], 30)[0], "the child's end"
    os.close(end)


@linux
def test_who_is_gone_has_no_children_and_no_environment() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert processes.children_of(gone.pid) == []
    assert not processes.has_in_environment(gone.pid, "MARK=m")
    processes.kill_tree(gone.pid)
