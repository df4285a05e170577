"""Runs that crash, and what they have started: with real processes, real signals and a real server."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from harness import eventually, python
from orch_scheduler.service import Scheduler
from orchestrator.keys import GROUP
from orchestrator.settings import Settings
from orchestrator.states import Completed
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End
from worker_processes import (
    deploy,
    descendants_of,
    environment_of,
    is_alive,
    kill,
    let_go,
    log_of,
    make_project,
    numbers,
    submit,
    wait_for_end,
    wait_for_start,
    wait_until_gone,
    worker,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FLOWS = '''
"""Flows that crash, and flows that start processes which do not want to be found."""
import os, resource, signal, subprocess, sys
from pathlib import Path

from orchestrator import flow

def note(folder: str, pid: int) -> None:
    with open(f"{folder}/pids", "a") as pids:
        pids.write(f"{pid}\\n")

def become_daemon(folder: str) -> None:
    """As daemons do: fork, leave the session, fork again. It ignores every polite signal."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # A program that it starts, in a session of its own and with an environment of its own.
    program = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True, env={})
    note(folder, program.pid)
    note(folder, os.getpid())
    while True:
        signal.pause()

@flow
def leaves_daemons(folder: str, then: str = "return") -> None:
    become_daemon(folder)
    while not Path(folder, "pids").exists() or len(Path(folder, "pids").read_text().split()) < 2:
        pass
    if then == "wait":
        waits.fn(folder)
    elif then == "exit":
        os._exit(3)

@flow
def answers() -> int:
    return 42

@flow
def waits(folder: str) -> None:
    note_start(folder)
    wait_at_gate(folder)

@flow
def kills_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

@flow
def leaves_python() -> None:
    sys.exit(3)

kept = []

@flow
def takes_too_much_memory(how: str) -> None:
    """``at once``: more than there may be; ``bit by bit``: until nothing is left, even for a thread; ``and keeps it``."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), size + (64 << 20)))
    if how == "at once":
        bytearray(1 << 30)
    held = kept if how == "and keeps it" else []
    for step in (1 << 24, 1 << 20, 1 << 16):
        try:
            while True:
                held.append(bytearray(step))
        except MemoryError:
            if step == 1 << 16:
                raise
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with ``flows.py`` and a named pipe called gate."""
    return make_project(tmp_path / "project", FLOWS)


@contextmanager
def scheduler(settings: Settings) -> Iterator[None]:
    """A scheduler that works beside the test, by what the namespace has agreed on."""
    with open_store(settings) as store:
        running = Scheduler(store)
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield
        finally:
            running.stop()
            thread.join(30)


def wait_for_daemons(folder: Path) -> list[int]:
    """The daemon and the program that it has started."""
    return eventually(lambda: found if len(found := numbers(folder / "pids")) == 2 else None, what="the daemons") or []


# -- what a run leaves behind


@pytest.mark.parametrize(("then", "state"), [("return", "Completed"), ("exit", "Crashed")])
def test_a_daemon_does_not_outlive_the_run_that_started_it(
    store: Store, settings: Settings, folder: Path, then: str, state: str
) -> None:
    """One that had left its session lived on, adopted by the worker or by init."""
    run = submit(store, deploy(store, folder, "leaves_daemons"), crash_budget=1, folder=str(folder), then=then)
    with worker(settings):
        assert wait_for_end(store, run).state.name == state
        daemons = wait_for_daemons(folder)
        eventually(lambda: not [pid for pid in daemons if Path(f"/proc/{pid}").exists()], what="their burial")


def test_a_daemon_lives_as_long_as_its_run_whatever_other_runs_do(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "leaves_daemons")
    first = submit(store, deployment, folder=str(folder), then="wait")
    with worker(settings):
        wait_for_start(folder)
        daemons = wait_for_daemons(folder)
        other = submit(store, deployment, folder=str(folder))
        assert wait_for_end(store, other).state.name == "Completed"
        others = numbers(folder / "pids")[2:]
        wait_until_gone(others)
        assert all(map(is_alive, daemons))
        let_go(folder)
        assert wait_for_end(store, first).state.name == "Completed"
        wait_until_gone(daemons)


def test_a_daemon_is_killed_with_its_cancelled_run(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "leaves_daemons"), folder=str(folder), then="wait")
    with worker(settings):
        wait_for_start(folder)
        daemons = wait_for_daemons(folder)
        store.runs.cancel(run)
        assert wait_for_end(store, run).state.name == "Cancelled"
        wait_until_gone(daemons)


@pytest.mark.parametrize("killed", ["supervisor", "template", "child"])
def test_a_daemon_dies_whichever_process_of_the_worker_is_killed(
    store: Store, settings: Settings, folder: Path, killed: str
) -> None:
    submit(store, deploy(store, folder, "leaves_daemons"), crash_budget=1, folder=str(folder), then="wait")
    with worker(settings) as struck:
        child = wait_for_start(folder)
        daemons = wait_for_daemons(folder)
        [template] = struck.templates()
        kill({"supervisor": struck.pid, "template": template, "child": child}[killed])
        if killed == "template":
            # What has thrown away the mark of its worker as well as its parents is found by descent alone.
            wait_until_gone([child, daemons[1]])
        wait_until_gone([child, *daemons])


