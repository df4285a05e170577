"""A worker of type process, with real processes, real signals and a real server."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from harness import DURABLE, RedisServer, eventually
from orch_workers.base import WorkerOptions
from orch_workers.runner import run_worker
from orchestrator.exceptions import ConfigurationError, InvalidName, ObjectNotFound, Refused
from orchestrator.keys import shorten
from orchestrator.settings import Settings
from orchestrator.store import NamespaceSettings, Store, embedded, open_store
from worker_processes import (
    deploy,
    descendants_of,
    is_alive,
    kill,
    let_go,
    log_of,
    make_project,
    submit,
    wait_for_end,
    wait_for_start,
    wait_for_state,
    wait_until_gone,
    worker,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FLOWS = '''
"""Flows for the tests of workers. Those that wait are let go through a named pipe."""
import os, signal, subprocess, sys, threading
from pathlib import Path

from orchestrator import flow

@flow
def answers(x: int = 41) -> int:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return x + 1

@flow
def waits(folder: str) -> str:
    note_start(folder)
    return wait_at_gate(folder)

@flow
def waits_with_a_child(folder: str) -> str:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(folder, "child").write_text(str(child.pid))
    return waits.fn(folder)

@flow
def will_not_stop(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_start(folder)
    while True:
        signal.pause()

@flow
def dies(how: str) -> None:
    print("about to die", end="")
    sys.stdout.flush()
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))

@flow
def tells_its_fence(folder: str) -> list[str]:
    """Dies in its first attempt. A program that it starts knows the fence too."""
    from orchestrator.runtime import flow_run
    seen = subprocess.run(["sh", "-c", "echo $ORCH_FENCE"], capture_output=True, text=True).stdout.strip()
    with open(f"{folder}/fences", "a") as fences:
        fences.write(f"{flow_run.fence} {seen}\\n")
    if flow_run.fence == 1:
        os.kill(os.getpid(), signal.SIGKILL)

@flow
def tells_its_environment(name: str) -> str:
    return os.environ.get(name, "")

@flow
def tells_a_random_number() -> float:
    import random
    return random.random()
'''


LEAVES_WORK = """
import atexit, tempfile, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from orchestrator import flow

shared = tempfile.TemporaryDirectory()
done = []
atexit.register(lambda: print(*done))

@flow
def leaves_work(folder: str, number: int) -> None:
    assert Path(shared.name).exists()
    ThreadPoolExecutor().submit(int)

    def work() -> None:
        with open(f"{folder}/gate{number}") as gate:
            gate.readline()
        done.append("the thread's work is done")
    threading.Thread(target=work).start()
    atexit.register(lambda: Path(folder, str(number)).write_text(done[0]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with ``flows.py`` and a named pipe called gate."""
    return make_project(tmp_path / "project", FLOWS)


@pytest.fixture
def short_lease(store: Store) -> timedelta:
    """A lease of three seconds in this namespace, so that what waits for its end is soon over."""
    lease = timedelta(seconds=3)
    store.write_settings(replace(store.settings, lease=lease))
    return lease


def reasons(store: Store, run: str) -> str:
    """All messages of a run's history in one text."""
    found = store.runs.get(run)
    return "\n".join([*(entry.message for entry in found.history), found.state.message])


# -- the ordinary


def test_a_run_ends_completed_with_what_it_printed_in_its_log(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "answers"), x=1)
    with worker(settings):
        ended = wait_for_end(store, run)
        assert (ended.state.name, ended.run_count, ended.attempt) == ("Completed", 1, 1)
        eventually(lambda: len(log_of(store, run)) >= 2)
    assert ("stdout", "to stdout") in log_of(store, run)
    assert ("stderr", "to stderr") in log_of(store, run)


def test_a_worker_takes_no_more_runs_than_its_limit(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "waits")
    runs = [submit(store, deployment, folder=str(folder)) for _ in range(3)]
    with worker(settings, limit=2):
        wait_for_start(folder, 2)
        states = sorted(store.runs.get(run).place for run in runs)
        assert states == ["leased", "leased", "queued"]
        let_go(folder)
        wait_for_start(folder, 3)
        let_go(folder)
        let_go(folder)
        for run in runs:
            assert wait_for_end(store, run).state.name == "Completed"


def test_every_run_has_a_process_and_random_numbers_of_its_own(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "tells_a_random_number")
    runs = [submit(store, deployment) for _ in range(5)]
    with worker(settings):
        for run in runs:
            wait_for_end(store, run)
    assert len({store.runs.result(run) for run in runs}) == 5


def test_a_burst_runs_what_is_queued_and_exits_cleanly(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "answers")
    runs = [submit(store, deployment) for _ in range(7)]
    with worker(settings, burst=True) as burst:
        assert burst.wait() == 0
    assert [store.runs.get(run).state.name for run in runs] == ["Completed"] * 7


def test_a_worker_that_ends_leaves_neither_process_nor_heartbeat(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "answers"))
    with worker(settings, name="here") as here:
        wait_for_end(store, run)
        assert [found.name for found in store.pools.workers("pool")] == ["here"]
        processes = descendants_of(here.pid)
        assert processes
        here.signal(signal.SIGTERM)
        assert here.wait() == 0
        assert not any(is_alive(pid) for pid in processes)
    assert store.pools.workers("pool") == []


