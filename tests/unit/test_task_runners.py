"""Submitted tasks: futures, mapping, and a thread pool that never waits for itself."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Future, FutureList, allow_failure, as_completed, flow, get_run_logger, runtime, task, unmapped, wait
from orchestrator.exceptions import MappingLengthMismatch, MappingMissingIterable
from orchestrator.task_runners import ThreadPoolTaskRunner
from recording import Recording

pytestmark = pytest.mark.usefixtures("recording")


@task
def echo(value: Any = 1) -> Any:
    return value


@task
def add(a: int, b: int = 10) -> int:
    return a + b


@task
def fail(text: str = "boom") -> None:
    raise ValueError(text)


def in_flow(body: Any, **options: Any) -> Any:
    return flow(name="test", **options)(body)()


# Futures


def test_a_future_has_a_state_a_result_and_an_id(recording: Recording) -> None:
    def body() -> Any:
        future = echo.submit(4)
        assert isinstance(future, Future)
        assert future.result() == 4
        assert future.state.is_completed()
        return future.task_run_id

    task_id = in_flow(body)
    assert recording.tasks["echo-0"].id == task_id


def test_a_failed_future_raises_or_returns_its_exception() -> None:
    def body() -> None:
        future = fail.submit()
        with pytest.raises(ValueError, match="boom"):
            future.result()
        assert isinstance(future.result(raise_on_failure=False), ValueError)
        assert future.state.is_failed()

    in_flow(body)


def test_waiting_for_a_future_has_an_end() -> None:
    release = threading.Event()

    @task
    def wait_for_release() -> None:
        release.wait(30)

    def body() -> None:
        future = wait_for_release.submit()
        with pytest.raises(TimeoutError):
            future.result(timeout=0.01)
        future.wait(timeout=0.01)
        assert not future.is_done
        _, not_done = wait([future, echo.submit()], timeout=0.01)
        assert future in not_done
        with pytest.raises(TimeoutError, match="1 of 1"):
            next(iter(as_completed([future], timeout=0.01)))
        release.set()
        assert wait([future]).not_done == set()

    in_flow(body)


def test_callbacks_are_called_once_before_and_after_the_end() -> None:
    seen: list[str] = []
    release = threading.Event()

    @task
    def wait_for_release() -> None:
        release.wait(30)

    def body() -> None:
        future = wait_for_release.submit()
        future.add_done_callback(lambda ended: seen.append(f"before {ended.state.name}"))
        release.set()
        future.wait()
        future.add_done_callback(lambda ended: seen.append("after"))

    in_flow(body)
    assert sorted(seen) == ["after", "before Completed"]


def test_futures_come_in_the_order_in_which_they_end() -> None:
    gates = [threading.Event() for _ in range(3)]

    @task
    def wait_for_gate(n: int) -> int:
        gates[n].wait(30)
        return n

    def body() -> list[int]:
        futures = wait_for_gate.map([0, 1, 2])
        order = []
        for opened, future in zip((2, 0, 1), _opening(gates, as_completed(futures)), strict=True):
            assert future.result() == opened
            order.append(future.result())
        return order

    assert in_flow(body) == [2, 0, 1]


def _opening(gates: list[threading.Event], futures: Any) -> Any:
    for gate in (2, 0, 1):
        gates[gate].set()
        yield next(futures)


def test_submit_may_return_the_final_state() -> None:
    assert in_flow(lambda: echo.submit(3, return_state=True).result()) == 3
    assert in_flow(lambda: [state.name for state in fail.map(["a", "b"], return_state=True)]) == ["Failed", "Failed"]


def test_async_tasks_can_be_submitted_from_plain_and_async_flows() -> None:
    @task
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n

    @flow
    async def main() -> list[int]:
        return list(later.map([3, 4]).result())

    assert in_flow(lambda: later.submit(2).result()) == 2
    assert asyncio.run(main()) == [3, 4]


def test_submitted_generators_give_lists() -> None:
    @task
    def count(n: int) -> Any:
        yield from range(n)

    @task
    async def count_async(n: int) -> Any:
        for i in range(n):
            yield i

    assert in_flow(lambda: [count.submit(2).result(), count_async.submit(3).result()]) == [[0, 1], [0, 1, 2]]


def test_a_flow_waits_for_what_it_submitted_and_forgot(recording: Recording) -> None:
    release = threading.Event()

    @task
    def wait_for_release() -> None:
        release.wait(30)

    def body() -> None:
        wait_for_release.submit()
        echo.submit(wait_for_release.submit())
        release.set()

    in_flow(body)
    assert {run.state.name for run in recording.tasks.values()} == {"Completed"}


def test_threads_get_a_copy_of_the_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")

    @task
    def read_and_write() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    def body() -> tuple[list[str], str]:
        variable.set("flow")
        return [future.result() for future in (read_and_write.submit(), read_and_write.submit())], variable.get()

    assert in_flow(body) == (["flow", "flow"], "flow")


def test_a_submitted_task_knows_its_run_and_logs_to_it(recording: Recording) -> None:
    @task
    def speak() -> Any:
        get_run_logger().info("from a thread")
        return runtime.flow_run.flow_name, runtime.task_run.name

    assert in_flow(lambda: speak.submit().result()) == ("test", "speak-0")
    assert "from a thread" in recording.log


def test_a_submitted_task_is_pending_before_it_runs() -> None:
    release = threading.Event()

    @task
    def wait_for_release() -> None:
        release.wait(30)

    def body() -> str:
        blocker = wait_for_release.submit()
        future = echo.submit()
        name = future.state.name
        release.set()
        blocker.wait()
        return str(name)

    assert in_flow(body, task_runner=ThreadPoolTaskRunner(1)) == "Pending"


# Mapping


def test_map_calls_once_for_each_element() -> None:
    def body() -> Any:
        futures = add.map([1, 2, 3])
        assert isinstance(futures, FutureList)
        return futures.result()

    assert in_flow(body) == [11, 12, 13]


def test_map_takes_iterables_side_by_side() -> None:
    assert in_flow(lambda: add.map([1, 2], b=(n for n in (5, 6))).result()) == [6, 8]
    assert in_flow(lambda: add.map(range(2), {7: "a", 8: "b"}).result()) == [7, 9]


def test_map_gives_whole_what_is_unmapped_or_a_string() -> None:
    @task
    def pair(a: Any, b: Any, c: str = "default") -> Any:
        return a, b, c

    expected = [(1, [8, 9], "text"), (2, [8, 9], "text")]
    assert in_flow(lambda: pair.map([1, 2], unmapped([8, 9]), c="text").result()) == expected
    assert in_flow(lambda: pair.map([1], unmapped(echo.submit(5))).result()) == [(1, 5, "default")]


def test_map_fills_variable_keywords() -> None:
    @task
    def collect(*args: Any, **more: Any) -> Any:
        return args, more

    assert in_flow(lambda: collect.map(a=[1, 2], b=[3, 4]).result()) == [((), {"a": 1, "b": 3}), ((), {"a": 2, "b": 4})]


def test_map_over_futures_and_over_a_future_of_a_list() -> None:
    def body() -> Any:
        return [
            *add.map(echo.submit([1, 2])).result(),
            *add.map([echo.submit(3), 4]).result(),
            *add.map(add.map([5, 6])).result(),
        ]

    assert in_flow(body) == [11, 12, 13, 14, 25, 26]


def test_map_allows_failures() -> None:
    @task
    def describe(value: Any) -> str:
        return str(value)

    assert in_flow(lambda: describe.map(allow_failure(fail.map(["a", "b"]))).result()) == ["a", "b"]


def test_map_over_different_lengths_is_an_error() -> None:
    def body() -> None:
        with pytest.raises(MappingLengthMismatch, match="a has 2, b has 3"):
            add.map([1, 2], [1, 2, 3])
        with pytest.raises(MappingMissingIterable):
            add.map(1)
        assert add.map([]) == []

    in_flow(body)


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.integers(), max_size=30), workers=st.integers(1, 4))
def test_map_keeps_the_order(values: list[int], workers: int) -> None:
    assert in_flow(lambda: echo.map(values).result(), task_runner=ThreadPoolTaskRunner(workers)) == values


# The pool


def test_no_more_tasks_run_at_once_than_there_are_workers() -> None:
    running = 0
    most = 0
    lock = threading.Lock()
    meet = threading.Barrier(3, timeout=30)

    @task
    def count(n: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meet.wait()
        with lock:
            running -= 1

    in_flow(lambda: count.map(range(9)).wait(), task_runner=ThreadPoolTaskRunner(max_workers=3))
    assert most == 3


@pytest.mark.parametrize("workers", [1, 2, None])
def test_tasks_that_submit_and_wait_never_wait_for_each_other_for_ever(workers: int | None) -> None:
    @task
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(future.result() for future in tree.map([depth - 1] * 2))

    assert in_flow(lambda: tree.submit(4).result(), task_runner=ThreadPoolTaskRunner(workers)) == 16


def test_waiting_in_every_way_gives_up_the_place() -> None:
    @task
    def outer() -> Any:
        futures = echo.map([1, 2])
        wait(futures)
        found = sorted(future.result() for future in as_completed(echo.map([3, 4])))
        return [*found, child(), echo(echo.submit(5))]

    @flow
    def child() -> Any:
        return echo.submit(6).result()

    assert in_flow(lambda: outer.submit().result(), task_runner=ThreadPoolTaskRunner(1)) == [3, 4, 6, 5]


def test_a_subflow_in_a_task_may_wait_for_the_outer_flows_futures() -> None:
    gate = threading.Event()

    @task
    def wait_for_gate() -> int:
        gate.wait(30)
        return 7

    @flow
    def child(number: int) -> Any:
        return echo.submit(number).result()

    @task
    def calls(future: Any) -> Any:
        gate.set()
        return child(future.value.result())

    def body() -> Any:
        late = calls.submit(_Hidden())
        _Hidden.future = wait_for_gate.submit()
        _Hidden.ready.set()
        return late.result()

    assert in_flow(body, task_runner=ThreadPoolTaskRunner(1)) == 7


class _Hidden:
    """Hides a future from the search for futures in arguments."""

    ready = threading.Event()
    future: Any = None

    @property
    def value(self) -> Any:
        self.ready.wait(30)
        return self.future


def test_a_thousand_tasks_in_a_chain() -> None:
    def body() -> Any:
        future = echo.submit(0)
        for _ in range(1000):
            future = add.submit(future, 1)
        return future.result()

    assert in_flow(body, task_runner=ThreadPoolTaskRunner(2)) == 1000


def test_a_failure_at_the_head_of_a_long_chain_reaches_its_end() -> None:
    def body() -> str:
        future = fail.submit()
        for _ in range(1000):
            future = add.submit(future)
        future.wait()
        return str(future.state.name)

    assert in_flow(body) == "NotReady"


def test_a_runner_can_be_given_as_a_class_or_an_instance_and_makes_duplicates() -> None:
    pattern = ThreadPoolTaskRunner(max_workers=2)
    assert pattern.duplicate() == pattern
    assert pattern.duplicate() is not pattern
    assert in_flow(lambda: echo.submit(1).result(), task_runner=ThreadPoolTaskRunner) == 1
    again = flow(name="again", task_runner=pattern)(lambda: echo.submit(1).result())
    assert (again(), again()) == (1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        ThreadPoolTaskRunner(0)


def test_no_thread_outlives_its_flow() -> None:
    before = set(threading.enumerate())
    in_flow(lambda: echo.map(range(20)).wait())
    assert {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("orch-task")} == set()


def test_what_has_not_begun_when_a_flow_is_interrupted_is_cancelled(recording: Recording) -> None:
    release = threading.Event()

    @task
    def wait_for_release() -> None:
        release.wait(30)

    def body() -> None:
        first = wait_for_release.submit()
        echo.submit(first)
        echo.submit()
        release.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_flow(body, task_runner=ThreadPoolTaskRunner(1))
    assert all(run.state.is_final() for run in recording.tasks.values())
