"""Clients for Redis: how they connect, what is tried again and for how long, and whether a server may hold runs at all.

redis-py would by default re-send a command after a lost answer, ten times and silently; a command that is not idempotent would
run twice. Here it may not: every retry is made by ``retrying``, around one whole operation.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestrator import clock
from orchestrator.exceptions import ConfigurationError, OrchError, StoreFull, StoreUnavailable, UnsuitableServer
from orchestrator.keys import Keys
from orchestrator.settings import Settings, did_you_mean, shown_url
from orchestrator.store import cluster, sentinel
from orchestrator.store.embedded import OLDEST
from orchestrator.store.primary import TLS_OPTIONS, PrimaryPool, check_options, is_stale
from orchestrator.store.replication import Replica, read_replicas, topology
from orchestrator.store.replication import warnings as replication_warnings

T = TypeVar("T")

LONGEST_BLOCK = timedelta(seconds=5)
"""No blocking read may ask for more: the socket timeout of a blocking client is this and one ordinary timeout."""

SMALL_HASH_VALUE = 512
"""hash-max-listpack-value with which a run's hash stays compact: 761 bytes a run instead of 2,041."""

FULL_PERCENT = 80
"""Of its maxmemory; beyond it no run is taken in (``room``)."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_TRANSIENT_REPLIES = ("LOADING", "BUSY ")
_OPTIONS = ("db", "username", "password", "socket_keepalive", *TLS_OPTIONS)


def connect(url: str, settings: Settings, *, blocking: bool = False, beside: redis.Redis | None = None) -> redis.Redis:
    """A client for the server at ``url``; thread-safe, replies as bytes, no silent retries. Connects at its first command.

    ``blocking`` makes one for blocking reads: it waits for an answer as long as LONGEST_BLOCK and the ordinary timeout. With
    ``beside``, another client of the same URL, what one of them learns about a fail-over the other knows too.

    Raises ConfigurationError for a URL that no client can be made for.
    """
    scheme = url.partition("://")[0]
    make = _SCHEMES.get(scheme)
    if make is None:
        raise ConfigurationError(
            f"{shown_url(url)!r} is no address of a Redis server.{did_you_mean(scheme, _SCHEMES)}",
            hint=f"Write redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///PATH, {sentinel.EXAMPLE} or {cluster.EXAMPLE}",
        )
    return make(url, settings, LONGEST_BLOCK.total_seconds() * blocking, getattr(beside, "connection_pool", None))


def retrying(
    call: Callable[[], T],
    *,
    address: str,
    patience: timedelta,
    stop: threading.Event | None = None,
    on_failure: Callable[[Exception], None] | None = None,
) -> T:
    """Call until it answers, with growing, random pauses while Redis is away, for at most ``patience``.

    A lost answer looks like a lost question: ``call`` may have been performed, so it must be safe to repeat. ``stop`` ends the
    waiting early; ``on_failure`` hears of each failure that will be tried again.

    Raises StoreUnavailable when patience is over, and at once where waiting cannot help (wrong password, memory full). Errors
    that are about the command and not about the server pass through.
    """
    stop = stop or threading.Event()
    deadline = clock.monotonic() + patience.total_seconds()
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise (explain(error, address) or error) from error
            wait = min(pause * random.uniform(0.5, 1.5), max(0.0, deadline - clock.monotonic()))
            if clock.monotonic() >= deadline:
                raise StoreUnavailable(
                    f"Redis at {address} cannot be reached: {_text(error)}",
                    hint="Check that it runs and that ORCH_REDIS_URL is right; see both with: orch doctor",
                ) from error
            if on_failure:
                on_failure(error)
            if stop.wait(wait):
                raise StoreUnavailable(f"Stopped while Redis at {address} could not be reached: {_text(error)}") from error
            pause = min(pause * 2, _LONGEST_PAUSE_S)


def is_transient(error: BaseException) -> bool:
    """Whether the same command may succeed a little later: Redis is away, starting, failing over or moving a slot."""
    if isinstance(
        error, redis.AuthenticationError | redis.exceptions.AuthorizationError | redis.exceptions.MaxConnectionsError
    ):
        return False
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return is_stale(error) or (isinstance(error, redis.ResponseError) and str(error).startswith(_TRANSIENT_REPLIES))


def explain(error: BaseException, address: str) -> OrchError | None:
    """What to tell people where waiting does not help; None for an error that is about the command."""
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return StoreUnavailable(
            f"Redis at {address} refuses the login: {_text(error)}",
            hint="Put user and password into the URL: ORCH_REDIS_URL=redis://USER:PASSWORD@HOST:PORT/DB",
        )
    if isinstance(error, redis.exceptions.NoPermissionError):
        return StoreUnavailable(
            f"The user of Redis at {address} may not do this: {_text(error)}", hint="Give that user the right, or use another."
        )
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return StoreFull(
            f"Redis at {address} has reached its maxmemory and takes nothing new.",
            hint="Raise maxmemory on the server, or delete ended runs; see its memory with: orch doctor",
        )
    if isinstance(error, redis.ResponseError) and str(error).startswith("MISCONF"):
        return StoreUnavailable(
            f"Redis at {address} cannot write to its disk and takes nothing new: {_text(error)}",
            hint="Free space on the server's disk and read the server's log.",
        )
    if isinstance(error, redis.exceptions.InvalidResponse):
        return StoreUnavailable(
            f"What answers at {address} is no Redis server: {_text(error)}", hint="Check host and port in ORCH_REDIS_URL."
        )
    if isinstance(error, redis.ResponseError) and str(error).startswith("DB index is out of range"):
        return StoreUnavailable(
            f"Redis at {address} has no database of this number.",
            hint="Leave the number out of ORCH_REDIS_URL, or raise the server's setting 'databases'.",
        )
    if isinstance(error, redis.ConnectionError):
        return StoreUnavailable(f"Redis at {address} cannot be used: {_text(error)}")
    return None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says about itself. ``max_bytes`` is 0 where memory is not limited; ``warnings`` are sentences.

    ``kind`` is standalone, sentinel or cluster.
    """

    product: str
    version: str
    eviction_policy: str
    appendonly: bool
    appendfsync: str
    used_bytes: int
    max_bytes: int
    warnings: tuple[str, ...] = ()
    kind: str = "standalone"
    replicas: tuple[Replica, ...] = ()

    @property
    def topology(self) -> str:
        """One server, a primary that Sentinels watch or a Cluster's shard, and its replicas, in words."""
        return topology(self.kind, self.replicas)

    @property
    def persistence(self) -> str:
        """How writes reach the disk, in words."""
        return f"AOF, fsync {self.appendfsync}" if self.appendonly else "no AOF"