def test_a_deployment_can_set_environment_variables_for_its_runs(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "tells_its_environment", job_variables={"env": {"COLOUR": "green"}})
    run = submit(store, deployment, name="COLOUR")
    with worker(settings, burst=True) as burst:
        burst.wait()
    assert b"green" in store.runs.result(run)


def test_only_the_named_work_queues_are_read(store: Store, settings: Settings, folder: Path) -> None:
    store.pools.create("pool")
    store.pools.create_queue("pool", "fast")
    fast = submit(store, deploy(store, folder, "answers", name="fast", queue="fast"))
    slow = submit(store, deploy(store, folder, "answers", name="slow"))
    with worker(settings, burst=True, queues=("fast",)) as burst:
        assert burst.wait() == 0
    assert store.runs.get(fast).state.name == "Completed"
    assert store.runs.get(slow).state.name == "Scheduled"


def test_metrics_tell_slots_and_ended_runs(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "answers"))
    with worker(settings, metrics_port=0, name="measured") as measured:
        wait_for_end(store, run)
        measured.wait_until_said("Metrics at")
        url = next(line.split()[-1] for line in measured.said if "Metrics at" in line)
        ended = 'orch_flow_runs_total{deployment="test",flow="answers",state="completed"} 1.0'

        def told() -> str:
            """What is told once the worker has counted the end, which others see a moment before it."""
            text = urllib.request.urlopen(url).read().decode()
            return text if ended in text else ""

        text = eventually(told, what="the worker to count the end")
    assert 'orch_flow_runs_total{deployment="test",flow="answers",state="failed"} 0.0' in text
    assert 'orch_run_queue_wait_seconds_count{queue="default",work_pool="pool"} 1.0' in text
    assert 'orch_worker_slots{kind="total",work_pool="pool"} 2.0' in text
    assert 'orch_worker_up{work_pool="pool",worker="measured"} 1.0' in text


# -- code that changes, or is not there


def test_a_changed_source_file_is_seen_by_the_next_run(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "answers")
    with worker(settings):
        first = submit(store, deployment, x=1)
        wait_for_end(store, first)
        (folder / "flows.py").write_text(FLOWS.replace("return x + 1", "return x + 7"))
        second = submit(store, deployment, x=1)
        wait_for_end(store, second)
    assert store.runs.result(first) != store.runs.result(second)


