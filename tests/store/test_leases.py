"""renew, finish, lapse, report_death, hand_back: under a fence, and never twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from floor import Floor, missing_run, named
from harness import DURABLE, RedisServer, eventually
from orchestrator import clock
from orchestrator.keys import shorten
from orchestrator.models import LogLine, NewRun, TaskRun
from orchestrator.settings import Settings
from orchestrator.states import Completed, Failed, Running, State, StateType
from orchestrator.store import NamespaceSettings, open_store
from orchestrator.store.answers import End


def test_a_renewed_lease_does_not_lapse(floor: Floor) -> None:
    run = floor.pending()
    floor.wait(10)
    assert floor.store.runs.renew([(run, 1)], worker="w") == ["ok"]
    floor.wait(14)
    assert floor.store.runs.lapse().seen == 0
    floor.wait(2)
    assert floor.store.runs.lapse().requeued == 1


def test_renew_says_what_became_of_each_run(floor: Floor) -> None:
    ended, lapsed = floor.ended(), floor.running()
    floor.wait(16)
    floor.store.runs.lapse()
    fine, stopped = (floor.submit() for _ in range(2))
    floor.claim()
    floor.store.runs.cancel(stopped)
    leases = [(fine, 1), (stopped, 1), (ended, 1), (lapsed, 1), (fine, 2), (missing_run(), 1)]
    assert floor.store.runs.renew(leases, worker="w") == ["ok", "cancel", "ended", "lost", "lost", "lost"]
    assert floor.store.runs.renew([], worker="w") == []


def test_a_run_whose_lease_has_vanished_is_lost_to_its_worker(floor: Floor) -> None:
    run = floor.running()
    floor.store.client.delete(floor.store.keys.leases)
    assert floor.store.runs.renew([(run, 1)], worker="w") == ["lost"]
    assert floor.store.runs.reconcile([run]) == [("was missing in leases", run)]
    assert floor.store.runs.lapse().requeued == 1


def test_an_end_is_recorded_once_and_repeating_it_says_again(floor: Floor) -> None:
    run = floor.running()
    end = End(run, 1, State(StateType.COMPLETED, "Skipped", "nothing to do"), result=b"\x93\x01")
    assert [floor.store.runs.finish([end], worker="w")[0] for _ in range(2)] == ["ok", "again"]
    found = floor.get(run)
    assert (found.place, found.state.name, found.state.message, found.has_result) == ("ended", "Skipped", "nothing to do", True)
    assert (found.ended, found.worker) == (floor.now(), "w")
    assert floor.store.runs.result(run) == b"\x93\x01"
    assert floor.store.runs.finish([], worker="w") == []


def test_an_older_attempt_may_not_finish_a_run(floor: Floor) -> None:
    run = floor.running()
    floor.wait(16)
    floor.store.runs.lapse()
    floor.claim()
    assert floor.finish(run, attempt=1) == "superseded"
    assert floor.finish(run, attempt=3) == "superseded"
    assert floor.finish(run, attempt=2) == "ok"


def test_a_worker_that_finishes_after_its_lease_lapsed_is_superseded(floor: Floor) -> None:
    # It was told "again" while nobody had claimed the run once more: both attempts counted.
    run = floor.running()
    floor.wait(16)
    floor.store.runs.lapse()
    assert floor.finish(run, attempt=1) == "superseded"


def test_an_end_that_an_operator_decided_otherwise_is_superseded(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.set_state(run, Failed("by hand"))
    assert floor.finish(run, "Completed", attempt=1) == "superseded"
    assert floor.finish(run, "Failed", attempt=1) == "again"


def test_ends_of_many_runs_are_answered_one_by_one(floor: Floor) -> None:
    one, two = floor.submit(), floor.submit()
    floor.claim()
    ends = [End(one, 1, Completed()), End(two, 7, Completed()), End(one, 1, Completed()), End(missing_run(), 1, Completed())]
    assert floor.store.runs.finish(ends, worker="w") == ["ok", "superseded", "again", "superseded"]


def test_what_ends_no_attempt_is_our_own_mistake(floor: Floor) -> None:
    run = floor.pending()
    with pytest.raises(ValueError, match="does not end an attempt"):
        floor.store.runs.finish([End(run, 1, Running())], worker="w")
    assert floor.place(run) == ("leased", "Pending")


def test_a_retry_frees_its_slots_and_waits_in_due(floor: Floor) -> None:
    floor.store.pools.set_concurrency_limit("p", 1)
    run, next_run = floor.running(), floor.submit()
    assert floor.finish(run, "AwaitingRetry", retry_in=timedelta(seconds=60)) == "ok"
    assert floor.finish(run, "AwaitingRetry", attempt=1, retry_in=timedelta(seconds=60)) == "again"
    assert floor.place(run) == ("due", "AwaitingRetry")
    assert floor.get(run).due == floor.after(60)
    assert [claimed.id for claimed in floor.claim()] == [next_run]
    floor.finish(next_run)
    floor.wait(60)
    assert floor.store.runs.release_due().count == 1
    assert [(claimed.attempt, claimed.run_count) for claimed in floor.claim()] == [(2, 1)]


def test_a_run_that_is_being_cancelled_is_not_retried(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.cancel(run)
    assert floor.finish(run, "AwaitingRetry", retry_in=timedelta(seconds=1)) == "ok"
    assert floor.place(run) == ("ended", "Cancelled")
    assert floor.finish(run, "AwaitingRetry", attempt=1) == "again"


def test_the_slot_of_an_ended_run_is_given_on_in_the_same_step(floor: Floor) -> None:
    floor.store.pools.set_concurrency_limit("p", 1)
    first, second = floor.running(), floor.submit()
    floor.claim()
    assert floor.place(second) == ("parked", "AwaitingConcurrencySlot")
    floor.finish(first)
    assert floor.place(second) == ("queued", "Scheduled")


def test_everything_of_an_ended_run_expires_by_itself_if_nobody_prunes_it(floor: Floor) -> None:
    run = floor.running(idempotency_key="k")
    floor.store.runs.record_tasks(run, 1, [TaskRun(missing_run(), "t", "t", 0, Running())], worker="w")
    floor.store.runs.append_log({run: [_line(floor)]})
    floor.finish(run)
    floor.store.runs.append_log({run: [_line(floor)]})
    keys = [floor.key(kind, run) for kind in ("run", "tasks", "log")] + [floor.store.keys.idempotency("f", "k")]
    days = {round(floor.store.client.pttl(key) / 86_400_000) for key in keys}
    assert days == {37}


def test_a_run_has_exactly_three_starts_when_its_process_dies_each_time(floor: Floor) -> None:
    run = floor.submit()
    for attempt in (1, 2, 3):
        assert [claimed.attempt for claimed in floor.claim(start=True)] == [attempt]
        floor.wait(16)
        lapsed = floor.store.runs.lapse()
        assert (lapsed.requeued, lapsed.crashed) == ((1, 0) if attempt < 3 else (0, 1))
        floor.wait(1)
        floor.store.runs.release_due()
    found = floor.get(run)
    assert (found.place, found.state.name, found.crash_count, found.run_count) == ("ended", "Crashed", 3, 3)
    assert found.is_quarantined
    assert floor.claim() == []


def test_runs_that_are_lost_together_twice_start_apart_the_third_time(floor: Floor) -> None:
    # A run that kills its worker used to take the same others along each time, until their starts were spent as well.
    runs = [floor.submit() for _ in range(3)]
    for _ in range(2):
        assert len(floor.claim(start=True)) == 3
        floor.wait(16)
        assert floor.store.runs.lapse().requeued == 3
    assert sorted((floor.get(run).due - floor.now()).total_seconds() for run in runs) == [1, 3, 5]


def test_a_run_that_is_lost_for_the_second_time_starts_apart_from_those_that_were_before_it(floor: Floor) -> None:
    """Their leases are not over in one sweep: what killed its worker was claimed later than those that it took along."""
    early, late = floor.submit(), floor.submit()
    for _ in range(2):
        floor.claim(1, start=True)
        floor.wait(1)
        floor.claim(1, start=True)
        floor.wait(15)
        floor.store.runs.lapse()
        floor.wait(1)
        floor.store.runs.lapse()
    first, second = floor.get(early).due, floor.get(late).due
    assert (first - floor.now()).total_seconds() == 0
    assert (second - first).total_seconds() == 2


def test_a_run_that_its_engine_ended_crashed_is_not_in_quarantine(floor: Floor) -> None:
    run = floor.running(crash_budget=2)
    floor.store.runs.report_death(run, 1, "gone", worker="w")
    assert not floor.get(run).is_quarantined
    assert [claimed.attempt for claimed in floor.claim()] == [2]
    floor.finish(run, "Crashed")
    assert not floor.get(run).is_quarantined


def test_a_run_that_keeps_crashing_waits_longer_each_time_and_says_so(floor: Floor) -> None:
    run = floor.submit(crash_budget=10)
    waits = []
    for _ in range(9):
        [claimed] = floor.claim(start=True)
        assert floor.store.runs.report_death(run, claimed.attempt, "killed by SIGSEGV", worker="w").requeued == 1
        due = floor.get(run).due
        waits.append((due - floor.now()).total_seconds() if floor.place(run)[0] == "due" else 0)
        floor.clock.ms = max(floor.clock.ms, clock.to_ms(due))
        floor.store.runs.release_due()
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    messages = [entry.message for entry in floor.get(run).history if "lost" in entry.message]
    assert messages[0] == "Started again, 1 of 10 starts lost: killed by SIGSEGV."
    assert messages[2] == "Starts again in 2 s, 3 of 10 starts lost: killed by SIGSEGV."


def test_a_run_that_waits_after_a_crash_gives_its_slots_to_others(floor: Floor) -> None:
    floor.store.pools.set_concurrency_limit("p", 1)
    run = floor.submit()
    for attempt in (1, 2):
        assert [claimed.id for claimed in floor.claim()] == [run]
        floor.store.runs.report_death(run, attempt, "gone", worker="w")
    other = floor.submit()
    assert floor.place(run) == ("due", "Scheduled")
    assert [claimed.id for claimed in floor.claim()] == [other]


def test_a_budget_of_one_means_never_again(floor: Floor) -> None:
    run = floor.running(crash_budget=1)
    assert floor.store.runs.report_death(run, 1, "signal 9 (SIGKILL)", worker="w").crashed == 1
    found = floor.get(run)
    assert found.state.name == "Crashed"
    assert "signal 9 (SIGKILL)" in found.state.message


def test_a_reported_death_needs_the_fence_and_counts_once(floor: Floor) -> None:
    run = floor.running()
    assert floor.store.runs.report_death(run, 2, "gone", worker="w").requeued == 0
    assert floor.store.runs.report_death(run, 1, "gone", worker="w").requeued == 1
    assert floor.store.runs.report_death(run, 1, "gone", worker="w").requeued == 0
    assert floor.get(run).crash_count == 1
    assert "gone" in floor.get(run).state.message


def test_a_crashed_run_goes_to_the_front(floor: Floor) -> None:
    run = floor.running()
    other = floor.submit(priority="high")
    floor.store.runs.report_death(run, 1, "gone", worker="w")
    assert [claimed.id for claimed in floor.claim()] == [run, other]


def test_a_run_that_dies_while_it_is_cancelled_is_cancelled(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.cancel(run)
    floor.wait(16)
    assert floor.store.runs.lapse().cancelled == 1
    assert floor.place(run) == ("ended", "Cancelled")


def test_lapsed_runs_free_their_slots(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    run, waiting = floor.running(tags=("a",)), floor.submit(tags=("a",))
    floor.claim()
    floor.wait(16)
    floor.store.runs.lapse()
    assert floor.store.limits.get("tag:a").holders == [waiting]
    assert {claimed.id for claimed in floor.claim()} == {waiting}
    assert floor.place(run) == ("parked", "AwaitingConcurrencySlot")


def test_a_sweep_takes_a_hundred_leases_at_most(floor: Floor) -> None:
    for _ in range(120):
        floor.submit()
    floor.claim(120)
    floor.claim(120)
    floor.wait(16)
    assert [floor.store.runs.lapse().requeued for _ in range(3)] == [100, 20, 0]


def test_a_run_that_is_handed_back_is_charged_nothing_and_goes_to_the_front(floor: Floor) -> None:
    run = floor.running()
    other = floor.submit(priority="high")
    assert [floor.store.runs.hand_back(run, attempt, worker="w") for attempt in (2, 1, 1)] == ["superseded", "ok", "superseded"]
    assert floor.get(run).crash_count == 0
    assert [claimed.id for claimed in floor.claim()] == [run, other]
    assert floor.store.runs.hand_back(missing_run(), 1, worker="w") == "superseded"


def test_a_run_with_a_budget_of_one_start_is_not_started_again_when_it_is_handed_back(floor: Floor) -> None:
    """The second Ctrl-C on a worker used to start it elsewhere a second time."""
    fresh, started = floor.pending(crash_budget=1), floor.running(crash_budget=1)
    assert [floor.store.runs.hand_back(run, 1, worker="w") for run in (fresh, started)] == ["ok", "ok"]
    assert floor.place(fresh) == ("queued", "Scheduled")
    assert floor.place(started) == ("ended", "Crashed")
    assert floor.get(started).state.message == "Stopped by its worker (1 of 1 starts)."


def test_a_cancelled_run_that_is_handed_back_is_cancelled(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.cancel(run)
    assert floor.store.runs.hand_back(run, 1, worker="w") == "ok"
    assert floor.place(run) == ("ended", "Cancelled")


def test_task_runs_are_recorded_under_the_fence_only(floor: Floor) -> None:
    run = floor.running()
    tasks = [TaskRun(missing_run(), f"t-{i}", "t", i, Completed(), started=floor.after(i)) for i in range(150)]
    assert floor.store.runs.record_tasks(run, 1, tasks, worker="w") == "ok"
    assert floor.store.runs.record_tasks(run, 2, tasks[:1], worker="w") == "superseded"
    assert [task.name for task in floor.store.runs.tasks(run)] == [task.name for task in tasks]
    floor.finish(run)
    late = TaskRun(missing_run(), "late", "t", 150, Completed(), started=floor.after(150))
    assert floor.store.runs.record_tasks(run, 1, [late], worker="w") == "ok"
    assert len(floor.store.runs.tasks(run)) == 151
    floor.store.runs.retry(run)
    assert floor.store.runs.record_tasks(run, 1, tasks, worker="w") == "superseded"


def test_lines_of_a_run_that_does_not_exist_are_dropped(floor: Floor) -> None:
    run = floor.submit()
    assert floor.store.runs.append_log({run: [_line(floor)] * 3, missing_run(): [_line(floor)], floor.submit(): []}) == 3
    lines = floor.store.runs.read_log(run)
    assert len(floor.store.runs.read_log(run, after=lines[0].id)) == 2


def test_a_long_message_is_cut(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.finish([End(run, 1, named("Failed", "ä" * 10_000))], worker="w")
    assert len(floor.get(run).state.message) == 2000
    assert floor.get(run).history[-1].message.endswith("…")


def test_the_history_of_a_run_that_is_retried_for_ever_keeps_its_younger_part(floor: Floor) -> None:
    run = floor.running()
    for _ in range(40):
        for _ in range(10):
            floor.store.runs.set_state(run, named("Running", "x" * 100), attempt=1, worker="w")
        assert len(floor.snapshot(run)[b"history"]) < 33_000
    assert {entry.name for entry in floor.get(run).history} == {"Running"}


def _shown(floor: Floor) -> int:
    """What Redis's clock shows."""
    return floor.clock.ms


