"""Why a run is not running: one sentence for each reason, and the command that helps."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from floor import Floor
from orchestrator.keys import shorten
from orchestrator.models import Deployment, NewRun, Worker
from orchestrator.store.answers import Acquire
from orchestrator.store.explain import Explanation


def explained(floor: Floor, run: str) -> Explanation:
    return floor.store.explain(floor.get(run))


def poll(
    floor: Floor,
    *,
    running: int = 0,
    limit: int = 4,
    queues: tuple[str, ...] = (),
    name: str = "w1",
    status: str = "ONLINE",
) -> None:
    """A worker polls the pool ``p``."""
    now = floor.now()
    floor.store.pools.heartbeat(
        Worker(name, "p", "process", "host", 1, "0", "3", limit, running, queues, now, now, status, timedelta(0))
    )


def ask(floor: Floor, run: str, call: int, *names: str, **more: Any) -> str:
    """The answer to a run's code that asks for slots."""
    return floor.store.limits.acquire(Acquire(run, floor.get(run).attempt, "w", call, names, **more)).answer


def at(floor: Floor) -> str:
    """The present moment, as sentences tell it."""
    return f"{floor.now():%Y-%m-%d %H:%M:%S} UTC"


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
    assert found.hint == "Start one with: orch worker start --pool p"


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
        "Start one with: orch worker start --pool p --work-queue slow",
    )


def test_workers_that_drain_are_no_workers_for_a_new_run(floor: Floor) -> None:
    poll(floor, status="DRAINING")
    found = explained(floor, floor.submit())
    assert (found.reason, found.sentence) == (
        "workers_draining",
        "The only worker of work pool 'p' drains and takes no new runs.",
    )
    poll(floor, status="DRAINING", name="w2")
    run = floor.submit()
    assert explained(floor, run).sentence == "All 2 workers of work pool 'p' drain and take no new runs."
    poll(floor, name="w3")
    assert explained(floor, run).reason == "behind_others"


def test_a_run_that_nobody_takes_although_it_is_next_and_slots_are_free_is_stalled(floor: Floor) -> None:
    run = floor.submit()
    since = at(floor)
    floor.wait(16)
    floor.store.runs.mark_late()
    poll(floor)
    found = explained(floor, run)
    assert (found.reason, "orch doctor" in (found.hint or "")) == ("stalled", True)
    assert found.sentence == f"It is the next in its queue since {since}, 4 of 4 slots are free, and nobody takes it: 'w1'."