def test_a_fresh_interpreter_for_each_run_leaves_no_daemons_either(store: Store, settings: Settings, folder: Path) -> None:
    thread = "\nimport threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (folder / "flows.py").write_text(FLOWS + thread)
    run = submit(store, deploy(store, folder, "leaves_daemons"), folder=str(folder))
    with worker(settings) as spawning:
        spawning.wait_until_said("started threads")
        assert wait_for_end(store, run).state.name == "Completed"
        wait_until_gone(wait_for_daemons(folder))


def test_a_program_that_the_module_has_started_serves_all_runs(store: Store, settings: Settings, folder: Path) -> None:
    """A helper such as a tracker of shared memory belongs to the template, not to the first run that ends."""
    helper = f"\nnote({str(folder)!r}, subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']).pid)\n"
    (folder / "flows.py").write_text(FLOWS + helper)
    deployment = deploy(store, folder, "answers")
    with worker(settings) as steady:
        for _ in range(2):
            assert wait_for_end(store, submit(store, deployment)).state.name == "Completed"
        [program] = numbers(folder / "pids")
        assert is_alive(program)
        steady.signal(signal.SIGTERM)
        assert steady.wait() == 0
        wait_until_gone([program])


# -- why it crashed, and what follows


@pytest.mark.parametrize(
    ("how", "state", "message"),
    [
        ("at once", "Failed", "MemoryError: out of memory"),
        ("bit by bit", "Failed", "MemoryError: out of memory"),
        ("and keeps it", "Crashed", "It ran out of memory."),
    ],
)
def test_a_flow_that_exceeds_its_memory_limit_says_so(
    store: Store, settings: Settings, folder: Path, how: str, state: str, message: str
) -> None:
    """With nothing left to tell it with, its process ended in silence: exited with status 0."""
    run = submit(store, deploy(store, folder, "takes_too_much_memory"), how=how)
    with worker(settings):
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.state.message, ended.crash_count) == (state, message, 0)


def test_a_flow_that_leaves_python_has_crashed_and_is_not_started_again(store: Store, settings: Settings, folder: Path) -> None:
    """As those know it who come from Prefect: an exit is no failure of the flow, and no accident of its process."""
    run = submit(store, deploy(store, folder, "leaves_python"))
    with worker(settings):
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.state.message) == ("Crashed", "Its code left Python with exit status 3.")
    assert (ended.attempt, ended.crash_count) == (1, 0)


def test_what_kills_its_process_each_time_is_in_quarantine_after_exactly_three_starts(
    store: Store, settings: Settings, folder: Path
) -> None:
    run = submit(store, deploy(store, folder, "kills_itself"))
    with scheduler(settings), worker(settings):
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.crash_count, ended.run_count, ended.attempt) == ("Crashed", 3, 3, 3)
    assert ended.is_quarantined
    told = [entry.message for entry in ended.history if "lost" in entry.message]
    assert [message.split(":")[0] for message in told] == [
        "Started again, 1 of 3 starts lost",
        "Starts again in 1 s, 2 of 3 starts lost",
        "Its process was lost (3 of 3 starts)",
    ]
    assert all("killed by SIGKILL" in message for message in told)


def test_without_a_scheduler_a_worker_starts_a_crashed_run_again_by_itself(
    store: Store, settings: Settings, folder: Path
) -> None:
    store.write_settings(replace(store.settings, lease=timedelta(seconds=3)))
    run = submit(store, deploy(store, folder, "kills_itself"))
    with worker(settings):
        ended = wait_for_end(store, run)
    assert (ended.crash_count, ended.run_count) == (3, 3)


# -- workers that hang


_HANGS = """
import sys, threading
from pathlib import Path
from orch_workers import runner
from orch_workers.base import WorkerOptions

tick = runner.Supervisor._tick

def tick_or_hang(self):
    tick(self)
    if Path(sys.argv[1], "hang").exists():
        threading.Event().wait()

runner.Supervisor._tick = tick_or_hang
say = lambda sentence: print(sentence, file=sys.stderr, flush=True)
sys.exit(runner.run_worker(WorkerOptions(pool="pool", name="hangs", announce=say)))
"""


_ONE_READ_HANGS = """
import sys, threading
from datetime import timedelta
from orch_workers import runner
from orch_workers.base import WorkerOptions
from orchestrator.store.pools import Pools

runner.BLOCK, runner.LONGEST_TURN_S = timedelta(milliseconds=100), 0.0
wait_for_runs = Pools.wait_for_runs
say = lambda sentence: print(sentence, file=sys.stderr, flush=True)

def hang_once(self, *arguments, **more):
    Pools.wait_for_runs = wait_for_runs
    say("The read hangs.")
    threading.Event().wait()

Pools.wait_for_runs = hang_once
sys.exit(runner.run_worker(WorkerOptions(pool="pool", announce=say)))
"""


