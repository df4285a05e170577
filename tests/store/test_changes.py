"""What people do to runs: cancel, pause and resume, set a state, retry, delete; and what the pruner does."""

from __future__ import annotations

from datetime import timedelta

import pytest

from floor import Floor, missing_run, named
from orchestrator.models import NewRun, TaskRun
from orchestrator.states import Running

MINUTE = timedelta(minutes=1)


def parked(floor: Floor) -> str:
    floor.store.limits.set("tag:full", 0)
    run = floor.submit(tags=("full",))
    floor.claim()
    return run


def paused(floor: Floor) -> str:
    run = floor.running()
    floor.store.runs.pause(run, 1, worker="w")
    return run


@pytest.mark.parametrize("place", ["due", "queued", "parked", "paused"])
def test_a_waiting_run_is_cancelled_at_once(floor: Floor, place: str) -> None:
    run = {
        "due": lambda: floor.submit(due=floor.after(60)),
        "queued": floor.submit,
        "parked": lambda: parked(floor),
        "paused": lambda: paused(floor),
    }[place]()
    assert floor.place(run)[0] == place
    assert floor.store.runs.cancel(run, "Not today.") == ("ok", "Cancelled")
    assert (floor.place(run), floor.get(run).state.message) == (("ended", "Cancelled"), "Not today.")
    assert floor.store.runs.cancel(run) == ("refused", "Cancelled")


def test_the_worker_of_an_executing_run_is_told_to_stop_it(floor: Floor) -> None:
    run = floor.running()
    assert [floor.store.runs.cancel(run) for _ in range(2)] == [("ok", "Cancelling")] * 2
    [told] = floor.store.pools.wait_for_control("w", "0", MINUTE)
    assert (told.what, told.run) == ("cancel", run)
    assert floor.store.client.pttl(floor.store.keys.control("w")) > 0


def test_the_worker_of_a_run_that_an_operator_moves_is_told_too(floor: Floor) -> None:
    # It went on until it next renewed the lease, beside the worker that had started the run again.
    run = floor.running()
    assert floor.store.runs.set_state(run, named("Scheduled")).answer == "ok"
    assert [told.run for told in floor.store.pools.wait_for_control("w", "0", MINUTE)] == [run]
    assert [claimed.attempt for claimed in floor.claim(worker="other")] == [2]


@pytest.mark.parametrize("operation", ["cancel", "resume", "retry", "set_state", "pause"])
def test_a_run_that_does_not_exist_is_missing(floor: Floor, operation: str) -> None:
    runs, run = floor.store.runs, missing_run()
    answers = {
        "cancel": lambda: runs.cancel(run),
        "resume": lambda: runs.resume(run),
        "retry": lambda: runs.retry(run),
        "set_state": lambda: runs.set_state(run, named("Failed")),
        "pause": lambda: runs.pause(run, 1, worker="w"),
    }
    assert answers[operation]() == ("missing", "")


def test_a_suspended_run_gives_up_its_slot_and_goes_on_under_a_new_attempt(floor: Floor) -> None:
    floor.store.pools.set_concurrency_limit("p", 1)
    run, other = floor.running(), floor.submit()
    floor.claim()
    assert floor.store.runs.pause(run, 1, message="approve me", worker="w") == ("ok", "Suspended")
    assert floor.finish(run, attempt=1) == "superseded"
    assert [claimed.id for claimed in floor.claim()] == [other]
    floor.finish(other)
    assert floor.store.runs.resume(run) == ("ok", "Scheduled")
    assert [(claimed.id, claimed.attempt, claimed.crash_count) for claimed in floor.claim()] == [(run, 2, 0)]
    assert floor.store.runs.resume(run) == ("refused", "Pending")


def test_pausing_needs_the_fence(floor: Floor) -> None:
    run = floor.running()
    assert floor.store.runs.pause(run, 2, worker="w") == ("superseded", "1")
    assert floor.store.runs.pause(floor.pending(), 1, worker="w") == ("refused", "Pending")