@pytest.mark.parametrize("jump_s", [3600, 300, -300, -3600])
def test_when_the_clock_jumps_no_lease_counts_as_over_until_workers_could_renew(floor: Floor, jump_s: int) -> None:
    """Every run of the namespace was charged a crash, and started twice."""
    alive, dead = floor.running(), floor.running()
    expected = _shown(floor) + 1000
    floor.wait(1 + jump_s)
    lapsed = floor.store.runs.lapse(expected_ms=expected)
    assert (lapsed.requeued, lapsed.is_braked, lapsed.jump_ms, lapsed.now_ms) == (0, True, jump_s * 1000, _shown(floor))
    assert floor.store.events.latest(1)[0].name == "rescue.braked"
    floor.wait(5)
    assert floor.store.runs.renew([(alive, 1)], worker="w") == ["ok"]
    floor.wait(9)
    assert floor.store.runs.lapse(expected_ms=_shown(floor)).is_braked
    floor.wait(1)
    lapsed = floor.store.runs.lapse(expected_ms=_shown(floor))
    assert (lapsed.requeued, lapsed.is_braked) == (1, False)
    assert floor.place(dead) == ("queued", "Scheduled")
    assert floor.place(alive) == ("leased", "Running")


def test_a_caller_that_knows_nothing_of_the_clock_heeds_the_brake_of_others(floor: Floor) -> None:
    floor.running()
    floor.store.runs.lapse(expected_ms=_shown(floor) - 60_000)
    floor.wait(14.9)
    assert floor.store.runs.lapse().is_braked
    floor.wait(0.2)
    assert floor.store.runs.lapse().requeued == 1


