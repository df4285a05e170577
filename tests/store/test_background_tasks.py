"""Tasks submitted to run in the background: the run that each call becomes, and waiting for its end. The test is the worker."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, SecretStr

from harness import eventually
from orchestrator import DistributedFuture, as_completed, flow, tags, task, wait
from orchestrator.engine import plain, submission
from orchestrator.engine.inputs import UpstreamFailed
from orchestrator.exceptions import (
    CancelledRun,
    FailedRun,
    InvalidDefinition,
    MissingResult,
    ObjectNotFound,
    ParameterBindError,
    ParameterTypeError,
    PayloadTooLarge,
    Refused,
)
from orchestrator.models import Run
from orchestrator.states import Completed, Failed, State
from orchestrator.store import Store
from orchestrator.store.answers import ClaimedRun, End


class Colour(Enum):
    RED = "red"


class Order(BaseModel):
    number: int
    when: date


@dataclass
class Point:
    x: int
    y: int


@task
def add(a: Any, b: Any = 0, *rest: Any, **named: Any) -> Any:
    return a


@task(name="Ship it", tags=["parcels"], task_run_name="ship-{number}")
def ship(number: int) -> int:
    return number


@task
def typed(
    day: date | None = None,
    at: datetime | None = None,
    colour: Colour = Colour.RED,
    key: UUID | None = None,
    order: Order | None = None,
    points: list[Point] | None = None,
    names: set[str] | None = None,
    path: Path | None = None,
    took: timedelta | None = None,
) -> None: ...


@task
def hides(secret: SecretStr) -> None: ...


eager_ship = ship.with_options(retries=3)


@pytest.fixture(autouse=True)
def background(store: Store) -> Iterator[None]:
    """This process submits to the test's namespace."""
    submission.use(submission.Submitter(store, "tasks", timedelta(seconds=5)))
    yield
    submission.use(None)


def run_of(store: Store, future: DistributedFuture[Any]) -> Run:
    return store.runs.get(future.task_run_id)


def claim(store: Store, free: int = 1000, pool: str = "tasks") -> list[ClaimedRun]:
    return store.runs.claim("w", pool, store.pools.queue_names(pool), free, start=True).claimed


def end(store: Store, claimed: ClaimedRun, state: State, value: Any = None) -> None:
    result = plain.kept_result(value)
    assert store.runs.finish([End(claimed.id, claimed.attempt, state, result)], worker="w") == ["ok"]


def complete_all(store: Store) -> None:
    """Every queued run returns its first argument."""
    for claimed in claim(store):
        end(store, claimed, Completed(), claimed.parameters["args"][0])


def test_a_call_becomes_a_queued_run_of_the_default_pool(store: Store) -> None:
    future = add.delay(1, 2, 3, four=4)
    run = run_of(store, future)
    assert (run.kind, run.flow, run.pool, run.queue, run.place) == ("task", "add", "tasks", "default", "queued")
    assert run.parameters == {"args": [1, 2, 3], "kwargs": {"four": 4}}
    assert run.entrypoint == f"{__name__}:add"
    assert store.pools.get("tasks").type == "thread"
    assert future.name == run.name
    assert future.state.is_scheduled()


def test_the_worker_is_told_the_entrypoint(store: Store) -> None:
    add.delay(1)
    assert [claimed.entrypoint for claimed in claim(store)] == [f"{__name__}:add"]


def test_options_say_when_where_and_how(store: Store) -> None:
    store.pools.create("gpu", "thread")
    store.pools.create_queue("gpu", "urgent")
    eta = datetime(2100, 1, 1, tzinfo=UTC)
    with tags("block"):
        future = ship.apply_async(
            [7], eta=eta, expires=eta + timedelta(hours=1), priority="high", pool="gpu", queue="urgent", tags=["now", "parcels"]
        )
    run = run_of(store, future)
    assert (run.pool, run.queue, run.priority, run.due, run.place) == ("gpu", "urgent", "high", eta, "due")
    assert run.expires == eta + timedelta(hours=1)
    assert run.tags == ("block", "parcels", "now")
    assert (run.name, run.flow) == ("ship-7", "Ship it")
    assert run_of(store, ship.apply_async(kwargs={"number": 8}, run_name="mine")).name == "mine"


