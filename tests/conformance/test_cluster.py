"""Cluster: what the store needs beyond what tests/store shows on it; a primary that dies, and a slot that moves, under load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from redis.crc import key_slot

from bench.servers import ClusterServers, Node, OneServer
from harness import eventually, needs
from load import Load
from orchestrator.exceptions import OrchError, StoreUnavailable, UnsuitableServer
from orchestrator.keys import Keys
from orchestrator.models import NewRun
from orchestrator.settings import Settings
from orchestrator.store import open_store
from orchestrator.store.invariants import check

MakeSettings = Callable[[str], Settings]
MakeCluster = Callable[..., ClusterServers]


def slot_of(settings: Settings) -> int:
    """Where the namespace's keys stand."""
    return key_slot(Keys(settings.namespace).prefix.encode())


def another(servers: ClusterServers, source: Node) -> Node:
    """A primary that is not this one."""
    return next(server for server in servers.primaries() if server is not source)


def test_a_killed_primary_stops_its_namespaces_until_its_replica_stands_in_and_no_run_given_out_is_lost(
    make_cluster: MakeCluster, settings_for: MakeSettings
) -> None:
    servers = make_cluster()
    settings = settings_for(servers.url)
    with Load(settings, durability="replicated") as load:
        old = servers.owner(slot_of(settings))
        old.kill()
        servers.wait_for_new_owner(slot_of(settings), old)
        old.start()
        load.go_on()
        with open_store(settings) as store:
            load.expect_all(store)
    assert load.failures, "nobody noticed"


def test_a_slot_that_moves_as_a_whole_takes_its_namespace_along_under_load(
    cluster: ClusterServers, settings_for: MakeSettings
) -> None:
    settings = settings_for(cluster.url)
    slot = slot_of(settings)
    with Load(settings) as load:
        for _ in range(3):
            cluster.move_at_once(slot, another(cluster, cluster.owner(slot)))
            load.go_on()
        with open_store(settings) as store:
            load.expect_all(store)


@pytest.mark.parametrize("binary", ["", "redis-server"])
def test_a_slot_that_moves_key_by_key_stops_its_namespace_and_leaves_nothing_half_done(
    make_cluster: MakeCluster, settings_for: MakeSettings, binary: str
) -> None:
    servers = make_cluster(binary=Path(needs(binary, binary)) if binary else None)
    settings = settings_for(servers.url)
    slot = slot_of(settings)
    with Load(settings) as load:
        target = another(servers, servers.owner(slot))
        source = servers.begin_slow_move(slot, target)
        failed = len(load.failures)
        eventually(lambda: len(load.failures) > failed + 1, what="the load to be refused")
        finished = len(load.finished)
        assert servers.move_keys(slot, source, target, at_most=7) == 7
        failed = len(load.failures)
        eventually(lambda: len(load.failures) > failed + 3, what="the load to be refused while the keys are in two places")
        assert len(load.finished) == finished
        servers.move_keys(slot, source, target)
        servers.end_slow_move(slot, source, target)
        load.go_on()
        with open_store(settings) as store:
            load.expect_all(store)


def test_no_script_begins_on_a_server_that_may_lack_some_of_its_keys(
    make_cluster: MakeCluster, settings_for: MakeSettings
) -> None:
    """Its one declared key is the prefix, under which nothing stands: a server that gives keys away answers ASK for it."""
    servers = make_cluster()
    settings = settings_for(servers.url)
    slot = slot_of(settings)
    with open_store(settings) as store:
        store.pools.create("p")
        run = store.runs.create([NewRun("f", pool="p")])[0].id
        assert store.client.exists(store.keys.prefix) == 0
        target = another(servers, servers.owner(slot))
        source = servers.begin_slow_move(slot, target)
        before = _scripts_begun(source)
        for refused in (
            lambda: store.runs.create([NewRun("f", pool="p")]),
            lambda: store.runs.claim("w", "p", ["default"], 1),
            lambda: store.runs.cancel(run),
        ):
            with pytest.raises(StoreUnavailable):
                refused()
        assert _scripts_begun(source) == before
        servers.move_keys(slot, source, target)
        servers.end_slow_move(slot, source, target)
        assert [claimed.id for claimed in store.runs.claim("w", "p", ["default"], 1).claimed] == [run]
        assert not check(store)


def _scripts_begun(server: Node) -> int:
    return int(server.ask("INFO", "commandstats")["cmdstat_evalsha"]["calls"])


def test_namespaces_of_all_shards_work_and_know_only_their_own_keys(
    cluster: ClusterServers, settings_for: MakeSettings
) -> None:
    owners = set()
    for number in range(12):
        settings = replace(settings_for(cluster.url), namespace=f"n{number}")
        owners.add(cluster.owner(slot_of(settings)).port)
        with open_store(settings) as store:
            store.pools.create("p")
            store.runs.create([NewRun("f", pool="p"), NewRun("f", pool="p")])
            assert store.queries.count() == 2
            assert all(key.startswith(store.keys.prefix.encode()) for key in store.client.scan_iter(f"{store.keys}*"))
    assert len(owners) == 3


def test_any_node_leads_to_the_right_one_and_is_named_when_none_answers(
    cluster: ClusterServers, settings_for: MakeSettings
) -> None:
    for node in cluster.servers:
        with open_store(settings_for(f"redis+cluster://127.0.0.1:1,127.0.0.1:{node.port}")) as store:
            info = store.server_info()
            assert (info.kind, info.topology.partition(",")[0], info.warnings) == ("cluster", "shard of a Cluster", ())
    with pytest.raises(StoreUnavailable, match=r"no node of the Cluster knows the primary: 127\.0\.0\.1:1 .*127\.0\.0\.1:2 "):
        open_store(settings_for("redis+cluster://127.0.0.1:1,127.0.0.1:2"))


def test_wrong_kinds_of_server_are_said_plainly(cluster: ClusterServers, settings_for: MakeSettings) -> None:
    with OneServer() as single:
        single.start()
        cases: list[tuple[str, type[OrchError], str, str]] = [
            (
                f"redis+cluster://127.0.0.1:{single.server.port}",
                StoreUnavailable,
                "not part of a Cluster",
                "redis://HOST:PORT/DB",
            ),
            (f"redis://127.0.0.1:{cluster.servers[0].port}", UnsuitableServer, "runs in cluster mode", "redis+cluster://"),
        ]
        for url, kind, complaint, hint in cases:
            with pytest.raises(kind, match=complaint) as caught:
                open_store(settings_for(url))
            assert hint in (caught.value.hint or "")
    with pytest.raises(StoreUnavailable, match="refuses the login"):
        open_store(settings_for(f"redis+cluster://:wrong@127.0.0.1:{cluster.servers[0].port}"))
