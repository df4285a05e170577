"""Tasks of a flow on real RQ workers."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rq import Queue, Worker
from rq.job import Job

from harness import RedisServer, eventually, python
from orchestrator import flow
from orchestrator.context import FlowRunContext
from orchestrator.engine import direct
from orchestrator.exceptions import CancelledRun, ConfigurationError, CrashedRun, RemoteTaskError, StoreUnavailable
from orchestrator.keys import Keys
from orchestrator.models import RunFilter
from orchestrator.settings import Settings
from orchestrator.store import open_store
from orchestrator.store.connection import connect
from orchestrator.task_runners import RQTaskRunner
from orchestrator.task_runners import rq as rq_runner
from recording import Recording
from worker_processes import deploy, make_project, submit, wait_for_end, wait_for_start, wait_until_gone, worker

EXAMPLES = Path(__file__).parents[2] / "examples"

TASKS = """
import os, signal, threading
from orchestrator import flow, get_run_logger, task
from orchestrator.concurrency.sync import concurrency

@task
def double(value):
    return value * 2

@task
def where(_):
    return os.getpid()

@task(retries=1)
def fail(note):
    with open(note, "a") as notes:
        notes.write("tried\\n")
    raise KeyError("there is no such row")

@task(retries=1)
def die(note):
    with open(note, "a") as notes:
        notes.write("died\\n")
    os.kill(os.getpid(), signal.SIGKILL)

@task(log_prints=True)
def talk():
    print("printed on a worker")
    return [double(1), *double.map([2, 3]).result(), inner()]

@flow(name="inner")
def inner():
    return double(4)

@task
def hold(note):
    with open(note, "a") as notes:
        notes.write(f"{os.getpid()}\\n")
    threading.Event().wait(60)

@task(timeout_seconds=0.2)
def hold_short():
    threading.Event().wait(60)

@task(tags=["db"])
def tagged():
    return "went"

@task
def limited():
    with concurrency("db", strict=True):
        return "not reached"
"""

DEPLOYED = """
from orchestrator import flow, task
from orchestrator.task_runners import RQTaskRunner

@task
def hold(number: int, folder: str) -> None:
    note_start(folder)
    wait_at_gate(folder)

@flow(task_runner=RQTaskRunner("deployed"))
def hold_all(folder: str) -> None:
    hold.map([1, 2, 3], folder=folder).result()
"""


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    """RQ's keys are the same for everybody: it has a server of its own."""
    server = RedisServer().start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A module of tasks that both sides import."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "rq_project.py").write_text(TASKS)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("rq_project")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def fleet(own_server: RedisServer, project: ModuleType) -> Iterator[subprocess.Popen[str]]:
    """One worker of RQ's ordinary kind, which forks for each job."""
    with rq_worker(own_server.url, "tasks", folder_of(project)) as process:
        yield process


@pytest.fixture
def settings(own_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Settings:
    """As for all tests, on RQ's server; flows of this process see them."""
    namespace = f"t-{os.urandom(6).hex()}"
    chosen = Settings(home=tmp_path, redis_url=own_server.url, namespace=namespace, redis_retry_s=5.0)
    monkeypatch.setenv("ORCH_REDIS_URL", own_server.url)
    monkeypatch.setenv("ORCH_NAMESPACE", namespace)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path))
    return chosen


@pytest.fixture
def recording(settings: Settings) -> Iterator[Recording]:
    """Flows that the test calls are recorded here."""
    recording = Recording()
    direct.use(recording.link)
    yield recording
    direct.use(None)
    recording.end()


