"""Clients that follow a primary: where several servers stand in for each other, one of them takes the writes, and it changes.

A ``Primary`` knows which server that is and finds it again; Sentinel and Cluster each have their way (``sentinel``,
``cluster``). A ``PrimaryPool`` is an ordinary pool of connections that all lead to it. So pipelines, transactions, blocking
reads and SCAN are what they are on one server.
"""

from __future__ import annotations

import socket
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, parse_url
from redis.retry import Retry

from orchestrator.exceptions import ConfigurationError
from orchestrator.settings import did_you_mean, shown_url

Host = tuple[str, int]

TLS_OPTIONS = (
    *("ssl_cert_reqs", "ssl_check_hostname"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"),
)
COMMON_OPTIONS = ("username", "password", *TLS_OPTIONS)

_ASKING_S = 1.0
"""How long to wait for one of several servers that can all say who the primary is: the next one is worth a try."""

_CONNECTING_S = 2.0
"""How long a primary may take to accept a connection. The one that is named may be a machine that has just vanished."""

_BLOCKING_MARGIN_S = 2.0
"""How long after its time a blocking read is given up: its server may be one that another stands in for by now."""

_KEEPALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}
"""A connection whose other end has vanished without a word is closed after five seconds, also while nothing is sent."""

STALE_REPLIES = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "NOREPLICAS", "UNBLOCKED")
"""Replies of a server that is not, or is not any more, the one to ask."""

STALE_WORDS = ("non local key", "cluster is down")
"""The same, as a script says it."""


def is_stale(error: BaseException) -> bool:
    """Whether a reply means that another server may be the primary by now. Nothing was done then."""
    if isinstance(error, redis.ReadOnlyError | redis.exceptions.ClusterDownError | redis.exceptions.TryAgainError):
        return True
    if isinstance(error, redis.exceptions.AskError):  # MovedError too
        return True
    text = str(error)
    return isinstance(error, redis.ResponseError) and (
        text.startswith(STALE_REPLIES) or any(words in text for words in STALE_WORDS)
    )


class Primary(ABC):
    """Which server takes the writes. Shared by all pools of a process that are about the same URL; thread-safe."""

    kind = ""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: Host | None = None
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()

    @abstractmethod
    def find(self) -> Host:
        """Ask those who know. Raises ConnectionError where nobody answers, StoreUnavailable where waiting cannot help."""

    @property
    @abstractmethod
    def askable(self) -> Sequence[Host]:
        """Those who can be asked, for people."""

    def check(self, connection: Any) -> None:  # noqa: B027 - most answers are to be trusted
        """Look at a fresh connection. Raises ConnectionError if it does not lead to a primary."""

    def address(self) -> Host:
        """Where the primary is; found first, if it is not known or was doubted."""
        known = self._known
        if known is not None:
            return known
        with self._lock:
            if self._known is None:
                self._settle(self.find())
            assert self._known is not None
            return self._known

    def doubt(self, address: Host) -> None:
        """Whoever was told to be the primary does not behave so: it is looked for again at the next occasion."""
        with self._lock:
            if self._known == address:
                self._known = None

    def learn(self, error: BaseException, address: Host) -> None:
        """Draw conclusions from an error that the server at ``address`` gave, or that talking to it gave."""
        if isinstance(error, redis.exceptions.MovedError):
            with self._lock:
                self._settle((error.host or address[0], error.port))
        elif is_stale(error) or isinstance(error, redis.ConnectionError | redis.TimeoutError):
            self.doubt(address)

    def follow(self, connection: Any) -> None:
        """Have a connection cut when another server becomes the primary, also while it blocks in a read."""
        with self._lock:
            self._connections.add(connection)

    def _settle(self, address: Host) -> None:
        self._known = address
        for connection in list(self._connections):
            if connection.address != address:
                connection.cut()


class _FollowingConnection(Connection):
    """A connection that leads to the primary whenever it is made, and is made anew when that is another one."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        self._primary = primary
        super().__init__(**options)  # type: ignore[no-untyped-call]

    @property
    def address(self) -> Host:
        """Where it leads, or led."""
        return self.host, self.port

    def connect(self) -> None:
        """Connect to the present primary, unless that is done."""
        address = self._primary.address()
        if self._sock is not None and self.address != address:
            self.disconnect()
        if self._sock is not None:
            return
        self.host, self.port = address
        try:
            super().connect()  # type: ignore[no-untyped-call]
            self._primary.check(self)
        except redis.RedisError as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            if isinstance(error, redis.ConnectionError | redis.TimeoutError):
                self._primary.doubt(address)
            raise
        self._primary.follow(self)

    def cut(self) -> None:
        """End whatever waits for an answer here. Safe in another thread: the socket stays open, and its owner closes it."""
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """As ever; a failure casts doubt on who is the primary."""
        try:
            super().send_packed_command(*arguments, **options)  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            self._primary.learn(error, self.address)
            raise

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """As ever; a failure casts doubt on who is the primary."""
        try:
            return super().read_response(*arguments, **options)
        except redis.RedisError as error:
            self._primary.learn(error, self.address)
            raise


class _FollowingTlsConnection(_FollowingConnection, SSLConnection):
    """The same over TLS."""


class PrimaryPool(redis.ConnectionPool):
    """Connections to whoever is the primary. ``options`` are those of redis-py's connections."""

    def __init__(self, primary: Primary, *, is_encrypted: bool, **options: Any) -> None:
        self.primary = primary
        super().__init__(
            connection_class=_FollowingTlsConnection if is_encrypted else _FollowingConnection, primary=primary, **options
        )


