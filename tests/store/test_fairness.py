"""One deployment's many runs and another's few: who gets a worker when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from floor import Floor, named
from orchestrator.keys import new_id, shorten
from orchestrator.models import Deployment, NewRun
from orchestrator.store.answers import End


def flood(floor: Floor, deployment: str, count: int, **fields: object) -> list[str]:
    found = []
    for start in range(0, count, 100):
        runs = [NewRun("f", pool="p", deployment=deployment, **fields) for _ in range(min(100, count - start))]  # type: ignore[arg-type]
        found += [created.id for created in floor.store.runs.create(runs)]
        floor.wait(0.001)
    return found


def work(floor: Floor, count: int) -> list[str]:
    """A worker with ten slots executes so many runs, in the order in which it gets them."""
    done: list[str] = []
    while len(done) < count and (claimed := floor.claim(10)):
        floor.store.runs.finish([End(run.id, run.attempt, named("Completed")) for run in claimed], worker="w")
        done += [run.id for run in claimed]
    return done


def test_ten_thousand_runs_of_one_deployment_keep_anothers_waiting_for_a_few_hundred_only(floor: Floor) -> None:
    flood(floor, new_id(), 10_000)
    [late] = flood(floor, new_id(), 1)
    done = work(floor, 300)
    assert 0 <= done.index(late) <= 210


def test_several_deployments_take_turns_in_a_long_queue(floor: Floor) -> None:
    deployments = [new_id() for _ in range(4)]
    of = {run: deployment for deployment in deployments for run in flood(floor, deployment, 1000)}
    first = [of[run] for run in work(floor, 1500)]
    counts = {deployment: first.count(deployment) for deployment in deployments}
    assert min(counts.values()) >= 300


def test_the_runs_of_a_flood_keep_their_order_and_none_is_lost(floor: Floor) -> None:
    runs = flood(floor, new_id(), 1000)
    assert work(floor, 1000) == runs


def test_a_run_behind_its_own_deployments_share_is_parked_and_stays_scheduled(floor: Floor) -> None:
    runs = flood(floor, new_id(), 201)
    assert [floor.place(run)[0] for run in (runs[0], runs[199], runs[200])] == ["queued", "queued", "parked"]
    assert floor.place(runs[200]) == ("parked", "Scheduled")


def test_all_runs_of_a_flood_are_said_to_be_queued(floor: Floor) -> None:
    """Only those within their deployment's share were: 200 of a thousand."""
    deployments = [floor.store.deployments.save(Deployment(name, "f", "f.py:f", pool="p")).id for name in "ab"]
    flood(floor, deployments[0], 1000)
    flood(floor, deployments[1], 150)
    [queue] = floor.store.pools.queues("p")
    assert queue.depth == 1150


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_run_that_leaves_the_queue_otherwise_lets_the_next_one_in(floor: Floor, end: str) -> None:
    runs = flood(floor, new_id(), 201)
    if end == "cancel":
        floor.store.runs.cancel(runs[150])
    else:
        floor.store.runs.delete([runs[150]])
    assert floor.place(runs[200]) == ("queued", "Scheduled")


def test_a_message_that_nobody_claimed_gives_its_share_to_the_next_one_too(floor: Floor) -> None:
    runs = flood(floor, new_id(), 300)
    work(floor, 100)
    floor.deliver("gone")
    assert floor.store.runs.redeliver("p", ["default"], idle=timedelta(0)) == 1
    assert sorted(work(floor, 200)) == sorted(runs[100:])


def test_each_priority_has_a_share_of_its_own(floor: Floor) -> None:
    deployment = new_id()
    flood(floor, deployment, 250)
    high = flood(floor, deployment, 10, priority="high")
    assert work(floor, 10) == high


def test_what_was_lost_of_a_share_is_mended(floor: Floor) -> None:
    runs = flood(floor, new_id(), 250)
    for key in floor.store.client.scan_iter(f"{floor.store.keys.prefix}slots:share:*"):
        floor.store.client.delete(key)
    assert len(floor.store.runs.reconcile_all()) == 100
    assert work(floor, 250) == runs


def test_a_run_of_a_full_share_whose_message_was_lost_is_queued_again_at_once(floor: Floor) -> None:
    """It was parked behind its own share, whose slot was nobody's until the members were mended too."""
    runs = flood(floor, new_id(), 250)
    client, stream = floor.store.client, floor.store.keys.queue("p", "default", "normal")
    [message] = [entry for entry, fields in client.xrange(stream) if fields[b"r"].decode() == shorten(runs[150])]
    client.xdel(stream, message)
    assert len(floor.store.scripts.call("reconcile", runs=[shorten(runs[150])])) == 1
    assert floor.place(runs[150]) == ("queued", "Scheduled")
    assert floor.place(runs[200]) == ("parked", "Scheduled")
    assert sorted(work(floor, 250)) == sorted(runs)