@contextmanager
def rq_worker(url: str, queue: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """An RQ worker that listens."""
    chosen = Settings(redis_url=url)
    with connect(url, chosen) as client:
        before = set(Worker.all_keys(client))
        arguments = ["-m", "rq.cli", "worker", "--url", url, *options, queue]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = python(*arguments, cwd=str(folder), **pipes)
        try:
            eventually(lambda: set(Worker.all_keys(client)) - before, what="the RQ worker to register")
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def folder_of(project: ModuleType) -> Path:
    assert project.__file__ is not None
    return Path(project.__file__).parent


def in_flow(body: Any, **options: Any) -> Any:
    return flow(name="test", task_runner=RQTaskRunner("tasks", **options))(body)()


def lines(note: Path) -> list[str]:
    return note.read_text().split() if note.exists() else []


pytestmark = [pytest.mark.usefixtures("fleet"), pytest.mark.xdist_group("rq")]


def test_mapped_tasks_run_on_the_fleet_and_go_there_in_batches(
    recording: Recording, project: ModuleType, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    enqueue = rq_runner._Fleet.enqueue
    monkeypatch.setattr(rq_runner._Fleet, "enqueue", lambda self, batch: (batches.append(len(batch)), enqueue(self, batch))[1])

    def body() -> list[int]:
        processes: list[int] = project.where.map(range(6)).result()
        return processes

    processes = in_flow(body)
    assert len(set(processes)) == 6
    assert os.getpid() not in processes
    assert sum(batches) == 6
    assert len(batches) < 6
    assert {str(run.state) for run in recording.tasks.values()} == {"Completed"}
    assert all(run.started and run.ended and run.run_count == 1 for run in recording.tasks.values())
    with connect(settings.redis_url or "", settings) as client:
        assert not list(client.scan_iter(f"{Keys(settings.namespace)}rq:*")), "something of the runner is left over"


def test_futures_go_in_and_what_failed_before_keeps_a_task_from_the_queue(
    recording: Recording, project: ModuleType, tmp_path: Path
) -> None:
    note = tmp_path / "note"

    def body() -> Any:
        first = project.double.submit(2)
        second = project.double.submit([first], wait_for=[project.double.submit(1)])
        failed = project.fail.submit(str(note))
        third = project.double.submit(failed)
        third.wait()
        with pytest.raises(RemoteTaskError, match="KeyError: 'there is no such row'") as caught:
            failed.result()
        assert caught.value.type == "KeyError"
        assert "raise KeyError" in caught.value.traceback
        assert third.state.name == "NotReady"
        return second.result()

    assert in_flow(body) == [4, 4]
    assert lines(note) == ["tried", "tried"]
    tasks = recording.tasks
    assert (tasks["fail-0"].run_count, str(tasks["fail-0"].state)) == (2, "Failed(KeyError: 'there is no such row')")
    assert set(tasks["double-2"].upstream) == {tasks["double-0"].id, tasks["double-1"].id}


def test_what_happens_inside_a_task_is_recorded_with_its_flow_run(recording: Recording, project: ModuleType) -> None:
    assert in_flow(lambda: project.talk.submit().result()) == [2, 4, 6, 8]
    assert "printed on a worker" in recording.log
    [outer, inner] = recording.opened
    assert (inner["flow"], inner["parent"]) == ("inner", outer["id"])
    assert [end for end in recording.ends if end[0] != "Completed"] == []
    own = recording.tasks["talk-0"].id
    assert {run.parent for name, run in recording.tasks.items() if name in ("double-1", "double-2")} == {own}


def test_an_attempt_that_takes_too_long_has_timed_out(recording: Recording, project: ModuleType, tmp_path: Path) -> None:
    assert in_flow(lambda: (future := project.hold_short.submit(), future.wait(), future.state.name)[2]) == "TimedOut"

    def body() -> str:
        future = project.hold.submit(str(tmp_path / "note"))
        future.wait()
        return str(future.state)

    assert in_flow(body, job_timeout=0.2) == "TimedOut(It took longer than 0.2 seconds.)"


def test_a_process_that_dies_is_tried_again_and_then_the_task_has_crashed(
    recording: Recording, project: ModuleType, tmp_path: Path, fleet: subprocess.Popen[str]
) -> None:
    note = tmp_path / "note"

    def body() -> None:
        future = project.die.submit(str(note))
        with pytest.raises(CrashedRun, match="its process died"):
            future.result()
        assert future.state.is_crashed()

    in_flow(body)
    assert lines(note) == ["died", "died"]
    assert fleet.poll() is None, "the worker was stopped with its dead job"


def test_a_worker_that_is_gone_with_its_machine_is_noticed_by_its_silence(
    recording: Recording, project: ModuleType, tmp_path: Path, own_server: RedisServer
) -> None:
    note = tmp_path / "note"

    def body(worker: subprocess.Popen[str]) -> None:
        future = project.hold.submit(str(note))
        eventually(lambda: lines(note))
        worker.kill()
        os.kill(int(lines(note)[0]), signal.SIGKILL)
        with pytest.raises(CrashedRun, match=r"no sign of life for 0\.5 seconds"):
            future.result()

    with rq_worker(own_server.url, "doomed", folder_of(project)) as worker:
        flow(name="test", task_runner=RQTaskRunner("doomed", lost_after=0.5))(body)(worker)


def test_cancelling_empties_the_queue_and_stops_what_runs(
    recording: Recording, project: ModuleType, tmp_path: Path, settings: Settings
) -> None:
    note = tmp_path / "note"

    def body() -> list[Any]:
        running = project.hold.submit(str(note))
        eventually(lambda: lines(note) and running.state.is_running())
        waiting = project.double.map([1, 2, 3])
        with connect(settings.redis_url or "", settings) as client:
            eventually(lambda: Queue("tasks", connection=client).count == 3)
            context = FlowRunContext.get()
            assert context is not None
            context.task_runner.finish(cancel=True)
            context.runner = None
            assert Queue("tasks", connection=client).count == 0
            eventually(lambda: Job(f"{running.task_run_id}-1", connection=client).get_status() == "stopped")
        for future in waiting:
            with pytest.raises(CancelledRun):
                future.result()
        return [str(running.state)]

    assert in_flow(body) == ["Crashed(It was stopped with its flow run.)"]


def test_a_job_whose_flow_is_gone_stops(recording: Recording, project: ModuleType, tmp_path: Path, settings: Settings) -> None:
    note = tmp_path / "note"

    def body() -> None:
        future = project.hold.submit(str(note))
        eventually(lambda: lines(note))
        with connect(settings.redis_url or "", settings) as client:
            [lease] = client.scan_iter(f"{Keys(settings.namespace)}rq:*:lease")
            client.delete(lease)
        with pytest.raises(CrashedRun, match="heard nothing from the process of its flow"):
            future.result()

    in_flow(body, lost_after=2.0)


def test_what_cannot_travel_or_be_found_fails_with_what_to_do(recording: Recording, project: ModuleType) -> None:
    def body() -> list[str]:
        futures = [project.double.submit(object()), project.double.submit(b"x" * 700_000), project.limited.submit()]
        return [str((future.wait(), future.state)[1]) for future in futures]

    argument, result, limited = in_flow(body)
    assert "CannotTravel: Task 'double': argument 1 is a object" in argument
    assert "PayloadTooLarge: Task run 'double-1' returned 1,400,005 bytes" in result
    assert "ConcurrencySlotAcquisitionError: It cannot be done from a task on an RQ worker" in limited


def test_a_tags_slot_is_held_from_before_the_queue_to_the_end(recording: Recording, project: ModuleType) -> None:
    recording.is_granting = False

    def body() -> str:
        future = project.tagged.submit()
        [call] = eventually(lambda: list(recording.calls))
        assert recording.calls[call].names == ["db"]
        assert future.state.is_pending()
        recording.grant(call)
        result: str = future.result()
        return result

    assert in_flow(body) == "went"
    assert recording.of("release")


def test_a_fleet_with_another_serializer_gets_jobs_that_it_can_read(
    recording: Recording, project: ModuleType, own_server: RedisServer
) -> None:
    runner = RQTaskRunner("plain", connection=own_server.url, serializer="json")
    options = ("--serializer", "json", "--worker-class", "rq.SimpleWorker")
    with rq_worker(own_server.url, "plain", folder_of(project), *options):
        assert flow(name="test", task_runner=runner)(lambda: project.double.map([1, 2]).result())() == [2, 4]


def test_jobs_that_the_fleet_cannot_read_crash_with_a_word_about_it(recording: Recording, project: ModuleType) -> None:
    def body() -> None:
        with pytest.raises(CrashedRun, match=r"has never begun.*the serializer that the task runner writes"):
            project.double.submit(1).result()

    in_flow(body, serializer="json")


def test_a_fault_of_the_runner_fails_the_tasks_that_it_has_and_nobody_waits_for_ever(
    recording: Recording, project: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(RQTaskRunner, "_enqueue", lambda self: {}["a fault"])
            with pytest.raises(KeyError, match="a fault"):
                project.double.submit(1).result(timeout=20)
        result: int = project.double.submit(2).result(timeout=20)
        return result

    assert in_flow(body) == 4


def test_a_connection_that_cannot_be_used_is_an_error_where_the_task_is_submitted(
    recording: Recording, project: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def body() -> None:
        project.double.submit(1)

    monkeypatch.setenv("ORCH_REDIS_RETRY_S", "0.1")
    with pytest.raises(StoreUnavailable):
        in_flow(body, connection=f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(ConfigurationError, match="RQ does not run on a Redis Cluster"):
        in_flow(body, connection="redis+cluster://127.0.0.1:7000")
    with pytest.raises(ConfigurationError, match="is no serializer of RQ"):
        in_flow(body, serializer="no.such.serializer")


def test_cancelling_a_deployed_run_stops_its_tasks_on_the_fleet(
    own_server: RedisServer, settings: Settings, tmp_path: Path
) -> None:
    folder = make_project(tmp_path / "deployed", DEPLOYED)
    with open_store(settings) as store, connect(own_server.url, settings) as client:
        deployment = deploy(store, folder, "hold_all")
        with worker(settings), rq_worker(own_server.url, "deployed", folder):
            run = submit(store, deployment, folder=str(folder))
            process = wait_for_start(folder)
            queue = Queue("deployed", connection=client)
            eventually(
                lambda: queue.count == 2 and {str(task.state) for task in store.runs.tasks(run)} == {"Pending", "Running"}
            )
            store.runs.cancel(run)
            assert wait_for_end(store, run).state.is_cancelled()
            wait_until_gone([process])
            assert queue.count == 0
            assert {task.state.name for task in store.runs.tasks(run)} == {"Cancelled"}


def test_the_example_runs_on_a_fleet_and_is_recorded(own_server: RedisServer, settings: Settings, tmp_path: Path) -> None:
    with rq_worker(own_server.url, "reports", EXAMPLES), open_store(settings) as store:
        with python(str(EXAMPLES / "rq_tasks.py"), cwd=str(tmp_path)) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "3 texts, 9 words" in said
        [run] = store.queries.every_run(RunFilter())
        assert [str(task.state) for task in store.runs.tasks(run.id)] == ["Completed"] * 3
        assert sum("Measured" in line.message for line in store.runs.read_log(run.id)) == 3
