"""The store: one namespace of one Redis, a set of small objects over one connection pool, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from orchestrator import clock
from orchestrator.clock import FrozenClock
from orchestrator.exceptions import ConfigurationError, StoreUnavailable
from orchestrator.keys import Keys
from orchestrator.models import Run
from orchestrator.settings import Settings, load, shown_url
from orchestrator.store import embedded as private_server
from orchestrator.store.client import Client
from orchestrator.store.connection import ServerInfo, check_server, connect
from orchestrator.store.deployments import Deployments
from orchestrator.store.documents import Documents
from orchestrator.store.durability import PATIENCE, Confirmation
from orchestrator.store.events import Events
from orchestrator.store.explain import Explanation, explain
from orchestrator.store.failover import SCHEMA, Failover, Submitted, check_schema, count_connections
from orchestrator.store.letters import Letters
from orchestrator.store.limits import Limits
from orchestrator.store.pools import Pools
from orchestrator.store.queries import Queries
from orchestrator.store.runs import Runs
from orchestrator.store.scripts import RETENTION_MS, Scripts

SHORTEST_LEASE = timedelta(seconds=1)
LONGEST_LEASE = timedelta(hours=1)
SHORTEST_RETENTION = timedelta(minutes=1)
DURABILITIES = ("default", "replicated")


@dataclass(frozen=True, slots=True)
class NamespaceSettings:
    """What all processes of a namespace must agree on; stored there, so that no client can differ.

    A worker that cannot renew its leases stops its runs at ``self_kill``; ``silence`` is how long a worker or a scheduler may
    say nothing before it counts as gone. ``durability`` is when a write counts: ``default``, as soon as the server has it;
    ``replicated``, when a replica has it too. ``schema`` is the form in which the namespace is written, see docs/upgrading.md;
    it is not changed here.
    """

    lease: timedelta = timedelta(seconds=15)
    retention: timedelta = timedelta(milliseconds=RETENTION_MS)
    durability: str = "default"
    schema: int = SCHEMA

    @property
    def renew(self) -> timedelta:
        """How often leases are renewed."""
        return self.lease / 3

    @property
    def self_kill(self) -> timedelta:
        """How long after its last accepted renewal a worker trusts a lease: its runs are dead before others may start them."""
        return self.lease * 13 / 15

    @property
    def silence(self) -> timedelta:
        """How long without a heartbeat means gone."""
        return self.lease * 2

    def stored(self) -> dict[str, str]:
        """The settings by name, as Redis keeps them and processes tell them."""
        durations = {"lease_ms": self.lease, "retention_ms": self.retention}
        values = {name: str(round(duration / timedelta(milliseconds=1))) for name, duration in durations.items()}
        return {**values, "durability": self.durability}

    @classmethod
    def read(cls, stored: Mapping[str, str]) -> NamespaceSettings:
        """What ``stored`` gave; the default of what is missing, and what this release does not know is left out."""
        values: dict[str, Any] = {}
        for name, text in stored.items():
            if name in ("lease_ms", "retention_ms"):
                values[name.removesuffix("_ms")] = timedelta(milliseconds=int(text))
            elif name == "durability":
                values[name] = text
            elif name == "schema":
                values[name] = int(text)
        return cls(**values)

    def check(self) -> None:
        """Raises ConfigurationError for what processes could not live with."""
        if not SHORTEST_LEASE <= self.lease <= LONGEST_LEASE:
            raise ConfigurationError(
                f"A lease of {self.lease.total_seconds():g} s cannot be kept.",
                hint="Give 1 s to 1 h: a shorter one is over when a process is late for a moment, a longer one makes crashed "
                "runs wait.",
            )
        if self.retention < SHORTEST_RETENTION:
            raise ConfigurationError(
                f"A retention of {self.retention.total_seconds():g} s deletes runs while people still look at them.",
                hint="Give 1 minute or more.",
            )
        if self.durability not in DURABILITIES:
            raise ConfigurationError(
                f"There is no durability {self.durability!r}.", hint=f"The levels are: {', '.join(DURABILITIES)}"
            )


class Store:
    """Everything Orch keeps in one namespace of one Redis."""

    def __init__(self, url: str, settings: Settings, *, frozen: FrozenClock | None = None) -> None:
        self.namespace = settings.namespace
        self.keys = Keys(settings.namespace)
        self.address = shown_url(url)
        self.embedded = settings.redis_url is None
        self.client = Client(connect(url, settings), self.address)
        connections = count_connections(self.client)
        self.blocking = Client(connect(url, settings, blocking=True, beside=self.client), self.address)
        self._configuration = settings
        self.scripts = Scripts(self.client, self.keys.prefix, frozen)
        self.settings, epoch = self._read_settings()
        if self.settings.durability == "replicated":
            patience = min(PATIENCE, timedelta(seconds=settings.redis_timeout_s / 2), self.settings.lease / 5)
            self.scripts.confirmation = Confirmation(self.client, self.keys.confirmed, patience)
        self.failover = Failover(self.client, self.scripts, self.keys, self.settings.lease, epoch)
        submitted = Submitted(self.failover, connections)
        self.runs = Runs(self.client, self.scripts, self.keys, self.settings.lease, submitted)
        self.letters = Letters(self.client, self.scripts, self.keys)
        self.limits = Limits(self.client, self.scripts, self.keys, self.settings.silence)
        self.events = Events(self.client, self.keys)
        self.documents = Documents(self.client, self.keys)
        self.pools = Pools(
            self.client, self.blocking, self.scripts, self.keys, self.limits, self.settings.silence, self.settings.stored()
        )
        self.queries = Queries(self.client, self.blocking, self.keys, self.runs, self.events)
        self.deployments = Deployments(self.client, self.scripts, self.keys, self.limits, self.runs, self.queries)

    def _read_settings(self) -> tuple[NamespaceSettings, Mapping[bytes, bytes]]:
        """The namespace's settings and its epoch as it is stored, in one round trip."""
        pipeline = self.client.pipeline(transaction=False)
        pipeline.hgetall(self.keys.settings)
        pipeline.hgetall(self.keys.epoch)
        stored, epoch = pipeline.execute()
        settings = NamespaceSettings.read({name.decode(): value.decode() for name, value in stored.items()})
        check_schema(self.namespace, settings.schema)
        return settings, epoch

    def write_settings(self, settings: NamespaceSettings) -> None:
        """Change what the namespace's processes agree on. Each reads it when it starts.

        Raises ConfigurationError, and nothing is changed.
        """
        settings.check()
        values: dict[Any, Any] = settings.stored()
        self.client.hset(self.keys.settings, mapping=values)

    def now(self) -> datetime:
        """Redis's clock, or the frozen one."""
        return clock.from_ms(self.scripts.now_ms())

    def ping(self) -> None:
        """Raises StoreUnavailable unless Redis answers."""
        self.client.ping()

    def revive(self) -> bool:
        """For who has lost touch: start the private server again if this store's is one and it died; whether that was done.

        Takes milliseconds, does not wait until the server answers, and never raises.
        """
        return self.embedded and private_server.revive(self._configuration.home)

    def server_info(self) -> ServerInfo:
        """What the server is and how it is set up."""
        return check_server(self.client, self._configuration, address=self.address)

    def explain(self, run: Run) -> Explanation:
        """Why a run is not running, in a sentence, and what would help."""
        return explain(self, run)

    def stop_waiting(self) -> None:
        """End this store's blocking reads, from another thread: nothing is handed to them any more."""
        self.blocking.connection_pool.disconnect()

    def close(self) -> None:
        """Drop the connections. The server, also a private one, goes on."""
        self.client.connection_pool.disconnect()
        self.stop_waiting()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_store(
    settings: Settings | None = None,
    *,
    start_embedded: bool = True,
    announce: Callable[[str], None] | None = None,
    frozen: FrozenClock | None = None,
) -> Store:
    """Connect to the configured Redis; with none configured, to the private one of this ORCH_HOME, started if need be.

    ``announce`` hears in one line that a private server was started or joined. ``frozen`` stands in for Redis's clock in tests.

    Raises StoreUnavailable (also when no private server runs and none may be started), UnsuitableServer.
    """
    settings = settings or load()
    if settings.redis_url is None and not start_embedded and not private_server.running(settings.home):
        raise StoreUnavailable(
            "No Redis is configured and no private one runs.", hint="Start one with: orch server start, or set ORCH_REDIS_URL"
        )
    url = settings.redis_url or private_server.ensure(settings, announce)
    address = shown_url(url)
    patience = timedelta(seconds=settings.redis_retry_s) if settings.redis_url is None else timedelta(0)
    check_server(connect(url, settings), settings, address=address, patience=patience)
    return Store(url, settings, frozen=frozen)
