"""A worker of type thread, with real processes, real signals and a real server."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgpack
import pytest

from harness import eventually
from orchestrator.models import Deployment, NewRun
from orchestrator.settings import Settings
from orchestrator.store import Store
from worker_processes import (
    children_of,
    descendants_of,
    kill,
    let_go,
    log_of,
    make_project,
    numbers,
    wait_for_end,
    wait_for_start,
    wait_for_state,
    wait_until_gone,
    worker,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

TASKS = '''
"""Tasks for the tests of thread workers. Those that wait are let go through a named pipe."""
import asyncio, os, signal, sys, threading, time
from datetime import date, timedelta
from pathlib import Path

from orchestrator import flow, get_run_logger, task
from orchestrator.concurrency.sync import concurrency
from orchestrator.runtime import task_run

def note(folder, name, text=""):
    with open(f"{folder}/{name}", "a") as file:
        file.write(f"{text or os.getpid()}\\n")

@task
def add(x: int, y: int = 1) -> int:
    return x + y

@task
def next_day(day: date, *, steps: tuple[int, ...] = ()) -> list:
    return [day + timedelta(days=1), type(steps).__name__]

@task
async def add_soon(x: int, y: int = 1) -> int:
    await asyncio.sleep(0)
    return x + y

@task(log_prints=True)
def talks() -> list:
    print("printed")
    print("to stderr", file=sys.stderr, end="")
    get_run_logger().warning("logged")
    inner(1)
    return [task_run.id, task_run.name, task_run.run_count]

@task
def inner(x: int) -> int:
    return x

@task
def prints() -> None:
    print("half a line", end="")

@task
async def counts() -> list:
    for _ in range(3):
        yield _

@task
def waits(folder: str) -> str:
    note_start(folder)
    return wait_at_gate(folder)

@task
def sleeps(folder: str) -> None:
    note_start(folder)
    while True:
        time.sleep(0.01)

@task
async def sleeps_soon(folder: str) -> None:
    note_start(folder)
    await asyncio.Event().wait()

@task
def will_not_stop(folder: str) -> None:
    note_start(folder)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

@task(retries=2)
def fails(folder: str) -> str:
    note(folder, "tries")
    if task_run.run_count < 3:
        raise ValueError("not yet")
    return "at last"

@task(timeout_seconds=0.1)
def too_slow() -> None:
    while True:
        time.sleep(0.01)

@task(timeout_seconds=0.1)
async def too_slow_soon() -> None:
    await asyncio.sleep(60)

@task(on_completion=[lambda task, run, state: note(os.environ["NOTES"], "hooks", state.name)])
def has_hooks() -> None:
    pass

@task
def dies(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)

@task
def leaves_python() -> None:
    sys.exit(3)

@task
def calls_a_flow() -> int:
    return doubles(4)

@task
def takes_a_slot(folder: str) -> None:
    with concurrency("one"):
        waits.fn(folder)

@flow
def doubles(x: int) -> int:
    return add(x, x)

@flow
async def doubles_soon(x: int) -> int:
    return await add_soon(x, x)

@flow
def waits_as_flow(folder: str) -> str:
    return waits(folder)
'''


@pytest.fixture
def folder(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with ``flows.py`` and a named pipe called gate, and the pool for its tasks."""
    store.pools.create("pool", "thread")
    monkeypatch.setenv("NOTES", str(tmp_path / "project"))
    return make_project(tmp_path / "project", TASKS)


def submit(store: Store, folder: Path, function: str, *args: Any, crash_budget: int = 3, **fields: Any) -> str:
    """A background task run of a task in ``flows.py``."""
    new = NewRun(
        function,
        kind="task",
        entrypoint=f"{folder}/flows.py:{function}",
        pool="pool",
        parameters={"args": list(args), "kwargs": {}},
        crash_budget=crash_budget,
        **fields,
    )
    return store.runs.create([new])[0].id


def result(store: Store, run: str) -> Any:
    """What a run has returned."""
    packed = store.runs.result(run)
    return None if not packed else msgpack.unpackb(packed)


def threads(settings: Settings, **options: Any) -> Any:
    """A thread worker that has begun to poll."""
    return worker(settings, type="thread", **{"limit": 10, **options})


def executors(pid: int) -> list[int]:
    """The executor processes of a worker, the one that waits included."""
    return [child for template in children_of(pid) for child in children_of(template)]


# -- the ordinary


@pytest.mark.parametrize("function", ["add", "add_soon"])
def test_a_task_run_ends_completed_with_its_result(store: Store, settings: Settings, folder: Path, function: str) -> None:
    runs = [submit(store, folder, function, number, 1) for number in range(30)]
    with threads(settings):
        for number, run in enumerate(runs):
            ended = wait_for_end(store, run)
            assert (ended.state.name, ended.run_count, ended.attempt) == ("Completed", 1, 1)
            assert result(store, run) == number + 1


