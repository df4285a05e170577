"""Clients, retries and the checks of a server, on real servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from harness import SAFE, RedisServer, eventually
from orchestrator.exceptions import ConfigurationError, StoreUnavailable, UnsuitableServer
from orchestrator.keys import Keys
from orchestrator.settings import Settings
from orchestrator.store import connection
from orchestrator.store.connection import check_server, connect, is_transient, retrying

NO_PATIENCE = timedelta(0)
PATIENCE = timedelta(seconds=20)

MakeServer = Callable[..., RedisServer]


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """Start servers with settings of one's own; they end with the test."""
    started: list[RedisServer] = []

    def make(*flags: str, **options: Any) -> RedisServer:
        started.append(RedisServer(*flags, **options))
        return started[-1].start()

    yield make
    for server in started:
        server.stop()


def _replaced(**flags: str) -> tuple[str, ...]:
    """The flags of a server as Orch wants it, with some of them changed."""
    pairs = dict(zip(SAFE[::2], SAFE[1::2], strict=True)) | {
        f"--{name.replace('_', '-')}": value for name, value in flags.items()
    }
    return tuple(part for pair in pairs.items() for part in pair)


def _check(server: RedisServer, **options: Any) -> connection.ServerInfo:
    settings = Settings(redis_url=server.url, **options)
    with connect(server.url, settings) as client:
        return check_server(client, settings, address="here")


def test_a_well_set_up_server_passes_without_a_warning(server: RedisServer) -> None:
    info = _check(server)
    assert (info.eviction_policy, info.persistence, info.warnings) == ("noeviction", "AOF, fsync everysec", ())
    assert (info.product, int(info.version.split(".")[0])) in (("Valkey", 9), ("Redis", 7), ("Redis", 8))
    assert info.used_bytes > 0


@pytest.mark.parametrize(
    ("flags", "setting", "remedy"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
        ({"appendonly": "no"}, "appendonly is no", "CONFIG SET appendonly yes"),
        ({"appendonly": "no", "save": "60 1"}, "appendonly is no", "CONFIG SET appendonly yes"),
    ],
)
def test_a_server_that_would_lose_runs_is_refused_by_its_setting_and_with_the_override(
    make_server: MakeServer, flags: dict[str, str], setting: str, remedy: str
) -> None:
    server = make_server(*_replaced(**flags))
    with pytest.raises(UnsuitableServer, match=setting) as caught:
        _check(server)
    assert remedy in (caught.value.hint or "")
    assert "ORCH_ALLOW_UNSAFE_REDIS=1" in (caught.value.hint or "")
    info = _check(server, allow_unsafe_redis=True)
    assert [setting in warning for warning in info.warnings] == [True]


def test_doing_what_the_hint_says_makes_the_server_suitable(make_server: MakeServer) -> None:
    server = make_server(*_replaced(maxmemory_policy="allkeys-lru", appendonly="no", hash_max_listpack_value="64"))
    for _ in range(2):
        with pytest.raises(UnsuitableServer) as caught:
            _check(server)
        words = (caught.value.hint or "").partition("CONFIG SET ")[2].replace(",", "").split()
        with redis.Redis.from_url(server.url) as client:
            client.config_set(words[0], words[1])
    assert [warning.split()[0] for warning in _check(server).warnings] == ["hash-max-listpack-value"]


def test_memory_that_is_nearly_full_is_warned_of(make_server: MakeServer) -> None:
    server = make_server(*SAFE, "--maxmemory", "100mb")
    used = _check(server).used_bytes
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", round(used * 1.15))
    assert any("% full" in warning for warning in _check(server).warnings)


def test_where_config_is_forbidden_info_tells(make_server: MakeServer) -> None:
    forbidden = ("--rename-command", "CONFIG", "")
    assert _check(make_server(*SAFE, *forbidden)).eviction_policy == "noeviction"
    with pytest.raises(UnsuitableServer, match="maxmemory-policy is allkeys-lru"):
        _check(make_server(*_replaced(maxmemory_policy="allkeys-lru"), *forbidden))


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"redis_version": "6.2.14"}, "too old: Orch needs Redis 7.0 or Valkey 8.0"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, "too old"),
        ({"redis_version": "7.4.0", "redis_mode": "sentinel"}, "sentinel mode"),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0", "server_mode": "cluster"}, "cluster mode"),
    ],
)
def test_what_no_override_helps_against_is_fatal(facts: dict[str, str], complaint: str) -> None:
    _, problems = connection.judge({"aof_enabled": 1, "maxmemory_policy": "noeviction", **facts}, {})
    assert [problem.fatal for problem in problems] == [True]
    assert complaint in problems[0].what


@pytest.mark.parametrize("version", ["7.0.0", "7.4.1", "8.2.0", "10.0.0"])
def test_every_redis_from_7_0_on_will_do(version: str) -> None:
    facts = {"redis_version": version, "aof_enabled": 1, "maxmemory_policy": "noeviction"}
    assert connection.judge(facts, {})[1] == []


