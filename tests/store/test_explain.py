"""Why a run is not running: one sentence for each reason, and the command that helps."""

from __future__ import annotations

from datetime import timedelta

import pytest

from floor import Floor
from orchestrator.models import Deployment, Worker
from orchestrator.store.explain import Explanation


def explained(floor: Floor, run: str) -> Explanation:
    return floor.store.explain(floor.get(run))


def poll(floor: Floor, *, running: int = 0, limit: int = 4, queues: tuple[str, ...] = (), name: str = "w1") -> None:
    """A worker polls the pool ``p``."""
    now = floor.now()
    floor.store.pools.heartbeat(
        Worker(name, "p", "process", "host", 1, "0", "3", limit, running, queues, now, now, "ONLINE", timedelta(0))
    )


def test_a_run_of_tomorrow_is_scheduled_for_then(floor: Floor) -> None:
    found = explained(floor, floor.submit(due=floor.after(86_400)))
    assert found.reason == "due_later"
    assert f"{floor.after(86_400):%Y-%m-%d %H:%M:%S} UTC" in found.sentence


def test_an_overdue_run_that_nobody_queues_lacks_a_scheduler(floor: Floor) -> None:
    run = floor.submit(due=floor.after(10))
    floor.wait(20)
    found = explained(floor, run)
    assert (found.reason, found.hint) == ("no_scheduler", "Start one with: orch scheduler start")


def test_a_run_that_failed_waits_for_its_retry(floor: Floor) -> None:
    run = floor.running()
    floor.finish(run, "AwaitingRetry", retry_in=timedelta(seconds=60))
    assert explained(floor, run).reason == "awaiting_retry"


def test_a_queued_run_without_any_worker_says_how_to_start_one(floor: Floor) -> None:
    found = explained(floor, floor.submit())
    assert (found.reason, found.sentence) == ("no_worker", "No worker polls work pool 'p'.")
    assert found.hint == "Start one with: orch worker start --pool 'p'"


def test_it_says_since_when_the_last_worker_is_silent(floor: Floor) -> None:
    run = floor.submit()
    poll(floor)
    last = floor.now()
    floor.wait(600)
    assert f"since {last:%Y-%m-%d %H:%M:%S} UTC" in explained(floor, run).sentence


def test_workers_that_leave_the_queue_out_are_told_from_no_worker(floor: Floor) -> None:
    floor.store.pools.create_queue("p", "slow")
    poll(floor, queues=("default",))
    found = explained(floor, floor.submit(queue="slow"))
    assert (found.reason, found.hint) == (
        "queue_not_polled",
        "Start one with: orch worker start --pool 'p' --work-queue 'slow'",
    )


def test_busy_workers_and_the_runs_before_it_are_counted(floor: Floor) -> None:
    poll(floor, running=4, limit=4)
    floor.submit()
    floor.submit(priority="high")
    found = explained(floor, floor.submit())
    assert found.reason == "workers_busy"
    assert "All 4 slots of 1 workers are in use, and 2 runs are before it." in found.sentence


def test_a_run_next_in_line_is_behind_none(floor: Floor) -> None:
    poll(floor)
    assert explained(floor, floor.submit()).sentence == "It is queued behind 0 runs; 4 of 4 slots are free."


def test_a_run_whose_pool_is_gone_says_so(floor: Floor) -> None:
    run = floor.submit(pool="nowhere")
    assert explained(floor, run).reason == "no_pool"
    floor.store.runs.cancel(run)


@pytest.mark.parametrize(
    ("pause", "says", "helps"),
    [
        (lambda pools: pools.pause("p"), "Work pool 'p' is paused.", "orch work-pool resume 'p'"),
        (
            lambda pools: pools.pause_queue("p", "default"),
            "Work queue 'default' of 'p' is paused.",
            "orch work-queue resume 'default' --pool 'p'",
        ),
    ],
    ids=["pool", "queue"],
)
def test_a_pause_is_named_with_the_command_that_ends_it(floor: Floor, pause, says: str, helps: str) -> None:  # type: ignore[no-untyped-def]
    pause(floor.store.pools)
    run = floor.submit()
    floor.claim()
    found = explained(floor, run)
    assert (found.reason, found.sentence, found.hint) == ("paused", says, f"Resume it with: {helps}")


def test_a_limit_names_who_holds_it_and_how_many_wait_before(floor: Floor) -> None:
    floor.store.limits.set("tag:db", 1)
    holder = floor.pending(tags=("db",))
    floor.submit(tags=("db",))
    run = floor.submit(tags=("db",))
    floor.claim()
    found = explained(floor, run)
    assert found.sentence == f"Tag 'db' is at its limit, 1/1, held by {holder}; 1 runs wait before it."
    assert found.hint == "See them with: orch concurrency-limit inspect 'db'"


def test_the_limit_of_a_deployment_is_named_by_its_slug(floor: Floor) -> None:
    deployment = floor.store.deployments.save(Deployment("d", "f", "f.py:f", pool="p", concurrency_limit=1))
    floor.pending(deployment=deployment.id)
    run = floor.submit(deployment=deployment.id)
    floor.claim()
    assert explained(floor, run).sentence.startswith("Deployment 'f/d' is at its limit, 1/1")


def test_a_suspended_run_waits_for_a_person_until_its_deadline(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.pause(run, 1, timeout=timedelta(hours=2))
    found = explained(floor, run)
    assert found.reason == "waiting_for_input"
    assert f"until {floor.after(7200):%Y-%m-%d %H:%M:%S} UTC" in found.sentence
    assert found.hint == f"Resume it with: orch flow-run resume {run}"


def test_a_run_that_runs_is_cancelled_or_has_ended_says_that(floor: Floor) -> None:
    run = floor.running()
    assert explained(floor, run).reason == "running"
    floor.store.runs.cancel(run)
    assert explained(floor, run).sentence.startswith("Worker 'w' was told to cancel it")
    floor.finish(run, "Cancelled")
    assert explained(floor, run) == Explanation("ended", "It ended Cancelled.")