def test_a_brake_from_before_a_step_back_does_not_hold_for_hours(floor: Floor) -> None:
    floor.running()
    floor.store.runs.lapse(expected_ms=_shown(floor) - 3_600_000)
    floor.wait(-3600)
    floor.store.runs.lapse(expected_ms=_shown(floor) + 3_600_000)
    floor.wait(15.1)
    assert floor.store.runs.lapse(expected_ms=_shown(floor)).requeued == 1


def test_the_brake_does_not_hold_up_a_run_whose_process_is_known_to_be_dead(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.lapse(expected_ms=_shown(floor) - 60_000)
    assert floor.store.runs.report_death(run, 1, "killed by SIGKILL", worker="w").requeued == 1


def test_a_call_that_took_a_moment_is_no_jump(floor: Floor) -> None:
    floor.running()
    floor.wait(20)
    lapsed = floor.store.runs.lapse(expected_ms=_shown(floor) - 5000)
    assert (lapsed.requeued, lapsed.is_braked) == (1, False)


def test_a_lease_longer_than_any_is_cut_even_if_nobody_saw_the_clock_go_back(floor: Floor) -> None:
    floor.running()
    floor.wait(-7200)
    assert floor.store.runs.lapse().seen == 1
    floor.wait(15)
    assert floor.store.runs.lapse().requeued == 1


def test_after_a_step_back_the_leases_of_many_runs_are_all_cut(floor: Floor) -> None:
    for _ in range(120):
        floor.submit()
    floor.claim(120)
    floor.claim(120)
    floor.wait(-600)
    assert [floor.store.runs.lapse(expected_ms=_shown(floor) + ahead).seen for ahead in (600_000, 0, 0)] == [100, 20, 0]
    assert max(score for _, score in floor.store.client.zscan_iter(floor.store.keys.leases)) == _shown(floor) + 15_000


def _line(floor: Floor) -> LogLine:
    return LogLine(floor.now(), 20, "root", "hello", 1)


def test_a_server_that_has_just_come_back_gives_workers_a_lease_to_come_back_too(settings: Settings) -> None:
    """Each run that went on during an outage was charged a crash when a scheduler was back before its worker."""
    own = RedisServer(*DURABLE).start()
    try:
        with open_store(replace(settings, redis_url=own.url)) as store:
            store.write_settings(NamespaceSettings(lease=timedelta(seconds=2)))
        with open_store(replace(settings, redis_url=own.url)) as store:
            store.pools.create("p")
            [created] = store.runs.create([NewRun("f", pool="p")])
            [claimed] = store.runs.claim("w", "p", ["default"], 1).claimed
            store.client.zadd(store.keys.leases, {shorten(created.id): 1})
            own.kill()
            own.start()
            with open_store(replace(settings, redis_url=own.url)) as back:
                assert back.runs.lapse().seen == 0
                assert back.runs.renew([(created.id, claimed.attempt)], worker="w") == ["ok"]
                back.client.zadd(back.keys.leases, {shorten(created.id): 1})
                assert eventually(lambda: back.runs.lapse().requeued) == 1
    finally:
        own.stop()


@pytest.mark.parametrize(("ago_s", "seconds"), [(60, 30), (1000, 0), (0, 90)], ids=["late", "before it began", "at once"])
def test_an_end_that_is_told_late_carries_when_it_was(floor: Floor, ago_s: int, seconds: int) -> None:
    """A run that ended while Redis was away had run, as its record said, until Redis was back."""
    run = floor.running()
    began = floor.store.runs.get(run).state.timestamp
    floor.wait(90)
    assert floor.finish(run, ago=timedelta(seconds=ago_s)) == "ok"
    ended = floor.store.runs.get(run)
    assert ended.ended == ended.state.timestamp == began + timedelta(seconds=seconds)