def test_what_a_task_prints_and_logs_and_calls_is_in_its_own_record(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, folder, "talks", name="brave-otter")
    other = submit(store, folder, "prints")
    with threads(settings):
        assert wait_for_end(store, run).state.name == "Completed"
        assert wait_for_end(store, other).state.name == "Completed"
    assert result(store, run) == [run, "brave-otter", 1]
    said = log_of(store, run)
    assert ("stderr", "to stderr") in said
    assert [message for _, message in said if message in ("printed", "logged")] == ["printed", "logged"]
    assert [task.key for task in store.runs.tasks(run)] == ["inner"]
    assert log_of(store, other) == [("stdout", "half a line")]


def test_arguments_are_made_again_by_their_annotations(store: Store, settings: Settings, folder: Path) -> None:
    run = store.runs.create(
        [
            NewRun(
                "next_day",
                kind="task",
                entrypoint=f"{folder}/flows.py:next_day",
                pool="pool",
                parameters={"args": ["2026-12-31"], "kwargs": {"steps": [1, 2]}},
            )
        ]
    )[0].id
    wrong = submit(store, folder, "next_day", "some day")
    with threads(settings):
        assert wait_for_end(store, run).state.name == "Completed"
        assert "day" in wait_for_end(store, wrong).state.message
    assert result(store, run) == ["2027-01-01", "tuple"]


def test_an_async_generator_and_a_flow_inside_a_task_run_too(store: Store, settings: Settings, folder: Path) -> None:
    items, flow = submit(store, folder, "counts"), submit(store, folder, "calls_a_flow")
    with threads(settings):
        assert wait_for_end(store, items).state.name == "Completed"
        assert wait_for_end(store, flow).state.name == "Completed"
    assert (result(store, items), result(store, flow)) == ([0, 1, 2], 8)


def test_a_task_is_tried_again_as_it_says_and_its_hooks_are_called(store: Store, settings: Settings, folder: Path) -> None:
    run, hooked = submit(store, folder, "fails", str(folder)), submit(store, folder, "has_hooks")
    with threads(settings):
        ended = wait_for_end(store, run)
        wait_for_end(store, hooked)
        eventually(lambda: (folder / "hooks").exists())
    assert (ended.state.name, ended.run_count, result(store, run)) == ("Completed", 3, "at last")
    assert (folder / "hooks").read_text() == "Completed\n"


@pytest.mark.parametrize("function", ["too_slow", "too_slow_soon"])
def test_a_task_that_takes_too_long_fails(store: Store, settings: Settings, folder: Path, function: str) -> None:
    run = submit(store, folder, function)
    with threads(settings):
        assert wait_for_state(store, run, "TimedOut").state.type == "FAILED"


