"""The epoch: servers of their own that restart, are emptied, and are replaced by a replica that had not heard everything."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import redis

from harness import SAFE, RedisServer, eventually
from orchestrator.clock import FrozenClock
from orchestrator.exceptions import DataGone, StoreUnavailable, UnsuitableServer
from orchestrator.models import NewRun
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from orchestrator.store.failover import SCHEMA
from orchestrator.store.invariants import check


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that the test may restart and empty."""
    server = RedisServer(tcp=True).start()
    yield server
    server.stop()


@pytest.fixture
def own_settings(own_server: RedisServer, settings: Settings) -> Settings:
    return replace(settings, redis_url=own_server.url)


@pytest.fixture
def own_store(own_settings: Settings) -> Iterator[Store]:
    """A store on that server; every invariant must hold in the end."""
    with open_store(own_settings) as store:
        yield store


def restart(server: RedisServer, store: Store) -> None:
    """The server dies and comes back with all that was written a second before."""
    server.kill()
    server.start()
    store.client.connection_pool.disconnect()


def test_a_namespace_gets_its_first_epoch_and_its_schema_from_whoever_comes_first(store: Store) -> None:
    assert store.failover.look() is None
    assert store.client.hget(store.keys.settings, "schema") is None
    epoch = store.failover.check()
    assert (epoch.number, epoch.how, epoch.mends) == (1, "started", "")
    assert store.client.hget(store.keys.settings, "schema") == str(SCHEMA).encode()
    assert store.failover.check(mend=True) == epoch == store.failover.known


def test_a_namespace_of_a_newer_release_is_refused(settings: Settings, store: Store) -> None:
    store.client.hset(store.keys.settings, "schema", SCHEMA + 1)
    with pytest.raises(UnsuitableServer, match="written by a newer Orch") as refusal:
        open_store(settings)
    assert "pip install --upgrade" in str(refusal.value.hint)
    store.client.hdel(store.keys.settings, "schema")


def test_a_restarted_server_is_a_new_epoch_that_one_process_mends(own_server: RedisServer, own_store: Store) -> None:
    first = own_store.failover.check()
    restart(own_server, own_store)
    with ThreadPoolExecutor(8) as many:
        seen = list(many.map(lambda _: own_store.failover.check(mend=True), range(50)))
    assert {(epoch.number, epoch.how, epoch.before) for epoch in seen} == {(2, "replaced", first.server)}
    [winner] = [epoch for epoch in seen if epoch.mends]
    assert winner.mends == "failover"
    assert winner.id != first.id
    assert own_store.failover.mend(winner, own_store.runs.reconcile_all) == 0
    assert own_store.events.latest()[0].name == "namespace.failover"
    report = own_store.failover.last()
    assert report is not None
    assert (report.mended, report.lost_count) == (0, 0)
    after = own_store.failover.check(mend=True)
    assert not after.mends
    assert check(own_store) == []


def test_a_process_that_comes_later_counts_on_from_the_epoch_it_has_seen(
    own_server: RedisServer, own_store: Store, own_settings: Settings
) -> None:
    own_store.failover.check()
    with open_store(own_settings) as other:
        own_store.client.hset(own_store.keys.epoch, "number", 7)
        other.failover.check()
        # The seven is forgotten, as if the write had been lost; who has seen it does not go back behind it.
        own_store.client.hset(own_store.keys.epoch, "number", 1)
        restart(own_server, other)
        seen = other.failover.check()
    assert seen.number == 8


@pytest.mark.parametrize("again", [False, True])
def test_an_emptied_server_is_said_to_be_one_and_stays_empty(own_store: Store, own_settings: Settings, again: bool) -> None:
    own_store.failover.check()
    own_store.client.flushall()
    if again:
        with open_store(own_settings) as newcomer:
            newcomer.failover.check()
    before = own_store.client.dbsize()
    with pytest.raises(DataGone, match="is not on this server any more"):
        own_store.failover.check(mend=True)
    assert own_store.client.dbsize() == before


def test_the_first_replica_of_a_server_is_no_fail_over(own_server: RedisServer, own_store: Store) -> None:
    first = own_store.failover.check()
    replica = RedisServer(*_replica_of(own_server)).start()
    try:
        eventually(lambda: own_store.client.info("replication")["connected_slaves"] == 1)
        known = own_store.failover.check(mend=True)
        assert (known.id, known.mends) == (first.id, "")
    finally:
        replica.stop()


def _replica_of(server: RedisServer) -> tuple[str, ...]:
    return (*SAFE, "--replicaof", "127.0.0.1", str(server.port))


def test_a_namespace_is_mended_every_hour_too(frozen_store: Store, frozen: FrozenClock) -> None:
    frozen_store.failover.check(mend=True)
    frozen.advance(timedelta(minutes=61))
    first, second = frozen_store.failover.check(mend=True), frozen_store.failover.check(mend=True)
    assert [epoch.mends for epoch in (first, second)] == ["hourly", ""]
    assert frozen_store.failover.mend(first, frozen_store.runs.reconcile_all) == 0
    assert frozen_store.events.latest() == [], "nothing was found, and nobody fell over"


def test_who_mends_and_dies_is_replaced(frozen_store: Store, frozen: FrozenClock) -> None:
    frozen_store.failover.check()
    frozen_store.client.hset(frozen_store.keys.epoch, "server", "before")
    winner = frozen_store.failover.check(mend=True)
    frozen.advance(timedelta(minutes=2))
    heir = frozen_store.failover.check(mend=True)
    assert [epoch.mends for epoch in (winner, heir)] == ["failover", "failover"]


def test_runs_that_a_promoted_replica_never_heard_of_are_reported_by_who_created_them(
    own_server: RedisServer, own_store: Store
) -> None:
    replica = RedisServer(*_replica_of(own_server), tcp=True).start()
    try:
        [kept] = own_store.runs.create([NewRun("f", pool="p")])
        first = own_store.failover.check()
        eventually(lambda: own_store.client.wait(1, 1000) == 1)
        with _client_of(replica) as promoted:
            promoted.replicaof("127.0.0.1", 1)  # cut off: it hears nothing any more
            lost = [created.id for created in own_store.runs.create([NewRun("f", pool="p") for _ in range(3)])]
            own_server.kill()
            promoted.replicaof("NO", "ONE")
        own_store.client.connection_pool.connection_kwargs["port"] = replica.port
        own_store.client.connection_pool.reset()
        [after] = own_store.runs.create([NewRun("f", pool="p")])
        report = own_store.failover.last()
        assert report is not None
        assert (report.epoch.number, report.epoch.how, report.epoch.before) == (2, "promoted", first.server)
        assert sorted(report.lost) == sorted(lost)
        assert all(own_store.runs.get_many([kept.id, after.id]))
        own_store.failover.mend(own_store.failover.check(mend=True), own_store.runs.reconcile_all)
        assert check(own_store) == []
    finally:
        replica.stop()


def test_a_server_that_is_replaced_while_it_is_given_the_scripts_is_an_unavailable_one_and_no_error_of_redis(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NOSCRIPT used to come out as it was: whoever expects a server to be away for a while, and only that, died of it."""
    store.pools.create("p")
    store.client.script_flush()
    monkeypatch.setattr(store.scripts, "_send_scripts", lambda: None)  # to the server before
    for refused in (lambda: store.failover.check(), lambda: store.scripts.try_many([("memory", {"most": 80})])):
        with pytest.raises(StoreUnavailable, match="was replaced or has restarted"):
            refused()


def _client_of(server: RedisServer) -> redis.Redis:
    return redis.Redis(host="127.0.0.1", port=server.port)