def check_server(client: redis.Redis, settings: Settings, *, address: str, patience: timedelta = timedelta(0)) -> ServerInfo:
    """Ask the server what it is, and refuse one that would lose runs.

    ``allow_unsafe_redis`` turns what would be refused into warnings, a version that is too old excepted: the scripts need it.

    Raises UnsuitableServer naming the server's setting and the override; StoreUnavailable as ``retrying`` does.
    """
    facts, configuration = retrying(lambda: (client.info(), _configuration(client)), address=address, patience=patience)
    pool = client.connection_pool
    info, problems = judge(facts, configuration, pool.primary.kind if isinstance(pool, PrimaryPool) else "standalone")
    fatal = [problem for problem in problems if problem.fatal]
    if fatal or (problems and not settings.allow_unsafe_redis):
        problem = (fatal or problems)[0]
        override = "" if fatal else " To go on all the same and risk losing runs, set ORCH_ALLOW_UNSAFE_REDIS=1"
        raise UnsuitableServer(
            f"{info.product} {info.version} at {address} {problem.what}.", hint=f"{problem.remedy}.{override}"
        )
    allowed = tuple(f"The server {problem.what}; ORCH_ALLOW_UNSAFE_REDIS allows it." for problem in problems)
    return replace(info, warnings=allowed + info.warnings)


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason not to trust a server with runs. ``fatal`` if no override helps."""

    what: str
    remedy: str
    fatal: bool = False


def judge(
    facts: Mapping[str, Any], configuration: Mapping[str, str], kind: str = "standalone"
) -> tuple[ServerInfo, list[Problem]]:
    """What a server's INFO and CONFIG mean for us. ``configuration`` is empty where CONFIG is forbidden."""
    is_valkey = "valkey_version" in facts
    product = "Valkey" if is_valkey else "Redis"
    version = str(facts.get("valkey_version") or facts.get("redis_version") or "0")
    info = ServerInfo(
        product=product,
        version=version,
        eviction_policy=configuration.get("maxmemory-policy") or str(facts.get("maxmemory_policy", "unknown")),
        appendonly=bool(facts.get("aof_enabled")),
        appendfsync=configuration.get("appendfsync", "unknown"),
        used_bytes=int(facts.get("used_memory", 0)),
        max_bytes=int(facts.get("maxmemory", 0)),
        kind=kind,
        replicas=read_replicas(facts),
    )
    return replace(info, warnings=tuple(_warnings(info, configuration))), list(_problems(info, facts))


_REMEDIES = {"sentinel": f"Write {sentinel.EXAMPLE}", "cluster": f"Write {cluster.EXAMPLE}"}