def test_what_cannot_be_called_or_loaded_fails_and_says_why(store: Store, settings: Settings, folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    wrong = submit(store, folder, "add", 1, 2, 3)
    missing = submit(store, folder, "ad")
    no_task = submit(store, folder, "note")
    broken = store.runs.create(
        [NewRun("x", kind="task", entrypoint=f"{folder}/broken.py:x", pool="pool", parameters={"args": [], "kwargs": {}})]
    )[0].id
    with threads(settings):
        messages = {run: wait_for_end(store, run).state.message for run in (wrong, missing, no_task, broken)}
    assert "too many positional arguments" in messages[wrong]
    assert messages[missing] == "There is no task 'ad' in flows.py."
    assert messages[no_task] == "'note' in flows.py is a function, not a task."
    assert "ZeroDivisionError" in messages[broken]
    assert any("broken.py" in message for _, message in log_of(store, broken))


@pytest.mark.parametrize("function", ["doubles", "doubles_soon"])
def test_flow_runs_of_a_deployment_run_beside_each_other(store: Store, settings: Settings, folder: Path, function: str) -> None:
    deployment = store.deployments.save(
        Deployment("test", flow=function, entrypoint=f"flows.py:{function}", path=str(folder), pool="pool")
    )
    runs = [NewRun(function, deployment=deployment.id, pool="pool", parameters={"x": number}) for number in range(5)]
    created = [created.id for created in store.runs.create(runs)]
    with threads(settings):
        assert [wait_for_end(store, run).state.name for run in created] == ["Completed"] * 5
    assert [result(store, run) for run in created] == [0, 2, 4, 6, 8]


def test_a_deployment_that_needs_a_process_of_its_own_is_refused(store: Store, settings: Settings, folder: Path) -> None:
    deployment = store.deployments.save(
        Deployment(
            *("test", "doubles", "flows.py:doubles"), path=str(folder), pool="pool", job_variables={"env": {"ANSWER": "42"}}
        )
    )
    run = store.runs.create([NewRun("doubles", deployment=deployment.id, pool="pool", parameters={"x": 1})])[0].id
    with threads(settings):
        ended = wait_for_end(store, run)
    assert ended.state.name == "Failed"
    assert "environment variables of its own" in ended.state.message


def test_bodies_wait_beside_each_other_up_to_the_limit(store: Store, settings: Settings, folder: Path) -> None:
    runs = [submit(store, folder, "waits", str(folder)) for _ in range(4)]
    with threads(settings, limit=3, processes=2) as two:
        wait_for_start(folder, 3)
        assert sorted(store.runs.get(run).place for run in runs) == ["leased", "leased", "leased", "queued"]
        assert len(set(numbers(folder / "started"))) == 2
        assert set(numbers(folder / "started")) < set(executors(two.pid))
        let_go(folder)
        wait_for_start(folder, 4)
        for _ in range(3):
            let_go(folder)
        assert [wait_for_end(store, run).state.name for run in runs] == ["Completed"] * 4


def test_a_slot_of_a_limit_in_the_code_of_a_task_is_waited_for(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create_global("one", 1)
    runs = [submit(store, folder, "takes_a_slot", str(folder)) for _ in range(2)]
    with threads(settings):
        wait_for_start(folder, 1)
        eventually(lambda: sum(any(call.waits for call in store.runs.get(run).calls) for run in runs) == 1)
        let_go(folder)
        wait_for_start(folder, 2)
        let_go(folder)
        assert [wait_for_end(store, run).state.name for run in runs] == ["Completed"] * 2


def test_an_edited_file_is_seen_by_the_next_run(store: Store, settings: Settings, folder: Path) -> None:
    with threads(settings):
        waiting = submit(store, folder, "waits", str(folder))
        wait_for_start(folder)
        (folder / "flows.py").write_text(TASKS.replace("return x + y", "return x - y") + "# edited\n")
        run = submit(store, folder, "add", 5)
        assert wait_for_end(store, run).state.name == "Completed"
        assert result(store, run) == 4
        assert store.runs.get(waiting).state.name == "Running"
        let_go(folder)
        assert wait_for_end(store, waiting).attempt == 1


# -- cancelling


@pytest.mark.parametrize("function", ["sleeps", "sleeps_soon", "waits_at_a_limit"])
def test_a_cancelled_run_ends_and_its_process_goes_on(store: Store, settings: Settings, folder: Path, function: str) -> None:
    if function == "waits_at_a_limit":
        store.limits.create_global("one", 0)
        run = submit(store, folder, "takes_a_slot", str(folder))
    else:
        run = submit(store, folder, function, str(folder))
    with threads(settings) as steady:
        if function == "waits_at_a_limit":
            eventually(lambda: any(call.waits for call in store.runs.get(run).calls))
        else:
            wait_for_start(folder)
        before = executors(steady.pid)
        store.runs.cancel(run)
        ended = wait_for_end(store, run)
        assert (ended.state.name, ended.attempt) == ("Cancelled", 1)
        again = submit(store, folder, "add", 1)
        assert wait_for_end(store, again).state.name == "Completed"
        assert executors(steady.pid) == before


def test_a_cancelled_run_that_will_not_stop_is_killed_and_others_are_handed_back(
    store: Store, settings: Settings, folder: Path
) -> None:
    stubborn = submit(store, folder, "will_not_stop", str(folder))
    with threads(settings, cancel_grace=timedelta(milliseconds=100)):
        wait_for_start(folder)
        other = submit(store, folder, "waits", str(folder))
        wait_for_start(folder, 2)
        store.runs.cancel(stubborn)
        assert wait_for_end(store, stubborn).state.name == "Cancelled"
        wait_for_start(folder, 3)
        found = store.runs.get(other)
        assert (found.attempt, found.crash_count) == (2, 0)
        let_go(folder)
        assert wait_for_end(store, other).state.name == "Completed"


# -- crashes


@pytest.mark.parametrize(("how", "reason"), [("exit", "exited with status 3"), ("kill", "killed by SIGKILL")])
def test_a_lost_process_is_charged_to_the_runs_that_had_started_in_it(
    store: Store, settings: Settings, folder: Path, how: str, reason: str
) -> None:
    with threads(settings):
        beside = submit(store, folder, "waits", str(folder))
        wait_for_start(folder)
        run = submit(store, folder, "dies", how, crash_budget=1)
        ended = wait_for_end(store, run)
        assert (ended.state.name, ended.crash_count) == ("Crashed", 1)
        assert reason in ended.state.message
        wait_for_start(folder, 2)
        found = store.runs.get(beside)
        assert (found.attempt, found.crash_count) == (2, 1)
        let_go(folder)
        assert wait_for_end(store, beside).state.name == "Completed"


def test_a_task_that_leaves_python_has_crashed_alone(store: Store, settings: Settings, folder: Path) -> None:
    with threads(settings) as steady:
        run = submit(store, folder, "leaves_python")
        ended = wait_for_end(store, run)
        before = executors(steady.pid)
        assert (ended.state.name, ended.state.message) == ("Crashed", "Its code left Python with exit status 3.")
        assert wait_for_end(store, submit(store, folder, "add", 1)).state.name == "Completed"
        assert executors(steady.pid) == before


@pytest.mark.parametrize("killed", ["supervisor", "template", "executor"])
def test_bodies_die_whichever_process_of_the_worker_is_killed(
    store: Store, settings: Settings, folder: Path, killed: str
) -> None:
    run = submit(store, folder, "waits", str(folder))
    store.write_settings(replace(store.settings, lease=timedelta(seconds=2)))
    with threads(settings, name="struck") as struck:
        executor = wait_for_start(folder)
        below = descendants_of(struck.pid)
        [template] = struck.templates()
        kill({"supervisor": struck.pid, "template": template, "executor": executor}[killed])
        wait_until_gone([executor])
        if killed == "supervisor":
            wait_until_gone(below)
        with threads(settings, name="next"):
            wait_for_start(folder, 2)
            let_go(folder)
            ended = wait_for_end(store, run)
    assert (ended.state.name, ended.attempt, ended.crash_count) == ("Completed", 2, 1)


def test_bodies_are_dead_before_their_lease_ends_although_their_supervisor_was_stopped(
    store: Store, settings: Settings, folder: Path
) -> None:
    store.write_settings(replace(store.settings, lease=timedelta(seconds=2)))
    submit(store, folder, "waits", str(folder))
    with threads(settings) as paused:
        executor = wait_for_start(folder)
        paused.signal(signal.SIGSTOP)
        wait_until_gone([executor])
        [lease] = [score for _, score in store.client.zrange(f"{store.keys.prefix}leases", 0, -1, withscores=True)]
        seconds, microseconds = store.client.time()
        assert seconds * 1000 + microseconds / 1000 < lease
        paused.signal(signal.SIGCONT)
        wait_for_start(folder, 2)


def test_an_idle_worker_outlives_its_leases(store: Store, settings: Settings, folder: Path) -> None:
    store.write_settings(replace(store.settings, lease=timedelta(seconds=1)))
    with threads(settings) as idle:
        wait_for_end(store, submit(store, folder, "add", 1))
        before = executors(idle.pid)
        waiting = submit(store, folder, "waits", str(folder))
        wait_for_start(folder)
        leases = f"{store.keys.prefix}leases"
        first = store.client.zrange(leases, 0, -1, withscores=True)[0][1]
        eventually(lambda: store.client.zrange(leases, 0, -1, withscores=True)[0][1] > first + 2000, what="two renewals")
        let_go(folder)
        assert wait_for_end(store, waiting).attempt == 1
        assert executors(idle.pid) == before


# -- stopping


def test_runs_past_the_grace_are_handed_back_and_go_on_elsewhere(store: Store, settings: Settings, folder: Path) -> None:
    run = submit(store, folder, "waits", str(folder))
    with threads(settings, name="old", grace=timedelta(milliseconds=100)) as old:
        wait_for_start(folder)
        with threads(settings, name="new"):
            old.signal(signal.SIGTERM)
            wait_for_start(folder, 2)
            assert old.wait() == 0
            found = store.runs.get(run)
            assert (found.worker, found.attempt, found.crash_count) == ("new", 2, 0)
            let_go(folder)
            assert wait_for_end(store, run).state.name == "Completed"


def test_a_burst_executes_what_is_queued_and_leaves_no_process(store: Store, settings: Settings, folder: Path) -> None:
    runs = [submit(store, folder, "add", number) for number in range(250)]
    with threads(settings, burst=True) as burst:
        assert burst.wait() == 0
    assert {store.runs.get(run).state.name for run in runs} == {"Completed"}


def test_a_process_worker_says_that_a_task_needs_another_pool(store: Store, settings: Settings, folder: Path) -> None:
    store.pools.create("processes")
    run = store.runs.create([NewRun("add", kind="task", entrypoint=f"{folder}/flows.py:add", pool="processes")])[0].id
    with worker(settings, pool="processes"):
        ended = wait_for_state(store, run, "Failed")
    assert "A task run needs a worker of type thread" in ended.state.message
