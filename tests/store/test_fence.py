"""The fence is the attempt and the worker: a fail-over that forgets a claim has the same number given out twice."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest

from floor import Floor, missing_run, named
from forgetting import Past
from orchestrator.models import TaskRun
from orchestrator.states import Completed, Running
from orchestrator.store.answers import Acquire, End
from orchestrator.store.failover import AcceptedEnd
from orchestrator.store.scripts import load_scripts

Act = Callable[[Floor, str, str], Any]

TASK = TaskRun(missing_run(), "t", "t", 0, Running())

# By script: what a worker does for its attempt 1, and what it is told if it has not that lease, and if it has.
FENCED: dict[str, tuple[Act, Any, Any]] = {
    "renew": (lambda f, run, worker: f.store.runs.renew([(run, 1)], worker=worker), ["lost"], ["ok"]),
    "finish": (
        lambda f, run, worker: f.store.runs.finish([End(run, 1, Completed())], worker=worker),
        ["superseded"],
        ["ok"],
    ),
    "lapse": (lambda f, run, worker: f.store.runs.report_death(run, 1, "SIGKILL", worker=worker).requeued, 0, 1),
    "hand_back": (lambda f, run, worker: f.store.runs.hand_back(run, 1, worker=worker), "superseded", "ok"),
    "set_state": (
        lambda f, run, worker: f.store.runs.set_state(run, named("RUNNING:Retrying"), attempt=1, worker=worker).answer,
        "superseded",
        "ok",
    ),
    "pause": (lambda f, run, worker: f.store.runs.pause(run, 1, worker=worker).answer, "superseded", "ok"),
    "record_tasks": (lambda f, run, worker: f.store.runs.record_tasks(run, 1, [TASK], worker=worker), "superseded", "ok"),
    "acquire": (
        lambda f, run, worker: f.store.limits.acquire(Acquire(run, 1, worker, 2, ["db"])).answer,
        "superseded",
        "granted",
    ),
    "release": (lambda f, run, worker: f.store.limits.release([(run, 1, 1)], worker=worker), 0, 1),
}


def given_out_twice(floor: Floor) -> str:
    """A run that ``a`` holds under attempt 1, which the server has forgotten, and that ``b`` executes under attempt 1."""
    floor.store.limits.create_global("db", 2)
    run = floor.submit()
    past = Past(floor.store)
    [lost] = floor.claim(1, "a", start=True)
    past.return_to()
    [claimed] = floor.claim(1, "b", start=True)
    assert (lost.id, lost.attempt) == (claimed.id, claimed.attempt) == (run, 1)
    assert floor.store.limits.acquire(Acquire(run, 1, "b", 1, ["db"])).answer == "granted"
    return run


def everything(floor: Floor) -> dict[bytes, bytes | None]:
    client = floor.store.client
    return {key: client.dump(key) for key in client.scan_iter(f"{floor.store.keys}*")}


@pytest.mark.parametrize("script", FENCED)
def test_of_two_workers_with_the_same_attempt_the_one_without_the_lease_changes_nothing(floor: Floor, script: str) -> None:
    """Only renewing and finishing looked at the worker: the other's death report took the run from who executed it."""
    act, refused, accepted = FENCED[script]
    run = given_out_twice(floor)
    before = everything(floor)
    floor.wait(1)
    assert act(floor, run, "a") == refused
    assert everything(floor) == before
    assert act(floor, run, "b") == accepted
    assert everything(floor) != before


def test_every_script_that_acts_for_an_attempt_is_in_the_table_above() -> None:
    """Found by their headers: an argument is, or lists, an attempt. ``reassert`` takes back what the fence has lost."""
    folder = resources.files("orchestrator.store") / "lua"

    def arguments(name: str) -> str:
        return (folder / f"{name}.lua").read_text().partition("-- ARGV")[2].partition("-- RETURN")[0]

    scripts = load_scripts()
    assert {name for name in scripts if "attempt" in arguments(name)} == {*FENCED, "reassert"}
    assert all("worker" in dict(scripts[name].arguments) for name in FENCED)


def test_an_end_is_told_again_to_the_worker_whose_it_is_and_superseded_to_another_of_the_same_attempt(floor: Floor) -> None:
    """Who held the lost claim took the other's end for its own, and wrote it down as accepted."""
    run = given_out_twice(floor)
    assert [floor.store.runs.finish([End(run, 1, Completed())], worker=worker) for worker in "bba"] == [
        ["ok"],
        ["again"],
        ["superseded"],
    ]
    assert [floor.store.runs.renew([(run, 1)], worker=worker) for worker in "ba"] == [["ended"], ["lost"]]
    assert [floor.store.runs.record_tasks(run, 1, [TASK], worker=worker) for worker in "ba"] == ["ok", "superseded"]


def test_an_end_that_another_worker_of_the_same_attempt_has_recorded_is_told_as_started_twice(floor: Floor) -> None:
    run = given_out_twice(floor)
    floor.finish(run)
    end = AcceptedEnd(run, 1, "Completed", "Completed", "", b"", floor.clock.ms)
    assert [floor.store.failover.reassert(worker, [end])[0][0] for worker in "ba"] == [("ok", ""), ("twice", "b")]
    report = floor.store.failover.last()
    assert report is not None
    assert report.twice == (run,)
