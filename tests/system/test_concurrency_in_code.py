"""Slots in code, with real workers and processes. The judge of who was where together is a ledger outside of Redis."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgpack
import pytest

from harness import DURABLE, RedisServer, eventually, python
from orchestrator.models import RunFilter
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from worker_processes import WorkerProcess, deploy, kill, let_go, log_of, make_project, submit, wait_for_end, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FLOWS = '''
"""Flows that note in a file when they are inside, each line at once."""
import asyncio, os, sys, time

from orchestrator import flow, task
from orchestrator.concurrency.asyncio import concurrency as async_concurrency
from orchestrator.concurrency.sync import concurrency, rate_limit

def note(folder, what):
    with open(f"{folder}/ledger", "a") as ledger:
        ledger.write(f"{what} {os.getpid()}\\n")

def inside(folder):
    note(folder, "in")
    with open("/proc/self/status") as something:
        something.read()
    note(folder, "out")

def wait_in(folder):
    note(folder, "in")
    wait_at_gate(folder)
    note(folder, "out")

@flow
def turns(folder: str, times: int = 20) -> None:
    for _ in range(times):
        with concurrency("db"):
            inside(folder)

@flow
def holds(folder: str) -> None:
    with concurrency("db"):
        wait_in(folder)

@flow
def tries(folder: str) -> list[str]:
    told = []
    no_waiting = [{"timeout_seconds": 0.01}, {"timeout_seconds": 0}, {"max_retries": 0}]
    for options in [*no_waiting, {"occupy": 9}, {"names": "api", "strict": True}]:
        try:
            with concurrency(**{"names": "db", **options}):
                told.append("held")
        except Exception as problem:
            told.append(type(problem).__name__)
    with concurrency("api"):
        told.append("held")
    return told

@flow
def calls_slowly(times: int = 5) -> float:
    began = time.monotonic()
    for _ in range(times):
        rate_limit("api")
    return time.monotonic() - began

@flow
async def many(times: int = 100) -> int:
    at_once = most = 0

    async def one():
        nonlocal at_once, most
        async with async_concurrency("db"):
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= 1

    await asyncio.gather(*(one() for _ in range(times)))
    return most

@task(tags=["db"])
def query(folder: str, n: int) -> int:
    inside(folder)
    return n

@flow
def queries(folder: str, times: int = 10) -> list[int]:
    called = [query(folder, n) for n in range(times)]
    return called + query.map([folder] * times, range(times)).result()

@task(tags=["db"])
def long_query(folder: str) -> None:
    wait_in(folder)

@flow
def long_queries(folder: str) -> None:
    long_query.map([folder] * 2).wait()

if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where flows note what they do, and wait for the gate."""
    (tmp_path / "ledger").touch()
    return make_project(tmp_path, FLOWS)


@pytest.fixture(autouse=True)
def pool(store: Store) -> None:
    """Where the workers of these tests work."""
    store.pools.create("pool")


def ledger(folder: Path) -> list[tuple[str, int]]:
    """What was noted, and by which process."""
    lines = (line.split() for line in (folder / "ledger").read_text().splitlines())
    return [(what, int(pid)) for what, pid in lines]


def wait_until_inside(folder: Path, times: int = 1) -> int:
    """Wait until so many have gone in; the process of the last."""
    eventually(lambda: [what for what, _ in ledger(folder)].count("in") >= times, what=f"{times} inside")
    return [pid for what, pid in ledger(folder) if what == "in"][times - 1]


def expect_turns(folder: Path, times: int) -> None:
    """Nobody was inside while another was, and everybody was, so many times in all."""
    noted = ledger(folder)
    assert [what for what, _ in noted] == ["in", "out"] * times
    assert all(noted[i][1] == noted[i + 1][1] for i in range(0, len(noted), 2))


def two_workers(settings: Settings) -> ExitStack:
    stack = ExitStack()
    for _ in range(2):
        stack.enter_context(worker(settings, limit=1))
    return stack


