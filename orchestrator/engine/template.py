"""A process that has Orch and one deployment's flow module imported, and forks a child for each run.

A worker's supervisor starts one per deployment revision::

    python -P -m orchestrator.engine.template FD        FD: the supervisor's socket

and speaks msgpack arrays with it:

    supervisor -> template  ["load", {entrypoint, path, pull, env, mode}]  first; mode: fork, spawn
                            ["fork", token] with three descriptors      frames socket, stdout, stderr of the new child
                            ["trust", [[pid, until], ...], margin_s]    kill that child at ``until`` (monotonic seconds), or not
                            ["reap", pid]                               its end is dealt with, its number may be used again
    template -> supervisor  ["loaded", [[file, mtime_ns, size], ...]]   the project's files that a child would not read again
                            ["failed", message, traceback]              the module does not load
                            ["unsafe", why]                             forking could hang: start a template in mode spawn
                            ["child", token, pid, problem]              pid 0: it could not be started
                            ["exit", pid, status, reason]               a child ended; it stays a zombie until "reap"

A child waits for one ["run", {...}] on its frames socket, executes it and exits. In mode spawn the template imports no user
code and each child is a fresh interpreter (``--once``). With an empty entrypoint nothing of the user's is imported either, and
a child is an executor process (``threads.py``): it gets its runs later on.

Who dies with whom: the template kills its children's process groups and exits when the supervisor's socket closes; children
are killed by the kernel when their template dies. Each child adopts what its descendants leave behind, so that no daemon gets
away from it while it runs; when it ends, the template adopts all of that, and kills it before it says "exit".

The template, which waits for nothing but its sockets, also keeps the promise about leases: a child whose ``until`` passes
without a new one is killed, even while the supervisor hangs or is stopped. Should the template be stopped too, the kernel kills
it ``margin_s`` after that moment, and with it its children.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator import clock, settings
from orchestrator.engine import processes

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.flows import Flow

UNTRUSTED = "its worker could not renew the lease in time"
"""The reason in "exit" of a child that was killed because its ``until`` had passed."""

LAST_WORK_S = 10.0
"""How long what a run has left behind, threads and exit handlers, may go on after the run's end."""

_RESERVE_BYTES = 2 * 1024 * 1024

_own_exit_handlers = 0
_reserve: mmap.mmap | None = None
"""Given back when a run has used up all memory that it may have: what is left then must do to say so."""

_inherited_finalizers: list[Any] = []

OUT_OF_MEMORY = "out of memory: the kernel killed it"
"""The reason in "exit" of a child that the kernel killed for want of memory."""

PERHAPS_OUT_OF_MEMORY = "killed by SIGKILL, perhaps by the kernel for lack of memory"
"""The reason where nobody counts such kills."""

BURIAL_S = 5.0
"""How long a template that ends waits for the death of what it has killed."""


def main(arguments: list[str]) -> int:
    """The command line of the module: ``FD`` for a template, ``--once FD PARENT`` for one child in mode spawn."""
    if arguments[0] == "--once":
        processes.die_with_parent(int(arguments[2]))
        processes.adopt_orphans()
        _run_once(int(arguments[1]))
    processes.die_with_parent(os.getppid())
    return Template(int(arguments[0])).serve()


