"""``python flow.py``: with nothing configured, recorded where there is a Redis, and whatever happens to either process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from harness import DURABLE, RedisServer, eventually, python
from orchestrator.models import Run, RunFilter
from orchestrator.settings import Settings
from orchestrator.store import NamespaceSettings, Store, embedded, open_store

HELLO = """
from orchestrator import flow, get_run_logger, task


@task
def get_title(name):
    return name.strip().title()


@task
def hello(title):
    get_run_logger().info("Hello, %s! (reversed: %s)", title, title[::-1])


@flow
def hello_flow(name: str = " prefect flow "):
    hello(get_title(name))


if __name__ == "__main__":
    hello_flow()
"""

WAITING = """
import sys
import threading
from orchestrator import flow, task

@task
def step(): ...

@flow
def child():
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        exec(line)

@flow
def waiting():
    child()
    return "done"

{main}
"""

Script = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def script(settings: Settings, tmp_path: Path) -> Iterator[Script]:
    """Starts a program whose flows are recorded in the test's namespace."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, **environment: str) -> subprocess.Popen[str]:
        path = tmp_path / "script.py"
        path.write_text(source)
        recorded = {"ORCH_REDIS_URL": settings.redis_url or "", "ORCH_NAMESPACE": settings.namespace}
        process = python(str(path), env={**recorded, **environment}, stdin=subprocess.PIPE, cwd=tmp_path)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Close its stdin and wait for its end; exit status and stderr."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def runs(store: Store, flow: str | None = None) -> list[Run]:
    return store.queries.runs(RunFilter(flow=flow)).runs


def run_of(store: Store, flow: str) -> Run:
    [run] = runs(store, flow)
    return store.runs.get(run.id)


def ended(store: Store, flow: str) -> Run:
    eventually(lambda: [run for run in runs(store, flow) if run.is_terminal], what=f"the end of {flow}")
    return run_of(store, flow)


# With nothing configured


