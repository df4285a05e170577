"""A task's attempt as it travels to another process: what may go in, how it runs there, what comes back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from decimal import Decimal
from types import ModuleType
from typing import Any

import msgpack
import pytest

from orchestrator import flow, get_run_logger, task
from orchestrator.context import FlowRunContext, TaskRunContext
from orchestrator.engine import remote
from orchestrator.engine.records import FlowRun
from orchestrator.exceptions import CannotTravel, InvalidDefinition, PayloadTooLarge, RemoteTaskError, RunTimedOut
from orchestrator.logging import handlers
from orchestrator.task_runners import RQTaskRunner
from orchestrator.tasks import Task
from recording import Recording

FLOW = FlowRun(id="0192f0c0-0000-7000-8000-000000000001", name="brave-otter", flow_name="etl", tags=("eu",))


@task
def double(value: Any) -> Any:
    return value * 2


@task
async def double_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value * 2


@task
def count_to(n: int) -> Iterator[int]:
    yield from range(n)


@task
async def count_later(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@task
def fail(text: str) -> None:
    raise ValueError(text)


@task
def leave(status: int) -> None:
    sys.exit(status)


@task
def give(what: str) -> Any:
    return {"decimal": Decimal(1), "large": b"x" * (remote.PAYLOAD_BYTES + 1), "tuple": (1, (2, 3)), "text": "\ud800"}[what]


@task
def sleep_long() -> None:
    import threading

    threading.Event().wait(60)


@flow(name="inner")
def inner() -> int:
    return double(3)


@task(log_prints=True)
def busy() -> list[Any]:
    print("printed here")
    get_run_logger().info("logged here")
    return [double(1), double.submit(2).result(), inner(), FlowRunContext.get().flow_run.name]  # type: ignore[union-attr]


def packed(of: Task[..., Any], *args: Any, timeout: float | None = None, **kwargs: Any) -> bytes:
    call = of.submitted_call(args, kwargs, None)
    context = TaskRunContext(of, call.task_run, args, kwargs, bool(of.log_prints))
    return remote.pack_call(of, context, FLOW, remote.place_of(of), timeout)


def answer(recording: Recording, of: Task[..., Any], *args: Any, **options: Any) -> list[Any]:
    return remote.perform(packed(of, *args, **options), recording.link)


@pytest.mark.parametrize(
    ("of", "expected"), [(double, 6), (double_later, 6), (count_to, [0, 1, 2]), (count_later, [0, 1, 2])], ids=str
)
def test_every_kind_of_task_runs_elsewhere(recording: Recording, of: Task[..., Any], expected: Any) -> None:
    assert answer(recording, of, 3) == ["done", expected]


def test_an_exception_comes_back_as_its_type_its_text_and_its_traceback(recording: Recording) -> None:
    kind, name, text, trace = answer(recording, fail, "boom")
    assert (kind, name, text) == ("raised", "ValueError", "boom")
    assert "raise ValueError(text)" in trace


def test_an_exit_counts_as_a_crash_and_too_much_time_as_a_timeout(recording: Recording) -> None:
    assert answer(recording, leave, 3) == ["crashed", "Its code left Python with exit status 3."]
    kind, text = answer(recording, sleep_long, timeout=0.05)
    assert (kind, text) == ("timed_out", "Task run 'sleep_long-0' took longer than its 0.05 seconds.")


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("decimal", "CannotTravel", "its result is a Decimal"),
        ("large", "PayloadTooLarge", "returned 1,048,582 bytes; 1,048,576 can travel back"),
        ("text", "CannotTravel", "cannot be packed"),
    ],
)
def test_a_result_that_cannot_travel_is_refused(recording: Recording, what: str, name: str, text: str) -> None:
    kind, refused_with, told, hint = answer(recording, give, what)
    assert (kind, refused_with) == ("refused", name)
    assert text in told
    assert hint


def test_tuples_travel_as_lists() -> None:
    assert msgpack.unpackb(packed(double, (1, [(2,)])))["args"] == [[1, [[2]]]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal(1), "argument 1 is a Decimal"),
        ([1, {"at": datetime(2026, 1, 1)}], "argument 1[1]['at'] is a datetime"),
        ({(1, 2): 3}, "a key of argument 1 is a tuple"),
        (2**64, "argument 1 is an integer beyond 64 bits"),
        ({1, 2}, "argument 1 is a set"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_travel_is_named(value: Any, text: str) -> None:
    with pytest.raises(CannotTravel, match=text.replace("[", r"\[")) as caught:
        packed(double, value)
    assert "Task 'double'" in str(caught.value)
    assert "list" in (caught.value.hint or "")


def test_a_value_that_contains_itself_or_is_too_large_cannot_travel() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CannotTravel, match="nested too deeply"):
        packed(double, endless)
    with pytest.raises(PayloadTooLarge, match="The arguments of task 'double' take 1,048,"):
        packed(double, value="x" * remote.PAYLOAD_BYTES)


def test_what_a_task_logs_prints_and_calls_elsewhere_is_recorded(recording: Recording) -> None:
    handlers.prepare(console=True)  # as other tests of this process expect it
    assert answer(recording, busy) == ["done", [2, 4, 6, "brave-otter"]]
    assert {"printed here", "logged here"} <= set(recording.log)
    assert {run.parent for name, run in recording.tasks.items() if name != "double-0"} == {recording.tasks["double-1"].parent}
    [opened] = recording.opened
    assert (opened["flow"], opened["parent"]) == ("inner", FLOW.id)


def test_a_task_that_others_cannot_find_is_refused_at_once() -> None:
    @task
    def local() -> None: ...

    class Loader:
        @task
        def load(self) -> None: ...

    for of in (local, Loader().load, Loader.load):
        with pytest.raises(InvalidDefinition, match="cannot run in another process") as caught:
            remote.place_of(of)
        assert "top level" in (caught.value.hint or "")


def test_a_script_is_named_by_its_file_and_a_module_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.place_of(double) == (f"{__name__}:double", "")
    assert remote.place_of(double.with_options(retries=2)) == (f"{__name__}:double", "")
    script = ModuleType("__main__")
    script.__file__, script.__spec__ = "/srv/flows/etl.py", None
    monkeypatch.setitem(sys.modules, "__main__", script)

    def step() -> None: ...

    step.__module__ = "__main__"
    script.renamed = task(step)  # type: ignore[attr-defined]
    assert remote.place_of(script.renamed) == ("etl.py:renamed", "/srv/flows")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 99}, "do not understand each other"),
        ({"entrypoint": f"{__name__}:no_such"}, "There is no task 'no_such'"),
        ({"entrypoint": "no_such_module:x"}, "There is no module 'no_such_module'"),
    ],
)
def test_a_call_that_makes_no_sense_here_is_refused(recording: Recording, change: dict[str, Any], text: str) -> None:
    request = {**msgpack.unpackb(packed(double, 1)), **change}
    kind, _, told, hint = remote.perform(msgpack.packb(request), recording.link)
    assert kind == "refused"
    assert text in told
    assert hint


class Told:
    """A call that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.heard.append((name, value))


