"""``concurrency``, ``rate_limit`` and tasks with tags, as the engine sees them; a recording stands for the recorder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from harness import eventually
from orchestrator import concurrency as package
from orchestrator import exceptions, flow, tags, task
from orchestrator.concurrency import asyncio as async_code
from orchestrator.concurrency import request
from orchestrator.concurrency import sync as sync_code
from orchestrator.concurrency.sync import concurrency, rate_limit
from orchestrator.engine import direct, termination
from orchestrator.engine.protocol import Wanted
from orchestrator.exceptions import (
    AcquireConcurrencySlotTimeoutError,
    ConcurrencySlotAcquisitionError,
    MissingContextError,
    RunTimedOut,
)
from orchestrator.task_runners import ThreadPoolTaskRunner
from recording import Recording


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "_warned", set())


def run(code: Callable[[], Any]) -> Any:
    """Run it as the body of a flow."""
    return flow(name="test")(code)()


def calls_of(recording: Recording) -> list[Wanted]:
    return [Wanted(*frame[3:]) for frame in recording.of("acquire")]


def refuse(recording: Recording, *answer: str) -> None:
    """Answer the next call like this."""
    recording.is_granting = False

    def wait_and_answer() -> None:
        [call] = eventually(lambda: list(recording.calls))
        recording.send("answer", call, True, list(answer))

    threading.Thread(target=wait_and_answer, daemon=True).start()


# What is asked for


def test_a_block_asks_for_its_slots_and_gives_them_back(recording: Recording) -> None:
    def code() -> None:
        with concurrency(["db", "api", "db"], occupy=2, strict=True):
            assert [frame[0] for frame in recording.frames if frame[0] in ("acquire", "release")] == ["acquire"]

    run(code)
    assert calls_of(recording) == [Wanted("global", ["db", "api"], 2, False, True, True)]
    [asked], [released] = recording.of("acquire"), recording.of("release")
    assert released == ["release", asked[2], asked[1]]


def test_async_code_asks_for_the_same(recording: Recording) -> None:
    async def code() -> None:
        async with async_code.concurrency("db", occupy=3):
            pass
        await async_code.rate_limit("api")

    asyncio.run(run(code))
    assert calls_of(recording) == [Wanted("global", ["db"], 3), Wanted("global", ["api"], 1, True)]
    assert len(recording.of("release")) == 2


def test_arguments_that_mean_something_elsewhere_are_accepted(recording: Recording) -> None:
    def code() -> None:
        with concurrency("db", 1, None, 3, 60.0, False, None, raise_on_lease_renewal_failure=True):
            pass

    run(code)
    assert calls_of(recording) == [Wanted("global", ["db"])]


@pytest.mark.parametrize("nothing", [[], (), "", None])
def test_no_names_hold_nothing_anywhere(nothing: Any) -> None:
    with concurrency(nothing):
        rate_limit(nothing)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [((5,), TypeError), (([5],), TypeError), (("db", 0), ValueError), (("db", -1), ValueError), (("db", 1.5), TypeError)],
)
def test_arguments_that_make_no_sense_are_refused(recording: Recording, arguments: Any, problem: type[Exception]) -> None:
    def code() -> None:
        with pytest.raises(problem), concurrency(*arguments):
            pass

    run(code)
    assert calls_of(recording) == []


def test_outside_of_runs_there_are_no_slots() -> None:
    with pytest.raises(MissingContextError, match="belong to a run"):
        rate_limit("db")
    with pytest.raises(MissingContextError), concurrency("db"):
        pass


def test_the_exceptions_are_where_they_are_looked_for() -> None:
    for module in (exceptions, package, sync_code, async_code):
        assert module.AcquireConcurrencySlotTimeoutError is AcquireConcurrencySlotTimeoutError
        assert module.ConcurrencySlotAcquisitionError is ConcurrencySlotAcquisitionError
    assert issubclass(AcquireConcurrencySlotTimeoutError, TimeoutError)


# What is answered


@pytest.mark.parametrize(
    ("answer", "text", "hint"),
    [
        (("missing", "db"), "There is no global limit 'db'", "Create it with: orch gcl create 'db' --limit N"),
        (("impossible", "global limit 'db' has 2 in all"), "3 slots can never be had: global limit 'db' has 2", None),
        (
            ("no_decay", "db"),
            "'db' limits how many at a time",
            "Make it a rate limit with: orch gcl update 'db' --slot-decay-per-second D",
        ),
        (("superseded", ""), "ended or is somebody else's", None),
        (("new in this release", ""), "answered 'new in this release'", None),
    ],
)
def test_a_refusal_says_what_to_do(recording: Recording, answer: tuple[str, str], text: str, hint: str | None) -> None:
    refuse(recording, *answer)

    def code() -> Any:
        with pytest.raises(ConcurrencySlotAcquisitionError, match=text) as caught, concurrency("db", occupy=3):
            pass
        return caught.value.hint

    assert run(code) == hint


def test_a_name_without_a_limit_is_warned_of_once(recording: Recording) -> None:
    def code() -> None:
        for _ in range(2):
            refuse(recording, "granted", "nope")
            with concurrency(["db", "nope"]):
                recording.calls.clear()
            recording.is_granting = False

    run(code)
    assert sum("There is no global limit 'nope'" in line for line in recording.log) == 1


def test_nothing_is_given_back_where_no_name_has_a_limit(recording: Recording) -> None:
    refuse(recording, "granted", "db")

    def code() -> None:
        with concurrency("db"):
            pass

    run(code)
    assert recording.of("release") == []


def test_waiting_is_told_in_the_log(recording: Recording) -> None:
    recording.is_granting = False

    def let_through() -> None:
        [call] = eventually(lambda: list(recording.calls))
        recording.send("waits", call, "global limit 'db' (5/5 used)")
        eventually(lambda: any("Waits" in line for frame in recording.of("log") for line in map(str, frame[2])))
        recording.grant(call)

    def code() -> None:
        threading.Thread(target=let_through).start()
        with concurrency("db", occupy=2):
            pass

    run(code)
    said = [line for line in recording.log if "slot" in line]
    assert said[0] == "Waits for 2 slots of global limit 'db' (5/5 used)."
    assert said[1].startswith("Has 2 slots after")


# How long it waits


def test_waiting_ends_with_the_timeout(recording: Recording) -> None:
    recording.is_granting = False

    def code() -> None:
        with pytest.raises(AcquireConcurrencySlotTimeoutError, match=r"no room for a slot of 'db' within 0.01 seconds"):
            rate_limit("db", timeout_seconds=0.01)

    run(code)
    assert len(recording.of("release")) == 1


def test_waiting_in_async_code_ends_with_the_timeout(recording: Recording) -> None:
    recording.is_granting = False

    async def code() -> None:
        with pytest.raises(AcquireConcurrencySlotTimeoutError, match=r"within 0\.01 seconds"):
            await async_code.rate_limit("db", timeout_seconds=0.01)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01):
                await async_code.rate_limit("db")
        assert type(caught.value) is TimeoutError

    asyncio.run(run(code))
    assert len(recording.of("release")) == 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"timeout_seconds": 0}, AcquireConcurrencySlotTimeoutError), ({"max_retries": 0}, ConcurrencySlotAcquisitionError)],
)
def test_who_does_not_want_to_wait_is_refused_at_once(
    recording: Recording, options: dict[str, Any], problem: type[Exception]
) -> None:
    refuse(recording, "full", "global limit 'db' (1/1 used)")

    def code() -> None:
        with (
            pytest.raises(problem, match=r"no room for a slot of global limit 'db' \(1/1 used\)"),
            concurrency("db", **options),
        ):
            pass

    run(code)
    assert [call.patient for call in calls_of(recording)] == [False]


def test_the_timeout_of_a_task_in_a_thread_ends_its_waiting(recording: Recording) -> None:
    """An exception does not reach a thread that waits for a lock: it sat there until the slot was free."""
    recording.is_granting = False

    @task(timeout_seconds=0.05)
    def waits() -> None:
        with concurrency("db"):
            pass

    def code() -> None:
        with pytest.raises(RunTimedOut):
            waits.submit().result(10)

    run(code)
    assert len(recording.of("release")) == 1


def test_a_thousand_coroutines_wait_without_a_thread_each(recording: Recording) -> None:
    recording.is_granting = False
    threads = []

    async def one() -> None:
        async with async_code.concurrency("db"):
            threads.append(threading.active_count())

    async def code() -> None:
        waiting = asyncio.gather(*(one() for _ in range(1000)))
        while len(recording.calls) < 1000:
            await asyncio.sleep(0)
        threads.append(threading.active_count())
        for call in list(recording.calls):
            recording.grant(call)
        await waiting

    before = threading.active_count()
    asyncio.run(run(code))
    assert max(threads) <= before + 3
    assert len(recording.of("release")) == 1000


# Where nothing is recorded


def test_without_redis_limits_do_not_exist(caplog: pytest.LogCaptureFixture) -> None:
    direct.use(None)

    def code() -> int:
        for _ in range(2):
            with concurrency("db"):
                rate_limit("api")
        with pytest.raises(ConcurrencySlotAcquisitionError, match="only for runs that are recorded"):
            rate_limit("api", strict=True)
        return 1

    assert run(code) == 1
    assert sum("The code goes on without slots" in line for line in caplog.messages) == 1


def test_a_recorder_that_is_gone_holds_nobody_back(recording: Recording) -> None:
    recording.is_granting = False

    @task(tags=["db"])
    def tagged() -> int:
        return 1

    def hang_up_when_asked() -> None:
        eventually(lambda: recording.calls)
        recording.hang_up()

    def code() -> int:
        threading.Thread(target=hang_up_when_asked).start()
        with concurrency("db"):
            pass
        with pytest.raises(ConcurrencySlotAcquisitionError, match="recorder is gone"):
            rate_limit("db", strict=True)
        return tagged() + int(tagged.submit().result())

    assert run(code) == 2


# Tasks with tags


def test_a_task_takes_the_slots_of_all_its_tags_while_its_body_runs(recording: Recording) -> None:
    @task(tags=["db"])
    def query() -> None:
        assert [frame[0] for frame in recording.frames if frame[0] in ("acquire", "release")] == ["acquire"]

    def code() -> None:
        with tags("eu"):
            query()

    run(code)
    assert calls_of(recording) == [Wanted("tag", ["db", "eu"])]
    assert len(recording.of("release")) == 1


@pytest.mark.parametrize("way", ["called", "submitted", "awaited", "async submitted", "generator"])
def test_every_kind_of_task_takes_slots(recording: Recording, way: str) -> None:
    @task(tags=["db"])
    def plain() -> int:
        return 1

    @task(tags=["db"])
    async def coroutine() -> int:
        return 1

    @task(tags=["db"])
    def generator() -> Any:
        yield 1

    async def code() -> Any:
        if way == "called":
            return plain()
        if way == "generator":
            return next(iter(list(generator())))
        if way == "awaited":
            return await coroutine()
        return (plain if way == "submitted" else coroutine).submit().result()

    assert asyncio.run(run(code)) == 1
    assert calls_of(recording) == [Wanted("tag", ["db"])]
    assert len(recording.of("release")) == 1


def test_slots_are_free_between_the_attempts_of_a_task(recording: Recording) -> None:
    @task(tags=["db"], retries=1, retry_delay_seconds=0.01)
    def fails() -> None:
        raise ValueError

    def code() -> None:
        with suppress(ValueError):
            fails()

    run(code)
    order = [frame[0] for frame in recording.frames if frame[0] in ("acquire", "release")]
    assert order == ["acquire", "release"] * 2


def test_a_task_that_waits_is_pending_and_says_for_what(recording: Recording) -> None:
    recording.is_granting = False

    @task(tags=["db"])
    def query() -> None: ...

    def let_through() -> None:
        [call] = eventually(lambda: list(recording.calls))
        recording.send("waits", call, "tag 'db' (1/1 used)")
        pending = eventually(lambda: recording.tasks)["query-0"]
        seen.append((pending.state.name, pending.state.message, pending.started))
        recording.grant(call)

    seen: list[Any] = []

    def code() -> None:
        waiter = threading.Thread(target=let_through)
        waiter.start()
        query()
        waiter.join()

    run(code)
    assert seen == [("Pending", "Waits for a slot of tag 'db' (1/1 used).", None)]
    assert recording.tasks["query-0"].state.name == "Completed"


def test_tags_without_a_limit_ask_for_nothing_once_that_is_known(recording: Recording) -> None:
    recording.send("limited", ["other"])

    @task(tags=["db"])
    def query() -> None: ...

    def code() -> None:
        recording.link.listen()
        eventually(lambda: recording.link.limited_tags)
        query()
        query.submit().wait()

    run(code)
    assert recording.of("acquire") == recording.of("release") == []


def test_tasks_that_wait_take_no_thread_and_stand_in_nobodys_way(recording: Recording) -> None:
    """With every thread waiting for a slot, the flow's other tasks would never run, and one of them may have the slot."""
    recording.is_granting = False

    @task(tags=["db"])
    def query(n: int) -> int:
        return n

    @task(tags=["gpu"])
    def train() -> str:
        return "trained"

    @task
    def other() -> str:
        return "other"

    @flow(task_runner=ThreadPoolTaskRunner(2))
    def test() -> list[int]:
        queries = query.map(range(20))
        assert other.submit().result(10) == "other"
        training = train.submit()
        [call] = eventually(lambda: [call for call, wanted in recording.calls.items() if wanted.names == ["gpu"]])
        assert [wanted.names for wanted in recording.calls.values()] == [["db"], ["db"], ["gpu"]]
        recording.grant(call)
        assert training.result(10) == "trained"
        recording.is_granting = True
        for call in list(recording.calls):
            recording.grant(call)
        return list(queries.result(10))

    assert test() == list(range(20))
    assert len(recording.of("release")) == 21