@dataclass(frozen=True)
class Servers:
    """What a URL of several servers says."""

    hosts: tuple[Host, ...]
    parts: tuple[str, ...]
    """What stands between the slashes behind the hosts."""
    login: dict[str, Any]
    """User, password and TLS, as redis-py's connections take them."""
    own: dict[str, str]
    """Options that are about more than a connection."""
    is_encrypted: bool

    def asking(self, host: Host, timeout_s: float, **login: Any) -> redis.Redis:
        """A client for one question to one of them."""
        timeout = min(timeout_s, _ASKING_S)
        options = {**self.login, **login, "socket_timeout": timeout, "socket_connect_timeout": timeout, **PLAIN}
        return redis.Redis(host=host[0], port=host[1], ssl=self.is_encrypted, **options)

    def client(self, primary: Primary, timeout_s: float, block_s: float, **more: Any) -> redis.Redis:
        """A client of the primary. ``block_s``: how long a read may block, 0 for a client that makes none."""
        pool = PrimaryPool(
            primary,
            is_encrypted=self.is_encrypted,
            socket_timeout=block_s + min(timeout_s, _BLOCKING_MARGIN_S) if block_s else timeout_s,
            socket_connect_timeout=min(timeout_s, _CONNECTING_S),
            socket_keepalive=True,
            socket_keepalive_options={getattr(socket, n): v for n, v in _KEEPALIVE.items() if hasattr(socket, n)},
            client_name="orch",
            decode_responses=False,
            driver_info=None,
            **{**self.login, **PLAIN, **more},
        )
        return redis.Redis(connection_pool=pool)


PLAIN: dict[str, Any] = {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
"""Answers as they always were, and no silent retries."""


def read_url(url: str, default_port: int, example: str, own_options: Sequence[str] = ()) -> Servers:
    """Take a URL of several servers apart: ``scheme://user:password@host:port,host:port/part/part?options``.

    Raises ConfigurationError, with ``example`` as the hint.
    """
    scheme, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    login, _, places = address.rpartition("@")
    # A password may hold a slash, and nothing else before the last @ is of interest.
    hosts, *parts = places.split("/")
    is_encrypted = scheme.startswith("rediss")
    options = [pair.partition("=") for pair in query.split("&") if pair]
    check_options(url, (name for name, _, _ in options), (*COMMON_OPTIONS, *own_options))
    common = "&".join("".join(option) for option in options if option[0] in COMMON_OPTIONS)
    try:
        read = {**_login(login), **_options(common)}
        own = _options("&".join("".join(option) for option in options if option[0] in own_options))
        found = tuple(_host(place, default_port) for place in hosts.split(","))
    except ValueError as error:
        raise ConfigurationError(f"The address {shown_url(url)} is wrong: {error}.", hint=f"Write {example}") from None
    return Servers(
        hosts=found,
        parts=tuple(part for part in parts if part),
        login={name: value for name, value in read.items() if name in COMMON_OPTIONS},
        own={name: value for name, value in own.items() if name in own_options},
        is_encrypted=is_encrypted,
    )


def check_options(url: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConfigurationError for an option that is not among those which a URL of its kind may have."""
    for name in names:
        if name not in known:
            address = shown_url(url.partition("?")[0])
            raise ConfigurationError(
                f"The address {address} has an unknown option {name!r}.{did_you_mean(name, known)}",
                hint=f"Known options: {', '.join(known)}",
            )


def spelled(host: Host) -> str:
    """A host and its port as people write them."""
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _options(query: str) -> dict[str, Any]:
    """The options of a query, of the types that redis-py wants. Raises ValueError."""
    read: dict[str, Any] = parse_url(f"redis://h:1?{query}")  # type: ignore[no-untyped-call]
    return read


def _login(text: str) -> dict[str, str]:
    """``user:password``, ``:password`` or nothing."""
    user, _, password = text.partition(":")
    return {name: unquote(value) for name, value in (("username", user), ("password", password)) if value}


def _host(text: str, default_port: int) -> Host:
    """``host``, ``host:port`` or ``[address]:port``. Raises ValueError."""
    name, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        name, port = text, str(default_port)
    name = name.removeprefix("[").removesuffix("]") if name.startswith("[") else name
    if not name or name != name.strip() or (":" in name and not text.startswith("[")):
        raise ValueError(f"{text!r} is no host" if text else "a host is missing")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} has no port from 1 to 65535")
    return name, int(port)