def test_answers_end_a_call_as_if_it_had_run_here() -> None:
    told = Told()
    for message in (["done", [1]], ["raised", "KeyError", "'x'", "trace"], ["timed_out", "late"], ["crashed", "gone"]):
        remote.tell(told, message)
    remote.tell(told, ["refused", "PayloadTooLarge", "too much", "less"])
    remote.tell(told, ["stopped"])
    names, values = zip(*told.heard, strict=True)
    assert names == ("returned", "raised", "raised", "lost", "break_off", "lost")
    error = values[1]
    assert isinstance(error, RemoteTaskError)
    assert (str(error), error.type, error.traceback) == ("KeyError: 'x'", "KeyError", "trace")
    assert isinstance(values[2], RunTimedOut)
    assert (type(values[4]), values[4].hint) == (PayloadTooLarge, "less")


@pytest.mark.parametrize("message", [[], ["done"], ["raised", 1], ["nonsense"], ["refused", "text"]])
def test_what_is_no_answer_is_an_error(message: list[Any]) -> None:
    with pytest.raises(ValueError, match="no answer"):
        remote.tell(Told(), message)


def test_an_rq_task_runner_is_duplicated_with_its_settings() -> None:
    runner = RQTaskRunner("reports", "redis://elsewhere", job_timeout=5, result_ttl=9, serializer="json", lost_after=3)
    again = runner.duplicate()
    assert again == runner
    assert again is not runner
    assert runner != RQTaskRunner("reports")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"queue": ""}, "queue is ''"),
        ({"job_timeout": 0}, "job_timeout is 0"),
        ({"result_ttl": -1}, "result_ttl is -1"),
        ({"lost_after": 0}, "lost_after is 0"),
    ],
)
def test_settings_that_make_no_sense_are_errors(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RQTaskRunner(**options)


def test_a_connection_is_a_url() -> None:
    with pytest.raises(TypeError, match="connection is a object"):
        RQTaskRunner(connection=object())  # type: ignore[arg-type]