def test_a_paused_run_fails_when_nobody_resumes_it_in_time(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.pause(run, 1, timeout=MINUTE, worker="w")
    floor.wait(59)
    assert floor.store.runs.time_out_paused() == 0
    floor.wait(1)
    assert floor.store.runs.time_out_paused() == 1
    assert floor.place(run) == ("ended", "Failed")


def test_an_operator_reschedules_a_waiting_run(floor: Floor) -> None:
    run = floor.submit()
    assert floor.store.runs.set_state(run, named("Scheduled"), due=floor.after(60)) == ("ok", "Scheduled")
    assert (floor.place(run), floor.get(run).due) == (("due", "Scheduled"), floor.after(60))
    assert floor.claim() == []
    assert floor.store.runs.set_state(run, named("Scheduled")) == ("ok", "Scheduled")
    assert [claimed.id for claimed in floor.claim()] == [run]


def test_a_report_under_an_older_attempt_is_superseded(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.report_death(run, 1, "gone", worker="w")
    floor.claim()
    assert floor.store.runs.set_state(run, named("Running"), attempt=1, worker="w") == ("superseded", "2")
    assert floor.store.runs.set_state(run, named("Running"), attempt=2, worker="w").answer == "ok"
    assert floor.store.runs.set_state(run, named("Running")) == ("refused", "Running")


def test_starts_are_counted_and_the_first_moment_is_kept(floor: Floor) -> None:
    run = floor.running()
    began = floor.now()
    floor.wait(1)
    assert floor.store.runs.set_state(run, named("RUNNING:Retrying"), attempt=1, worker="w") == ("ok", "Running")
    found = floor.get(run)
    assert (found.run_count, found.started, found.state.name) == (2, began, "Retrying")


@pytest.mark.parametrize("state", ["Completed", "Failed", "Crashed", "Cancelled"])
def test_a_retry_opens_an_ended_run_again_and_nothing_of_it_expires(floor: Floor, state: str) -> None:
    run = floor.running(idempotency_key="k", crash_budget=2, expires=floor.after(5), parameters={"n": 1})
    floor.store.runs.record_tasks(run, 1, [TaskRun(missing_run(), "t", "t", 0, Running())], worker="w")
    floor.finish(run, state, result=b"\x01")
    floor.wait(60)
    assert floor.store.runs.retry(run, "Once more.") == ("ok", state)
    found = floor.get(run)
    assert (found.place, found.state.name, found.has_result, found.ended, found.crash_count) == (
        "queued",
        "Scheduled",
        False,
        None,
        0,
    )
    assert [floor.store.client.pttl(floor.key(kind, run)) for kind in ("run", "tasks")] == [-1, -1]
    assert floor.store.client.pttl(floor.store.keys.idempotency("f", "k")) == -1
    assert floor.store.runs.expire() == 0
    assert [(claimed.attempt, claimed.parameters) for claimed in floor.claim()] == [(2, {"n": 1})]
    assert floor.store.runs.retry(run) == ("refused", "Pending")
    assert floor.finish(run, state, attempt=1) in ("again", "superseded")


def test_a_retry_may_bring_other_parameters(floor: Floor) -> None:
    run = floor.ended("Failed", parameters={"n": 1})
    floor.store.runs.retry(run, parameters={"n": 2})
    assert [claimed.parameters for claimed in floor.claim()] == [{"n": 2}]


def test_a_retry_brings_a_fresh_crash_budget(floor: Floor) -> None:
    run = floor.running(crash_budget=1)
    floor.store.runs.report_death(run, 1, "gone", worker="w")
    floor.store.runs.retry(run)
    assert [(claimed.attempt, claimed.crash_count) for claimed in floor.claim()] == [(2, 0)]
    assert floor.store.runs.report_death(run, 2, "gone", worker="w").crashed == 1


@pytest.mark.parametrize("place", ["due", "queued", "parked", "paused", "ended"])
def test_a_deleted_run_leaves_no_trace(floor: Floor, place: str) -> None:
    before = set(floor.store.client.scan_iter(f"{floor.store.keys}*"))
    make = {
        "due": lambda: floor.submit(due=floor.after(60), expires=floor.after(90), idempotency_key="k", tags=("a",)),
        "queued": lambda: floor.submit(expires=floor.after(90), idempotency_key="k", parent=missing_run()),
        "parked": lambda: parked(floor),
        "paused": lambda: paused(floor),
        "ended": floor.ended,
    }
    run = make[place]()
    floor.store.runs.append_log({run: []})
    assert floor.store.runs.delete([run, run, missing_run()]) == ["ok", "missing", "missing"]
    left = {
        key.decode().removeprefix(str(floor.store.keys))
        for key in set(floor.store.client.scan_iter(f"{floor.store.keys}*")) - before
    }
    assert left <= {"flows", "events", "signals", "limits"}
    assert floor.claim() == []


def test_a_run_that_a_worker_holds_is_not_deleted(floor: Floor) -> None:
    run = floor.pending()
    assert floor.store.runs.delete([run]) == ["refused"]
    assert floor.place(run) == ("leased", "Pending")


def test_the_pruner_deletes_what_ended_before_a_moment_oldest_first(floor: Floor) -> None:
    old = [floor.ended(state) for state in ("Completed", "Failed", "Crashed", "Cancelled", "Completed")]
    floor.wait(60)
    young, live = floor.ended(), floor.submit()
    assert floor.store.runs.prune(floor.after(-30), limit=1) == 4
    assert floor.store.runs.prune(floor.after(-30)) == 1
    assert floor.store.runs.prune(floor.after(-30)) == 0
    assert [run is not None for run in floor.store.runs.get_many([*old, young, live])] == [False] * 5 + [True, True]


def test_pruning_more_than_a_script_takes_goes_on_where_it_stopped(floor: Floor) -> None:
    runs = floor.store.runs.create([NewRun("f", pool="p", expires=floor.now()) for _ in range(120)])
    floor.wait(1)
    assert [floor.store.runs.expire() for _ in range(3)] == [100, 20, 0]
    assert [floor.store.runs.prune(floor.after(1)) for _ in range(3)] == [100, 20, 0]
    assert not any(floor.store.runs.get_many([run.id for run in runs]))