def waits_for(store: Store, limit: str, times: int = 1) -> None:
    def waiting() -> bool:
        gate = store.limits.get_global(limit)
        return gate is not None and gate.waiting == times

    eventually(waiting, what=f"{times} to wait for {limit}")


def line_up(store: Store, folder: Path) -> list[str]:
    """Three runs: one that is inside, and two that wait, in this order."""
    deployment = deploy(store, folder, "holds")
    runs = []
    for number in range(3):
        runs.append(submit(store, deployment, folder=str(folder)))
        wait_until_inside(folder)
        waits_for(store, "db", number)
    return runs


def test_two_flows_in_two_workers_are_never_inside_together(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create_global("db", 0)
    with two_workers(settings):
        runs = [submit(store, deploy(store, folder, "turns"), folder=str(folder)) for _ in range(2)]
        waits_for(store, "db", 2)
        store.limits.update_global("db", limit=1)
        assert [wait_for_end(store, run).state.name for run in runs] == ["Completed"] * 2
    expect_turns(folder, 40)
    assert len({pid for _, pid in ledger(folder)}) == 2
    gate = store.limits.get_global("db")
    assert gate is not None
    assert (gate.used, gate.waiting) == (0, 0)
    assert any("Waits for a slot of global limit 'db' (0/0 used)." in line for run in runs for _, line in log_of(store, run))


def test_the_death_of_the_process_that_holds_the_slot_frees_it(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create_global("db", 1)
    with worker(settings, limit=2):
        deployment = deploy(store, folder, "holds")
        first = submit(store, deployment, crash_budget=1, folder=str(folder))
        pid = wait_until_inside(folder)
        second = submit(store, deployment, folder=str(folder))
        waits_for(store, "db")
        kill(pid)
        wait_until_inside(folder, 2)
        let_go(folder)
        assert wait_for_end(store, second).state.name == "Completed"
        assert wait_for_end(store, first).state.name == "Crashed"


def test_the_death_of_the_worker_frees_the_slot_with_the_lease(store: Store, settings: Settings, folder: Path) -> None:
    store.write_settings(replace(store.settings, lease=timedelta(seconds=1)))
    store.limits.create_global("db", 1)
    deployment = deploy(store, folder, "holds")
    with worker(settings, limit=1) as doomed:
        first = submit(store, deployment, crash_budget=1, folder=str(folder))
        wait_until_inside(folder)
        with worker(settings, limit=1):
            second = submit(store, deployment, folder=str(folder))
            waits_for(store, "db")
            doomed.signal(signal.SIGKILL)
            eventually(lambda: store.runs.lapse() and store.runs.get(first).is_terminal, what="the end of the lease")
            wait_until_inside(folder, 2)
            let_go(folder)
            assert wait_for_end(store, second).state.name == "Completed"
            assert wait_for_end(store, first).state.name == "Crashed"


def test_timeouts_and_refusals_reach_the_code(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create_global("db", 1)
    with worker(settings, limit=2):
        holder = submit(store, deploy(store, folder, "holds"), folder=str(folder))
        wait_until_inside(folder)
        run = submit(store, deploy(store, folder, "tries"), folder=str(folder))
        assert wait_for_end(store, run).state.name == "Completed"
        waits_for(store, "db", 0)
        let_go(folder)
        assert wait_for_end(store, holder).state.name == "Completed"
    error, timed_out = "ConcurrencySlotAcquisitionError", "AcquireConcurrencySlotTimeoutError"
    assert msgpack.unpackb(store.runs.result(run)) == [timed_out, timed_out, error, error, error, "held"]
    assert sum("There is no global limit 'api'" in line for _, line in log_of(store, run)) == 1


def test_a_cancelled_waiter_leaves_the_line(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create_global("db", 1)
    with worker(settings, limit=3):
        runs = line_up(store, folder)
        store.runs.cancel(runs[1])
        assert wait_for_end(store, runs[1]).state.name == "Cancelled"
        waits_for(store, "db", 1)
        let_go(folder)
        wait_until_inside(folder, 2)
        let_go(folder)
        assert [wait_for_end(store, run).state.name for run in runs] == ["Completed", "Cancelled", "Completed"]
    expect_turns(folder, 2)


def test_a_hundred_coroutines_take_turns(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create_global("db", 3)
    with worker(settings):
        run = submit(store, deploy(store, folder, "many"))
        assert wait_for_end(store, run).state.name == "Completed"
    assert 1 <= msgpack.unpackb(store.runs.result(run)) <= 3


def test_tasks_of_one_flow_and_of_two_share_the_slots_of_their_tag(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create("tag:db", 1)
    with two_workers(settings):
        runs = [submit(store, deploy(store, folder, "queries"), folder=str(folder)) for _ in range(2)]
        assert [wait_for_end(store, run).state.name for run in runs] == ["Completed"] * 2
    expect_turns(folder, 40)
    assert msgpack.unpackb(store.runs.result(runs[0])) == [*range(10), *range(10)]
    assert store.limits.get("tag:db").used == 0


def test_a_task_that_waits_is_pending_and_says_for_what(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create("tag:db", 1)
    with worker(settings):
        run = submit(store, deploy(store, folder, "long_queries"), folder=str(folder))
        wait_until_inside(folder)
        messages = ["Waits for a slot of tag 'db' (1/1 used)."]
        eventually(lambda: [t.state.message for t in store.runs.tasks(run) if t.state.name == "Pending"] == messages)
        let_go(folder)
        wait_until_inside(folder, 2)
        let_go(folder)
        assert wait_for_end(store, run).state.name == "Completed"
    expect_turns(folder, 2)


def test_tasks_of_a_flow_that_has_the_tags_slot_need_none(store: Store, settings: Settings, folder: Path) -> None:
    """They would wait for the slot of their own flow, which waits for them."""
    store.limits.create("tag:db", 1)
    with two_workers(settings):
        runs = [submit(store, deploy(store, folder, "queries", tags=["db"]), folder=str(folder), times=3) for _ in range(2)]
        assert [wait_for_end(store, run).state.name for run in runs] == ["Completed"] * 2


# python flow.py


Script = Callable[..., int]


@pytest.fixture
def script(settings: Settings, folder: Path) -> Iterator[Callable[..., object]]:
    """Calls a flow in a process of its own, with neither a worker nor a scheduler."""
    with ExitStack() as stack:

        def start(function: str, *arguments: object) -> object:
            environment = {"ORCH_REDIS_URL": settings.redis_url or "", "ORCH_NAMESPACE": settings.namespace}
            process = stack.enter_context(
                python(str(folder / "flows.py"), function, *map(str, arguments), env=environment, cwd=folder)
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def ends(store: Store, number: int) -> list[str]:
    """The names of the final states of so many runs."""
    eventually(lambda: sum(run.is_terminal for run in store.queries.runs(RunFilter()).runs) == number)
    return sorted(run.state.name for run in store.queries.runs(RunFilter()).runs)


def test_two_scripts_take_turns_without_a_worker(store: Store, folder: Path, script: Script) -> None:
    store.limits.create_global("db", 1)
    for _ in range(2):
        script("turns", folder, 10)
    assert ends(store, 2) == ["Completed"] * 2
    expect_turns(folder, 20)


def test_a_rate_limit_needs_no_scheduler(store: Store, folder: Path, script: Script) -> None:
    store.limits.create_global("api", 1, decay=20.0)
    script("calls_slowly")
    assert ends(store, 1) == ["Completed"]
    [run] = store.queries.runs(RunFilter()).runs
    # A slot at once, and four more that came back one by one.
    assert msgpack.unpackb(store.runs.result(run.id)) > 0.95 * 4 / 20


def test_a_rate_limit_holds_for_several_workers_together(store: Store, settings: Settings, folder: Path) -> None:
    store.limits.create_global("api", 1, decay=20.0)
    with two_workers(settings):
        runs = [submit(store, deploy(store, folder, "calls_slowly")) for _ in range(2)]
        ended = [wait_for_end(store, run) for run in runs]
    began, over = min(run.started for run in ended if run.started), max(run.ended for run in ended if run.ended)
    assert (over - began).total_seconds() > 0.95 * 9 / 20


def test_a_script_hears_at_once_of_a_slot_and_that_it_is_to_stop(store: Store, folder: Path, script: Script) -> None:
    """Both came with the next renewal of the lease: here that is twenty minutes away."""
    store.write_settings(replace(store.settings, lease=timedelta(hours=1)))
    store.limits.create_global("db", 1)
    script("holds", folder)
    wait_until_inside(folder)
    script("holds", folder)
    waits_for(store, "db")
    let_go(folder)
    wait_until_inside(folder, 2)
    [second] = [run for run in store.queries.runs(RunFilter()).runs if not run.is_terminal or run.state.name == "Running"]
    store.runs.cancel(second.id)
    assert ends(store, 2) == ["Cancelled", "Completed"]


# Redis goes away


def test_tasks_with_tags_do_not_wait_for_a_redis_that_was_never_reached(folder: Path) -> None:
    """A flow that cannot be recorded goes on, so its tasks do too: nobody knows whether their tags are limited."""
    environment = {"ORCH_REDIS_URL": f"unix://{folder}/nobody.sock", "ORCH_REDIS_RETRY_S": "0"}
    with python(str(folder / "flows.py"), "queries", str(folder), env=environment, cwd=folder) as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "cannot be recorded now" in said) == (0, True)
    assert len(ledger(folder)) == 40


def test_a_task_that_waits_while_redis_is_away_goes_on_after_it(
    own_server: RedisServer, settings: Settings, folder: Path
) -> None:
    settings = replace(settings, redis_url=own_server.url)
    with open_store(settings) as store:
        store.pools.create("pool")
        store.limits.create("tag:db", 1)
        with worker(settings) as running:
            run = submit(store, deploy(store, folder, "long_queries"), folder=str(folder))
            wait_until_inside(folder)
            own_server.kill()
            running.wait_until_said("Redis cannot be reached")
            let_go(folder)
            own_server.start()
            wait_until_inside(folder, 2)
            let_go(folder)
            assert wait_for_end(store, run).state.name == "Completed"
    expect_turns(folder, 2)


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server to kill and start again."""
    server = RedisServer(*DURABLE).start()
    yield server
    server.stop()


def test_a_restart_of_redis_frees_nothing_and_forgets_nobody(own_server: RedisServer, settings: Settings, folder: Path) -> None:
    settings = replace(settings, redis_url=own_server.url)
    with open_store(settings) as store:
        store.pools.create("pool")
        store.limits.create_global("db", 1)
        with worker(settings, limit=3) as running:
            runs = hold_and_wait(store, running, own_server, folder)
            let_go(folder)
            assert [wait_for_end(store, run).state.name for run in runs] == ["Completed"] * 3
    expect_turns(folder, 3)


def hold_and_wait(store: Store, running: WorkerProcess, server: RedisServer, folder: Path) -> list[str]:
    """One run holds the slot over a restart of Redis, one waits over it; one gives it back while Redis is away."""
    runs = line_up(store, folder)
    for number in (1, 2):
        server.kill()
        running.wait_until_said("Redis cannot be reached")
        running.said.clear()
        let_go(folder)
        eventually(lambda: [what for what, _ in ledger(folder)].count("out") == number)  # noqa: B023 - called here
        server.start()
        wait_until_inside(folder, number + 1)
    return runs