def test_a_flow_runs_with_nothing_configured_and_nothing_running(tmp_path: Path) -> None:
    path = tmp_path / "hello_flow.py"
    path.write_text(HELLO)
    home = tmp_path / "home"
    process = python(str(path), env={"ORCH_HOME": str(home)}, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    lines = [line.split(" | ", 2) for line in err.splitlines()]
    assert {level.strip() for _, level, _ in lines} == {"INFO"}
    assert [text.split(" - ", 1)[1] for _, _, text in lines] == [
        "Started flow 'hello-flow'",
        "Ended Completed",
        "Hello, Prefect Flow! (reversed: wolF tceferP)",
        "Ended Completed",
        "Ended Completed",
    ]
    assert lines[2][2].startswith("Task run 'hello-0' - ")
    assert not home.exists()


def test_log_lines_can_be_json(tmp_path: Path) -> None:
    path = tmp_path / "hello_flow.py"
    path.write_text(HELLO)
    process = python(str(path), env={"ORCH_LOG_FORMAT": "json", "ORCH_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[2]["msg"].startswith("Hello, Prefect Flow!")
    assert (lines[2]["task_name"], lines[2]["flow_name"], lines[2]["level"]) == ("hello", "hello-flow", "INFO")


# Recorded


def test_a_flow_is_recorded_where_a_server_is_configured(store: Store, script: Script) -> None:
    status, err = finish(script(HELLO))
    assert (status, err.count("Ended Completed")) == (0, 3)
    # No waiting here: the process leaves only when its end is in Redis.
    run = run_of(store, "hello-flow")
    assert (run.state.name, run.parameters, run.run_count, run.place) == ("Completed", {"name": " prefect flow "}, 1, "ended")
    tasks = {task.name: task for task in store.runs.tasks(run.id)}
    assert {name: task.state.name for name, task in tasks.items()} == {"get_title-0": "Completed", "hello-0": "Completed"}
    assert tasks["hello-0"].upstream == (tasks["get_title-0"].id,)
    assert "Hello, Prefect Flow! (reversed: wolF tceferP)" in [line.message for line in store.runs.read_log(run.id)]


def test_a_flow_is_recorded_where_the_private_server_runs(orch_home: Path, tmp_path: Path) -> None:
    with open_store(Settings(home=orch_home)) as store:
        path = tmp_path / "hello_flow.py"
        path.write_text(HELLO)
        process = python(str(path), cwd=tmp_path)
        assert process.communicate(timeout=60)[0] == ""
        assert run_of(store, "hello-flow").state.name == "Completed"
    embedded.stop(orch_home)


def test_all_flows_of_a_process_share_a_recorder(store: Store, script: Script) -> None:
    source = """
import threading
from orchestrator import flow

@flow
def one(n): return n

one(1)
threads = [threading.Thread(target=one, args=(n,)) for n in (2, 3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert finish(script(source))[0] == 0
    every = [store.runs.get(run.id) for run in runs(store, "one")]
    assert sorted(run.parameters["n"] for run in every) == [1, 2, 3]
    assert {run.state.name for run in every} == {"Completed"}
    assert len({run.worker for run in every}) == 1


def test_a_failed_flow_is_recorded_with_its_traceback(store: Store, script: Script) -> None:
    source = """
from orchestrator import flow

@flow
def broken():
    raise ValueError("boom")

broken()
"""
    status, err = finish(script(source))
    assert status == 1
    assert err.rstrip().endswith("ValueError: boom")
    run = run_of(store, "broken")
    assert (run.state.name, run.state.message) == ("Failed", "ValueError: boom")
    assert any("Traceback" in line.message for line in store.runs.read_log(run.id))


def test_ten_thousand_submitted_tasks_are_all_recorded(store: Store, script: Script) -> None:
    source = """
from orchestrator import flow, task

@task
def step(n): return n

@flow
def wide():
    return len(step.map(range(10_000)).result())

wide()
"""
    assert finish(script(source, ORCH_LOG_LEVEL="ERROR"))[0] == 0
    tasks = store.runs.tasks(run_of(store, "wide").id)
    assert len(tasks) == 10_000
    assert {task.state.name for task in tasks} == {"Completed"}


# Stopped


def test_a_killed_process_leaves_crashed_runs_at_once(store: Store, script: Script) -> None:
    process = script(WAITING.format(main="waiting()"))
    until_ready(process)
    eventually(lambda: [run for run in runs(store, "child") if store.runs.tasks(run.id)])
    process.kill()
    for flow in ("waiting", "child"):
        run = ended(store, flow)
        assert run.state.name == "Crashed"
        assert "without saying how the run ended" in run.state.message
    assert [task.state.name for task in store.runs.tasks(run_of(store, "child").id)] == ["Completed"]


def test_a_fork_of_the_process_does_not_hide_its_death(store: Store, script: Script) -> None:
    process = script(WAITING.format(main="waiting()"))
    until_ready(process)
    say(process, "import os, signal; child = os.fork(); (signal.pause() if child == 0 else print(child, flush=True))")
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    try:
        process.kill()
        assert ended(store, "waiting").state.name == "Crashed"
    finally:
        os.kill(fork, signal.SIGKILL)


@pytest.mark.parametrize(("number", "message"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "keyboard")])
def test_a_stopped_process_says_by_what(number: signal.Signals, message: str, store: Store, script: Script) -> None:
    process = script(WAITING.format(main="waiting()"))
    until_ready(process)
    process.send_signal(number)
    status, _ = finish(process)
    assert status == -number
    assert message in ended(store, "waiting").state.message
    assert (run_of(store, "waiting").state.name, run_of(store, "child").state.name) == ("Crashed", "Crashed")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_cancelled_run_stops_and_raises_in_its_process(kind: str, store: Store, script: Script) -> None:
    store.write_settings(NamespaceSettings(lease=timedelta(seconds=1)))
    main = """
from orchestrator.exceptions import CancelledRun
try:
    waiting()
except CancelledRun as problem:
    print("told:", problem, flush=True)
"""
    if kind == "async":
        main = """
import asyncio
from orchestrator.exceptions import CancelledRun

@flow(name="waiting")
async def waiting_async():
    print("ready", flush=True)
    await asyncio.Event().wait()

try:
    asyncio.run(waiting_async())
except CancelledRun as problem:
    print("told:", problem, flush=True)
"""
    process = script(WAITING.format(main=main))
    until_ready(process)
    run = eventually(lambda: [run for run in runs(store, "waiting") if run.state.name == "Running"])[0]
    store.runs.cancel(run.id, "Not needed.")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("told: Flow run")
    assert finish(process)[0] == 0
    assert ended(store, "waiting").state.name == "Cancelled"


def test_a_recorder_that_is_killed_does_not_stop_the_flow(store: Store, script: Script) -> None:
    process = script(WAITING.format(main="print(waiting(), flush=True)"))
    until_ready(process)
    [sidecar] = _children(process.pid)
    os.kill(sidecar, signal.SIGKILL)
    say(process, "step()")
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("done\n", 0)
    assert err.count("no longer recorded") == 1


# Redis away


def test_a_flow_runs_while_redis_is_away_and_says_so_once(script: Script, tmp_path: Path) -> None:
    process = script(HELLO, ORCH_REDIS_URL=f"unix://{tmp_path}/nothing.sock", ORCH_REDIS_RETRY_S="0.1")
    status, err = finish(process)
    assert status == 0
    assert "Hello, Prefect Flow!" in err
    assert err.count("cannot be recorded now") == 1
    assert err.count("not recorded yet") == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost:1", "'http://localhost:1' is no address of a Redis server. Write redis://"),
        ("", "would drop runs when its memory is full: maxmemory-policy is allkeys-lru. On the server: CONFIG SET"),
    ],
    ids=["no Redis", "an unsafe Redis"],
)
def test_what_can_never_be_recorded_is_said_once_with_what_to_do(url: str, said: str, script: Script) -> None:
    """The script used to say that the recorder is gone, in place of why or beside it."""
    server = RedisServer("--maxmemory-policy", "allkeys-lru", "--appendonly", "yes").start()
    try:
        program = HELLO + "\nimport time\nfor _ in range(2):\n    hello_flow()\n"
        process = script(program, ORCH_REDIS_URL=url or server.url)
        status, err = finish(process)
    finally:
        server.stop()
    assert status == 0
    assert err.count("WARNING") == 1, err
    assert "Runs of this process are not recorded: " in err
    assert said in err
    assert err.count("Hello, Prefect Flow!") == 3


def test_what_happened_while_redis_was_away_is_recorded_when_it_is_back(script: Script) -> None:
    server = RedisServer(*DURABLE).start()
    settings = Settings(redis_url=server.url, namespace="n")
    try:
        process = script(
            WAITING.format(main="waiting()"), ORCH_REDIS_URL=server.url, ORCH_NAMESPACE="n", ORCH_REDIS_TIMEOUT_S="1"
        )
        until_ready(process)
        with open_store(settings) as store:
            eventually(lambda: runs(store, "child"))
            server.kill()
            for _ in range(5):
                say(process, "step()")
            say(process, "print('went on', flush=True)")
            assert process.stdout is not None
            assert process.stdout.readline() == "went on\n"
            server.start()
            status, _ = finish(process)
            assert status == 0
            assert (run_of(store, "waiting").state.name, run_of(store, "child").state.name) == ("Completed", "Completed")
            assert len(store.runs.tasks(run_of(store, "child").id)) == 6
    finally:
        server.stop()


def test_a_flow_that_ends_while_redis_is_away_is_recorded_after_its_process_has_gone(script: Script) -> None:
    server = RedisServer(*DURABLE).start()
    try:
        process = script(
            WAITING.format(main="waiting()"), ORCH_REDIS_URL=server.url, ORCH_NAMESPACE="n", ORCH_REDIS_TIMEOUT_S="1"
        )
        until_ready(process)
        with open_store(Settings(redis_url=server.url, namespace="n")) as store:
            eventually(lambda: runs(store, "child"))
            server.kill()
            status, err = finish(process)
            assert status == 0
            assert "not recorded yet" in err
            server.start()
            assert ended(store, "waiting").state.name == "Completed"
    finally:
        server.stop()


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def test_a_private_server_that_dies_under_a_flow_is_started_again(orch_home: Path, script: Script) -> None:
    with open_store(Settings(home=orch_home)) as store:
        process = script(WAITING.format(main="waiting()"), ORCH_REDIS_URL="", ORCH_NAMESPACE="default")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        eventually(lambda: store.queries.runs(RunFilter()).runs)
        server = embedded.status(orch_home)
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        eventually(lambda: embedded.running(orch_home))
        eventually(lambda: all(run.state.name == "Completed" for run in store.queries.runs(RunFilter()).runs))


def test_importing_flows_starts_no_thread_and_no_process(tmp_path: Path) -> None:
    program = "import threading; from orchestrator import flow; flow(lambda: 1); print(threading.active_count())"
    process = python("-c", program, cwd=tmp_path)
    assert process.communicate(timeout=60)[0] == "1\n"
