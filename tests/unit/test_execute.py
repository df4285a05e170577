"""A claimed run, as a worker's child executes it: what it tells the supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from orchestrator import flow, get_run_logger, runtime, task
from orchestrator.engine.execute import execute_run
from orchestrator.flows import Flow
from recording import Recording


def execute(recording: Recording, of: Flow[..., Any], **fields: Any) -> list[Any]:
    """Execute a run of the flow; its last end frame."""
    run = {"id": "run", "flow": of.name, "name": "the-run", "attempt": 2, "run_count": 0, "crash_count": 0, **fields}
    execute_run(run, recording.link, of)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return recording.of("end")[-1]


@task
def echo(value: Any) -> Any:
    return value


def test_a_run_starts_and_completes(recording: Recording) -> None:
    @flow
    def hello(name: str, times: int = 1) -> str:
        get_run_logger().info("Hello, %s!", name)
        return " ".join([echo(name)] * times)

    end = execute(recording, hello, parameters={"name": "you", "times": "2"})
    assert recording.starts == [("run", "Running")]
    assert end == ["end", "run", "COMPLETED", "Completed", "", b"\xa7you you", None]
    assert "Hello, you!" in recording.log
    assert list(recording.tasks) == ["echo-0"]
    assert recording.opened == []


def test_a_nested_flow_has_the_fence_of_the_run_that_was_claimed(recording: Recording) -> None:
    seen: list[Any] = []

    @flow
    def inner() -> None:
        seen.extend([runtime.flow_run.fence, runtime.flow_run.root_flow_run_id])

    @flow
    def outer() -> None:
        inner()

    execute(recording, outer, attempt=3)
    assert seen == [3, "run"]


def test_every_kind_of_flow_is_executed(recording: Recording) -> None:
    @flow
    async def later() -> int:
        await asyncio.sleep(0)
        return 1

    @flow
    def items() -> Iterator[int]:
        yield 1
        yield 2

    @flow
    async def later_items() -> AsyncIterator[int]:
        yield 1

    assert [execute(recording, of)[5] for of in (later, items, later_items)] == [b"\x01", b"\x92\x01\x02", b"\x91\x01"]


def test_what_the_run_frame_says_is_visible_to_the_flow(recording: Recording) -> None:
    seen: list[Any] = []

    @flow
    def look() -> None:
        run, deployment = runtime.flow_run, runtime.deployment
        seen.extend([run.id, run.name, run.tags, run.fence, run.run_count, run.parent_flow_run_id])
        seen.extend([deployment.id, deployment.name, deployment.flow_run_id, run.scheduled_start_time.year])

    execute(
        recording,
        look,
        run_count=3,
        tags=["a"],
        parent="mother",
        due_ms=0,
        deployment={"id": "d", "name": "nightly", "slug": "look/nightly"},
    )
    assert seen == ["run", "the-run", ["a"], 2, 4, "mother", "d", "nightly", "run", 1970]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "ParameterBindError: Flow 'typed' cannot be called so: missing a required argument: 'n'."),
        ({"n": 1, "x": 2}, "ParameterBindError: Flow 'typed' cannot be called so: got an unexpected keyword argument 'x'."),
        (
            {"n": "many"},
            "ParameterTypeError: Flow 'typed' cannot take these parameters:\n - n: Input should be a valid integer",
        ),
    ],
)
def test_wrong_parameters_fail_the_run_before_it_starts(parameters: dict[str, Any], message: str, recording: Recording) -> None:
    @flow
    def typed(n: int) -> None:
        raise AssertionError

    end = execute(recording, typed, parameters=parameters)
    assert (end[2], end[3]) == ("FAILED", "Failed")
    assert end[4].startswith(message)
    assert recording.starts == []
    assert any("typed" in line for line in recording.log)


def test_what_the_flow_raises_stays_inside(recording: Recording) -> None:
    @flow
    def broken() -> None:
        raise ValueError("boom")

    assert execute(recording, broken)[2:5] == ["FAILED", "Failed", "ValueError: boom"]
    assert any("Traceback" in line and "in broken" in line for line in recording.log)


def test_a_short_retry_happens_here(recording: Recording) -> None:
    @flow(retries=1, retry_delay_seconds=0)
    def flaky() -> int:
        if runtime.flow_run.run_count == 1:
            raise ValueError
        return 1

    assert execute(recording, flaky, lease_ms=15_000)[3] == "Completed"
    assert recording.starts == [("run", "Running"), ("run", "Retrying")]


def test_a_retry_beyond_the_lease_is_left_to_whoever_is_free_then(recording: Recording) -> None:
    called: list[str] = []

    @flow(retries=2, retry_delay_seconds=60, on_failure=[lambda *_: called.append("failed")])
    def flaky() -> None:
        raise ValueError("later")

    end = execute(recording, flaky, lease_ms=15_000)
    assert end == ["end", "run", "SCHEDULED", "AwaitingRetry", "ValueError: later", b"", 60_000]
    assert execute(recording, flaky, lease_ms=15_000, run_count=1)[3] == "AwaitingRetry"
    assert execute(recording, flaky, lease_ms=15_000, run_count=2)[3] == "Failed"
    assert called == ["failed"]


def test_starts_that_a_crash_ended_do_not_count_as_retries(recording: Recording) -> None:
    @flow(retries=1, retry_delay_seconds=60)
    def flaky() -> None:
        raise ValueError

    assert execute(recording, flaky, lease_ms=1, run_count=2, crash_count=2)[3] == "AwaitingRetry"
    assert execute(recording, flaky, lease_ms=1, run_count=3, crash_count=2)[3] == "Failed"


def test_a_cancelled_run_ends_cancelled_and_runs_its_hooks(recording: Recording) -> None:
    called: list[str] = []

    @flow(on_cancellation=[lambda of, run, state: called.append(state.message)])
    def waiting() -> None:
        recording.send("cancel", "run", "Cancelled on request.")
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert execute(recording, waiting)[2:5] == ["CANCELLED", "Cancelled", "Cancelled on request."]
    assert called == ["Cancelled on request."]


def test_a_cancelled_async_run_ends_cancelled(recording: Recording) -> None:
    cleaned: list[int] = []

    @flow
    async def waiting() -> None:
        recording.send("cancel", "run", "Enough.")
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(1)

    assert execute(recording, waiting)[2:5] == ["CANCELLED", "Cancelled", "Enough."]
    assert cleaned == [1]


def test_a_cancellation_interrupts_the_wait_before_a_retry(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    @flow(retries=1, retry_delay_seconds=600)
    def flaky() -> None:
        recording.send("cancel", "run", "No need.")
        raise ValueError

    def stop_while_it_waits(seconds: float) -> None:
        assert seconds == 600
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr("time.sleep", stop_while_it_waits)
    assert execute(recording, flaky)[2:5] == ["CANCELLED", "Cancelled", "No need."]


def test_sigterm_without_a_request_crashes_the_run(recording: Recording) -> None:
    @flow
    def waiting() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert execute(recording, waiting)[2:5] == ["CRASHED", "Crashed", "Its process was told to stop (SIGTERM)."]


def test_leaving_python_is_told_and_goes_on(recording: Recording) -> None:
    @flow
    def leaving() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        execute(recording, leaving)
    assert recording.ends == [("Crashed", "Its code left Python with exit status 3.")]


def test_a_subflow_of_a_workers_run_is_opened_through_the_same_link(recording: Recording) -> None:
    @flow
    def child() -> None:
        pass

    @flow
    def parent() -> None:
        child()

    execute(recording, parent)
    assert [run["parent"] for run in recording.opened] == ["run"]


def test_a_result_that_is_too_large_or_no_plain_data_is_left_out(recording: Recording) -> None:
    @flow
    def give(what: str) -> Any:
        return {"large": "x" * 300_000, "odd": object(), "fine": {"a": [1]}, "none": None}[what]

    results = {what: execute(recording, give, parameters={"what": what})[5] for what in ("large", "odd", "fine", "none")}
    assert results == {"large": b"", "odd": b"", "fine": b"\x81\xa1a\x91\x01", "none": b""}


def test_a_failed_allocation_says_out_of_memory(recording: Recording) -> None:
    @flow
    def hungry() -> None:
        raise MemoryError

    assert execute(recording, hungry)[2:5] == ["FAILED", "Failed", "MemoryError: out of memory"]
