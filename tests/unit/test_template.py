"""A template process: what it says to its supervisor, and what its children find ready. The test is the supervisor."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest

from harness import eventually
from orchestrator.engine import template as module
from orchestrator.engine.template import OUT_OF_MEMORY, UNTRUSTED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

FLOW = """
import sys
from pathlib import Path
from orchestrator import flow

BEFORE = set(sys.modules)

@flow
def tells_imports() -> list[str]:
    return sorted(set(sys.modules) - BEFORE)

@flow
def counts_exit_handlers() -> int:
    import atexit
    template = sys.modules["__main__"]
    return atexit._ncallbacks() - template._own_exit_handlers

@flow
def waits() -> None:
    import signal
    signal.pause()

@flow
def eats_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(b"x" * (1 << 20)))
"""


class Supervisor:
    """A template and the supervisor's ends of its sockets."""

    def __init__(self, folder: Path, function: str, mode: str = "fork", prefix: Sequence[str] = ()) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        with theirs:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-P", "-m", "orchestrator.engine.template", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._unpacker = msgpack.Unpacker()
        spec = {"entrypoint": f"flows.py:{function}", "path": str(folder), "pull": [], "env": {}, "mode": mode}
        self.spec = spec
        self.send("load", spec)

    def send(self, *message: Any) -> None:
        self.socket.sendall(msgpack.packb(message))

    def receive(self) -> list[Any]:
        while True:
            for message in self._unpacker:
                return list(message)
            data = self.socket.recv(65536)
            assert data, "the template has closed its socket"
            self._unpacker.feed(data)

    def fork(self) -> tuple[int, socket.socket]:
        """A new child: its pid and our end of its frames socket."""
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        with theirs, Path(os.devnull).open("wb") as null:
            descriptors = [theirs.fileno(), null.fileno(), null.fileno()]
            socket.send_fds(self.socket, [msgpack.packb(["fork", 1])], descriptors)
        kind, token, pid, problem = self.receive()
        assert (kind, token, problem) == ("child", 1, "")
        return pid, ours

    def run(self, frames: socket.socket) -> None:
        """Give a child its run."""
        run = {"id": "0197a000-0000-7000-8000-000000000001", "attempt": 1, "run_count": 0, "crash_count": 0, "flow": "f"}
        run |= {"name": "n", "parameters": {}, "tags": [], "due_ms": 0, "parent": None, "deployment": {}}
        frames.sendall(msgpack.packb(["run", {**run, **self.spec}]))

    def close(self) -> None:
        self.socket.close()
        self.process.wait(timeout=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "flows.py").write_text(FLOW)
    return tmp_path


@pytest.fixture
def waiting(folder: Path) -> Iterator[Supervisor]:
    """A template whose flow waits for ever."""
    supervisor = Supervisor(folder, "waits")
    yield supervisor
    supervisor.close()


def frames_until_end(frames: socket.socket) -> list[list[Any]]:
    unpacker, found = msgpack.Unpacker(), []
    while data := frames.recv(65536):
        unpacker.feed(data)
        found += list(unpacker)
    return found


def test_it_reports_the_projects_files_and_nothing_installed(waiting: Supervisor, folder: Path) -> None:
    kind, files = waiting.receive()
    assert kind == "loaded"
    assert [file for file, _, _ in files] == [str(folder / "flows.py")]


def test_a_run_imports_nothing_that_its_template_could_have_imported(folder: Path) -> None:
    supervisor = Supervisor(folder, "tells_imports")
    assert supervisor.receive()[0] == "loaded"
    _, frames = supervisor.fork()
    supervisor.run(frames)
    [end] = [frame for frame in frames_until_end(frames) if frame[0] == "end"]
    assert end[2] == "COMPLETED"
    imported = [name for name in msgpack.unpackb(end[5]) if name.startswith("orchestrator")]
    assert imported == []
    frames.close()
    supervisor.close()


def test_a_run_that_leaves_nothing_behind_ends_without_looking_after_it(folder: Path) -> None:
    supervisor = Supervisor(folder, "counts_exit_handlers")
    assert supervisor.receive()[0] == "loaded"
    _, frames = supervisor.fork()
    supervisor.run(frames)
    [end] = [frame for frame in frames_until_end(frames) if frame[0] == "end"]
    assert msgpack.unpackb(end[5]) == 0, "an exit handler of Orch's own would slow every run"
    frames.close()
    supervisor.close()


def test_a_child_stays_a_zombie_until_its_supervisor_has_dealt_with_it(waiting: Supervisor) -> None:
    waiting.receive()
    pid, frames = waiting.fork()
    os.kill(pid, signal.SIGKILL)
    assert waiting.receive() == ["exit", pid, signal.SIGKILL, ""]
    assert Path(f"/proc/{pid}").exists()
    waiting.send("reap", pid)
    second, other = waiting.fork()  # answered after the burial
    assert not Path(f"/proc/{pid}").exists()
    assert second != pid
    frames.close()
    other.close()


