"""Flows: what a call returns and raises, what state the run ends in, and what is recorded of it."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator import flow, get_run_logger, runtime, tags, task
from orchestrator.context import FlowRunContext, TaskRunContext, get_run_context
from orchestrator.engine.records import FlowRun
from orchestrator.exceptions import (
    FailedRun,
    InvalidDefinition,
    InvalidName,
    MissingContextError,
    ParameterBindError,
    ParameterTypeError,
    ReservedArgumentError,
    RunTimedOut,
)
from orchestrator.flows import Flow
from orchestrator.states import Cancelled, Completed, Failed, State
from recording import Recording

pytestmark = pytest.mark.usefixtures("recording")


@task
def echo(value: Any = 1) -> Any:
    return value


@task
def fail(text: str = "boom") -> None:
    raise ValueError(text)


# What a call returns


def test_a_flow_returns_what_its_function_returns() -> None:
    @flow
    def double(n: int) -> int:
        return 2 * n

    assert double(4) == 8


def test_an_async_flow_is_awaited() -> None:
    @flow
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    assert asyncio.run(double(4)) == 8


def test_a_generator_flow_yields_and_its_run_ends_with_the_last_item(recording: Recording) -> None:
    @flow
    def count(n: int) -> Iterator[int]:
        assert FlowRunContext.get() is not None
        yield from range(n)

    items = count(3)
    assert FlowRunContext.get() is None
    assert [next(items), next(items)] == [0, 1]
    assert FlowRunContext.get() is None
    assert recording.ends == []
    assert list(items) == [2]
    assert recording.ends == [("Completed", "")]


def test_an_async_generator_flow_yields(recording: Recording) -> None:
    @flow
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def collect() -> list[int]:
        return [i async for i in count(3)]

    assert asyncio.run(collect()) == [0, 1, 2]
    assert recording.ends == [("Completed", "")]


def test_leaving_a_generator_flow_early_completes_it(recording: Recording) -> None:
    @flow
    def count() -> Generator[int, None, None]:
        yield from range(100)

    items = count()
    next(items)
    items.close()
    assert recording.ends == [("Completed", "")]


def test_what_a_flow_raises_reaches_the_caller_and_the_record(recording: Recording) -> None:
    @flow
    def broken() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom") as caught:
        broken()
    assert [entry.name for entry in caught.traceback][-1] == "broken"
    assert recording.ends == [("Failed", "ValueError: boom")]


def test_the_log_holds_the_traceback_of_user_code_only(recording: Recording) -> None:
    @flow
    def broken() -> None:
        fail()

    broken(return_state=True)
    [line] = [line for line in recording.log if line.startswith("Failed with ValueError: boom") and "in broken" in line]
    assert "in fail" in line
    assert "orchestrator/engine" not in line


def test_return_state_returns_the_final_state_and_raises_nothing() -> None:
    @flow
    def broken() -> None:
        raise ValueError("boom")

    state = broken(return_state=True)
    assert state.is_failed()
    assert state.message == "ValueError: boom"
    assert isinstance(state.result(raise_on_failure=False), ValueError)
    with pytest.raises(ValueError, match="boom"):
        state.result()


@pytest.mark.parametrize(
    ("state", "name"), [(Completed(message="fine", data=4), "Completed"), (Completed(name="Skipped"), "Skipped")]
)
def test_a_returned_state_is_the_final_state(state: State, name: str, recording: Recording) -> None:
    @flow
    def decide() -> State:
        return state

    assert decide() == state.data
    assert recording.ends == [(name, state.message)]


def test_a_returned_failed_state_is_raised_as_failed_run() -> None:
    @flow
    def decide() -> State:
        return Failed("nope")

    with pytest.raises(FailedRun, match="nope"):
        decide()
    assert decide(return_state=True).is_failed()


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([True], "Completed"),
        ([True, True, True], "Completed"),
        ([True, False], "Failed"),
        ([False, False], "Failed"),
    ],
)
def test_returned_futures_decide_the_final_state(outcomes: list[bool], expected: str) -> None:
    @flow
    def decide() -> Any:
        return [echo.submit() if good else fail.submit() for good in outcomes]

    state = decide(return_state=True)
    assert state.name == expected
    assert [inner.is_completed() for inner in decide()] == outcomes


def test_a_returned_future_that_failed_raises_its_own_exception() -> None:
    @flow
    def decide() -> Any:
        return fail.submit()

    with pytest.raises(ValueError, match="boom"):
        decide()


def test_a_cancelled_state_among_the_returned_ones_cancels_the_run() -> None:
    @flow
    def decide() -> Any:
        return [Cancelled("enough"), Completed()]

    assert decide(return_state=True).is_cancelled()


def test_futures_inside_other_data_are_returned_as_states_and_do_not_decide() -> None:
    @flow
    def decide() -> Any:
        return {"good": echo.submit(3), "bad": fail.submit()}

    state = decide(return_state=True)
    assert state.is_completed()
    assert state.result()["good"].result() == 3
    assert state.result()["bad"].is_failed()


def test_a_returned_exception_is_a_value() -> None:
    @flow
    def decide() -> Exception:
        return ValueError("a value")

    assert str(decide()) == "a value"


def test_a_failed_task_whose_state_is_ignored_does_not_fail_the_flow() -> None:
    @flow
    def lenient() -> str:
        fail(return_state=True)
        fail.submit()
        return "done"

    assert lenient() == "done"


# Parameters


def test_arguments_are_coerced_by_their_annotations() -> None:
    @flow
    def typed(n: int, ratio: float = 1.0, *rest: int, flag: bool = False, **more: int) -> Any:
        return n, ratio, rest, flag, more

    assert typed("7", "0.5", "1", "2", flag="yes", a="3") == (7, 0.5, (1, 2), True, {"a": 3})  # type: ignore[call-overload]


def test_arguments_that_cannot_be_coerced_fail_the_run_before_its_body(recording: Recording) -> None:
    ran: list[int] = []

    @flow
    def typed(n: int) -> None:
        ran.append(n)

    with pytest.raises(ParameterTypeError, match=r"Flow 'typed'(.|\n)*n: Input should be a valid integer"):
        typed("many")  # type: ignore[call-overload]
    assert ran == []
    assert recording.ends[0][0] == "Failed"


def test_without_validation_arguments_come_as_they_are() -> None:
    @flow(validate_parameters=False)
    def loose(n: int) -> Any:
        return n

    assert loose("many") == "many"  # type: ignore[call-overload]


@pytest.mark.parametrize("arguments", [{}, {"n": 1, "m": 2}])
def test_arguments_that_do_not_fit_the_signature_record_nothing(arguments: dict[str, int], recording: Recording) -> None:
    @flow
    def one(n: int) -> None:
        pass

    with pytest.raises(ParameterBindError, match="Flow 'one'") as caught:
        one(**arguments)
    assert isinstance(caught.value, TypeError)
    assert recording.opened == []


def test_futures_among_the_arguments_of_a_subflow_are_resolved() -> None:
    @flow
    def child(n: int) -> int:
        return n + 1

    @flow
    def parent() -> int:
        return child(echo.submit(2))

    assert parent() == 3


# Definition


@pytest.mark.parametrize("option", ["retires", "persist_result", "cache_policy"])
def test_an_option_that_does_not_exist_is_an_error_at_the_decorator(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        flow(**{option: 1})  # type: ignore[call-overload]


@pytest.mark.parametrize(("options", "message"), [({"retries": -1}, "retries"), ({"retry_delay_seconds": -1}, "delay")])
def test_an_option_that_makes_no_sense_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow(**options)(lambda: None)


def test_a_flows_name_is_its_functions_with_dashes() -> None:
    @flow
    def load_all_tables() -> None:
        """Load them."""

    assert load_all_tables.name == "load-all-tables"
    assert load_all_tables.description == "Load them."
    assert flow(name="load_all")(lambda: None).name == "load_all"
    assert flow(lambda: None).name == "lambda"


def test_a_name_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(InvalidName):
        flow(name="a/b")(lambda: None)


@pytest.mark.parametrize("name", ["return_state", "wait_for"])
def test_a_parameter_may_not_have_a_name_that_calls_use(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def f({name}): pass", namespace)
    with pytest.raises(ReservedArgumentError, match=name):
        flow(namespace["f"])(1)


def test_with_options_changes_only_what_is_given() -> None:
    @flow(name="first", retries=2, log_prints=True, description="it")
    def one() -> int:
        return 1

    changed = one.with_options(name="second", retries=0)
    assert (changed.name, changed.retries, changed.log_prints, changed.description) == ("second", 0, True, "it")
    assert (one.name, one.retries) == ("first", 2)
    assert changed() == 1


def test_methods_of_every_kind_can_be_flows() -> None:
    class Shop:
        tax = 3

        def __init__(self) -> None:
            self.discount = 10

        @flow
        def price(self, n: int) -> int:
            return n - self.discount

        @classmethod
        @flow
        def taxed(cls, n: int) -> int:
            return n + cls.tax

        @staticmethod
        @flow
        def plain(n: int) -> int:
            return n

    shop = Shop()
    assert (shop.price("50"), Shop.taxed(50), Shop.plain(50), shop.plain(n=50)) == (40, 53, 50, 50)
    assert shop.price.with_options(name="other")(20) == 10


def test_self_is_no_parameter_of_the_run(recording: Recording) -> None:
    class Shop:
        @flow
        def price(self, n: int) -> int:
            return n

    Shop().price(5)
    assert recording.opened[0]["parameters"] == {"n": 5}


def test_the_decorator_wants_a_function() -> None:
    with pytest.raises(TypeError, match="goes onto a function"):
        flow(3)  # type: ignore[call-overload]


# Names of runs


def test_runs_are_named_by_a_template_or_a_function(recording: Recording) -> None:
    @flow(flow_run_name="load {table}")
    def templated(table: str = "orders") -> None:
        pass

    @flow(flow_run_name=lambda: f"run of {runtime.flow_run.name}")
    def called() -> None:
        pass

    def from_parameters(parameters: dict[str, Any]) -> str:
        return f"load of {parameters['table']}"

    templated()
    called()
    templated.with_options(flow_run_name=from_parameters)("users")
    assert [run["name"] for run in recording.opened] == ["load orders", "run of None", "load of users"]


def test_a_run_without_a_name_gets_an_adjective_and_an_animal(recording: Recording) -> None:
    @flow
    def nameless() -> None:
        pass

    nameless()
    nameless()
    first, second = (run["name"] for run in recording.opened)
    assert first.count("-") == second.count("-") == 1


# Records


def test_a_root_flow_opens_a_run_and_ends_it(recording: Recording) -> None:
    @flow
    def hello(name: str, at: Any = None) -> str:
        return f"hello {name}"

    with tags("nightly", "a"):
        hello("you", at={1, 2})
    [opened] = recording.opened
    assert (opened["flow"], opened["parent"], opened["tags"]) == ("hello", None, ["a", "nightly"])
    assert opened["parameters"] == {"name": "you", "at": [1, 2]}
    assert recording.starts == []  # a run that is opened is born running
    [end] = recording.of("end")
    assert end[1] == opened["id"]
    assert (end[2], end[3], end[6]) == ("COMPLETED", "Completed", None)


def test_a_subflow_is_a_run_of_its_own_with_a_parent(recording: Recording) -> None:
    @flow
    def child(n: int) -> int:
        echo(n)
        return n

    @flow
    def parent() -> None:
        echo(0)
        child(1)
        child(2)

    with tags("t"):
        parent()
    root, *children = recording.opened
    assert [run["parent"] for run in children] == [root["id"], root["id"]]
    assert [run["tags"] for run in children] == [["t"], ["t"]]
    assert [name for name, _ in recording.ends] == ["Completed"] * 3
    assert [frame[1] for frame in recording.of("end")] == [children[0]["id"], children[1]["id"], root["id"]]
    by_run = {frame[1] for frame in recording.of("tasks")}
    assert by_run == {run["id"] for run in recording.opened}


def test_a_failing_subflow_fails_its_caller_unless_that_takes_its_state() -> None:
    @flow
    def child() -> None:
        raise ValueError("child")

    @flow
    def strict() -> None:
        child()

    @flow
    def lenient() -> str:
        return str(child(return_state=True).message)

    assert strict(return_state=True).message == "ValueError: child"
    assert lenient() == "ValueError: child"


def test_a_flow_runs_without_any_recorder() -> None:
    from orchestrator.engine import direct

    direct.use(None)

    @flow
    def alone() -> int:
        return sum(future.result() for future in echo.map([1, 2]))

    assert alone() == 3


def test_a_recorder_that_dies_does_not_disturb_the_flow(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    @flow
    def going_on() -> int:
        recording.hang_up()
        return len([echo(i) for i in range(100)])

    assert going_on() == 100


def test_who_waits_for_the_end_to_be_recorded_says_so_and_for_how_long(
    recording: Recording, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.engine import direct

    monkeypatch.setattr(direct, "_QUIET_SECONDS", 0.01)
    monkeypatch.setattr(direct, "_ACKNOWLEDGEMENT_SECONDS", 0.02)
    recording.acknowledges = False

    @flow
    def quick() -> None: ...

    quick()
    said = capsys.readouterr().err
    assert said.count("Waiting for Redis to record the run, at most 0.02 s.") == 1
    assert said.count("not recorded yet") == 1


# What is written wrong


@pytest.mark.parametrize("decorate", [flow, task])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("retries", "x", "retries is 'x'; it must be a whole number"),
        ("retry_delay_seconds", "soon", "retry_delay_seconds is 'soon'; it must be a number"),
        ("retry_delay_seconds", [1, None], "retry_delay_seconds is None; it must be a number"),
        ("timeout_seconds", "x", "timeout_seconds is 'x'; it must be a number"),
    ],
)
def test_a_wrong_option_is_told_with_whose_it_is(decorate: Any, option: str, value: Any, said: str) -> None:
    def load() -> None: ...

    with pytest.raises(TypeError, match=f"^(Flow|Task) 'load': {said}"):
        decorate(**{option: value})(load)


@pytest.mark.parametrize(
    ("template", "said"), [("run-{y}", "there is no parameter 'y'"), ("run-{", "Single '{'"), ("{x.z}", "no attribute 'z'")]
)
def test_a_run_name_that_cannot_be_filled_in_says_with_what_it_can(template: str, said: str) -> None:
    @flow(flow_run_name=template)
    def named(x: int) -> None: ...

    with pytest.raises(InvalidDefinition, match=said) as caught:
        named(1)
    assert "flow_run_name of flow 'named'" in str(caught.value)
    assert str(caught.value).endswith("The parameters are: x.")


def test_a_coroutine_that_nobody_awaited_fails_the_run_that_returned_it(recording: Recording) -> None:
    """The run used to end Completed, though its work had never begun."""

    @task
    async def work() -> None: ...

    @task
    def forgets() -> Any:
        return work()

    @flow
    def forgetful(through_task: bool) -> Any:
        return forgets() if through_task else work()

    for through_task in (False, True):
        with pytest.raises(TypeError, match=r"returned the coroutine '.*', which nobody awaited"):
            forgetful(through_task)
    assert [name for name, _ in recording.ends] == ["Failed", "Failed"]


# Retries


def test_a_flow_is_tried_again_as_often_as_it_says(recording: Recording) -> None:
    counts: list[int] = []

    @flow(retries=2)
    def flaky() -> str:
        counts.append(runtime.flow_run.run_count)
        if len(counts) < 3:
            raise ValueError("not yet")
        return "at last"

    assert flaky() == "at last"
    assert counts == [1, 2, 3]
    assert [name for _, name in recording.starts] == ["Retrying", "Retrying"]
    assert recording.ends == [("Completed", "")]


def test_retries_end(recording: Recording) -> None:
    @flow(retries=1)
    def never() -> None:
        raise ValueError("never")

    assert never(return_state=True).message == "ValueError: never"
    assert len(recording.starts) == 1


def test_a_flow_whose_returned_futures_failed_is_tried_again() -> None:
    seen: list[int] = []

    @flow(retries=1)
    def flaky() -> Any:
        seen.append(1)
        return fail.submit() if len(seen) == 1 else echo.submit()

    assert flaky(return_state=True).is_completed()


def test_delays_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)

    @flow(retries=3, retry_delay_seconds=[1, 5])
    def never() -> None:
        raise ValueError

    never(return_state=True)
    assert slept == [1, 5, 5]


# Time limits


def test_a_flow_that_takes_too_long_ends_timed_out(recording: Recording) -> None:
    @flow(timeout_seconds=0.05)
    def slow() -> None:
        signal.pause()

    with pytest.raises(RunTimedOut, match=r"took longer than its 0\.05 seconds") as caught:
        slow()
    assert isinstance(caught.value, TimeoutError)
    assert recording.ends[0][0] == "TimedOut"


def test_an_async_flow_that_takes_too_long_ends_timed_out() -> None:
    @flow(timeout_seconds=0.05)
    async def slow() -> None:
        await asyncio.Event().wait()

    state = asyncio.run(slow(return_state=True))
    assert (state.type, state.name) == ("FAILED", "TimedOut")


def test_a_timeout_error_of_the_flows_own_is_an_ordinary_failure() -> None:
    @flow(timeout_seconds=60)
    def own() -> None:
        raise TimeoutError("the other side")

    assert own(return_state=True).name == "Failed"


# Hooks


def test_hooks_are_called_in_order_with_flow_run_and_state() -> None:
    seen: list[tuple[str, str, str]] = []

    def note(name: str) -> Any:
        def hook(of: Flow[..., Any], run: FlowRun, state: State) -> None:
            assert FlowRunContext.get() is not None
            seen.append((name, of.name, state.name))

        return hook

    @flow(on_running=[note("r")], on_completion=[note("c1"), note("c2")], on_failure=[note("f")])
    def decide(good: bool) -> None:
        if not good:
            raise ValueError

    decide(True)
    decide(False, return_state=True)
    assert seen == [
        *(("r", "decide", "Running"), ("c1", "decide", "Completed"), ("c2", "decide", "Completed")),
        *(("r", "decide", "Running"), ("f", "decide", "Failed")),
    ]


def test_hooks_may_be_added_and_async_and_may_fail(recording: Recording) -> None:
    seen: list[str] = []

    @flow
    def one() -> None:
        pass

    @one.on_completion
    def broken(*_: Any) -> None:
        raise ValueError("hook")

    @one.on_completion
    async def later(*_: Any) -> None:
        await asyncio.sleep(0)
        seen.append("async")

    assert one(return_state=True).is_completed()
    assert seen == ["async"]
    assert recording.ends == [("Completed", "")]


def test_a_run_that_will_be_tried_again_calls_no_failure_hook() -> None:
    seen: list[int] = []
    runs: list[int] = []

    @flow(retries=1, on_failure=[lambda *_: seen.append(1)])
    def flaky() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    flaky()
    assert seen == []


# Being stopped


def test_a_keyboard_interrupt_crashes_the_run_and_goes_on(recording: Recording) -> None:
    seen: list[str] = []

    @flow(on_crashed=[lambda _, __, state: seen.append(state.name)])
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(return_state=True)
    assert recording.ends == [("Crashed", "It was interrupted from the keyboard.")]
    assert seen == ["Crashed"]


def test_leaving_python_crashes_the_run(recording: Recording) -> None:
    @flow
    def leaving() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        leaving()
    assert recording.ends == [("Crashed", "Its code left Python with exit status 3.")]


def test_cancelling_the_asyncio_task_around_a_flow_crashes_its_run(recording: Recording) -> None:
    started = []

    @flow
    async def waiting() -> None:
        started.append(1)
        await asyncio.Event().wait()

    async def main() -> None:
        running = asyncio.ensure_future(waiting())
        while not started:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert recording.ends == [("Crashed", "The asyncio task that it ran in was cancelled.")]


def test_a_request_to_cancel_stops_the_flow_and_its_submitted_tasks(recording: Recording) -> None:
    from orchestrator.engine.termination import Terminated

    reached: list[str] = []

    @task
    def wait_long() -> None:
        try:
            while True:
                contextvars.copy_context()
        except Terminated:
            reached.append("task")
            raise

    @flow(on_cancellation=[lambda *_: reached.append("hook")])
    def waiting() -> None:
        future = wait_long.submit()
        while not future.state.is_running():
            pass
        recording.send("cancel", runtime.flow_run.id, "Enough of it.")
        while recording.link.cancel_message(runtime.flow_run.id) is None:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    from orchestrator.exceptions import CancelledRun

    with pytest.raises(CancelledRun, match=r"Enough of it\."):
        waiting()
    assert sorted(reached) == ["hook", "task"]
    assert recording.ends == [("Cancelled", "Enough of it.")]
    assert recording.tasks["wait_long-0"].state.name == "Cancelled"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_cancelled_subflow_leaves_its_caller_running(recording: Recording) -> None:
    from orchestrator.exceptions import CancelledRun

    @flow
    def child() -> None:
        recording.send("cancel", runtime.flow_run.id, "Not this one.")
        while recording.link.cancel_message(runtime.flow_run.id) is None:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    @flow
    def parent() -> str:
        try:
            child()
        except CancelledRun:
            return "went on"
        return "never"

    assert parent() == "went on"
    assert [name for name, _ in recording.ends] == ["Cancelled", "Completed"]


# Contexts


def test_the_run_is_visible_inside_and_nowhere_else() -> None:
    @task
    def inner() -> tuple[Any, ...]:
        task_context = TaskRunContext.get()
        assert task_context is not None
        assert get_run_context() is task_context
        return runtime.flow_run.id, runtime.task_run.name, runtime.task_run.task_name, runtime.task_run.parameters

    @flow(version="7")
    def outer(n: int = 1) -> tuple[Any, ...]:
        context = FlowRunContext.get()
        assert context is not None
        assert get_run_context() is context
        assert runtime.task_run.id is None
        seen = runtime.flow_run
        return seen.id, seen.name, seen.flow_name, seen.flow_version, seen.parameters, seen.run_count, seen.fence, inner()

    id_, name, flow_name, version, parameters, run_count, fence, of_task = outer()
    assert (flow_name, version, parameters, run_count, fence) == ("outer", "7", {"n": 1}, 1, 1)
    assert name
    assert of_task == (id_, "inner-0", "inner", {})
    assert (runtime.flow_run.id, runtime.flow_run.run_count, runtime.flow_run.parameters, runtime.flow_run.tags) == (
        None,
        0,
        {},
        [],
    )
    assert (runtime.task_run.id, runtime.deployment.id, runtime.deployment.parameters) == (None, None, {})
    with pytest.raises(MissingContextError):
        get_run_context()
    with pytest.raises(AttributeError):
        _ = runtime.flow_run.nonsense


def test_inside_a_flow_that_a_task_calls_no_task_runs() -> None:
    @flow
    def child() -> tuple[Any, ...]:
        return runtime.task_run.id, runtime.flow_run.parent_flow_run_id

    @task
    def calls_a_flow() -> tuple[Any, ...]:
        return (*child(), runtime.task_run.name, runtime.flow_run.id)

    @flow
    def parent() -> tuple[Any, ...]:
        return calls_a_flow()

    task_id, parent_id, name, flow_id = parent()
    assert (task_id, name, parent_id) == (None, "calls_a_flow-0", flow_id)


def test_two_flows_in_one_event_loop_do_not_mix() -> None:
    @flow
    async def ask(n: int) -> tuple[int, Any]:
        before = runtime.flow_run.id
        await asyncio.sleep(0)
        assert runtime.flow_run.id == before
        return n, await answer(n)

    @task
    async def answer(n: int) -> Any:
        await asyncio.sleep(0)
        return runtime.flow_run.parameters["n"]

    async def main() -> list[tuple[int, Any]]:
        return await asyncio.gather(*(ask(n) for n in range(10)))

    assert asyncio.run(main()) == [(n, n) for n in range(10)]


# Logs


def test_the_run_logger_writes_to_the_runs_log(recording: Recording) -> None:
    @task
    def inner() -> None:
        get_run_logger().warning("from the %s", "task")

    @flow
    def outer() -> None:
        get_run_logger().info("from the flow")
        inner()

    outer()
    assert recording.log == [
        *("Started flow 'outer'", "from the flow", "from the task", "Ended Completed", "Ended Completed"),
    ]
    lines = [line for frame in recording.of("log") for line in frame[2]]
    task_id = recording.tasks["inner-0"].id
    assert [(line[1], line[2], line[4]) for line in lines[1:3]] == [
        (20, "orchestrator.flow_runs", None),
        (30, "orchestrator.task_runs", task_id),
    ]


def test_prints_are_logged_where_the_flow_says_so(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    @task
    def inherits() -> None:
        print("a", "b", sep="-")

    @task(log_prints=False)
    def does_not() -> None:
        print("plain")

    @flow(log_prints=True)
    def printing() -> None:
        print("from the flow")
        inherits()
        does_not()

    printing()
    print("outside")
    assert [line for line in recording.log if not line.startswith(("Started", "Ended"))] == ["from the flow", "a-b"]
    assert capsys.readouterr().out == "plain\noutside\n"


def test_outside_of_runs_there_is_no_run_logger() -> None:
    from orchestrator.logging import disable_run_logger

    with pytest.raises(MissingContextError, match="no flow or task is running"):
        get_run_logger()
    with disable_run_logger():
        get_run_logger().info("nobody hears this")


def test_dataclasses_and_models_are_recorded_as_plain_data(recording: Recording) -> None:
    @dataclass
    class Item:
        name: str

    @flow
    def take(item: Any, secret: Any = None) -> None:
        pass

    from pydantic import SecretStr

    take(Item("x"), SecretStr("hidden"))
    assert recording.opened[0]["parameters"] == {"item": {"name": "x"}, "secret": "**********"}


def test_huge_parameters_are_recorded_by_their_size(recording: Recording) -> None:
    @flow
    def take(text: str, small: int) -> None:
        pass

    take("x" * 1_000_000, 3)
    recorded = recording.opened[0]["parameters"]
    assert recorded["text"].startswith("<str of 1,0")
    assert recorded["small"] == 3


def test_a_very_long_message_of_a_state_is_cut_in_the_record(recording: Recording) -> None:
    @flow
    def talkative() -> State:
        return Completed("x" * 100_000)

    assert len(talkative(return_state=True).message) == 100_000
    assert len(recording.ends[0][1]) == 4000
