"""Redis servers that stand in for each other: a primary with replicas and Sentinels, and a Cluster. For tests and chaos.

All are processes of the embedded binary (or of another that is named) on free ports of 127.0.0.1, set up as Orch wants it.
They know each other from files written beforehand, so they are ready in a second or two. They die with the process that
started them at the latest (on Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import redis

from orchestrator.store import embedded

T = TypeVar("T")

SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "hash-max-listpack-value": "512",
    # A new replica is to be one at once, and not after a pause in which others might come too.
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
}
SERVICE = "runs"
_LOCALHOST = "127.0.0.1"
_SLOTS = 16384
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Certificates:
    """One authority, one certificate that all servers share, its key; all as files."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def options(self) -> str:
        """How a URL names them."""
        return f"ssl_ca_certs={self.authority}"


def make_certificates(folder: Path) -> Certificates:
    """A fresh authority and a certificate for 127.0.0.1, by openssl."""
    authority, authority_key = folder / "ca.crt", folder / "ca.key"
    certificate, key, request, extra = (folder / name for name in ("s.crt", "s.key", "s.csr", "s.ext"))
    extra.write_text("subjectAltName = IP:127.0.0.1, DNS:localhost\n")
    new = ("-newkey", "rsa:2048", "-nodes")
    _openssl("req", "-x509", *new, "-keyout", authority_key, "-out", authority, "-days", "2", "-subj", "/CN=Test authority")
    _openssl("req", *new, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    signed_by = ("-CA", authority, "-CAkey", authority_key, "-CAcreateserial")
    _openssl("x509", "-req", "-in", request, *signed_by, "-out", certificate, "-days", "2", "-extfile", extra)
    return Certificates(authority, certificate, key)


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass
class Node:
    """One server process: a primary, a replica, a Sentinel or a node of a Cluster."""

    folder: Path
    port: int
    settings: dict[str, Any]
    binary: Path
    arguments: tuple[str, ...] = ()
    password: str = ""
    certificates: Certificates | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return _LOCALHOST, self.port

    def write_settings(self, lines: Sequence[str] = ()) -> None:
        """Write its configuration file, which a Sentinel writes to itself later on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = {"port": self.port}
        if self.certificates:
            ports = {"port": 0, "tls-port": self.port}
        settings = {"bind": _LOCALHOST, "dir": self.folder, **ports, **self.settings}
        if self.certificates:
            settings |= {
                "tls-cert-file": self.certificates.certificate,
                "tls-key-file": self.certificates.key,
                "tls-ca-cert-file": self.certificates.authority,
                "tls-auth-clients": "no",
                "tls-replication": "yes",
            }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        (self.folder / "conf").write_text(text + "".join(f"{line}\n" for line in lines))

    def start(self, *more: str) -> None:
        """Start it, or start it again on the same data, with ``more`` on its command line. Does not wait."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.binary), str(self.folder / "conf"), *self.arguments, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def kill(self) -> None:
        """SIGKILL. The data stay: ``start`` finds them."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(20)
            self.process = None

    def pause(self) -> None:
        """It stops answering, without closing a connection."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on after ``pause``."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def client(self, timeout_s: float = 10) -> Iterator[redis.Redis]:
        """A client of this very process."""
        tls: dict[str, Any] = {}
        if self.certificates:
            tls = {"ssl": True, "ssl_ca_certs": str(self.certificates.authority)}
        with redis.Redis(*self.address, password=self.password or None, protocol=2, socket_timeout=timeout_s, **tls) as client:
            yield client

    def ask(self, *command: Any) -> Any:
        """One command's answer, on a connection of its own; an empty one where the process does not answer (yet)."""
        try:
            with self.client(timeout_s=2) as client:
                return client.execute_command(*command)
        except redis.RedisError:
            return {} if command[0] == "INFO" else b""

    def last_words(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-600:]


class _Fleet:
    """Processes that belong together."""

    def __init__(self, binary: Path | None, password: str, certificates: Certificates | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="orch-"))
        self.password = password
        self.certificates = certificates
        self.nodes: list[Node] = []
        self._binary = binary or embedded.find_binary()

    def stop(self) -> None:
        """End all processes and forget their data."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _make(self, name: str, port: int, settings: dict[str, Any], *arguments: str, password: str = "") -> Node:
        node = Node(self.folder / name, port, settings, self._binary, arguments, password, self.certificates)
        self.nodes.append(node)
        return node

    def _server_settings(self) -> dict[str, Any]:
        quoted = f'"{self.password}"'
        return SETTINGS | ({"requirepass": quoted, "masterauth": quoted} if self.password else {})

    def _wait(self, ready: Callable[[], T], what: str, seconds: float = 30) -> T:
        deadline = time.monotonic() + seconds
        while not (answer := ready()):
            dead = [node for node in self.nodes if node.process is not None and node.process.poll() is not None]
            if dead or time.monotonic() > deadline:
                told = (dead or self.nodes)[0].last_words()
                raise TimeoutError(f"Waited in vain for {what}; a server says: {told}")
            time.sleep(0.02)
        return answer

    @property
    def _login(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    @property
    def _s(self) -> str:
        return "s" if self.certificates else ""

    @property
    def _options(self) -> str:
        return f"?{self.certificates.options}" if self.certificates else ""


class OneServer(_Fleet):
    """One server over TCP, with TLS or without."""

    def __init__(self, *, password: str = "", certificates: Certificates | None = None, binary: Path | None = None) -> None:
        super().__init__(binary, password, certificates)
        self.server = self._make("server", _free_ports(1)[0], self._server_settings(), password=password)

    @property
    def url(self) -> str:
        """How Orch is told of it."""
        return f"redis{self._s}://{self._login}{_LOCALHOST}:{self.server.port}/0{self._options}"

    def start(self) -> OneServer:
        """Start it, and wait until it answers."""
        self.server.write_settings()
        self.server.start()
        self._wait(lambda: self.server.ask("PING"), "the server")
        return self


class SentinelServers(_Fleet):
    """One primary, two replicas, three Sentinels that find a dead primary after half a second."""

    def __init__(
        self,
        *,
        password: str = "",
        sentinel_password: str = "",
        certificates: Certificates | None = None,
        binary: Path | None = None,
        down_after_ms: int = 500,
        min_replicas: int = 1,
        replicas: int = 2,
    ) -> None:
        super().__init__(binary, password, certificates)
        self.sentinel_password = sentinel_password
        ports = _free_ports(4 + replicas)
        settings = self._server_settings() | {"min-replicas-to-write": min_replicas, "min-replicas-max-lag": 2}
        self.servers = [
            self._make(f"server-{i}", port, dict(settings), password=password) for i, port in enumerate(ports[: 1 + replicas])
        ]
        self.sentinels = [
            self._make(f"sentinel-{i}", port, {}, "--sentinel", password=sentinel_password)
            for i, port in enumerate(ports[1 + replicas :])
        ]
        self._down_after_ms = down_after_ms

    @property
    def url(self) -> str:
        """How Orch is told of it."""
        hosts = ",".join(f"{_LOCALHOST}:{node.port}" for node in self.sentinels)
        options = [option for option in (self._options.removeprefix("?"),) if option]
        if self.sentinel_password:
            options.append(f"sentinel_password={quote(self.sentinel_password, safe='')}")
        query = f"?{'&'.join(options)}" if options else ""
        return f"redis{self._s}+sentinel://{self._login}{hosts}/{SERVICE}{query}"

    def start(self) -> SentinelServers:
        """Start all, and wait until each knows its part."""
        first = self.servers[0].port
        for server in self.servers:
            server.write_settings([f"replicaof {_LOCALHOST} {first}"] if server is not self.servers[0] else [])
        ids = [uuid.uuid4().hex + uuid.uuid4().hex[:8] for _ in self.sentinels]
        for sentinel, own in zip(self.sentinels, ids, strict=True):
            others = [
                f"sentinel known-sentinel {SERVICE} {_LOCALHOST} {other.port} {other_id}"
                for other, other_id in zip(self.sentinels, ids, strict=True)
                if other is not sentinel
            ]
            known = [f"sentinel known-replica {SERVICE} {_LOCALHOST} {server.port}" for server in self.servers[1:]]
            sentinel.write_settings(self._sentinel_lines(own, first) + others + known)
        for node in self.nodes:
            node.start()
        self._wait(self.is_whole, "the replicas and the Sentinels")
        return self

    def _sentinel_lines(self, own: str, first: int) -> list[str]:
        lines = [
            f"sentinel myid {own}",
            f"sentinel monitor {SERVICE} {_LOCALHOST} {first} 2",
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 2000",
        ]
        if self.password:
            lines.append(f'sentinel auth-pass {SERVICE} "{self.password}"')
        if self.sentinel_password:
            lines += [f'requirepass "{self.sentinel_password}"', f'sentinel sentinel-pass "{self.sentinel_password}"']
        return lines

    def primary(self) -> Node:
        """The server that most Sentinels call the primary."""
        told = [self._named_by(sentinel) for sentinel in self.sentinels]
        port = max(filter(None, told), key=told.count)
        return next(server for server in self.servers if server.port == port)

    def is_whole(self) -> bool:
        """One primary with all others as replicas in step, and every Sentinel sees all of them well."""
        alive = [server for server in self.servers if server.process is not None]
        told = {self._named_by(sentinel) for sentinel in self.sentinels}
        if len(told) != 1 or (port := told.pop()) is None:
            return False
        facts = next(server for server in self.servers if server.port == port).ask("INFO", "replication")
        replicas = [facts.get(f"slave{i}", {}) for i in range(len(alive) - 1)]
        if facts.get("role") != "master" or not all(replica.get("state") == "online" for replica in replicas):
            return False
        return all(self._sees_all(sentinel, len(alive) - 1) for sentinel in self.sentinels)

    def wait_until_whole(self) -> None:
        """After a fail-over: wait until everybody alive is in its place again."""
        self._wait(self.is_whole, "the servers to be in step again", 60)

    def wait_for_new_primary(self, old: Node, seconds: float = 60) -> Node:
        """The server that stands in for ``old``, as soon as most Sentinels say so and it takes writes."""

        def found() -> Node | None:
            now = self.primary()
            # A write, and not a look at its role: it takes none before a replica follows it, see min-replicas-to-write.
            return now if now is not old and now.ask("SET", "orch-probe", "", "PX", 1000) else None

        return self._wait(found, "another primary", seconds) or old

    def _named_by(self, sentinel: Node) -> int | None:
        answer = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(answer[1]) if answer else None

    def _sees_all(self, sentinel: Node, replicas: int) -> bool:
        try:
            with sentinel.client() as client:
                state = client.execute_command("SENTINEL MASTER", SERVICE)
                known = client.execute_command("SENTINEL SLAVES", SERVICE)
        except redis.RedisError:
            return False
        healthy = sum(not re.search("down|disconnected", str(replica["flags"])) for replica in known)
        return bool(state["flags"] == "master" and state["num-other-sentinels"] == 2 and healthy >= replicas)


class ClusterServers(_Fleet):
    """Three shards of a primary and a replica each. A dead primary is replaced after about a second."""

    def __init__(
        self,
        *,
        password: str = "",
        certificates: Certificates | None = None,
        binary: Path | None = None,
        node_timeout_ms: int = 1000,
        replicas: bool = True,
    ) -> None:
        super().__init__(binary, password, certificates)
        count = 6 if replicas else 3
        ports = _free_ports(2 * count)
        self._ids = [uuid.uuid4().hex + uuid.uuid4().hex[:8] for _ in range(count)]
        settings = self._server_settings() | {
            "cluster-enabled": "yes",
            "cluster-node-timeout": node_timeout_ms,
            # A dead shard is its own namespaces' trouble and not everybody's.
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": 0,
        }
        if certificates:
            settings["tls-cluster"] = "yes"
        self._bus = ports[count:]
        self.servers = [
            self._make(f"server-{i}", port, settings | {"cluster-port": self._bus[i]}, password=password)
            for i, port in enumerate(ports[:count])
        ]

    @property
    def url(self) -> str:
        """How Orch is told of it."""
        hosts = ",".join(f"{_LOCALHOST}:{node.port}" for node in self.servers[:3])
        return f"redis{self._s}+cluster://{self._login}{hosts}{self._options and '/' + self._options}"

    def start(self) -> ClusterServers:
        """Start all, and wait until the Cluster takes writes and every shard has its replica."""
        for i, server in enumerate(self.servers):
            server.write_settings()
            lines = [self._line(j, is_self=i == j) for j in range(len(self.servers))]
            (server.folder / "nodes.conf").write_text("\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0\n"]))
        for server in self.servers:
            server.start()
        self._wait(self.is_whole, "the Cluster")
        return self

    def _line(self, i: int, *, is_self: bool) -> str:
        """A node as the others' files describe it: see CLUSTER NODES."""
        share = _SLOTS // 3 + 1
        shard = i % 3
        is_primary = i < 3
        role = "master - " if is_primary else f"slave {self._ids[shard]} "
        slots = f" {shard * share}-{min(_SLOTS, (shard + 1) * share) - 1}" if is_primary else ""
        address = f"{_LOCALHOST}:{self.servers[i].port}@{self._bus[i]}"
        if self.certificates:
            address += ",,tls-port=0" if "redis-server" in self._binary.name else ""
        return f"{self._ids[i]} {address} {'myself,' if is_self else ''}{role}0 0 {shard + 1} connected{slots}"

    def is_whole(self) -> bool:
        """Every node alive says that the Cluster is well, and every replica alive is in step."""
        alive = [server for server in self.servers if server.process is not None]
        for server in alive:
            state = server.ask("CLUSTER INFO")
            if not state or state.get("cluster_state") != "ok" or int(state.get("cluster_slots_ok", 0)) != _SLOTS:
                return False
            facts = server.ask("INFO", "replication")
            if facts.get("role") == "slave" and facts.get("master_link_status") != "up":
                return False
            if facts.get("role") == "master" and len(alive) == 6 and not facts.get("connected_slaves"):
                return False
        return bool(alive)

    def wait_until_whole(self) -> None:
        """After a fail-over: wait until everybody alive is in its place again."""
        self._wait(self.is_whole, "the Cluster to be well again", 60)

    def owner(self, slot: int) -> Node:
        """The primary of a slot, as most nodes alive see it."""
        told: list[int] = []
        for server in self.servers:
            if server.process is not None:
                for first, last, primary in _slots(server):
                    if first <= slot <= last:
                        told.append(primary)
        port = max(told, key=told.count)
        return next(server for server in self.servers if server.port == port)

    def wait_for_new_owner(self, slot: int, old: Node, seconds: float = 60) -> Node:
        """Who stands in for ``old``, as soon as most nodes say so and it takes writes."""

        def found() -> Node | None:
            now = self.owner(slot)
            return now if now is not old and now.ask("ROLE")[:1] == [b"master"] else None

        return self._wait(found, "another primary", seconds) or old

    def id_of(self, node: Node) -> str:
        """The name under which the Cluster knows a node."""
        return self._ids[self.servers.index(node)]

    def primaries(self) -> list[Node]:
        """The primaries now."""
        return [server for server in self.servers if server.process and server.ask("ROLE")[:1] == [b"master"]]

    def begin_slow_move(self, slot: int, target: Node) -> Node:
        """Announce a classic migration to both sides, and return the source. Keys still move one by one: ``move_keys``."""
        source = self.owner(slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        return source

    def move_keys(self, slot: int, source: Node, target: Node, at_most: int = 1_000_000) -> int:
        """Move up to so many keys of a slot that is being migrated. How many were moved."""
        login = ("AUTH", self.password) if self.password else ()
        moved = 0
        with source.client() as client:
            while moved < at_most:
                keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, min(10, at_most - moved))
                if not keys:
                    break
                client.execute_command("MIGRATE", *target.address, "", 0, 5000, *login, "KEYS", *keys)
                moved += len(keys)
        return moved

    def end_slow_move(self, slot: int, source: Node, target: Node) -> None:
        """Give the slot to the target, first there and then on the source, as redis-cli does, and then everywhere."""
        others = [server for server in self.primaries() if server not in (source, target)]
        for server in (target, source, *others):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def move_at_once(self, slot: int, target: Node) -> None:
        """Move a slot as a whole, which Valkey 9 can: CLUSTER MIGRATESLOTS. Returns when it is the target's."""
        source = self.owner(slot)
        with source.client() as client:
            client.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(target))
        self._wait(lambda: self.owner(slot) is target, "the slot to move")


def _slots(node: Node) -> list[tuple[int, int, int]]:
    """(first, last, the primary's port), as one node sees it."""
    try:
        with node.client() as client:
            answer: Any = client.execute_command("CLUSTER", "SLOTS")
    except redis.RedisError:
        return []
    return [(int(first), int(last), int(primary[1])) for first, last, primary, *_ in answer]


def _free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on, and that are no other's source port at the moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((_LOCALHOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
