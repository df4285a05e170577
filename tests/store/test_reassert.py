"""What workers and submitters know, held against a server that has forgotten the last writes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from floor import Floor, named
from forgetting import Past
from orchestrator.models import NewRun
from orchestrator.store.answers import End
from orchestrator.store.failover import AcceptedEnd, Asserted, Held
from orchestrator.store.runs import Runs


def end(floor: Floor, run: str, attempt: int = 1, state: str = "Completed", **more: object) -> AcceptedEnd:
    """The end of a run as its worker has written it down."""
    fields: dict[str, object] = {"label": state, "message": "Done.", "result": b"", "ended_ms": floor.clock.ms, **more}
    return AcceptedEnd(run, attempt, state, **fields)  # type: ignore[arg-type]


def after_fail_over(floor: Floor, past: Past) -> None:
    past.return_to()
    floor.store.failover.check()


def reassert_end(floor: Floor, *ends: AcceptedEnd, worker: str = "w", accepted: bool = True) -> list[str]:
    return [found.answer for found in floor.store.failover.reassert(worker, ends, accepted=accepted)[0]]


def reassert_held(floor: Floor, run: str, attempt: int = 1, *, worker: str = "w", started: bool = True) -> Asserted:
    [found] = floor.store.failover.reassert(worker, (), [Held(run, attempt, started)])[1]
    return found


def events(floor: Floor, name: str) -> list[str]:
    """The runs of which the feed says that."""
    return [str(event.fields["run"]) for event in floor.store.events.latest(500) if event.name == name]


# --- ends ------------------------------------------------------------------------------------------------------------------


def test_an_end_that_was_lost_is_recorded_as_it_was(floor: Floor) -> None:
    run = floor.running()
    past = Past(floor.store)
    floor.finish(run)
    accepted = end(floor, run, result=b"\x01")
    after_fail_over(floor, past)
    floor.wait(3)
    assert floor.place(run) == ("leased", "Running")
    assert reassert_end(floor, accepted) == ["restored"]
    assert floor.place(run) == ("ended", "Completed")
    found = floor.get(run)
    assert found.state.message == "Done. (Recorded anew: a fail-over had lost it.)"
    assert found.ended is not None
    assert (floor.now() - found.ended).total_seconds() == 3
    assert floor.store.runs.result(run) == b"\x01"
    assert events(floor, "run.restored") == [run]
    assert reassert_end(floor, accepted) == ["ok"]
    assert floor.finish(run, attempt=1) == "again"


@pytest.mark.parametrize("state", ["Completed", "Failed", "Cancelled", "Crashed"])
def test_a_run_whose_claim_was_lost_with_its_end_is_not_started_again(floor: Floor, state: str) -> None:
    run = floor.submit()
    past = Past(floor.store)
    floor.claim()
    floor.finish(run, state)
    after_fail_over(floor, past)
    assert reassert_end(floor, end(floor, run, state=state)) == ["restored"]
    assert floor.claim() == []
    assert floor.place(run) == ("ended", state)
    assert floor.get(run).attempt == 1


def test_a_run_that_stands_in_due_or_at_a_gate_is_ended_too(floor: Floor) -> None:
    waits = floor.submit(due=floor.after(60))
    floor.store.limits.set("tag:a", 1)
    holder = floor.running(tags=("a",))
    parked = floor.submit(tags=("a",))
    floor.claim()
    past = Past(floor.store)
    after_fail_over(floor, past)
    assert floor.place(parked) == ("parked", "AwaitingConcurrencySlot")
    assert reassert_end(floor, end(floor, waits), end(floor, parked)) == ["restored", "restored"]
    assert [floor.place(run)[0] for run in (waits, parked, holder)] == ["ended", "ended", "leased"]


def test_a_retry_that_was_lost_waits_until_its_time(floor: Floor) -> None:
    run = floor.submit()
    past = Past(floor.store)
    floor.claim()
    later = floor.clock.ms + 60_000
    after_fail_over(floor, past)
    assert reassert_end(floor, end(floor, run, state="AwaitingRetry", retry_ms=later)) == ["restored"]
    assert floor.place(run) == ("due", "AwaitingRetry")
    floor.wait(61)
    floor.store.runs.release_due()
    [claimed] = floor.claim()
    assert (claimed.attempt, claimed.run_count) == (2, 1)


def test_an_end_that_is_known_stays_although_the_run_was_retried_since(floor: Floor) -> None:
    run = floor.ended("Failed")
    floor.store.runs.retry(run)
    after_fail_over(floor, Past(floor.store))
    assert reassert_end(floor, end(floor, run, state="Failed")) == ["ok"]
    assert floor.place(run) == ("queued", "Scheduled")
    floor.claim()
    floor.finish(run)
    assert reassert_end(floor, end(floor, run, state="Failed")) == ["ok"]
    assert floor.place(run) == ("ended", "Completed")


def test_a_run_that_somebody_else_has_started_again_is_reported_as_run_twice(
    floor: Floor, caplog: pytest.LogCaptureFixture
) -> None:
    run = floor.submit()
    past = Past(floor.store)
    floor.claim()
    floor.finish(run)
    after_fail_over(floor, past)
    [claimed] = floor.claim(worker="other")
    assert claimed.attempt == 1, "the same fence, given out twice"
    assert reassert_end(floor, end(floor, run)) == ["twice"]
    assert floor.place(run) == ("leased", "Pending")
    assert events(floor, "run.twice") == [run]
    assert "other has started it again" in caplog.text
    assert floor.store.runs.renew([(run, 1)], worker="w") == ["lost"]
    assert floor.store.runs.renew([(run, 1)], worker="other") == ["ok"]


def test_a_run_of_which_nothing_is_left_is_reported_once(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    past = Past(floor.store)
    run = floor.ended()
    after_fail_over(floor, past)
    assert reassert_end(floor, end(floor, run)) == ["missing"]
    assert reassert_end(floor, end(floor, run)) == ["missing"]
    assert events(floor, "run.lost") == [run]
    report = floor.store.failover.last()
    assert report is not None
    assert (report.lost, report.lost_count) == ((run,), 1)
    assert caplog.records[-1].levelno == logging.ERROR


def test_an_end_that_was_never_accepted_does_not_undo_a_lapse(floor: Floor) -> None:
    run = floor.running()
    floor.wait(16)
    floor.store.runs.lapse()
    after_fail_over(floor, Past(floor.store))
    assert reassert_end(floor, end(floor, run), accepted=False) == ["other"]
    assert floor.place(run)[0] != "ended"


def test_a_run_that_was_cancelled_meanwhile_stays_so(floor: Floor) -> None:
    run = floor.submit()
    past = Past(floor.store)
    floor.claim()
    floor.finish(run)
    after_fail_over(floor, past)
    floor.store.runs.cancel(run)
    assert reassert_end(floor, end(floor, run)) == ["other"]
    assert floor.place(run) == ("ended", "Cancelled")


# --- what executes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [True, False])
def test_a_claim_that_was_lost_is_taken_again(floor: Floor, started: bool) -> None:
    floor.store.limits.set("tag:a", 1)
    run = floor.submit(tags=("a",))
    past = Past(floor.store)
    floor.claim()
    after_fail_over(floor, past)
    assert reassert_held(floor, run, started=started).answer == "restored"
    assert floor.place(run) == ("leased", "Running" if started else "Pending")
    assert floor.claim(worker="other") == []
    assert floor.store.runs.renew([(run, 1)], worker="w") == ["ok"]
    assert [slot.run for slot in floor.store.limits.slots("tag:a")] == [run]
    assert reassert_held(floor, run).answer == "ok"
    assert floor.finish(run, attempt=1) == "ok"
    assert floor.get(run).run_count == (1 if started else 0)


def test_a_claim_is_not_taken_again_beyond_a_limit(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 1)
    run, other = floor.submit(tags=("a",)), floor.submit(tags=("a",))
    past = Past(floor.store)
    floor.claim(1)
    after_fail_over(floor, past)
    floor.store.runs.cancel(run)  # so that the other one goes first
    floor.claim(worker="other")
    floor.store.runs.retry(run)
    floor.claim(worker="other")
    assert floor.place(run)[0] == "parked"
    assert floor.place(other)[0] == "leased"
    assert reassert_held(floor, run).answer == "full"
    assert floor.place(run)[0] == "parked"


def test_a_run_that_another_worker_has_by_now_is_left_to_it(floor: Floor) -> None:
    run = floor.submit()
    past = Past(floor.store)
    floor.claim()
    after_fail_over(floor, past)
    floor.claim(worker="other")
    assert reassert_held(floor, run) == ("twice", "other")
    assert floor.store.runs.finish([_end_of(run)], worker="w") == ["superseded"]
    assert floor.store.runs.finish([_end_of(run)], worker="other") == ["ok"]


def test_a_run_that_executes_and_has_no_record_is_reported(floor: Floor) -> None:
    past = Past(floor.store)
    run = floor.running()
    after_fail_over(floor, past)
    assert reassert_held(floor, run).answer == "missing"
    assert events(floor, "run.lost") == [run]


def test_nothing_changes_where_nothing_was_lost(floor: Floor) -> None:
    running, ended = floor.running(), floor.ended()
    after_fail_over(floor, Past(floor.store))
    before = floor.snapshot(running), floor.snapshot(ended)
    assert reassert_held(floor, running).answer == "ok"
    assert reassert_end(floor, end(floor, ended)) == ["ok"]
    assert (floor.snapshot(running), floor.snapshot(ended)) == before


def test_leases_do_not_lapse_in_the_first_moments_of_an_epoch(floor: Floor) -> None:
    run = floor.running()
    past = Past(floor.store)
    floor.wait(20)
    after_fail_over(floor, past)
    assert floor.store.runs.lapse().is_braked
    floor.wait(16)
    assert floor.store.runs.lapse().requeued == 1
    assert floor.place(run)[0] == "queued"


# --- who submits -----------------------------------------------------------------------------------------------------------


def replaced(runs: Runs) -> None:
    """The next command finds its connection closed, as after a fail-over."""
    runs._client.connection_pool.disconnect()
    runs._client.ping()


def test_a_submitter_reports_what_was_lost_of_what_it_created(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    kept = floor.submit()
    past = Past(floor.store)
    lost = [floor.submit() for _ in range(3)]
    past.return_to()
    replaced(floor.store.runs)
    floor.submit()
    assert sorted(events(floor, "run.lost")) == sorted(lost)
    assert kept not in caplog.text
    assert all(run in caplog.text for run in lost)
    replaced(floor.store.runs)
    floor.submit()
    assert len(events(floor, "run.lost")) == 3


def test_a_submitter_asks_nothing_while_its_connections_last(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    floor.store.failover.check()
    floor.submit()
    called: list[str] = []
    call: Callable[..., object] = floor.store.scripts.call

    def noting(name: str, /, **arguments: object) -> object:
        called.append(name)
        return call(name, **arguments)

    monkeypatch.setattr(floor.store.scripts, "call", noting)
    floor.submit()
    assert called == ["create"]
    replaced(floor.store.runs)
    floor.submit()
    assert called == ["create", "epoch", "create"]


def test_what_its_submitter_has_deleted_is_not_lost(floor: Floor) -> None:
    run = floor.submit()
    past = Past(floor.store)
    floor.store.runs.delete([run])
    past.return_to()
    floor.store.runs.delete([run])
    replaced(floor.store.runs)
    floor.store.runs.create([NewRun(flow="f", pool="p")])
    assert events(floor, "run.lost") == []


def test_the_reports_are_bounded_and_the_counts_are_not(floor: Floor) -> None:
    after_fail_over(floor, Past(floor.store))
    missing = [f"{number:08x}-0000-7000-8000-000000000000" for number in range(1100)]
    assert floor.store.failover.missing(missing, "w") == missing
    report = floor.store.failover.last()
    assert report is not None
    assert (len(report.lost), report.lost_count) == (1000, 1100)


def _end_of(run: str) -> End:
    return End(run, 1, named("Completed"))