def test_a_task_that_waits_inside_gives_its_place_to_another(recording: Recording) -> None:
    recording.is_granting = False

    @task
    def waits() -> str:
        with concurrency("db"):
            return "waited"

    @task
    def frees() -> str:
        [call] = recording.calls
        recording.grant(call)
        return "freed"

    @flow(task_runner=ThreadPoolTaskRunner(1))
    def test() -> list[str]:
        first = waits.submit()
        [call] = eventually(lambda: list(recording.calls))
        recording.send("waits", call, "global limit 'db' (1/1 used)")
        return [frees.submit().result(10), first.result(10)]

    assert test() == ["freed", "waited"]


def test_tasks_that_wait_are_dropped_with_their_flow(recording: Recording) -> None:
    recording.is_granting = False

    @task(tags=["db"])
    def query(n: int) -> None: ...

    @task
    def waits() -> None:
        with concurrency("db"):
            pass

    @flow(task_runner=ThreadPoolTaskRunner(3))
    def test() -> None:
        query.map(range(10))
        waits.submit()
        eventually(lambda: len(recording.calls) == 4)
        raise termination.Terminated

    with pytest.raises(termination.Terminated):
        test()
    assert len(recording.of("release")) == 4
    assert {task.state.name for task in recording.tasks.values()} <= {"Cancelled", "Crashed"}