def test_a_changed_module_that_the_flow_imports_is_seen_too(store: Store, settings: Settings, folder: Path) -> None:
    (folder / "constants.py").write_text("STEP = 1\n")
    (folder / "flows.py").write_text(FLOWS.replace("return x + 1", "return x + STEP") + "\nfrom constants import STEP\n")
    deployment = deploy(store, folder, "answers")
    with worker(settings):
        first = submit(store, deployment, x=1)
        wait_for_end(store, first)
        (folder / "constants.py").write_text("STEP = 9\n")
        second = submit(store, deployment, x=1)
        wait_for_end(store, second)
    assert store.runs.result(first) != store.runs.result(second)


def test_a_module_that_does_not_import_ends_the_run_failed_with_its_traceback_in_the_log(
    store: Store, settings: Settings, folder: Path
) -> None:
    (folder / "flows.py").write_text("print('so far so good')\n1 / 0  # the culprit\n")
    deployment = deploy(store, folder, "answers")
    with worker(settings):
        broken = submit(store, deployment)
        ended = wait_for_end(store, broken)
        assert ended.state.name == "Failed"
        assert "ZeroDivisionError" in ended.state.message
        text = "\n".join(message for _, message in log_of(store, broken))
        assert "the culprit" in text
        assert "so far so good" in text
        (folder / "flows.py").write_text(FLOWS)
        mended = submit(store, deployment)
        assert wait_for_end(store, mended).state.name == "Completed"


def test_what_a_module_prints_while_it_is_imported_is_in_no_runs_log_twice(
    store: Store, settings: Settings, folder: Path
) -> None:
    """A buffer that was not flushed before the fork was printed again by every child."""
    (folder / "flows.py").write_text(f"print('imported')\n{FLOWS}")
    deployment = deploy(store, folder, "answers")
    with worker(settings):
        for _ in range(2):
            run = submit(store, deployment)
            assert wait_for_end(store, run).state.name == "Completed"
            assert [message for logger, message in log_of(store, run) if logger == "stdout"].count("imported") == 0


def test_a_module_that_ends_its_process_fails_the_run(store: Store, settings: Settings, folder: Path) -> None:
    (folder / "flows.py").write_text("import os\nos._exit(5)\n")
    run = submit(store, deploy(store, folder, "answers"))
    with worker(settings):
        ended = wait_for_end(store, run)
    assert ended.state.name == "Failed"
    assert "exited with status 5" in ended.state.message


def test_a_worker_without_the_flows_path_fails_the_run_and_says_how_to_ship_code(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    run = submit(store, deploy(store, tmp_path / "elsewhere", "answers"))
    with worker(settings):
        ended = wait_for_end(store, run)
    assert ended.state.name == "Failed"
    assert os.uname().nodename in ended.state.message
    assert "every worker host" in log_of(store, run)[-1][1]


def test_a_module_that_starts_a_thread_gets_a_fresh_interpreter_for_each_run(
    store: Store, settings: Settings, folder: Path
) -> None:
    thread = "\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (folder / "flows.py").write_text(FLOWS + thread)
    run = submit(store, deploy(store, folder, "answers"), x=1)
    with worker(settings) as spawning:
        assert wait_for_end(store, run).state.name == "Completed"
        spawning.wait_until_said("started threads")
    assert ("stdout", "to stdout") in log_of(store, run)


def test_a_deployment_that_is_gone_fails_its_queued_runs(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "answers")
    run = submit(store, deployment)
    pool = store.pools.get("pool")
    store.client.delete(store.keys.deployment(shorten(deployment.id)))
    with worker(settings, pool=pool.name):
        ended = wait_for_end(store, run)
    assert ended.state.name == "Failed"
    assert "deployment is gone" in ended.state.message


# -- processes that die


@pytest.mark.parametrize(
    ("how", "reason"), [("SIGKILL", "killed by SIGKILL"), ("SIGSEGV", "killed by SIGSEGV"), ("exit", "exited with status 3")]
)
def test_a_child_that_dies_is_a_crash_with_its_reason_in_the_history(
    store: Store, settings: Settings, folder: Path, how: str, reason: str
) -> None:
    run = submit(store, deploy(store, folder, "dies"), crash_budget=2, how=how)
    with worker(settings):
        ended = wait_for_end(store, run)
        eventually(lambda: len([line for line in log_of(store, run) if reason in line[1]]) == 2)
    assert (ended.state.name, ended.crash_count, ended.run_count) == ("Crashed", 2, 2)
    assert reason in ended.state.message
    assert ("stdout", "about to die") in log_of(store, run)


def test_the_fence_grows_with_every_attempt_and_is_known_to_programs_that_the_run_starts(
    store: Store, settings: Settings, folder: Path
) -> None:
    run = submit(store, deploy(store, folder, "tells_its_fence"), folder=str(folder))
    with worker(settings):
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.attempt) == ("Completed", 2)
    assert (folder / "fences").read_text() == "1 1\n2 2\n"


