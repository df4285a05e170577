"""Tasks: calls, retries, names, what is recorded of each run, and the edges between them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator import allow_failure, flow, quote, runtime, tags, task
from orchestrator.context import FlowRunContext
from orchestrator.exceptions import InvalidName, MissingContextError, ParameterBindError, RunTimedOut, UnfinishedRun
from orchestrator.models import TaskRun
from orchestrator.states import Completed, Failed, State
from orchestrator.tasks import Task
from recording import Recording

pytestmark = pytest.mark.usefixtures("recording")


@task
def echo(value: Any = 1) -> Any:
    return value


@task
def fail(text: str = "boom") -> None:
    raise ValueError(text)


def in_flow(body: Any) -> Any:
    """Run a function as a flow."""
    return flow(name="test")(body)()


# Calls


def test_a_task_returns_what_its_function_returns_inside_and_outside_of_flows() -> None:
    assert echo(4) == 4
    assert in_flow(lambda: echo(4)) == 4


def test_an_async_task_is_awaited() -> None:
    @task
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n

    @flow
    async def main() -> list[int]:
        return [await later(1), *await asyncio.gather(later(2), later(3))]

    assert asyncio.run(main()) == [1, 2, 3]


def test_a_sync_task_runs_inside_an_async_flow() -> None:
    @flow
    async def main() -> int:
        return int(echo(5))

    assert asyncio.run(main()) == 5


def test_a_generator_task_yields_and_returns(recording: Recording) -> None:
    @task
    def count(n: int) -> Generator[Any, Any, int]:
        received = yield 0
        yield received
        return n

    def body() -> Any:
        items = count(7)
        first, second = next(items), items.send("sent")
        assert runtime.task_run.id is None
        with pytest.raises(StopIteration):
            next(items)
        return first, second

    assert in_flow(body) == (0, "sent")
    assert recording.tasks["count-0"].state.is_completed()


def test_an_async_generator_task_yields(recording: Recording) -> None:
    @task
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @flow
    async def main() -> list[int]:
        return [i async for i in count(3)]

    assert asyncio.run(main()) == [0, 1, 2]
    assert recording.tasks["count-0"].state.is_completed()


def test_a_generator_task_that_raises_fails() -> None:
    @task
    def count() -> Iterator[int]:
        yield 1
        raise ValueError("after one")

    def body() -> list[int]:
        seen = []
        items = count()
        seen.append(next(items))
        with pytest.raises(ValueError, match="after one"):
            next(items)
        return seen

    assert in_flow(body) == [1]


def test_return_state_returns_the_final_state() -> None:
    assert echo(3, return_state=True).result() == 3
    state = fail(return_state=True)
    assert (state.name, state.message) == ("Failed", "ValueError: boom")
    with pytest.raises(ValueError, match="boom"):
        state.result()


def test_a_returned_state_is_the_final_state(recording: Recording) -> None:
    def body() -> None:
        @task
        def decide(state: State) -> State:
            return state

        assert decide(quote(Completed(name="Skipped"))).name == "Skipped"  # type: ignore[call-overload]
        assert decide(quote(Failed("nope")), return_state=True).message == "nope"

    in_flow(body)
    assert [run.state.name for run in recording.tasks.values()] == ["Skipped", "Failed"]


def test_arguments_that_do_not_fit_are_refused_before_there_is_a_run(recording: Recording) -> None:
    @task
    def one(n: int, *, loud: bool) -> None:
        pass

    def body() -> None:
        for arguments in ((1,), (1, 2)):
            with pytest.raises(ParameterBindError, match="Task 'one'"):
                one(*arguments)  # type: ignore[call-overload]
        with pytest.raises(ParameterBindError):
            one.submit(2)
        one(1, loud=True)

    in_flow(body)
    assert list(recording.tasks) == ["one-0"]


def test_methods_can_be_tasks() -> None:
    class Shop:
        def __init__(self) -> None:
            self.discount = 10

        @task
        def price(self, n: int) -> int:
            return n - self.discount

    shop = Shop()
    assert shop.price(50) == 40
    assert in_flow(lambda: [shop.price.submit(50).result(), *shop.price.map([11, 12]).result()]) == [40, 1, 2]


def test_tasks_may_call_tasks(recording: Recording) -> None:
    @task
    def outer() -> Any:
        return echo(2)

    assert in_flow(lambda: outer()) == 2
    runs = recording.tasks
    assert runs["echo-0"].parent == runs["outer-0"].id


# Definition


def test_an_option_that_does_not_exist_is_an_error_at_the_decorator() -> None:
    with pytest.raises(TypeError, match="retires"):
        task(retires=3)  # type: ignore[call-overload]


def test_a_tasks_name_is_its_functions() -> None:
    @task
    def load_table() -> None:
        """Load it."""

    assert (load_table.name, load_table.description) == ("load_table", "Load it.")
    with pytest.raises(InvalidName):
        task(name="a:b")(lambda: None)


def test_with_options_changes_only_what_is_given() -> None:
    @task(name="first", retries=2, tags=["x"], retry_delay_seconds=3)
    def one() -> int:
        return 1

    changed = one.with_options(name="second", retries=0)
    assert (changed.name, changed.retries, sorted(changed.tags), changed.retry_policy.delays) == ("second", 0, ["x"], (3.0,))
    assert (one.name, one.retries) == ("first", 2)


def test_hooks_that_were_added_later_survive_with_options() -> None:
    seen: list[str] = []
    one = echo.with_options(name="one")
    one.on_completion(lambda of, run, state: seen.append(of.name))
    one.with_options(name="two")()
    assert seen == ["two"]


# Names


def test_runs_are_numbered_by_task(recording: Recording) -> None:
    def body() -> None:
        echo(1)
        echo(2)
        fail(return_state=True)

    in_flow(body)
    assert [(run.key, run.index, run.name) for run in recording.tasks.values()] == [
        *(("echo", 0, "echo-0"), ("echo", 1, "echo-1"), ("fail", 0, "fail-0")),
    ]


def test_runs_are_named_by_a_template_or_a_function(recording: Recording) -> None:
    @task(task_run_name="load {table}")
    def load(table: str = "orders") -> str:
        return str(runtime.task_run.name)

    by_call = load.with_options(task_run_name=lambda: f"in {runtime.flow_run.flow_name}")
    assert in_flow(lambda: [load(), load(table="users"), by_call()]) == ["load orders", "load users", "in test"]


# States and retries


def test_a_task_is_tried_again_as_often_as_it_says(recording: Recording) -> None:
    counts: list[int] = []

    @task(retries=2)
    def flaky() -> int:
        counts.append(runtime.task_run.run_count)
        if len(counts) < 3:
            raise ValueError("not yet")
        return 7

    assert in_flow(lambda: flaky()) == 7
    assert counts == [1, 2, 3]
    run = recording.tasks["flaky-0"]
    assert (run.run_count, run.state.name) == (3, "Completed")
    assert run.started is not None
    assert run.ended is not None
    assert run.started <= run.ended


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (2, [2, 2, 2]),
        ([1, 4], [1, 4, 4]),
        (lambda retries: [10.0 * n for n in range(1, retries + 1)], [10, 20, 30]),
        (None, []),
    ],
)
def test_delays_before_retries(delay: Any, expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    never = fail.with_options(retries=3, retry_delay_seconds=delay)
    never(return_state=True)
    assert slept == expected


def test_jitter_only_lengthens_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    fail.with_options(retries=50, retry_delay_seconds=10, retry_jitter_factor=0.5)(return_state=True)
    assert all(10 <= delay <= 15 for delay in slept)
    assert len(set(slept)) > 1


def test_a_condition_decides_about_retries() -> None:
    asked: list[tuple[str, int, str]] = []

    def only_twice(of: Task[..., Any], run: TaskRun, state: State) -> bool:
        asked.append((of.name, run.run_count, state.message))
        return run.run_count < 2

    fail.with_options(retries=5, retry_condition_fn=only_twice)(return_state=True)
    assert asked == [("fail", 1, "ValueError: boom"), ("fail", 2, "ValueError: boom")]


def test_a_condition_that_raises_means_no_retry() -> None:
    calls: list[int] = []

    @task(retries=3, retry_condition_fn=lambda *_: bool(1 // 0))
    def broken() -> None:
        calls.append(1)
        raise ValueError

    assert broken(return_state=True).is_failed()
    assert calls == [1]


def test_a_task_that_takes_too_long_ends_timed_out_in_any_thread() -> None:
    @task(timeout_seconds=0.05)
    def slow() -> None:
        while True:
            gc.isenabled()

    def body() -> list[str]:
        with pytest.raises(RunTimedOut):
            slow()
        return [slow(return_state=True).name, slow.submit(return_state=True).name]

    assert in_flow(body) == ["TimedOut", "TimedOut"]


def test_the_inner_of_two_time_limits_strikes_alone() -> None:
    @task(timeout_seconds=0.05)
    def slow() -> None:
        while True:
            gc.isenabled()

    @flow(timeout_seconds=60)
    def outer() -> str:
        return str(slow(return_state=True).name)

    assert outer() == "TimedOut"


def test_hooks_of_tasks() -> None:
    seen: list[tuple[str, str]] = []

    @task(
        on_running=[lambda of, run, state: seen.append((run.name, state.name))],
        on_completion=[lambda of, run, state: seen.append((run.name, state.name))],
        on_failure=[lambda of, run, state: seen.append((run.name, state.name))],
    )
    def decide(good: bool) -> None:
        if not good:
            raise ValueError

    def body() -> None:
        decide(True)
        decide.submit(False).wait()

    in_flow(body)
    assert seen == [("decide-0", "Running"), ("decide-0", "Completed"), ("decide-1", "Running"), ("decide-1", "Failed")]


def test_tags_of_the_task_and_of_the_block_around_it(recording: Recording) -> None:
    def body() -> Any:
        with tags("block"):
            echo.with_options(tags=["own"])()
        echo()

    in_flow(body)
    assert [run.tags for run in recording.tasks.values()] == [("block", "own"), ()]


def test_an_interrupted_task_is_recorded_as_crashed(recording: Recording) -> None:
    @task
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_flow(lambda: interrupted(return_state=True))
    assert recording.tasks["interrupted-0"].state.name == "Crashed"


# What goes in


@dataclass(frozen=True)
class Box:
    content: Any
    other: int = 1


def test_futures_anywhere_in_the_arguments_are_resolved_and_recorded_as_edges(recording: Recording) -> None:
    from collections import OrderedDict

    from pydantic import BaseModel, ConfigDict

    class Model(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        content: Any

    def body() -> Any:
        one, two = echo.submit(1), echo.submit(2)
        state = echo(3, return_state=True)
        return [
            echo([one, 5]),
            echo((one, {"a": two})),
            echo({one.result()}),
            echo(Box(two)),
            echo(OrderedDict(a=state)),
            echo(Model(content=one)).content,
            echo(value=[one, [two, [state]]]),
        ]

    assert in_flow(body) == [[1, 5], (1, {"a": 2}), {1}, Box(2), {"a": 3}, 1, [1, [2, [3]]]]
    runs = recording.tasks
    first, second, third = (runs[f"echo-{n}"].id for n in range(3))
    assert [runs[f"echo-{n}"].upstream for n in range(3, 10)] == [
        *((first,), (first, second), (), (second,), (third,), (first,), (first, second, third)),
    ]


def test_a_result_that_is_passed_on_is_an_edge(recording: Recording) -> None:
    def body() -> None:
        title = echo("a title that is no constant".title())
        size(title)
        size([title, "x"])
        size("something else")

    @task
    def size(value: Any) -> int:
        return len(value)

    in_flow(body)
    runs = recording.tasks
    made = runs["echo-0"].id
    assert [runs[f"size-{n}"].upstream for n in range(3)] == [(made,), (made,), ()]


def test_results_are_not_kept_alive_for_the_edges(recording: Recording) -> None:
    class Big:
        pass

    @task
    def make(kind: Any) -> Any:
        return kind()

    def body() -> tuple[int, int]:
        last = [make(Big), make(list)]
        for _ in range(100):
            make(Big)
            make(list)
        recording.link.flush()
        context = FlowRunContext.get()
        assert context is not None
        for _ in range(300):
            make(list)
            recording.link.flush()
        gc.collect()
        assert [context.producers.of(value) is not None for value in last] == [True, True]
        return sum(isinstance(thing, Big) for thing in gc.get_objects()), len(context.producers._known)

    alive, known = in_flow(body)
    assert alive == 1
    assert known < 20


def test_containers_without_futures_are_passed_as_they_are() -> None:
    given = [[1, 2], {"a": Box(1)}]
    assert in_flow(lambda: echo(given)) is given


def test_a_container_that_holds_itself_is_passed_on() -> None:
    knot: list[Any] = [1]
    knot.append(knot)
    assert in_flow(lambda: echo(knot) is knot)


def test_quoted_arguments_are_not_looked_into() -> None:
    def body() -> bool:
        future = echo.submit(1)
        return echo(quote([future]))[0] is future

    assert in_flow(body)


def test_a_task_whose_input_failed_does_not_start(recording: Recording) -> None:
    def body() -> Any:
        future = echo.submit(fail.submit())
        future.wait()
        with pytest.raises(UnfinishedRun):
            future.result()
        with pytest.raises(UnfinishedRun):
            echo(fail(return_state=True))
        return echo(wait_for=[fail.submit()], return_state=True).name

    assert in_flow(body) == "NotReady"
    runs = recording.tasks
    assert [runs[f"echo-{n}"].state.name for n in range(3)] == ["NotReady"] * 3
    assert [runs[f"echo-{n}"].run_count for n in range(3)] == [0, 0, 0]
    assert runs["echo-0"].upstream == (runs["fail-0"].id,)


def test_a_failure_may_be_allowed() -> None:
    def body() -> str:
        return str(echo(allow_failure(fail.submit())))

    assert in_flow(body) == "boom"


def test_wait_for_orders_and_is_recorded(recording: Recording) -> None:
    order: list[str] = []

    @task
    def step(name: str) -> None:
        order.append(name)

    def body() -> None:
        first = step.submit("first")
        step("second", wait_for=[first])

    in_flow(body)
    assert order == ["first", "second"]
    assert recording.tasks["step-1"].upstream == (recording.tasks["step-0"].id,)


def test_submitting_needs_a_flow() -> None:
    with pytest.raises(MissingContextError, match="outside of a flow") as caught:
        echo.submit(1)
    assert isinstance(caught.value, RuntimeError)