def test_a_server_over_tcp_with_a_password_is_reached(make_server: MakeServer) -> None:
    server = make_server(tcp=True, password="hunter2")
    assert server.url.startswith("redis://:hunter2@127.0.0.1:")
    assert _check(server).product == "Valkey"


@pytest.mark.parametrize("login", ["", ":wrong@"])
def test_a_wrong_password_is_an_error_at_once_that_does_not_repeat_it(make_server: MakeServer, login: str) -> None:
    server = make_server(tcp=True, password="hunter2")
    url = f"redis://{login}127.0.0.1:{server.port}/0"
    settings = Settings(redis_url=url)
    with connect(url, settings) as client, pytest.raises(StoreUnavailable, match="refuses the login") as caught:
        check_server(client, settings, address="here", patience=timedelta(days=1))
    assert "ORCH_REDIS_URL=redis://USER:PASSWORD@" in (caught.value.hint or "")
    assert "hunter2" not in str(caught.value)
    assert "wrong@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://h", "no address of a Redis server"),
        ("h:6379", "no address of a Redis server"),
        ("reddis://h", "Did you mean 'redis'"),
        ("redis+sentinel://:hunter2@h,g:26380", "names no service"),
        ("redis+sentinel://h/service/zero", "is wrong"),
        ("redis+sentinel://h/service/0/more", "is wrong"),
        ("redis+sentinel:///service", "a host is missing"),
        ("redis+sentinel://h,,g/service", "a host is missing"),
        ("redis+sentinel://:hunter2@h:port/service", "no port from 1 to 65535"),
        ("redis+sentinel://h:70000/service", "no port from 1 to 65535"),
        ("redis+sentinel://h/service?sentinel_pasword=hunter2", "Did you mean 'sentinel_password'"),
        ("redis+sentinel://h/service?db=1", "unknown option 'db'"),
        ("redis+cluster://:hunter2@h/1", "one database"),
        ("redis+cluster://h/service", "one database"),
        ("redis+cluster://h:0", "no port from 1 to 65535"),
        ("redis+cluster://h?sentinel_password=hunter2", "unknown option 'sentinel_password'"),
        ("redis+cluster://::1:6379", "is no host"),
        ("redis+clutser://h", "Did you mean 'redis.cluster'"),
        ("redis://h:port/0", "is wrong"),
        ("redis://h/zero", "is wrong"),
        ("redis://h:0/0", "is wrong"),
        ("redis://h?protcol=hunter2", "unknown option 'protcol'"),
        ("redis://h?decode_responses=yes", "unknown option 'decode_responses'"),
        ("redis://h?db=x", "is wrong"),
        ("unix://", "is wrong"),
        ("redis://:hunter2@[::1/0", "is wrong"),
    ],
)
def test_a_wrong_address_is_an_error_before_anything_is_sent(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint.replace("(", r"\(")) as caught:
        connect(url, Settings())
    assert "hunter2" not in str(caught.value)


def test_tls_addresses_make_tls_clients() -> None:
    with connect("rediss://h:6380/1?ssl_cert_reqs=required", Settings()) as client:
        assert client.connection_pool.connection_class is redis.SSLConnection


def test_a_client_answers_in_bytes_and_never_sends_a_command_twice(server: RedisServer, settings: Settings) -> None:
    key = f"{Keys(settings.namespace)}key"
    with connect(server.url, settings) as client:
        client.set(key, "value")
        assert client.get(key) == b"value"
        client.delete(key)
        connection_ = client.connection_pool.get_connection()
        try:
            assert connection_.retry._retries == 0
            assert (connection_.protocol, connection_.socket_timeout) == (2, settings.redis_timeout_s)
        finally:
            client.connection_pool.release(connection_)


def test_a_blocking_client_waits_longer_than_the_longest_block(server: RedisServer, settings: Settings) -> None:
    with connect(server.url, settings, blocking=True) as client:
        timeout = client.connection_pool.connection_kwargs["socket_timeout"]
    assert timeout > connection.LONGEST_BLOCK.total_seconds()


def test_a_lost_answer_is_not_asked_for_again_by_the_client(make_server: MakeServer) -> None:
    server = make_server()
    settings = Settings(redis_timeout_s=0.2)
    with connect(server.url, settings) as client:
        client.set("count", 0)
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.incr("count")
        server.resume()
        assert client.get("count") == b"1"


def test_an_operation_goes_on_by_itself_when_redis_is_back(make_server: MakeServer) -> None:
    server = make_server()
    settings = Settings()
    away, failures = threading.Event(), []

    def failed(error: Exception) -> None:
        failures.append(error)
        away.set()

    with connect(server.url, settings) as client:
        client.set("key", "kept")
        server.kill()
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                retrying(lambda: client.get("key"), address="here", patience=PATIENCE, on_failure=failed)
            )
        )
        asking.start()
        assert away.wait(20)
        server.start()
        asking.join(20)
    assert answers == [b"kept"]
    assert all(is_transient(failure) for failure in failures)


