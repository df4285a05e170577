"""Sentinel: what the store needs beyond what tests/store shows on it, and a primary that dies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from bench.servers import SERVICE, SentinelServers
from harness import eventually
from load import Load
from orchestrator.exceptions import OrchError, StoreUnavailable, UnsuitableServer
from orchestrator.models import NewRun
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store

MakeSettings = Callable[[str], Settings]
MakeSentinel = Callable[..., SentinelServers]


def test_a_killed_primary_stops_work_until_a_replica_stands_in_and_no_run_given_out_is_lost_or_ends_twice(
    make_sentinel: MakeSentinel, settings_for: MakeSettings
) -> None:
    servers = make_sentinel()
    settings = settings_for(servers.url)
    with Load(settings, durability="replicated") as load:
        old = servers.primary()
        old.kill()
        servers.wait_for_new_primary(old)
        load.go_on()
        with open_store(settings) as store:
            load.expect_all(store)
    assert load.failures, "nobody noticed"


def test_a_blocked_read_ends_when_another_client_of_the_process_finds_the_new_primary(
    make_sentinel: MakeSentinel, settings_for: MakeSettings
) -> None:
    """A primary that does not answer any more closes no connection: a worker's blocked read used to sit its time out."""
    servers = make_sentinel(min_replicas=0)
    with open_store(settings_for(servers.url)) as store:
        store.pools.create("p")
        assert store.client.execute_command("WAIT", 2, 10_000) == 2
        old = servers.primary()
        ended: list[Exception] = []
        reading = threading.Thread(target=_wait_for_ever, args=(store, ended))
        reading.start()
        eventually(lambda: _blocked(old), what="the read to block")
        old.pause()
        servers.wait_for_new_primary(old)
        with pytest.raises(StoreUnavailable):
            store.ping()
        store.runs.create([NewRun("f", pool="p")])
        reading.join(20)
        old.resume()
        assert [type(error) for error in ended] == [StoreUnavailable]
        assert len(store.pools.wait_for_runs("p", "w", ["default"], timedelta(seconds=1))) == 1


def _wait_for_ever(store: Store, ended: list[Exception]) -> None:
    try:
        while True:
            store.pools.wait_for_control("w", "0", timedelta(seconds=5))
    except OrchError as error:
        ended.append(error)


def _blocked(server: Any) -> bool:
    return bool(server.ask("INFO", "clients").get("blocked_clients"))


def test_passwords_of_servers_and_of_sentinels_are_two_things(make_sentinel: MakeSentinel, settings_for: MakeSettings) -> None:
    servers = make_sentinel(password="s3rvers/@:", sentinel_password="s3ntinels &")
    with open_store(settings_for(servers.url)) as store:
        store.pools.create("p")
        assert "s3rvers" not in store.address
        assert "s3ntinels" not in store.address
    for wrong, complaint in (
        (servers.url.partition("sentinel_password")[0].rstrip("?"), "The Sentinel at .* refuses the login"),
        (servers.url.replace("s3ntinels", "other"), "The Sentinel at .* refuses the login"),
        (servers.url.replace("s3rvers", "other"), "refuses the login: invalid username-password"),
    ):
        with pytest.raises(StoreUnavailable, match=complaint) as caught:
            open_store(settings_for(wrong))
        assert "s3" not in str(caught.value)
        assert caught.value.hint


def test_wrong_services_and_wrong_servers_are_said_plainly(make_sentinel: MakeSentinel, settings_for: MakeSettings) -> None:
    servers = make_sentinel()
    sentinel, server = servers.sentinels[0], servers.servers[0]
    cases: list[tuple[str, type[OrchError], str, str]] = [
        (
            servers.url.replace(f"/{SERVICE}", "/rums"),
            StoreUnavailable,
            "knows no service 'rums'. Did you mean 'runs'",
            "It knows: runs",
        ),
        (f"redis+sentinel://127.0.0.1:{server.port}/runs", StoreUnavailable, "is no Sentinel", "usually port 26379"),
        (
            "redis+sentinel://127.0.0.1:1,127.0.0.1:2/runs",
            StoreUnavailable,
            "no Sentinel can be reached: 127.0.0.1:1 .*:2 ",
            "orch doctor",
        ),
        (f"redis://127.0.0.1:{sentinel.port}", UnsuitableServer, "runs in sentinel mode", "redis+sentinel://"),
    ]
    for url, kind, complaint, hint in cases:
        with pytest.raises(kind, match=complaint) as caught:
            open_store(settings_for(url))
        assert hint in (caught.value.hint or "")


def test_one_sentinel_that_answers_is_enough(make_sentinel: MakeSentinel, settings_for: MakeSettings) -> None:
    servers = make_sentinel()
    for sentinel in servers.sentinels[:2]:
        sentinel.kill()
    with open_store(settings_for(servers.url)) as store:
        store.ping()


def test_a_primary_without_replicas_and_one_that_would_write_alone_are_warned_of(
    make_sentinel: MakeSentinel, settings_for: MakeSettings
) -> None:
    servers = make_sentinel(replicas=1, min_replicas=0)
    with open_store(settings_for(servers.url)) as store:
        info = store.server_info()
        assert (info.kind, [replica.is_online for replica in info.replicas]) == ("sentinel", [True])
        assert "primary by Sentinel, 1 replica" in info.topology
        assert [warning.split()[0] for warning in info.warnings] == ["min-replicas-to-write"]
        servers.servers[1].kill()
        eventually(lambda: not store.server_info().replicas)
        assert [warning.split(" is")[0] for warning in store.server_info().warnings] == ["No replica", "min-replicas-to-write"]