def test_a_killed_child_is_replaced_and_its_run_started_again_at_once(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "waits"), folder=str(folder))
    with worker(settings):
        kill(wait_for_start(folder))
        wait_for_start(folder, 2)
        let_go(folder)
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.attempt, ended.crash_count) == ("Completed", 2, 1)


def test_threads_and_exit_handlers_of_a_run_do_their_work_after_its_end(
    store: Store, settings: Settings, folder: Path, short_lease: timedelta
) -> None:
    """They were cut without a word. A folder that the module made is still there for the next run."""
    (folder / "flows.py").write_text(LEAVES_WORK)
    deployment = deploy(store, folder, "leaves_work")
    with worker(settings):
        for number in range(2):
            os.mkfifo(folder / f"gate{number}")
            run = submit(store, deployment, folder=str(folder), number=number)
            assert wait_for_end(store, run).state.name == "Completed"
            with (folder / f"gate{number}").open("w") as gate:
                gate.write("let go\n")
            eventually(lambda: ("stdout", "the thread's work is done") in log_of(store, run))  # noqa: B023 - called here
            assert (folder / str(number)).read_text() == "the thread's work is done"


def test_what_a_child_has_started_dies_with_it(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "waits_with_a_child"), crash_budget=1, folder=str(folder))
    with worker(settings):
        child = wait_for_start(folder)
        grandchild = int((folder / "child").read_text())
        kill(child)
        assert wait_for_end(store, run).state.name == "Crashed"
        wait_until_gone([grandchild])


def test_a_killed_template_costs_its_runs_a_start_and_the_worker_goes_on(
    store: Store, settings: Settings, folder: Path
) -> None:
    run = submit(store, deploy(store, folder, "waits_with_a_child"), folder=str(folder))
    with worker(settings) as killed:
        wait_for_start(folder)
        grandchild = int((folder / "child").read_text())
        [template] = killed.templates()
        kill(template)
        wait_for_start(folder, 2)
        wait_until_gone([grandchild])
        let_go(folder)
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.crash_count) == ("Completed", 1)
    assert "template process was killed by SIGKILL" in reasons(store, run)


def test_a_killed_supervisor_takes_all_its_processes_along_and_another_worker_takes_over(
    store: Store, settings: Settings, folder: Path, short_lease: timedelta
) -> None:
    run = submit(store, deploy(store, folder, "waits_with_a_child"), folder=str(folder))
    with worker(settings, name="first") as first:
        wait_for_start(folder)
        processes = descendants_of(first.pid)
        assert len(processes) >= 3
        kill(first.pid)
        wait_until_gone(processes)
    with worker(settings, name="second"):  # no scheduler lives: it lapses the lease by itself
        wait_for_start(folder, 2)
        let_go(folder)
        ended = wait_for_end(store, run)
    assert (ended.state.name, ended.crash_count) == ("Completed", 1)
    assert "second" in reasons(store, run)


