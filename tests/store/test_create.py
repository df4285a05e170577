"""create and create_leased: a run comes into being once, whoever asks how often."""

from __future__ import annotations

from datetime import timedelta

import pytest

from floor import Floor
from orchestrator.exceptions import PayloadTooLarge
from orchestrator.keys import new_id
from orchestrator.models import NewRun


def test_a_run_that_is_due_is_queued_at_once_and_told_to_the_feed(floor: Floor) -> None:
    run = floor.submit(name="brave-otter", parameters={"n": 1, "blob": b"\x00\xff", "ü": [None, True, 1.5]}, tags=("a", "b"))
    found = floor.get(run)
    assert (found.place, found.state.name, found.attempt, found.name) == ("queued", "Scheduled", 0, "brave-otter")
    assert found.parameters == {"n": 1, "blob": b"\x00\xff", "ü": [None, True, 1.5]}
    assert (found.tags, found.created, found.due) == (("a", "b"), floor.now(), floor.now())
    assert floor.store.events.latest(1)[0].fields == {"run": run, "flow": "f", "attempt": "0"}


def test_a_run_for_later_waits_in_due_and_wakes_the_schedulers(floor: Floor) -> None:
    run = floor.submit(due=floor.after(60))
    assert floor.place(run) == ("due", "Scheduled")
    assert floor.store.pools.wait_for_signal("0", timedelta(milliseconds=1)) != "0"


def test_the_same_id_twice_is_one_run(floor: Floor) -> None:
    new = NewRun("f", id=new_id(), pool="p")
    answers = [floor.store.runs.create([new, new]), floor.store.runs.create([new])]
    assert [answer.answer for batch in answers for answer in batch] == ["created", "existing", "existing"]
    assert len(floor.claim()) == 1


def test_an_idempotency_key_stands_for_one_run_as_long_as_its_record(floor: Floor) -> None:
    def create() -> tuple[str, str]:
        [answer] = floor.store.runs.create([NewRun("f", pool="p", idempotency_key="order 7", parameters={"n": 1})])
        return answer.answer, answer.id

    first, run = create()
    assert (first, create()) == ("created", ("existing", run))
    floor.claim()
    floor.finish(run)
    assert create() == ("existing", run)
    assert floor.store.runs.delete([run]) == ["ok"]
    again, other = create()
    assert again == "created"
    assert other != run


@pytest.mark.parametrize("together", [True, False])
def test_a_key_that_stands_for_other_work_is_a_conflict(floor: Floor, together: bool) -> None:
    # In one batch it used to be answered as existing: the parameters of the first were not in Redis yet.
    news = [NewRun("f", pool="p", idempotency_key="k", parameters={"n": n}) for n in (1, 2)]
    batches = [news] if together else [[new] for new in news]
    answers = [answer for batch in batches for answer in floor.store.runs.create(batch)]
    assert [answer.answer for answer in answers] == ["created", "conflict"]
    assert answers[0].id == answers[1].id


def test_a_key_is_scoped_to_the_deployment_or_the_flow(floor: Floor) -> None:
    scopes = [{"flow": "f"}, {"flow": "g"}, {"flow": "f", "deployment": new_id()}, {"flow": "f", "deployment": new_id()}]
    answers = floor.store.runs.create([NewRun(pool="p", idempotency_key="k", **scope) for scope in scopes])
    assert [answer.answer for answer in answers] == ["created"] * 4


def test_a_key_whose_run_is_gone_does_not_hide_the_run_of_the_same_id(floor: Floor) -> None:
    # The run was created over the existing one, which was in two places from then on.
    new = NewRun("f", id=floor.submit(), pool="p", idempotency_key="k")
    floor.store.client.set(floor.store.keys.idempotency("f", "k"), "gone-gone-gone-gone-go")
    assert floor.store.runs.create([new])[0].answer == "existing"
    floor.store.client.delete(floor.store.keys.idempotency("f", "k"))


def test_more_runs_than_a_script_takes_are_created_in_batches(floor: Floor) -> None:
    answers = floor.store.runs.create([NewRun("f", pool="p") for _ in range(250)])
    assert {answer.answer for answer in answers} == {"created"}
    assert floor.store.pools.queues("p")[0].depth == 250


def test_nothing_of_a_batch_is_written_when_one_run_is_too_large(floor: Floor) -> None:
    with pytest.raises(PayloadTooLarge):
        floor.store.runs.create([NewRun("f", pool="p"), NewRun("f", pool="p", parameters={"blob": b"x" * 300_000})])
    assert floor.store.queries.count() == 0


def test_cancel_new_ends_a_run_at_once_where_its_deployment_is_full(floor: Floor) -> None:
    deployment = new_id()
    gate = f"deployment:{floor.key('', deployment).rsplit(':', 1)[1]}"
    floor.store.limits.set(gate, 1, strategy="CANCEL_NEW")
    first = floor.running(deployment=deployment)
    second = floor.submit(deployment=deployment)
    assert (floor.place(second), floor.states(second)) == (("ended", "Cancelled"), ["Scheduled", "Cancelled"])
    floor.finish(first)
    assert floor.place(floor.submit(deployment=deployment)) == ("queued", "Scheduled")


def test_a_tag_that_is_given_twice_counts_once(floor: Floor) -> None:
    floor.store.limits.set("tag:a", 2)
    runs = [floor.submit(tags=("a", "a")) for _ in range(2)]
    assert [run.id for run in floor.claim()] == runs
    assert floor.get(runs[0]).tags == ("a",)


def test_a_run_that_is_executing_already_is_born_leased_and_running(floor: Floor) -> None:
    new = NewRun("f", tags=("a",), parent=new_id())
    claimed = floor.store.runs.create_leased(new, "me")
    again = floor.store.runs.create_leased(new, "me")
    run = floor.get(new.id)
    assert (claimed.attempt, again.attempt) == (1, 1)
    assert (run.place, run.state.name, run.worker, run.run_count, run.started) == ("leased", "Running", "me", 1, floor.now())
    assert floor.finish(new.id) == "ok"


def test_a_run_without_a_pool_ends_when_its_process_is_lost(floor: Floor) -> None:
    new = NewRun("f")
    floor.store.runs.create_leased(new, "me")
    floor.wait(16)
    assert floor.store.runs.lapse().crashed == 1
    assert floor.place(new.id) == ("ended", "Crashed")


def test_a_run_without_a_pool_is_neither_retried_later_nor_handed_back_nor_paused(floor: Floor) -> None:
    # Each of these used to put it where nobody reads.
    retried, returned, paused = (NewRun("f") for _ in range(3))
    for new in (retried, returned, paused):
        floor.store.runs.create_leased(new, "me")
    assert floor.finish(retried.id, "AwaitingRetry", retry_in=timedelta(minutes=1)) == "ok"
    assert floor.place(retried.id) == ("ended", "Failed")
    assert floor.store.runs.hand_back(returned.id, 1, worker="me") == "ok"
    assert floor.place(returned.id) == ("ended", "Crashed")
    assert floor.store.runs.pause(paused.id, 1, worker="me") == ("refused", "Running")
    assert floor.store.runs.retry(retried.id) == ("refused", "Failed")