def test_a_read_that_never_ends_is_given_up_and_the_worker_goes_on(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "answers")
    hanging = python("-c", _ONE_READ_HANGS, env=environment_of(replace(settings, redis_timeout_s=0.5)))
    assert hanging.stderr is not None
    try:
        assert any("The read hangs." in line for line in hanging.stderr)
        run = submit(store, deployment)
        assert any("A read from Redis does not end" in line for line in hanging.stderr)
        assert wait_for_end(store, run).state.name == "Completed"
        hanging.terminate()
        assert hanging.wait(30) == 0
    finally:
        hanging.kill()
        hanging.communicate()


def test_a_worker_whose_loop_hangs_ends_itself_and_its_runs_go_on_elsewhere(
    store: Store, settings: Settings, folder: Path
) -> None:
    """It was up, renewed nothing, claimed nothing, and nobody restarted it."""
    store.write_settings(replace(store.settings, lease=timedelta(seconds=2)))
    run = submit(store, deploy(store, folder, "leaves_daemons"), folder=str(folder), then="wait")
    hanging = python("-c", _HANGS, str(folder), env=environment_of(replace(settings, redis_timeout_s=0.5)))
    try:
        child = wait_for_start(folder)
        below = [child, *wait_for_daemons(folder), *descendants_of(hanging.pid)]
        (folder / "hang").touch()
        _, said = hanging.communicate(timeout=60)
    finally:
        hanging.kill()
    assert hanging.returncode == 1
    assert "Worker 'hangs' ends itself: its loop has not turned for 4 s." in said
    assert "in tick_or_hang" in said
    wait_until_gone(below)
    (folder / "pids").unlink()
    with scheduler(settings), worker(settings, name="next"):
        wait_for_start(folder, 2)
        let_go(folder)
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.worker) == ("Completed", "next")


def test_a_worker_that_was_stopped_for_longer_than_any_patience_goes_on(store: Store, settings: Settings, folder: Path) -> None:
    """Its old run counts where it was started again; what it takes from then on counts as ever."""
    store.write_settings(replace(store.settings, lease=timedelta(seconds=1)))
    deployment = deploy(store, folder, "waits")
    run = submit(store, deployment, folder=str(folder))
    brief = replace(settings, redis_timeout_s=0.5)
    with scheduler(brief), worker(brief, name="paused") as paused:
        first = wait_for_start(folder)
        paused.signal(signal.SIGSTOP)
        with worker(brief, name="other") as other:
            wait_for_start(folder, 2)
            assert not is_alive(first), "its run was to be dead before another could start"
            with open_store(brief) as agreed:
                workers = agreed.pools.workers
                eventually(lambda: [found.status for found in workers() if found.name == "paused"] == ["OFFLINE"])
            assert store.runs.renew([(run, 1)], worker="paused") == ["lost"]
            assert store.runs.finish([End(run, 1, Completed())], worker="paused") == ["superseded"]
            paused.signal(signal.SIGCONT)
            let_go(folder)
            ended = wait_for_end(store, run)
            assert (ended.state.name, ended.worker, ended.attempt) == ("Completed", "other", 2)
            other.signal(signal.SIGTERM)
            assert other.wait() == 0
        again = submit(store, deployment, folder=str(folder))
        wait_for_start(folder, 3)
        let_go(folder)
        ended = wait_for_end(store, again)
        assert (ended.state.name, ended.worker) == ("Completed", "paused")
        assert paused.process.poll() is None


def test_a_worker_whose_consumer_group_is_gone_makes_a_new_one(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "answers")
    with worker(settings):
        wait_for_end(store, submit(store, deployment))
        for stream in store.runs.streams("pool", ["default"]):
            store.client.xgroup_destroy(store.keys.prefix + stream, GROUP)
        assert wait_for_end(store, submit(store, deployment)).state.name == "Completed"


# -- rolling restarts


def test_runs_past_the_grace_are_handed_back_and_go_on_at_once_elsewhere(
    store: Store, settings: Settings, folder: Path
) -> None:
    run = submit(store, deploy(store, folder, "waits"), folder=str(folder))
    with worker(settings, name="old", grace=timedelta(milliseconds=100)) as old:
        wait_for_start(folder)
        with worker(settings, name="new"):
            old.signal(signal.SIGTERM)
            wait_for_start(folder, 2)
            assert old.wait() == 0
            found = store.runs.get(run)
            assert (found.worker, found.attempt, found.crash_count) == ("new", 2, 0)
            let_go(folder)
            assert wait_for_end(store, run).state.name == "Completed"
    assert [line for line in log_of(store, run) if "handed back" in line[1]]