def test_a_stopped_supervisors_runs_are_killed_before_anyone_else_may_start_them(
    store: Store, settings: Settings, folder: Path, short_lease: timedelta
) -> None:
    run = submit(store, deploy(store, folder, "waits"), folder=str(folder))
    with worker(settings) as paused:
        child = wait_for_start(folder)
        paused.signal(signal.SIGSTOP)
        wait_until_gone([child])
        assert store.runs.get(run).attempt == 1
        lease_ends_ms = store.client.zscore(store.keys.leases, shorten(run))
        assert lease_ends_ms is not None
        assert store.now().timestamp() * 1000 < lease_ends_ms
        paused.signal(signal.SIGCONT)
        wait_for_start(folder, 2)
        let_go(folder)
        ended = wait_for_end(store, run)
    assert ended.state.name == "Completed"


# -- cancelling


def test_a_cancelled_run_is_stopped_at_once(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "waits_with_a_child"), folder=str(folder))
    with worker(settings):
        child = wait_for_start(folder)
        grandchild = int((folder / "child").read_text())
        assert store.runs.cancel(run).answer == "ok"
        ended = wait_for_end(store, run)
        wait_until_gone([child, grandchild])
    assert (ended.state.name, ended.attempt) == ("Cancelled", 1)


def test_a_run_that_ignores_the_request_is_killed_when_the_grace_is_over(
    store: Store, settings: Settings, folder: Path
) -> None:
    run = submit(store, deploy(store, folder, "will_not_stop"), folder=str(folder))
    with worker(settings, cancel_grace=timedelta(milliseconds=200)):
        child = wait_for_start(folder)
        store.runs.cancel(run)
        ended = wait_for_end(store, run)
        wait_until_gone([child])
    assert ended.state.name == "Cancelled"


# -- stopping


def test_a_draining_worker_lets_its_runs_end_and_claims_no_more(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "waits")
    running = submit(store, deployment, folder=str(folder))
    with worker(settings) as draining:
        wait_for_start(folder)
        draining.signal(signal.SIGTERM)
        draining.wait_until_said("Stopping: no new runs are claimed")
        eventually(lambda: store.pools.workers("pool")[0].status == "DRAINING")
        later = submit(store, deployment, folder=str(folder))
        let_go(folder)
        assert draining.wait() == 0
    assert store.runs.get(running).state.name == "Completed"
    assert store.runs.get(later).place == "queued"


def test_a_worker_that_is_told_to_drain_lets_its_runs_end_however_long_they_take(
    store: Store, settings: Settings, folder: Path
) -> None:
    deployment = deploy(store, folder, "waits")
    running = submit(store, deployment, folder=str(folder))
    with worker(settings, grace=timedelta(0)) as draining:
        wait_for_start(folder)
        store.pools.drain(store.pools.workers("pool")[0].name)
        draining.wait_until_said("Draining on request: no new runs are claimed, and 1 run may end.")
        eventually(lambda: store.pools.workers("pool")[0].status == "DRAINING")
        later = submit(store, deployment, folder=str(folder))
        let_go(folder)
        assert draining.wait() == 0
    assert store.runs.get(running).state.name == "Completed"
    assert store.runs.get(later).place == "queued"


def test_what_a_killed_worker_was_told_does_not_drain_the_next_of_its_name(
    store: Store, settings: Settings, folder: Path
) -> None:
    deployment = deploy(store, folder, "answers")
    store.client.xadd(store.keys.control("blue"), {"c": "drain", "r": "", "s": 1})
    with worker(settings, name="blue"):
        assert [wait_for_end(store, submit(store, deployment)).state.name for _ in range(2)] == ["Completed"] * 2
    store.client.delete(store.keys.control("blue"))


def test_a_signal_to_a_worker_that_drains_begins_the_grace(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, deploy(store, folder, "waits"), folder=str(folder))
    with worker(settings, grace=timedelta(milliseconds=100)) as draining:
        wait_for_start(folder)
        store.pools.drain(store.pools.workers("pool")[0].name)
        draining.wait_until_said("Draining on request")
        draining.signal(signal.SIGTERM)
        assert draining.wait() == 0
    found = store.runs.get(run)
    assert (found.place, found.crash_count) == ("queued", 0)


