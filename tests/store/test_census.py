"""The count of what a namespace holds, as metrics tell it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from orchestrator import clock
from orchestrator.keys import shorten
from orchestrator.models import NewRun
from orchestrator.states import State, StateType
from orchestrator.store import Store, census
from orchestrator.store.answers import End


def submit(store: Store, count: int = 1, *, pool: str = "etl", queue: str = "default", **fields: object) -> list[str]:
    runs = [NewRun(flow="load", pool=pool, queue=queue, **fields) for _ in range(count)]  # type: ignore[arg-type]
    return [created.id for created in store.runs.create(runs)]


@pytest.fixture(autouse=True)
def _pools(store: Store) -> None:
    store.pools.create("etl")
    store.pools.create_queue("etl", "urgent")
    store.pools.create("gpu")


def test_an_empty_namespace_is_told_as_such(store: Store) -> None:
    counted = census.take(store)
    assert set(counted.runs.values()) == {0}
    assert {state for state, _, _ in counted.runs} == {
        *("scheduled", "late", "awaiting_retry", "awaiting_concurrency_slot", "pending", "running", "cancelling", "paused")
    }
    assert counted.oldest == {}
    assert counted.limits == {}
    assert counted.keys["run"] == 0
    assert counted.streams["queue", "etl", "urgent"] == 0
    assert counted.overdue_s == 0


def test_runs_are_told_apart_by_state_pool_and_queue(store: Store) -> None:
    submit(store, 3)
    submit(store, 2, queue="urgent")
    submit(store, pool="gpu", due=store.now() + timedelta(hours=1))
    store.runs.claim("blue", "etl", ["default"], 1, [], start=True)
    counted = census.take(store)
    told = {place: count for place, count in counted.runs.items() if count}
    assert told == {
        ("scheduled", "etl", "default"): 2,
        ("scheduled", "etl", "urgent"): 2,
        ("scheduled", "gpu", "default"): 1,
        ("running", "etl", "default"): 1,
    }
    assert counted.streams["queue", "etl", "default"] == 2
    assert counted.streams["queue", "etl", "urgent"] == 2
    assert counted.oldest["scheduled", "gpu", "default"] == 0
    assert counted.keys["run"] == 6
    assert counted.events is None or counted.events >= 6


def test_ended_runs_are_counted_nowhere_but_among_the_keys(store: Store) -> None:
    [run] = submit(store)
    store.runs.claim("blue", "etl", ["default"], 1, [], start=True)
    store.runs.finish([End(run, 1, State(StateType.COMPLETED))], worker="blue")
    counted = census.take(store)
    assert set(counted.runs.values()) == {0}
    assert counted.keys["run"] == 1


def test_the_oldest_run_is_as_old_as_it_is_overdue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(store, due=store.now() - timedelta(hours=2))
    submit(store)
    assert census.take(store).oldest["scheduled", "etl", "default"] >= 7200


def test_only_so_many_runs_of_a_state_are_told_apart_and_none_is_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "APART", 4)
    submit(store, 3, due=store.now() - timedelta(minutes=1))
    submit(store, 5, queue="urgent")
    counted = census.take(store)
    assert counted.runs["scheduled", "etl", "default"] == 3
    assert counted.runs["scheduled", "etl", "urgent"] == 1
    assert counted.runs["scheduled", "", ""] == 4
    assert counted.streams["queue", "etl", "urgent"] == 5


def test_a_run_that_nobody_can_read_is_counted_in_no_pool(store: Store) -> None:
    [run] = submit(store)
    key = store.keys.run(shorten(run))
    kept = store.client.dump(key)
    store.client.delete(key)
    store.client.set(key, "no hash")
    counted = census.take(store)
    store.client.delete(key)
    store.client.restore(key, 0, kept)
    assert counted.runs["scheduled", "", ""] == 1


def test_limits_are_told_by_the_names_that_people_gave_them(store: Store) -> None:
    store.limits.create_global("db", 5)
    store.limits.create_global("api", 10, decay=0.001)
    store.limits.set("tag:heavy", 2)
    store.pools.set_concurrency_limit("etl", 4)
    store.pools.pause("gpu")
    submit(store, 3, tags=("heavy",))
    store.runs.claim("blue", "etl", ["default"], 3, [], start=True)
    counted = census.take(store)
    assert counted.limits == {"global:db": (0, 5), "global:api": (0, 10), "tag:heavy": (2, 2), "pool:etl": (2, 4)}
    assert counted.runs["awaiting_concurrency_slot", "etl", "default"] == 1


def test_a_rate_limit_is_used_until_its_slots_have_come_back(store: Store) -> None:
    store.limits.create_global("api", 10, decay=0.5)
    [gate] = store.limits.settings()
    store.client.hset(store.keys.rates, gate, clock.to_ms(store.now()) + 6000)
    assert census.take(store).limits["global:api"] == (3, 10)


def test_the_memory_of_the_server_is_told_and_that_it_evicts_nothing(store: Store) -> None:
    counted = census.take(store)
    assert counted.memory[0] > 0
    assert not counted.evicts


def test_a_count_writes_nothing(store: Store) -> None:
    submit(store, 2)
    before = {key: store.client.dump(key) for key in store.client.scan_iter(f"{store.keys}*")}
    census.take(store)
    assert {key: store.client.dump(key) for key in store.client.scan_iter(f"{store.keys}*")} == before