def test_busy_workers_and_the_runs_before_it_are_counted(floor: Floor) -> None:
    poll(floor, running=4, limit=4)
    floor.submit()
    floor.submit(priority="high")
    found = explained(floor, floor.submit())
    assert found.reason == "workers_busy"
    assert found.sentence == "All 4 slots of the only worker are in use, and 2 runs are before it."


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
        (lambda pools: pools.pause("p"), "Work pool 'p' is paused.", "orch work-pool resume p"),
        (
            lambda pools: pools.pause_queue("p", "default"),
            "Work queue 'default' of 'p' is paused.",
            "orch work-queue resume default --pool p",
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


def test_the_pause_of_a_deployment_is_named_with_the_command_that_ends_it(floor: Floor) -> None:
    deployment = floor.store.deployments.save(Deployment("d", "f", "f.py:f", pool="p"))
    floor.store.limits.pause(f"deployment:{shorten(deployment.id)}")
    run = floor.submit(deployment=deployment.id)
    floor.claim()
    found = explained(floor, run)
    assert (found.reason, found.sentence) == ("paused", "Deployment 'f/d' is paused.")
    assert found.hint == "Resume it with: orch deployment resume f/d"


def test_a_limit_names_who_holds_it_since_when_and_how_many_wait_before(floor: Floor) -> None:
    floor.store.limits.set("tag:db", 1)
    floor.pending(tags=("db",), name="brave-otter")
    since = at(floor)
    floor.submit(tags=("db",))
    run = floor.submit(tags=("db",))
    floor.claim()
    found = explained(floor, run)
    assert found.sentence == f"Tag 'db' is at its limit: 1/1 held by 'brave-otter' since {since}; 1 waits before it."
    assert (
        found.hint
        == "See who has it with: orch concurrency-limit inspect db. Let more through with: orch concurrency-limit update db N"
    )


def test_of_many_holders_three_are_named_and_the_others_counted(floor: Floor) -> None:
    floor.store.limits.set("tag:db", 5)
    since = ""
    for name in "abcde":
        floor.pending(tags=("db",), name=name)
        since = since or at(floor)
        floor.wait(1)
    run = floor.submit(tags=("db",))
    floor.claim()
    assert explained(floor, run).sentence == (
        f"Tag 'db' is at its limit: 5/5 held by 'a', 'b', 'c' and 2 more, the longest since {since}; nobody waits before it."
    )


def test_a_limit_of_nothing_lets_nobody_through(floor: Floor) -> None:
    floor.store.limits.set("tag:db", 0)
    run = floor.submit(tags=("db",))
    floor.claim()
    assert explained(floor, run).sentence == "Tag 'db' is at its limit: it lets nobody through; nobody waits before it."
    floor.store.runs.cancel(run)


@pytest.mark.parametrize(
    ("gate", "says", "shows", "helps"),
    [
        ("pool:p", "Work pool 'p' is at its limit: 1/1 held by", "work-pool inspect p", "work-pool set-concurrency-limit p N"),
        (
            "queue:p:default",
            "Work queue 'default' of 'p' is at its limit: 1/1 held by",
            "work-queue inspect default --pool p",
            "work-queue set-concurrency-limit default N --pool p",
        ),
    ],
)
def test_the_limit_of_a_pool_or_queue_names_the_commands_that_show_and_raise_it(
    floor: Floor, gate: str, says: str, shows: str, helps: str
) -> None:
    floor.store.limits.set(gate, 1)
    floor.pending()
    run = floor.submit()
    floor.claim()
    found = explained(floor, run)
    assert (found.reason, found.sentence.startswith(says)) == ("limit", True), found
    assert found.hint == f"See who has it with: orch {shows}. Let more through with: orch {helps}"


def test_the_limit_of_a_deployment_is_named_by_its_slug(floor: Floor) -> None:
    deployment = floor.store.deployments.save(Deployment("d", "f", "f.py:f", pool="p", concurrency_limit=1))
    floor.pending(deployment=deployment.id)
    run = floor.submit(deployment=deployment.id)
    floor.claim()
    found = explained(floor, run)
    assert found.sentence.startswith("Deployment 'f/d' is at its limit: 1/1 held by")
    assert found.hint == (
        "See who has it with: orch deployment inspect f/d. "
        "Let more through with: orch deploy, with another concurrency_limit in orch.yaml"
    )


def test_code_that_waits_for_a_global_limit_says_for_which_and_who_holds_it(floor: Floor) -> None:
    floor.store.limits.create_global("db", 1)
    holder = floor.running(name="brave-otter")
    assert ask(floor, holder, 1, "db") == "granted"
    held = at(floor)
    floor.wait(2)
    before, run = floor.running(), floor.running()
    ask(floor, before, 1, "db")
    floor.wait(1)
    assert ask(floor, run, 1, "db") == "waiting"
    waits = at(floor)
    found = explained(floor, run)
    hint = "See who has it with: orch gcl inspect db. Let more through with: orch gcl update db --limit N"
    assert (found.reason, found.hint) == ("waiting_for_slot", hint)
    assert found.sentence == (
        f"Its code waits since {waits} for a slot of global limit 'db': 1/1 held by 'brave-otter' since {held}; "
        "1 waits before it."
    )
    assert explained(floor, holder).reason == "running"


def test_code_that_waits_for_several_slots_and_in_several_calls_says_so(floor: Floor) -> None:
    floor.store.limits.create_global("a b", 3)
    other, run = floor.running(name="other"), floor.running()
    ask(floor, other, 1, "a b")
    ask(floor, run, 1, "a b", occupy=3)
    ask(floor, run, 2, "a b")
    found = explained(floor, run)
    assert "for 3 slots of global limit 'a b': 1/3 held by 'other'" in found.sentence
    assert found.sentence.endswith("nobody waits before it; 1 other call of it waits too.")
    assert found.hint == "See who has it with: orch gcl inspect 'a b'. Let more through with: orch gcl update 'a b' --limit N"


def test_a_task_run_that_waits_for_its_tag_is_told_from_code(floor: Floor) -> None:
    floor.store.limits.set("tag:db", 1)
    holder, run = floor.running(name="brave-otter"), floor.running()
    ask(floor, holder, 1, "db", of="tag")
    ask(floor, run, 1, "db", of="tag")
    found = explained(floor, run)
    assert found.sentence.startswith(
        f"A task run of it waits since {at(floor)} for a slot of tag 'db': 1/1 held by 'brave-otter'"
    )
    assert (
        found.hint
        == "See who has it with: orch concurrency-limit inspect db. Let more through with: orch concurrency-limit update db N"
    )


def test_code_that_waits_for_a_rate_limit_says_when_the_next_slot_comes_back(floor: Floor) -> None:
    floor.store.limits.create_global("api", 1, decay=0.1)
    run = floor.running()
    ask(floor, run, 1, "api", rate=True)
    back = f"{floor.after(10):%Y-%m-%d %H:%M:%S} UTC"
    ask(floor, run, 2, "api", rate=True)
    assert explained(floor, run).sentence == (
        f"Its code waits since {at(floor)} for a slot of rate limit 'api': 1/1 used, and the next slot comes back {back}; "
        "nobody waits before it."
    )
    hint = "See who has it with: orch gcl inspect api. Let more through with: orch gcl update api --slot-decay-per-second D"
    assert explained(floor, run).hint == hint


def test_the_last_to_wait_at_a_limit_that_was_disabled_is_not_told_that_it_is_full(floor: Floor) -> None:
    """A hundred go on at once; the others were said to wait at a limit of which nobody held a slot."""
    floor.store.limits.set("tag:t", 0)
    run = [floor.submit(tags=("t",)) for _ in range(101)][-1]
    while floor.store.limits.get("tag:t").waiting < 101:
        floor.claim()
    floor.store.limits.disable("tag:t")
    found = explained(floor, run)
    assert (found.reason, found.hint) == ("limit", None)
    assert found.sentence == (
        "Tag 't': it holds nobody back any more, and those who wait go on one after another; nobody waits before it."
    )


def test_a_limit_that_cannot_be_read_names_the_command_that_sets_it_anew(floor: Floor) -> None:
    floor.store.client.hset(floor.store.keys.limits, "tag:t", "?")
    run = floor.submit(tags=("t",))
    floor.claim()
    found = explained(floor, run)
    assert "cannot be read (it is no JSON object)" in found.sentence
    assert found.hint == "Set it anew with: orch concurrency-limit update t N"
    floor.store.limits.set("tag:t", None)


def test_a_run_that_crashed_again_waits_before_it_is_started_again(floor: Floor) -> None:
    run = floor.running(crash_budget=5)
    for attempt in (1, 2, 3):
        floor.store.runs.report_death(run, attempt, "signal 9 (SIGKILL)", worker="w")
        if attempt == 3:
            break
        floor.wait(60)
        floor.store.runs.release_due()
        floor.claim()
    found = explained(floor, run)
    assert found.reason == "crash_back_off"
    assert found.sentence.startswith(
        f"It waits 2 s, until {floor.after(2):%Y-%m-%d %H:%M:%S} UTC, before it is started again after crash 3 of 5: "
    )
    assert "signal 9 (SIGKILL)" in found.sentence


def test_a_run_in_quarantine_names_the_command_that_runs_it_again(floor: Floor) -> None:
    run = floor.running(crash_budget=1)
    floor.store.runs.report_death(run, 1, "signal 9 (SIGKILL)", worker="w")
    found = explained(floor, run)
    assert (found.reason, found.hint) == ("quarantined", f"Run it again with: orch dead redrive {run}")
    assert found.sentence == "It ended Crashed: Its process was lost (1 of 1 starts): signal 9 (SIGKILL)."


def test_a_lease_that_is_over_is_taken_care_of_by_whoever_sweeps(floor: Floor) -> None:
    run = floor.running()
    over = f"{floor.after(15):%Y-%m-%d %H:%M:%S} UTC"
    floor.wait(20)
    found = explained(floor, run)
    assert (found.reason, found.hint) == ("no_scheduler", "Start one with: orch scheduler start")
    assert found.sentence.startswith(f"Worker 'w' has not renewed its lease, which was over {over}, and no scheduler")
    floor.store.pools.scheduler_heartbeat("s")
    assert explained(floor, run).reason == "lease_over"


def test_a_rescue_that_the_clock_has_braked_says_until_when(floor: Floor) -> None:
    run = floor.running()
    expected = floor.clock.ms
    floor.wait(3600)
    assert floor.store.runs.lapse(expected_ms=expected).is_braked
    found = explained(floor, run)
    assert found.reason == "rescue_braked"
    assert f"workers have until {floor.after(15):%Y-%m-%d %H:%M:%S} UTC to renew." in found.sentence
    floor.store.client.delete(floor.store.keys.brake)


def test_a_run_behind_the_share_of_its_deployment_says_that_the_queue_is_long(floor: Floor) -> None:
    deployment = floor.store.deployments.save(Deployment("d", "f", "f.py:f", pool="p"))
    runs = floor.store.runs.create([NewRun("f", pool="p", deployment=deployment.id) for _ in range(210)])
    parked = [run.id for run in runs if floor.get(run.id).place == "parked"]
    assert explained(floor, parked[0]).reason == "no_worker"
    poll(floor)
    found = explained(floor, parked[3])
    assert (found.reason, found.hint) == ("share", "Start another worker with: orch worker start --pool p")
    assert found.sentence == (
        "Work queue 'default' of 'p' is long, and 100 runs of its deployment stand in it; each that is taken lets the next one "
        "in, and 3 wait before it."
    )


def test_a_suspended_run_waits_for_a_person_until_its_deadline(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.pause(run, 1, timeout=timedelta(hours=2), worker="w")
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