@pytest.mark.parametrize("patience", ["the grace ends", "a second Ctrl-C"])
def test_runs_that_do_not_end_in_time_are_handed_back_without_a_crash(
    store: Store, settings: Settings, folder: Path, patience: str
) -> None:
    grace = timedelta(milliseconds=100) if patience == "the grace ends" else timedelta(hours=1)
    run = submit(store, deploy(store, folder, "waits_with_a_child"), folder=str(folder))
    with worker(settings, grace=grace) as stopping:
        child = wait_for_start(folder)
        grandchild = int((folder / "child").read_text())
        stopping.signal(signal.SIGINT)
        stopping.wait_until_said("Stopping: no new runs are claimed")
        if patience == "a second Ctrl-C":
            stopping.signal(signal.SIGINT)
        assert stopping.wait() == 0
        wait_until_gone([child, grandchild])
    back = store.runs.get(run)
    assert (back.place, back.crash_count, back.attempt) == ("queued", 0, 1)
    with worker(settings):
        wait_for_start(folder, 2)
        let_go(folder)
        assert wait_for_end(store, run).state.name == "Completed"


def test_a_third_ctrl_c_exits_even_while_redis_hangs(folder: Path, tmp_path: Path) -> None:
    server = RedisServer(*DURABLE).start()
    settings = Settings(home=tmp_path, redis_url=server.url, redis_timeout_s=0.5)
    try:
        with open_store(settings) as store:
            run = submit(store, deploy(store, folder, "waits"), folder=str(folder))
            with worker(settings) as stuck:
                child = wait_for_start(folder)
                assert wait_for_state(store, run, "Running")
                server.kill()
                stuck.signal(signal.SIGINT)
                stuck.wait_until_said("Stopping: no new runs")
                stuck.signal(signal.SIGINT)
                wait_until_gone([child])
                stuck.signal(signal.SIGINT)
                assert stuck.wait() == 1
    finally:
        server.stop()


# -- Redis goes away


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server of the test's own, to mistreat."""
    server = RedisServer(*DURABLE).start()
    yield server
    server.stop()


def test_a_running_flow_survives_a_restart_of_redis(own_server: RedisServer, folder: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis_url=own_server.url)
    with open_store(settings) as store:
        deployment = deploy(store, folder, "waits")
        run = submit(store, deployment, folder=str(folder))
        with worker(settings) as steady:
            wait_for_start(folder)
            wait_for_state(store, run, "Running")
            own_server.kill()
            steady.wait_until_said("Redis cannot be reached")
            let_go(folder)
            own_server.start()
            ended = wait_for_end(store, run)
            assert (ended.state.name, ended.attempt, ended.crash_count) == ("Completed", 1, 0)
            again = submit(store, deployment, folder=str(folder))
            wait_for_start(folder, 2)
            let_go(folder)
            assert wait_for_end(store, again).state.name == "Completed"
            assert steady.process.poll() is None


def test_an_idle_worker_goes_on_after_a_restart_of_redis(own_server: RedisServer, folder: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis_url=own_server.url)
    with open_store(settings) as store:
        deployment = deploy(store, folder, "answers")
        with worker(settings) as idle:
            wait_for_end(store, submit(store, deployment))
            own_server.kill()
            idle.wait_until_said("Redis cannot be reached")
            own_server.start()
            assert wait_for_end(store, submit(store, deployment)).state.name == "Completed"