def test_a_countdown_is_counted_from_now(store: Store) -> None:
    before = store.now()
    for countdown in (60, 60.0, timedelta(minutes=1)):
        run = run_of(store, add.apply_async([1], countdown=countdown, expires=3600))
        assert run.place == "due"
        assert timedelta(seconds=55) < run.due - before < timedelta(seconds=90)
        assert run.expires is not None
        assert run.expires - run.due > timedelta(minutes=50)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eta": datetime(2100, 1, 1)}, "without a time zone"),
        ({"eta": 5}, "eta is a int"),
        ({"countdown": "soon"}, "countdown is a str"),
        ({"eta": datetime(2100, 1, 1, tzinfo=UTC), "countdown": 5}, "exclude each other"),
        ({"priority": "top"}, "no priority 'top'"),
        ({"tags": "one"}, "not several"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error_at_the_call(store: Store, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterTypeError, match=said) as error:
        add.apply_async([1], **options)
    assert error.value.hint
    assert store.queries.count() == 0


def test_a_pool_or_queue_that_nobody_made_is_an_error_at_the_call(store: Store) -> None:
    store.pools.create("flows", "process")
    with pytest.raises(ObjectNotFound, match="no work pool 'nowhere'"):
        add.apply_async([1], pool="nowhere")
    with pytest.raises(Refused, match="of type process"):
        add.apply_async([1], pool="flows")
    with pytest.raises(ObjectNotFound, match="no work queue 'urgent'"):
        add.apply_async([1], queue="urgent")


def test_the_same_key_and_arguments_are_the_same_run(store: Store) -> None:
    first = add.apply_async([1], idempotency_key="k")
    again = add.apply_async([1], idempotency_key="k")
    assert again == first
    assert {first, again} == {first}
    with pytest.raises(Refused, match="'k' of task 'add' stands for other arguments"):
        add.apply_async([2], idempotency_key="k")
    assert ship.apply_async([1], idempotency_key="k") != first


def test_many_calls_are_created_a_hundred_at_a_time(store: Store) -> None:
    add.delay(0)
    before = store.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    futures = add.delay_many([(n,) for n in range(250)])
    # Beside them at most one question about the server's memory.
    assert store.client.info("commandstats")["cmdstat_evalsha"]["calls"] - before in (3, 4)
    assert [run_of(store, future).parameters["args"] for future in futures[::50]] == [[n] for n in range(0, 250, 50)]


def test_each_of_many_calls_is_a_tuple_a_dict_or_the_only_argument(store: Store) -> None:
    futures = add.delay_many([(1, 2), {"a": 3}, "text", [4, 5]], priority="low", idempotency_keys=["p", "q", "r", "s"])
    found = [run_of(store, future) for future in futures]
    assert [run.parameters for run in found] == [
        {"args": [1, 2], "kwargs": {}},
        {"args": [], "kwargs": {"a": 3}},
        {"args": ["text"], "kwargs": {}},
        {"args": [[4, 5]], "kwargs": {}},
    ]
    assert {run.priority for run in found} == {"low"}
    assert add.delay_many([(1, 2)], idempotency_keys=["p"]) == [futures[0]]
    assert add.delay_many([]) == []


def test_one_wrong_call_of_many_submits_none(store: Store) -> None:
    with pytest.raises(ParameterBindError):
        ship.delay_many([(1,), (1, 2)])
    with pytest.raises(ParameterBindError, match="2 calls of task 'add' have 1 idempotency keys"):
        add.delay_many([1, 2], idempotency_keys=["k"])
    assert store.queries.count() == 0


def test_a_deferred_map_submits_one_run_per_element(store: Store) -> None:
    futures = add.map([1, 2], b=7, deferred=True)
    assert [run_of(store, future).parameters["args"] for future in futures] == [[1, 7], [2, 7]]


# --- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("day", date(2026, 1, 31), "2026-01-31"),
        ("at", datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00Z"),
        ("colour", Colour.RED, "red"),
        ("key", UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ("order", Order(number=1, when=date(2026, 1, 1)), {"number": 1, "when": "2026-01-01"}),
        ("points", [Point(1, 2)], [{"x": 1, "y": 2}]),
        ("names", {"a"}, ["a"]),
        ("path", Path("/a"), "/a"),
        ("took", timedelta(seconds=90), "PT1M30S"),
    ],
)
def test_what_an_annotation_brings_back_travels_in_its_json_form(store: Store, name: str, value: Any, form: Any) -> None:
    run = run_of(store, typed.apply_async(kwargs={name: value}))
    args, kwargs = run.parameters["args"], run.parameters["kwargs"]
    sent = typed.signature.bind_given(tuple(args), kwargs)
    assert sent == {name: form}
    assert typed.signature.validate(sent) == {name: value}


@pytest.mark.parametrize(
    "value", [b"\xff\x00", 2**63, -(2**63), 1.5, None, "é", [1, [2, {"a": b"x"}]], {1: "one", "two": (2,)}, True]
)
def test_plain_data_travels_as_it_is(store: Store, value: Any) -> None:
    [sent] = run_of(store, add.delay(value)).parameters["args"]
    assert sent == (value if not isinstance(value, dict) else {1: "one", "two": [2]})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (date(2026, 1, 31), "would not get the date that it is sent as a, but a str"),
        ({1, 2}, "would not get the set"),
        ([date(2026, 1, 31)], "would not get the list"),
        (object(), "cannot be sent a: a object does not travel"),
        ({"deep": [threading.Lock()]}, r"cannot be sent a\['deep'\]\[0\]: a lock does not travel"),
        (2**64, "cannot be sent these arguments"),
        ("\ud800", "cannot be sent these arguments"),
        (add, "a Task does not travel"),
    ],
)
def test_what_would_arrive_as_something_else_is_an_error_at_the_call(store: Store, value: Any, said: str) -> None:
    with pytest.raises(ParameterTypeError, match=said) as error:
        add.delay(value)
    assert error.value.hint
    assert store.queries.count() == 0