class Template:
    """One template process: loads, forks on request, watches over its children."""

    def __init__(self, descriptor: int) -> None:
        import socket

        import msgpack

        self._socket = socket.socket(fileno=descriptor)
        self._unpacker = msgpack.Unpacker(use_list=True, raw=False)
        self._pack = msgpack.packb
        self._descriptors: deque[int] = deque()
        self._mode = "fork"
        self._flow: Flow[..., Any] | None = None
        self._children: dict[int, float | None] = {}  # pid -> trusted until, monotonic
        self._ended: set[int] = set()  # reported, not reaped
        self._untrusted: set[int] = set()
        self._margin_s = 0.0
        self._last_moment = processes.LastMoment()
        self._out_of_memory = processes.OutOfMemory()
        self._helpers: set[int] = set()  # processes that the flow's module started when it was imported
        self._wakeup, self._wakeup_writer = os.pipe()

    def serve(self) -> int:
        """Work until the supervisor's socket closes; returns the exit status."""
        message = self._first_message()
        if message is None or not self._load(message[1]):
            return 1
        self._watch_children()
        # From here on the end of the supervisor is seen on its socket, with time to kill whole process groups.
        processes.survive_parent()
        parent = os.getppid()
        import select

        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while os.getppid() == parent:
            ready = dict(poll.poll(self._milliseconds_to_next_deadline()))
            self._kill_untrusted()
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._report_ended()
            if self._socket.fileno() in ready and not self._receive():
                break
        self._end_all(poll)
        return 0

    def _end_all(self, poll: Any) -> None:
        """Kill the children with all that descends from them, and see them dead: nobody else would find what left its group."""
        for pid in self._children:
            processes.signal_group(pid, signal.SIGKILL)
        poll.unregister(self._socket)
        deadline = clock.monotonic() + BURIAL_S
        while not self._is_all_over() and (left_s := deadline - clock.monotonic()) > 0:
            poll.poll(left_s * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)

    def _is_all_over(self) -> bool:
        self._kill_what_was_left()
        # Not waited for: the supervisor may still signal their groups, by numbers that must not be given to others yet.
        dead = [os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in self._children]
        return all(dead) and not self._strangers()

    def _first_message(self) -> list[Any] | None:
        while True:
            for message in self._unpacker:
                return list(message)
            received = self._socket.recv(65536)
            if not received:
                return None
            self._unpacker.feed(received)

    def _load(self, spec: Mapping[str, Any]) -> bool:
        self._mode = spec["mode"]
        if self._mode == "spawn":
            self._send(["loaded", []])
            return True
        _import_what_runs_need()
        _note_own_exit_handlers()
        started_ms = clock.now_ms()
        try:
            if spec["entrypoint"]:
                self._flow = load(spec)
                _make_ready(self._flow)
            else:
                import orchestrator.engine.threads  # noqa: F401
            # What the module has printed stands in a buffer, which every child would inherit and print again.
            _flush_output()
        except BaseException as error:  # a module may raise anything, SystemExit included
            _flush_output()
            self._send(["failed", *describe_failure(error)])
            return False
        reason = _why_unsafe()
        if reason:
            self._send(["unsafe", reason])
            return False
        import gc
        import weakref

        gc.collect()
        _inherited_finalizers[:] = weakref.finalize._registry  # type: ignore[attr-defined]
        gc.freeze()  # children share these pages: no collection may touch them
        self._send(["loaded", project_files(started_ms)])
        return True

    def _watch_children(self) -> None:
        for descriptor in (self._wakeup, self._wakeup_writer):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        self._helpers = set(processes.children_of(os.getpid()))
        processes.adopt_orphans()

    def _milliseconds_to_next_deadline(self) -> float | None:
        deadlines = [until for until in self._children.values() if until is not None]
        return max(0.0, (min(deadlines) - clock.monotonic()) * 1000 + 1) if deadlines else None

    def _kill_untrusted(self) -> None:
        now = clock.monotonic()
        for pid, until in self._children.items():
            if until is not None and until <= now:
                self._untrusted.add(pid)
                self._children[pid] = None
                processes.signal_group(pid, signal.SIGKILL)
        self._set_last_moment()

    def _report_ended(self) -> None:
        ended = []
        for pid in list(self._children.keys() - self._ended):
            # WNOWAIT: the zombie keeps its number until the supervisor has killed what is left of its group.
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                ended.append(end)
        # Before anybody hears of the end: what was left behind must not meet the run's next attempt.
        self._kill_what_was_left()
        for end in ended:
            pid = end.si_pid
            self._ended.add(pid)
            self._children[pid] = None
            status = end.si_status << 8 if end.si_code == os.CLD_EXITED else end.si_status
            self._send(["exit", pid, status, self._reason(pid, status)])
        self._set_last_moment()

    def _set_last_moment(self) -> None:
        moments = [until for until in self._children.values() if until is not None]
        self._last_moment.set(min(moments) + self._margin_s if moments else None)

    def _strangers(self) -> list[int]:
        """Processes that this one has adopted. A run keeps what it starts, however deep, so theirs have ended."""
        known = self._children.keys() | self._helpers
        return [pid for pid in processes.children_of(os.getpid()) if pid not in known]

    def _kill_what_was_left(self) -> None:
        """Kill what ended runs have left behind, and bury it. What those leave in turn comes here too, with a SIGCHLD each."""
        for pid in self._strangers():
            processes.kill_tree(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _reason(self, pid: int, status: int) -> str:
        if pid in self._untrusted:
            return UNTRUSTED
        if status != signal.SIGKILL:
            return ""
        is_explained = self._out_of_memory.explains_a_kill()
        return PERHAPS_OUT_OF_MEMORY if is_explained is None else OUT_OF_MEMORY if is_explained else ""

    def _receive(self) -> bool:
        import socket

        try:
            received, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 64)
        except ConnectionError:
            return False
        if not received:
            return False
        self._descriptors.extend(descriptors)
        self._unpacker.feed(received)
        for kind, *values in self._unpacker:
            if kind == "fork":
                self._start_child(values[0])
            elif kind == "trust":
                for pid, until in values[0]:
                    if pid in self._children and pid not in self._ended:
                        self._children[pid] = until
                self._margin_s = values[1]
                self._set_last_moment()
                self._out_of_memory.look()
            elif kind == "reap":
                self._reap(values[0])
        return True

    def _start_child(self, token: int) -> None:
        frames, stdout, stderr = (self._descriptors.popleft() for _ in range(3))
        try:
            pid = self._fork(frames, stdout, stderr) if self._mode == "fork" else _spawn(frames, stdout, stderr)
        except OSError as error:
            self._send(["child", token, 0, f"{error.strerror or error}"])
        else:
            self._children[pid] = None
            self._send(["child", token, pid, ""])
        finally:
            for descriptor in (frames, stdout, stderr):
                os.close(descriptor)

    def _fork(self, frames: int, stdout: int, stderr: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # both sides do it: whoever is first, the group exists before anyone signals it
            return pid
        try:
            os.setpgid(0, 0)
            processes.die_with_parent(parent)
            processes.adopt_orphans()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (self._socket.fileno(), self._wakeup, self._wakeup_writer, *self._descriptors):
                os.close(descriptor)
            self._socket.detach()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.close(stdout)
            os.close(stderr)
            _reseed()
            _run_forked(frames, self._flow)
        finally:
            os._exit(70)  # not reached unless the lines above fail: a child never returns into the template's loop

    def _reap(self, pid: int) -> None:
        if self._children.pop(pid, 0) != 0:
            self._ended.discard(pid)
            self._untrusted.discard(pid)
            os.waitpid(pid, 0)

    def _send(self, message: list[Any]) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone; the next read says so too
            self._socket.sendall(self._pack(message))


def load(spec: Mapping[str, Any]) -> Flow[..., Any]:
    """Go where the deployment's code is and import its flow. ``spec`` holds entrypoint, path, pull and env.

    Raises whatever the user's module raises, and FlowLoadError where it is not there at all.
    """
    import socket

    from orchestrator.deployments import entrypoints
    from orchestrator.exceptions import FlowLoadError

    path = spec.get("path") or str(Path.cwd())
    try:
        os.chdir(path)
    except OSError as error:
        raise FlowLoadError(
            f"Worker host '{socket.gethostname()}' cannot enter the deployment's folder '{path}': {error.strerror}.",
            hint="Put the code there on every worker host (a shared disk, an image, or a pull step in orch.yaml), "
            "or correct the path and deploy again.",
        ) from None
    settings.add_to_environment({str(name): str(value) for name, value in (spec.get("env") or {}).items()})
    sys.dont_write_bytecode = True  # a file saved twice in one second would find the first one's bytecode
    sys.argv = [spec["entrypoint"]]
    if spec.get("pull"):
        from orchestrator.deployments import steps

        path = str(steps.run_pull(spec["pull"], path))
        os.chdir(path)
    return entrypoints.load_flow(spec["entrypoint"], path)


def describe_failure(error: BaseException) -> tuple[str, str]:
    """What a load failure says in the run's state, and what in its log: the user's traceback where there is one."""
    import traceback

    from orchestrator.exceptions import OrchError

    if not isinstance(error, OrchError):
        return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)).rstrip()
    said = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else str(error)
    return str(error), "\n".join(filter(None, (said.rstrip(), error.hint)))


