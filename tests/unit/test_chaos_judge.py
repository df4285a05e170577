"""The judge of `make chaos` must see what it is there to see."""

from __future__ import annotations

from datetime import UTC, datetime

from bench.chaos.judge import Verdict, judge
from bench.chaos.ledger import Effect, Kill
from orchestrator.models import HistoryEntry, Run
from orchestrator.states import State, StateType

RUN = "019309d0-0000-7000-8000-000000000001"
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def start(attempt: int, at: float, child: int = 0) -> Effect:
    return Effect(RUN, attempt, "start", at, child or 100 + attempt, 10, 5)


def end(attempt: int, at: float, child: int = 0) -> Effect:
    return Effect(RUN, attempt, "end", at, child or 100 + attempt, 10, 5)


def stored(attempt: int, kind: StateType = StateType.COMPLETED, completed: int = 1) -> Run:
    return Run(
        id=RUN, kind="flow", name="r", flow="work", state=State(kind), place="ended", gate=None, deployment=None,
        deployment_name=None, pool="p", queue="default", priority="normal", parameters={}, tags=(), created=NOW, due=NOW,
        started=NOW, ended=NOW, attempt=attempt, run_count=attempt, crash_count=0, crash_budget=3, worker=None, parent=None,
        schedule=None, created_by="", expires=None, history=[HistoryEntry("Completed", NOW, attempt, "")] * completed,
    )  # fmt: skip


def verdict(run: Run | None, *effects: Effect, kills: tuple[Kill, ...] = ()) -> Verdict:
    return judge({RUN: ()}, {RUN: run} if run else {}, sorted(effects, key=lambda effect: effect.at), kills)


def test_a_run_that_started_and_ended_once_is_fine() -> None:
    assert verdict(stored(1), start(1, 1.0), end(1, 2.0)).problems == []


def test_a_run_that_was_killed_and_started_again_is_fine_and_counts_as_recovered() -> None:
    found = verdict(stored(2), start(1, 1.0), start(2, 4.0), end(2, 5.0), kills=(Kill(1.5, "child", 101),))
    assert found.problems == []
    assert (found.hits, found.restarted, found.recovery_p99_s) == (1, 1, 2.5)


def test_a_harm_belongs_to_the_process_that_had_the_number_then() -> None:
    before, after = Kill(1.5, "child", 101), Kill(900.0, "child", 101)
    found = verdict(stored(2), start(1, 800.0), start(2, 915.0), end(2, 916.0), kills=(before, after))
    assert found.problems == []
    assert (found.hits, found.recovery_p99_s) == (1, 15.0)
    found = verdict(stored(2), start(1, 800.0), start(2, 815.0), end(2, 816.0), kills=(before,))
    assert (found.hits, found.unexplained) == (0, 1)


def test_an_end_that_was_never_accepted_because_its_supervisor_was_killed_is_fine() -> None:
    kill = Kill(2.001, "supervisor", 5)
    assert verdict(stored(2), start(1, 1.0), end(1, 2.0), start(2, 9.0), end(2, 9.5), kills=(kill,)).problems == []


def test_a_run_that_redis_does_not_know_is_lost() -> None:
    assert verdict(None, start(1, 1.0), end(1, 2.0)).lost == 1


def test_a_run_that_did_not_complete_is_lost() -> None:
    assert verdict(stored(1, StateType.CRASHED), start(1, 1.0)).lost == 1


def test_a_run_that_redis_calls_completed_though_no_body_ended_is_lost() -> None:
    assert verdict(stored(1), start(1, 1.0)).lost == 1


def test_a_body_that_ended_twice_under_one_attempt_is_double() -> None:
    assert verdict(stored(1), start(1, 1.0), end(1, 2.0), end(1, 2.5)).doubled == 1


def test_a_body_that_started_twice_under_one_attempt_is_double() -> None:
    assert verdict(stored(1), start(1, 1.0), start(1, 1.1, child=9), end(1, 2.0)).doubled == 1


def test_an_attempt_that_ended_unharmed_and_was_repeated_is_double() -> None:
    assert verdict(stored(2), start(1, 1.0), end(1, 2.0), start(2, 3.0), end(2, 4.0)).doubled == 1


def test_a_start_after_the_accepted_end_is_double() -> None:
    kill = Kill(2.5, "supervisor", 5)
    assert verdict(stored(1), start(1, 1.0), end(1, 2.0), start(2, 3.0), kills=(kill,)).doubled == 1


def test_two_accepted_ends_in_the_history_are_double() -> None:
    assert verdict(stored(1, completed=2), start(1, 1.0), end(1, 2.0)).doubled == 1


def test_a_later_attempt_that_starts_before_an_earlier_one_is_over_is_seen() -> None:
    kill = Kill(1.5, "supervisor", 5)
    assert verdict(stored(2), start(1, 1.0), start(2, 1.8), end(1, 2.0), end(2, 3.0), kills=(kill,)).at_once == 1


def test_a_restart_that_no_kill_explains_is_seen() -> None:
    assert verdict(stored(2), start(1, 1.0), start(2, 4.0), end(2, 5.0)).unexplained == 1


def test_a_body_that_found_its_worker_dead_explains_its_restart() -> None:
    orphan = Effect(RUN, 1, "start", 1.0, 101, 10, 1)
    assert verdict(stored(2), orphan, Effect(RUN, 2, "start", 4.0, 102, 20, 2), end(2, 5.0)).problems == []


def test_a_kill_between_two_bodies_hits_no_lease() -> None:
    assert verdict(stored(1), start(1, 1.0), end(1, 2.0), kills=(Kill(2.5, "template", 10),)).hits == 0


def test_the_most_runs_at_once_come_from_the_ledger() -> None:
    assert verdict(stored(1), start(1, 1.0), end(1, 2.0)).most_at_once == {"": 1}