def test_the_hint_spells_the_annotation_that_is_missing() -> None:
    with pytest.raises(ParameterTypeError) as error:
        add.delay({"a": [date(2026, 1, 31)]})
    assert "a: dict[str, list[date]]" in str(error.value.hint)


def test_a_secret_does_not_travel_as_asterisks() -> None:
    with pytest.raises(ParameterTypeError, match="another SecretStr"):
        hides.delay(SecretStr("hunter2"))


def test_nested_without_end_is_an_error_at_the_call() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises((ParameterTypeError, RecursionError)):
        add.delay(endless)


def test_more_than_a_run_may_carry_is_an_error_at_the_call() -> None:
    with pytest.raises(PayloadTooLarge):
        add.delay("x" * 300_000)


def test_a_call_that_does_not_fit_is_an_error_at_the_call(store: Store) -> None:
    with pytest.raises(ParameterBindError, match="Ship it"):
        ship.delay(1, 2)
    assert store.queries.count() == 0


def test_a_future_among_the_arguments_is_waited_for(store: Store) -> None:
    first = add.delay(20)
    complete_all(store)
    second = add.delay([first, 22])
    assert run_of(store, second).parameters["args"] == [[20, 22]]
    third = add.apply_async([1], wait_for=[first])
    for claimed in claim(store):
        end(store, claimed, Failed("no"))
    with pytest.raises(UpstreamFailed, match=f"'{third.name}' did not complete"):
        add.delay(third)
    with pytest.raises(UpstreamFailed):
        add.apply_async([1], wait_for=[third])