def test_when_patience_is_over_the_error_names_the_address(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/nothing.sock"
    with (
        connect(url, Settings()) as client,
        pytest.raises(StoreUnavailable, match=r"at here cannot be reached: .*No such file"),
    ):
        retrying(client.ping, address="here", patience=NO_PATIENCE)


def test_waiting_for_redis_ends_at_once_when_it_is_told_to_stop(tmp_path: Path) -> None:
    stop = threading.Event()
    with (
        connect(f"unix://{tmp_path}/nothing.sock", Settings()) as client,
        pytest.raises(StoreUnavailable, match="Stopped while"),
    ):
        retrying(client.ping, address="here", patience=timedelta(days=1), stop=stop, on_failure=lambda _: stop.set())


def test_a_full_server_says_so_at_once(make_server: MakeServer) -> None:
    server = make_server(*SAFE, "--maxmemory", "1")
    with connect(server.url, Settings()) as client, pytest.raises(StoreUnavailable, match="reached its maxmemory") as caught:
        retrying(lambda: client.set("key", "value"), address="here", patience=timedelta(days=1))
    assert "maxmemory" in (caught.value.hint or "")


def test_what_a_user_may_not_do_is_said_at_once(make_server: MakeServer) -> None:
    server = make_server()
    with redis.Redis.from_url(server.url) as admin:
        admin.acl_setuser("reader", enabled=True, passwords=["+p"], categories=["+@read"], keys=["*"])
    url = server.url.replace("unix://", "unix://reader:p@")
    with connect(url, Settings()) as client, pytest.raises(StoreUnavailable, match="may not do this"):
        retrying(lambda: client.set("key", "value"), address="here", patience=timedelta(days=1))


def test_an_error_about_the_command_passes_through(server: RedisServer, settings: Settings) -> None:
    with connect(server.url, settings) as client, pytest.raises(redis.exceptions.NoScriptError):
        retrying(lambda: client.evalsha("0" * 40, 0), address="here", patience=PATIENCE)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (redis.ConnectionError("Connection refused"), True),
        (redis.TimeoutError("Timeout reading from socket"), True),
        (redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"), True),
        (redis.ReadOnlyError("You can't write against a read only replica."), True),
        (redis.exceptions.ClusterDownError("The cluster is down"), True),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), True),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (redis.ResponseError("UNBLOCKED the stream key no longer exists"), True),
        (redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), False),
        (redis.ResponseError("MISCONF Errors writing to the AOF file"), False),
        (redis.AuthenticationError("invalid username-password pair"), False),
        (redis.exceptions.NoPermissionError("this user has no permissions"), False),
        (redis.exceptions.OutOfMemoryError("command not allowed"), False),
        (redis.exceptions.NoScriptError("No matching script."), False),
        (redis.ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), False),
        (redis.exceptions.MaxConnectionsError("Too many connections"), False),
        (ValueError("ours"), False),
    ],
)
def test_only_what_time_can_mend_is_tried_again(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_a_full_disk_is_explained() -> None:
    explained = connection.explain(redis.ResponseError("MISCONF Errors writing to the AOF file: No space left"), "here")
    assert "cannot write to its disk" in str(explained)


def test_a_database_that_the_server_does_not_have_is_said_plainly(make_server: MakeServer) -> None:
    url = f"redis://127.0.0.1:{make_server(tcp=True).port}/99"
    settings = Settings(redis_url=url)
    with connect(url, settings) as client, pytest.raises(StoreUnavailable, match="has no database of this number"):
        check_server(client, settings, address="here", patience=PATIENCE)


def test_what_does_not_speak_the_protocol_is_no_redis() -> None:
    """A web server's answer used to be an error that nobody expected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=_answer_like_a_web_server, args=(listener,))
        answering.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        settings = Settings(redis_url=url)
        with connect(url, settings) as client, pytest.raises(StoreUnavailable, match="at here is no Redis server") as caught:
            check_server(client, settings, address="here", patience=PATIENCE)
        answering.join()
    assert caught.value.hint == "Check host and port in ORCH_REDIS_URL."


def _answer_like_a_web_server(listener: socket.socket) -> None:
    link, _ = listener.accept()
    with link:
        link.recv(1000)
        link.sendall(b"<!DOCTYPE HTML>\r\n<p>Bad request\r\n")


def test_a_server_that_is_still_reading_its_data_is_waited_for(make_server: MakeServer) -> None:
    server = make_server()
    asked = []

    def ask() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory")
        return "ready"

    assert retrying(ask, address=server.url, patience=PATIENCE) == "ready"


def test_threads_share_a_client(server: RedisServer, settings: Settings) -> None:
    done: list[int] = []
    with connect(server.url, settings) as client:

        def work() -> None:
            for _ in range(50):
                client.incr(f"{Keys(settings.namespace)}count")
            done.append(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(done) == 8)
        for thread in threads:
            thread.join()
        assert client.getdel(f"{Keys(settings.namespace)}count") == b"400"
