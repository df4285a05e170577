"""Durability ``replicated``: what is told to somebody is on a replica, or it is an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.servers import Node, SentinelServers
from orchestrator.exceptions import NotReplicated, StoreUnavailable
from orchestrator.keys import new_id, shorten
from orchestrator.models import NewRun
from orchestrator.settings import Settings
from orchestrator.states import State, StateType
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End, Start, Turn
from orchestrator.store.invariants import check

MakeSettings = Callable[[str], Settings]
MakeSentinel = Callable[..., SentinelServers]
COMPLETED = State(StateType.COMPLETED)


def _open(settings: Settings, durability: str = "replicated") -> Store:
    with open_store(settings) as store:
        store.write_settings(replace(store.settings, durability=durability))
        if not store.pools.exists("p"):
            store.pools.create("p")
    return open_store(settings)


def _replicas(servers: SentinelServers) -> list[Node]:
    return [server for server in servers.servers if server is not servers.primary()]


@pytest.fixture
def servers(make_sentinel: MakeSentinel) -> SentinelServers:
    """A primary whose replicas may be stopped for a while."""
    return make_sentinel(min_replicas=0, down_after_ms=30_000)


def test_a_write_that_no_replica_confirms_is_an_error_that_says_it_stands_and_may_be_repeated(
    servers: SentinelServers, settings_for: MakeSettings
) -> None:
    with _open(settings_for(servers.url)) as store:
        new = NewRun("f", id=new_id(), pool="p", idempotency_key="once")
        store.runs.create([NewRun("f", pool="p")])
        replicas = _replicas(servers)
        for replica in replicas:
            replica.pause()
        with pytest.raises(NotReplicated, match=r"stands on the primary at .*no replica has confirmed it within") as caught:
            store.runs.create([new])
        assert isinstance(caught.value, StoreUnavailable)
        assert "idempotency key or id" in (caught.value.hint or "")
        # "existing" writes nothing of its own, and all the same it may not be told before a replica has the run.
        with pytest.raises(NotReplicated):
            store.runs.create([new])
        for replica in replicas:
            replica.resume()
        assert [created.answer for created in store.runs.create([new])] == ["existing"]
        for replica in replicas:
            assert replica.ask("EXISTS", store.keys.run(shorten(new.id))) == 1
        assert not check(store)


def test_an_end_is_only_confirmed_when_a_replica_has_it_and_goes_on_being_asked_for(
    servers: SentinelServers, settings_for: MakeSettings
) -> None:
    with _open(settings_for(servers.url)) as store:
        first, second = (created.id for created in store.runs.create([NewRun("f", pool="p"), NewRun("f", pool="p")]))
        assert len(store.runs.claim("w", "p", ["default"], 2).claimed) == 2
        replicas = _replicas(servers)
        for replica in replicas:
            replica.pause()
        turned = store.runs.exchange(Turn("w", starts=[Start(second, 1, "Running")], ends=[End(first, 1, COMPLETED)]))
        assert isinstance(turned.ends, NotReplicated)
        assert turned.refused == []
        with pytest.raises(NotReplicated):
            store.runs.finish([End(first, 1, COMPLETED)], worker="w")
        for replica in replicas:
            replica.resume()
        assert store.runs.finish([End(first, 1, COMPLETED)], worker="w") == ["again"]
        assert store.runs.get(second).state.name == "Running"


def test_without_a_replica_nothing_is_written_and_the_hint_says_how_to_lower_the_durability(
    make_sentinel: MakeSentinel, settings_for: MakeSettings
) -> None:
    servers = make_sentinel(replicas=0, min_replicas=0)
    with _open(settings_for(servers.url), "default") as plain:
        plain.runs.create([NewRun("f", pool="p")])
        plain.write_settings(replace(plain.settings, durability="replicated"))
        with open_store(plain._configuration) as store:
            with pytest.raises(NotReplicated, match=r"No replica of Redis at .* is connected.*Nothing was written") as caught:
                store.runs.create([NewRun("f", pool="p")])
            assert "--durability default" in (caught.value.hint or "")
            assert store.queries.count() == 1
            # What is told to nobody goes on: a worker renews, claims and reports starts.
            assert len(store.runs.claim("w", "p", ["default"], 1).claimed) == 1


def test_by_default_nothing_waits(servers: SentinelServers, settings_for: MakeSettings) -> None:
    with _open(settings_for(servers.url), "default") as store:
        run = store.runs.create([NewRun("f", pool="p")])[0].id
        store.runs.claim("w", "p", ["default"], 1)
        store.runs.finish([End(run, 1, COMPLETED)], worker="w")
        assert "cmdstat_wait" not in servers.primary().ask("INFO", "commandstats")