# --- where a task stands -----------------------------------------------------------------------------------------------


def test_a_variation_is_found_by_its_own_name(store: Store) -> None:
    assert run_of(store, eager_ship.delay(1)).entrypoint == f"{__name__}:eager_ship"


def test_a_task_that_no_other_process_can_find_is_an_error_that_says_what_to_do() -> None:
    @task
    def inner() -> None: ...

    class Shop:
        @task
        def sell(self) -> None: ...

    nameless = ship.with_options(retries=9)
    lambda_task: Any = task(lambda: None)
    cases: list[tuple[Any, str]] = [
        (inner, "made inside of test_a_task_that_no_other_process"),
        (Shop().sell, "belongs to one object"),
        (nameless, "has no name in"),
        (lambda_task, "is a lambda"),
    ]
    for wrong, said in cases:
        with pytest.raises(InvalidDefinition, match=said) as error:
            wrong.apply_async([1] if wrong is nameless else ())
        assert error.value.hint


# --- in a flow ---------------------------------------------------------------------------------------------------------


def test_a_flow_is_recorded_as_the_parent_of_what_it_submits(store: Store) -> None:
    @flow
    def parent() -> list[str]:
        from orchestrator import runtime

        return [runtime.flow_run.id, add.delay(1).task_run_id]

    flow_run, background_run = parent()
    assert store.runs.get(background_run).parent == flow_run


# --- waiting -----------------------------------------------------------------------------------------------------------


def test_the_result_is_waited_for(store: Store) -> None:
    future = add.delay({"a": 1})
    waited = threading.Thread(target=future.wait)
    waited.start()
    complete_all(store)
    waited.join(20)
    assert not waited.is_alive()
    assert future.result() == {"a": 1}
    assert future.is_done
    assert future.state.is_completed()


def test_a_future_of_an_id_is_one_in_any_process(store: Store) -> None:
    future = DistributedFuture[Any](add.delay(5).task_run_id)
    assert not future.is_done
    copied = pickle.loads(pickle.dumps(future))
    complete_all(store)
    assert copied == future
    assert future.result(timeout=20) == copied.result(timeout=20) == 5
    assert future.name == future.task_run_id


def test_a_wait_may_end_before_the_run(store: Store) -> None:
    future = add.delay(1)
    future.wait(0)
    assert not future.is_done
    with pytest.raises(TimeoutError, match=f"Run '{future.name}' has not ended within 0 seconds"):
        future.result(timeout=0)
    with pytest.raises(TimeoutError):
        asyncio.run(future.result_async(timeout=0))
    complete_all(store)
    assert future.result(timeout=20) == 1


def test_two_threads_may_wait_for_one_run_and_one_give_up(store: Store) -> None:
    future = add.delay(1)
    waited = threading.Thread(target=future.result, args=(20,))
    waited.start()
    eventually(lambda: future._signal is not None)
    future.wait(0)
    complete_all(store)
    waited.join(20)
    assert not waited.is_alive()


def test_a_run_that_did_not_complete_says_why(store: Store) -> None:
    failed, cancelled = add.delay(1), add.delay(2)
    [claimed] = claim(store, free=1)
    end(store, claimed, Failed("ValueError: no"))
    store.runs.cancel(cancelled.task_run_id, "Not today.")
    with pytest.raises(FailedRun, match="ValueError: no"):
        failed.result(timeout=20)
    with pytest.raises(CancelledRun, match="Not today"):
        cancelled.result(timeout=20)
    assert isinstance(failed.result(raise_on_failure=False), FailedRun)


def test_a_result_that_could_not_be_kept_says_so(store: Store) -> None:
    future, large = add.delay(1), add.delay(2)
    for claimed, value in zip(claim(store), [object(), "x" * 300_000], strict=True):
        end(store, claimed, Completed(), value)
    with pytest.raises(MissingResult, match="a object is nothing that a run can keep"):
        future.result(timeout=20)
    with pytest.raises(MissingResult, match=r"300,00\d bytes"):
        large.result(timeout=20)