def test_a_child_whose_time_is_up_is_killed_without_being_told_again(waiting: Supervisor) -> None:
    waiting.receive()
    pid, frames = waiting.fork()
    waiting.send("trust", [[pid, time.monotonic() + 0.05]], 60.0)
    assert waiting.receive() == ["exit", pid, signal.SIGKILL, UNTRUSTED]
    frames.close()


def test_a_stopped_template_dies_with_its_children_when_their_time_is_up(waiting: Supervisor) -> None:
    """Stopped with its supervisor, it let a run go on after SIGCONT that had been started again elsewhere."""
    waiting.receive()
    pid, frames = waiting.fork()
    os.kill(pid, signal.SIGSTOP)
    end = os.pidfd_open(pid)
    waiting.send("trust", [[pid, time.monotonic() + 3600]], 1.0)
    waiting.send("trust", [[pid, time.monotonic() + 0.5]], 0.1)
    _, other = waiting.fork()  # answered after both
    waiting.process.send_signal(signal.SIGSTOP)
    assert waiting.process.wait(timeout=30) == -signal.SIGKILL
    # Stopped before it could ask the kernel to die with its parent, the child sees that for itself as soon as it goes on.
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(end, signal.SIGCONT)
    assert select.select([end], [], [], 30)[0], "the child's end"
    for thing in (frames, other):
        thing.close()
    os.close(end)


def test_a_template_whose_children_have_ended_lives_on(waiting: Supervisor) -> None:
    waiting.receive()
    pid, frames = waiting.fork()
    waiting.send("trust", [[pid, time.monotonic() + 0.2]], 0.2)
    assert waiting.receive() == ["exit", pid, signal.SIGKILL, UNTRUSTED]
    second, other = waiting.fork()
    waiting.send("trust", [[second, time.monotonic() + 0.4]], 0.4)
    assert waiting.receive() == ["exit", second, signal.SIGKILL, UNTRUSTED], "the first moment is over, and it is there"
    for thing in (frames, other):
        thing.close()


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 96 MB. Without the right to make one, the test is skipped."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"orch-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if version_1.is_dir() else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(96 << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"needs the right to make a control group, as root has: {error}")
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text(), what="the end of its processes")
    group.rmdir()


def test_a_child_that_the_kernel_kills_for_want_of_memory_has_that_for_a_reason(folder: Path, small_group: Path) -> None:
    enter = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(small_group)]
    supervisor = Supervisor(folder, "eats_memory", prefix=enter)
    assert supervisor.receive()[0] == "loaded"
    pid, frames = supervisor.fork()
    supervisor.run(frames)
    assert supervisor.receive() == ["exit", pid, signal.SIGKILL, OUT_OF_MEMORY]
    pid, other = supervisor.fork()
    os.kill(pid, signal.SIGKILL)
    assert supervisor.receive() == ["exit", pid, signal.SIGKILL, ""], "one such kill explains one death"
    for socket_ in (frames, other):
        socket_.close()
    supervisor.close()


def test_a_child_whose_run_never_comes_exits_quietly(waiting: Supervisor) -> None:
    waiting.receive()
    pid, frames = waiting.fork()
    frames.close()
    assert waiting.receive() == ["exit", pid, 0, ""]


def test_a_module_that_does_not_load_is_told_with_its_traceback(folder: Path) -> None:
    (folder / "flows.py").write_text("1 / 0  # here\n")
    supervisor = Supervisor(folder, "waits")
    kind, message, traceback = supervisor.receive()
    assert kind == "failed"
    assert "ZeroDivisionError" in message
    assert "# here" in traceback
    supervisor.close()


def test_a_module_that_exits_is_told_as_a_failure_to_load(folder: Path) -> None:
    (folder / "flows.py").write_text("import sys\nsys.exit(4)\n")
    supervisor = Supervisor(folder, "waits")
    assert supervisor.receive()[0] == "failed"
    supervisor.close()


def test_a_module_with_a_thread_is_not_forked(folder: Path) -> None:
    thread = "\nimport threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='busy').start()\n"
    (folder / "flows.py").write_text(FLOW + thread)
    supervisor = Supervisor(folder, "waits")
    kind, why = supervisor.receive()
    assert (kind, "busy" in why) == ("unsafe", True)
    supervisor.close()


def test_a_file_that_changes_while_it_is_loaded_counts_as_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_imported_files", lambda: {str(folder / "flows.py")})
    [[_, mtime_ns, size]] = module.project_files(started_ms=0)
    assert (mtime_ns, size) == (0, len(FLOW))


def test_what_a_run_leaves_behind_has_a_limit_and_the_log_says_so() -> None:
    program = """
import socket, threading
from orchestrator.engine import template
from orchestrator.engine.link import Link

template.LAST_WORK_S = 0.01
threading.Thread(target=threading.Event().wait, name="stuck").start()
template.leave(Link(socket.socketpair()[0]), 3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "its threads stuck went on for 0.01 s after its end" in done.stderr