@pytest.mark.parametrize("killed", ["while a flow runs", "while nothing runs"])
def test_a_private_server_that_dies_comes_back_without_a_command(orch_home: Path, folder: Path, killed: str) -> None:
    """Everything waited until somebody typed a command."""
    settings = Settings(home=orch_home)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(settings))
        deployment = deploy(store, folder, "waits")
        steady = stack.enter_context(worker(settings))
        server = embedded.status(orch_home)
        assert server is not None
        if killed == "while nothing runs":
            kill(server.pid)
            eventually(lambda: embedded.running(orch_home))
        run = submit(store, deployment, folder=str(folder))
        wait_for_start(folder)
        if killed == "while a flow runs":
            kill(server.pid)
            steady.wait_until_said("was started again")
        let_go(folder)
        eventually(lambda: embedded.running(orch_home))
        assert wait_for_end(store, run).state.name == "Completed"
        assert embedded.stop(orch_home)
        steady.wait_until_said("Redis cannot be reached")
        steady.signal(signal.SIGTERM)
        steady.wait()
        assert not embedded.running(orch_home), "what was stopped on purpose stays so"


def test_without_redis_runs_are_killed_before_their_lease_ends_and_started_again_later(
    own_server: RedisServer, folder: Path, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, redis_url=own_server.url, redis_timeout_s=0.5)
    with open_store(settings) as store:
        store.write_settings(NamespaceSettings(lease=timedelta(seconds=3)))
        run = submit(store, deploy(store, folder, "waits"), folder=str(folder))
        with worker(settings):
            child = wait_for_start(folder)
            wait_for_state(store, run, "Running")
            own_server.pause()
            wait_until_gone([child])
            own_server.resume()
            wait_for_start(folder, 2)
            let_go(folder)
            ended = wait_for_end(store, run)
    assert (ended.state.name, ended.attempt) == ("Completed", 2)


# -- what a worker refuses


def test_a_missing_pool_or_queue_is_an_error_with_a_hint(store: Store, settings: Settings) -> None:
    with pytest.raises(ObjectNotFound, match="no work pool") as missing:
        run_worker(WorkerOptions(pool="nowhere", settings=settings))
    assert "orch work-pool create" in (missing.value.hint or "")
    store.pools.create("pool")
    with pytest.raises(ObjectNotFound, match="no work queue 'fast'"):
        run_worker(WorkerOptions(pool="pool", queues=("fast",), settings=settings))


def test_a_pool_of_another_type_is_an_error(store: Store, settings: Settings) -> None:
    store.pools.create("pool")
    with pytest.raises(ConfigurationError, match="of type process"):
        run_worker(WorkerOptions(pool="pool", type="docker", settings=settings))


def test_a_second_worker_of_a_name_is_refused_while_the_first_lives(store: Store, settings: Settings, folder: Path) -> None:
    """Both took runs under one name, and the first to end removed the other's registration."""
    run = submit(store, deploy(store, folder, "answers"))
    with worker(settings, name="w4") as first:
        with pytest.raises(Refused, match=f"There is a worker 'w4' already: process {first.pid} on ") as refused:
            run_worker(WorkerOptions(pool="pool", name="w4", settings=settings))
        assert "another --name" in (refused.value.hint or "")
        assert wait_for_end(store, run).state.name == "Completed"
        assert [known.pid for known in store.pools.workers()] == [first.pid]
        kill(first.pid)
        first.wait()
        with worker(settings, name="w4") as second:
            eventually(lambda: [known.pid for known in store.pools.workers()] == [second.pid])


def test_a_worker_name_must_be_a_name(settings: Settings) -> None:
    with pytest.raises(InvalidName):
        run_worker(WorkerOptions(pool="pool", name="a/b", settings=settings))


def test_a_paused_pool_is_shown(store: Store, settings: Settings, folder: Path) -> None:
    deployment = deploy(store, folder, "answers")
    store.pools.pause("pool")
    with worker(settings) as waiting:
        waiting.wait_until_said("orch work-pool resume 'pool'")
        run = submit(store, deployment)
        eventually(lambda: store.runs.get(run).place == "parked")
        store.pools.resume("pool")
        assert wait_for_end(store, run).state.name == "Completed"