def test_results_come_as_plain_data(store: Store) -> None:
    future, nothing = add.delay(1), add.delay(2)
    for claimed, value in zip(claim(store), [Order(number=1, when=date(2026, 1, 1)), None], strict=True):
        end(store, claimed, Completed(), value)
    assert future.result(timeout=20) == {"number": 1, "when": "2026-01-01"}
    assert nothing.result(timeout=20) is None


def test_who_waits_for_what_is_deleted_is_told(store: Store) -> None:
    future = add.apply_async([1], countdown=3600)
    told: list[Any] = []
    future.add_done_callback(told.append)
    store.runs.delete([future.task_run_id])
    eventually(lambda: told)
    with pytest.raises(ObjectNotFound):
        future.result(timeout=20)
    with pytest.raises(ObjectNotFound, match="no run"):
        DistributedFuture[Any](str(uuid4())).wait(20)


def test_who_waits_for_a_run_that_is_tried_again_waits_on(store: Store) -> None:
    future = add.delay(1)
    [claimed] = claim(store)
    end(store, claimed, Failed("once"))
    future.wait(20)
    store.runs.retry(future.task_run_id)
    assert not future.state.is_final()
    complete_all(store)
    assert future.result(timeout=20) == 1


def test_callbacks_are_called_once_and_one_that_fails_stops_no_other(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    future = add.delay(1)
    called = threading.Semaphore(0)

    def fails(_: Any) -> None:
        raise ValueError("mine")

    future.add_done_callback(fails)
    future.add_done_callback(lambda _: called.release())
    complete_all(store)
    assert called.acquire(timeout=20)
    future.add_done_callback(lambda _: called.release())
    assert called.acquire(timeout=20)
    assert "callback of the future" in caplog.text


def test_async_code_waits_for_many_at_once(store: Store) -> None:
    futures = add.delay_many(range(20))

    async def main() -> list[Any]:
        waits = [asyncio.ensure_future(future.result_async(timeout=20)) for future in futures]
        await asyncio.to_thread(complete_all, store)
        await futures[0].wait_async()
        return list(await asyncio.gather(*waits))

    assert asyncio.run(main()) == list(range(20))


def test_many_are_waited_for_with_one_question(store: Store) -> None:
    futures = add.delay_many(range(300))
    for claimed in claim(store, free=100):
        end(store, claimed, Completed(), 7)
    done, left = wait(futures, timeout=0)
    assert (len(done), len(left)) == (100, 200)
    first = next(iter(as_completed(futures, timeout=20)))
    assert first in done
    while claimed_now := claim(store):
        for claimed in claimed_now:
            end(store, claimed, Completed(), 7)
    assert futures.result(timeout=20) == [7] * 300


def test_nobody_reads_the_feed_while_nobody_waits(store: Store) -> None:
    future = add.delay(1)
    future.wait(0)
    complete_all(store)
    future.result(timeout=20)
    ends = submission.submitter().ends
    store.events.append("other")  # ends the read that may go on
    eventually(lambda: not ends._is_reading)
    assert not ends._waiting


def test_a_feed_that_was_trimmed_before_it_was_read_costs_nobody_their_end(store: Store) -> None:
    future = add.delay(1)
    ends = submission.submitter().ends
    told = threading.Event()
    ends.tell([(future.task_run_id, lambda _: told.set())])
    # What a reader sees that was held up: its place is gone, and a full page of other news stands there.
    for _ in range(2):
        pipeline = store.client.pipeline(transaction=False)
        for _ in range(1500):
            pipeline.xadd(store.keys.events, {"e": "other"})
        pipeline.execute()
    complete_all(store)
    assert told.wait(20)


def test_a_forked_child_submits_through_a_connection_of_its_own(store: Store) -> None:
    parent = submission.submitter()
    pid = os.fork()
    if not pid:
        os._exit(0 if submission._submitter is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert submission.submitter() is parent