def _problems(info: ServerInfo, facts: Mapping[str, Any]) -> Iterator[Problem]:
    if _version(info.version) < OLDEST[info.product]:
        yield Problem(
            f"is too old: Orch needs {' or '.join(f'{name} {_dotted(oldest)}' for name, oldest in OLDEST.items())}",
            "Upgrade the server, or unset ORCH_REDIS_URL to use a private one",
            fatal=True,
        )
    mode = str(facts.get("server_mode") or facts.get("redis_mode") or "standalone")
    if mode != ("cluster" if info.kind == "cluster" else "standalone"):
        yield Problem(f"runs in {mode} mode, and the URL is not one for that", _REMEDIES.get(mode, ""), fatal=True)
    if info.eviction_policy != "noeviction":
        yield Problem(
            f"would drop runs when its memory is full: maxmemory-policy is {info.eviction_policy}",
            "On the server: CONFIG SET maxmemory-policy noeviction, and the same in its configuration file",
        )
    if not info.appendonly:
        yield Problem(
            "would forget runs when it restarts: appendonly is no",
            "On the server: CONFIG SET appendonly yes, and the same in its configuration file",
        )


def _warnings(info: ServerInfo, configuration: Mapping[str, str]) -> Iterator[str]:
    listpack = configuration.get("hash-max-listpack-value", "")
    if listpack.isdigit() and int(listpack) < SMALL_HASH_VALUE:
        yield (
            f"hash-max-listpack-value is {listpack}: runs with long parameters take up to three times the memory. "
            f"CONFIG SET hash-max-listpack-value {SMALL_HASH_VALUE}"
        )
    if info.appendonly and info.appendfsync == "no":
        yield "appendfsync is no: a crash of the server's machine may lose half a minute. CONFIG SET appendfsync everysec"
    if info.max_bytes and info.used_bytes * 100 > FULL_PERCENT * info.max_bytes:
        used = info.used_bytes / info.max_bytes
        yield f"Memory is {used:.0%} full; beyond {FULL_PERCENT}% no new runs are taken. Raise maxmemory."
    yield from replication_warnings(info.kind, info.replicas, configuration.get("min-replicas-to-write", ""))


def _configuration(client: redis.Redis) -> dict[str, str]:
    """The server's configuration as far as it concerns us; empty where a managed server forbids CONFIG."""
    try:
        answer: Mapping[Any, Any] = client.config_get(
            "maxmemory-policy", "appendfsync", "hash-max-listpack-value", "min-replicas-to-write"
        )
    except redis.ResponseError as error:
        if is_transient(error):
            raise
        return {}
    return {_decoded(name): _decoded(value) for name, value in answer.items()}


def _standalone(url: str, settings: Settings, block_s: float, _beside: Any) -> redis.Redis:
    """A client for one server, over TCP, TLS or a unix socket."""
    _check_url(url)
    try:
        pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            client_name="orch",
            driver_info=None,
            socket_timeout=settings.redis_timeout_s + block_s,
            socket_connect_timeout=settings.redis_timeout_s,
        )
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"The address {shown_url(url)} is wrong: {error}.") from None
    return redis.Redis(connection_pool=pool)


def _check_url(url: str) -> None:
    """Refuse what redis-py would accept and misread: an unknown option, a database that is no number, a wrong port."""
    try:
        parts = urlsplit(url)
        port_is_wrong = parts.port == 0
    except ValueError as error:
        raise ConfigurationError(f"The address {shown_url(url)} is wrong: {error}.") from None
    check_options(url, parse_qs(parts.query, keep_blank_values=True), _OPTIONS)
    database = parts.path.strip("/")
    if (
        port_is_wrong
        or (parts.scheme != "unix" and database and not database.isdigit())
        or (parts.scheme == "unix" and not database)
    ):
        raise ConfigurationError(
            f"The address {shown_url(url)} is wrong.", hint="Write redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH"
        )


def _by_sentinel(url: str, settings: Settings, block_s: float, beside: Any) -> redis.Redis:
    """A client for the primary that Sentinels name."""
    servers, service, database = sentinel.read(url)
    primary = beside.primary if beside else sentinel.SentinelPrimary(servers, service, settings.redis_timeout_s)
    return servers.client(primary, settings.redis_timeout_s, block_s, db=database)


def _in_cluster(url: str, settings: Settings, block_s: float, beside: Any) -> redis.Redis:
    """A client for the primary of the slot that the namespace's keys stand in."""
    servers = cluster.read(url)
    prefix = Keys(settings.namespace).prefix
    primary = beside.primary if beside else cluster.ClusterPrimary(servers, prefix, settings.redis_timeout_s)
    return servers.client(primary, settings.redis_timeout_s, block_s)


_SCHEMES: dict[str, Callable[[str, Settings, float, Any], redis.Redis]] = {
    "redis": _standalone,
    "rediss": _standalone,
    "unix": _standalone,
    "redis+sentinel": _by_sentinel,
    "rediss+sentinel": _by_sentinel,
    "redis+cluster": _in_cluster,
    "rediss+cluster": _in_cluster,
}
"""How to make a client, by the URL's scheme. Every kind of server has its place here."""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _decoded(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _text(error: BaseException) -> str:
    """An error's own words; redis-py's repr hides them."""
    return str(error).rstrip(".") + "." if str(error) else type(error).__name__