def project_files(started_ms: int) -> list[list[Any]]:
    """The imported files that belong to the project, each with mtime and size: whoever edits one wants a new template.

    The standard library, installed packages and Orch itself are not the project. A file that changed after ``started_ms``, when
    loading began, may have been read before or after: its mtime is given as 0, which never matches.
    """
    files: list[list[Any]] = []
    for file in sorted(_imported_files()):
        try:
            status = Path(file).stat()
        except OSError:
            continue
        certain = status.st_mtime_ns < started_ms * 1_000_000
        files.append([file, status.st_mtime_ns if certain else 0, status.st_size])
    return files


def is_current(files: Iterable[tuple[str, int, int]]) -> bool:
    """Whether none of these (path, mtime in ns, size) has changed since ``project_files`` listed it."""
    for file, mtime_ns, size in files:
        try:
            status = Path(file).stat()
        except OSError:
            return False
        if status.st_mtime_ns != mtime_ns or status.st_size != size:
            return False
    return True


def _imported_files() -> set[str]:
    import sysconfig

    orch = Path(__file__).parent.parent
    installed = (sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    foreign = tuple(f"{os.path.realpath(folder)}/" for folder in (str(orch), *installed))
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            file = os.path.realpath(file)
            if not file.startswith(foreign) and "site-packages" not in file and "dist-packages" not in file:
                found.add(file)
    return found


def _why_unsafe() -> str:
    """Why forking this process could leave its children with a lock that nobody will ever release; empty when it is fine."""
    import threading

    if sys.platform == "darwin":
        return "macOS frameworks do not survive a fork"
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return f"the flow's module started threads: {', '.join(sorted(others))}" if others else ""


def _import_what_runs_need() -> None:
    """Import here, once, what each child would otherwise import for itself.

    Before any user code, while bytecode may still be written: a test sees that a run imports nothing more.
    """
    import orchestrator.engine.execute
    import orchestrator.engine.inputs
    import orchestrator.engine.link
    import orchestrator.engine.plain
    import orchestrator.engine.slots
    import orchestrator.logging.prints
    import orchestrator.task_runners
    import orchestrator.tasks  # noqa: F401


def _make_ready(flow: Flow[..., Any]) -> None:
    """Do here, once, what each child would otherwise do for itself before the flow's first line."""
    import inspect

    from orchestrator.logging import handlers

    handlers.prepare(console=False)
    flow.signature.prepare()
    if inspect.iscoroutinefunction(flow.fn) or inspect.isasyncgenfunction(flow.fn):
        import asyncio  # noqa: F401


def _reseed() -> None:
    """Give this child random numbers of its own. After a fork ``random`` has them already, NumPy's global state has not."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        numpy.random.seed(int.from_bytes(os.urandom(4), "big"))


def _spawn(frames: int, stdout: int, stderr: int) -> int:
    import subprocess

    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "orchestrator.engine.template", "--once", str(frames), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=[frames],
        process_group=0,
    )
    process.returncode = 0  # the template waits for it by its number
    return process.pid


def _run_forked(frames: int, flow: Flow[..., Any] | None) -> NoReturn:
    """One run in a forked child: the flow is already there."""
    link, run = _receive_run(frames)
    if run is None:
        os._exit(0)
    _execute(run, link, flow)


def _run_once(frames: int) -> NoReturn:
    """One run in a fresh interpreter: load, then run; a load failure is the run's failure."""
    _import_what_runs_need()
    _note_own_exit_handlers()
    link, run = _receive_run(frames)
    if run is None:
        os._exit(0)
    flow = None
    if run["entrypoint"]:
        try:
            flow = load(run)
        except BaseException as error:
            _end_failed(link, run, error)
    _execute(run, link, flow)


def _receive_run(frames: int) -> tuple[Link, dict[str, Any] | None]:
    """Wait for the run frame; None when the supervisor closes the socket instead."""
    import socket

    from orchestrator.engine import protocol
    from orchestrator.engine.link import Link

    link = Link(socket.socket(fileno=frames))
    frame = link.receive()
    return link, frame[1] if frame and frame[0] == protocol.RUN else None


def _execute(run: dict[str, Any], link: Link, flow: Flow[..., Any] | None) -> NoReturn:
    from orchestrator.engine.execute import execute_run

    global _reserve
    _reserve = mmap.mmap(-1, _RESERVE_BYTES)  # address space alone: none of it is touched
    # Lines reach the log while the run goes on, and none is lost when the process is killed.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if flow is None:
        from orchestrator.engine import threads

        threads.serve(link, run)
        leave(link, 0)
    settings.tell_fence(run["attempt"])
    status = 0
    try:
        execute_run(run, link, flow)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException as problem:
        status = 1
        _tell_last(link, run["id"], problem)
    leave(link, status)


def _tell_last(link: Link, run: str, problem: BaseException) -> None:
    """What came in the way of telling the run's end; all that can be said of it with what memory there is."""
    if _reserve is not None:
        _reserve.close()
    import traceback

    from orchestrator.engine import protocol
    from orchestrator.states import StateType

    cause: BaseException | None = problem
    while cause is not None and not isinstance(cause, MemoryError):
        cause = cause.__cause__ or cause.__context__
    # Without room for a thread's stack that is a RuntimeError.
    if cause is not None:
        traceback.clear_frames(cause.__traceback__)
        with contextlib.suppress(Exception):
            link.send([protocol.END, run, StateType.CRASHED.value, "Crashed", "It ran out of memory.", b"", None])
    with contextlib.suppress(Exception):
        traceback.print_exception(problem)


def _end_failed(link: Link, run: dict[str, Any], error: BaseException) -> NoReturn:
    """The flow does not load: say so in the log and end the run Failed."""
    import logging

    from orchestrator.engine import protocol
    from orchestrator.states import StateType

    message, traceback = describe_failure(error)
    link.send([protocol.LOG, run["id"], [[clock.now_ms(), logging.ERROR, "orchestrator.worker", traceback, None]]])
    link.send([protocol.END, run["id"], StateType.FAILED.value, "Failed", message, b"", None])
    leave(link, 0)


def leave(link: Link, status: int) -> NoReturn:
    """End this process as the interpreter would, within LAST_WORK_S; the run's end has been told."""
    # No clean-up of the interpreter: it costs milliseconds, and objects made before the fork are not ours to finalise.
    _flush_output()
    _do_last_work(link, status)
    link.close()
    os._exit(status)


def _note_own_exit_handlers() -> None:
    """Whatever is registered beyond these is the user's."""
    import atexit

    global _own_exit_handlers
    _own_exit_handlers = atexit._ncallbacks()


def _do_last_work(link: Link, status: int) -> None:
    """What the interpreter does when a program ends: wait for threads that are no daemons, then call the exit handlers.

    The run's end has been told by now; this goes on beside the next run. It is ended when LAST_WORK_S are over.
    """
    import atexit
    import threading

    main = threading.main_thread()
    threads = [thread.name for thread in threading.enumerate() if thread is not main and not thread.daemon]
    if not threads and atexit._ncallbacks() <= _own_exit_handlers:
        return

    def give_up() -> None:
        what = f"threads {', '.join(threads)}" if threads else "exit handlers"
        os.write(2, f"Stopped what the run left behind: its {what} went on for {LAST_WORK_S:g} s after its end.\n".encode())
        link.close()
        os._exit(status)

    limit = threading.Timer(LAST_WORK_S, give_up)
    limit.daemon = True
    limit.start()
    for finalizer in _inherited_finalizers:
        # What the template made, such as a temporary folder, is there for its other children too.
        if finalizer.alive:
            finalizer.atexit = False
    # This, and not join: idle threads of an executor wait for work until they are told that none will come.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    _flush_output()


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
