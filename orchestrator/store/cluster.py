"""Redis Cluster: the keys are dealt out to shards by slot, and each shard is a primary with its replicas.

A namespace's keys stand in one slot (see ``keys``), so a process only ever talks to the primary of that slot. It is found with
CLUSTER SLOTS, from the hosts in the URL or any that these have named; MOVED tells of another one.

While a slot is moved key by key, its old primary has some of the keys and its new one the others. No script runs in that
time: the one key that it declares is the namespace's prefix, which does not exist, and for a key that it does not have the old
primary answers ASK before the script begins. We do not follow ASK. So a script finds all keys or does nothing
(docs/decisions/0016).
"""

from __future__ import annotations

import random
from typing import Any

import redis
from redis.crc import key_slot

from orchestrator.exceptions import ConfigurationError, StoreUnavailable
from orchestrator.settings import shown_url
from orchestrator.store.primary import Host, Primary, Servers, read_url, spelled

EXAMPLE = "redis+cluster://USER:PASSWORD@HOST:6379,HOST:6379,HOST:6379"

_PORT = 6379


class ClusterPrimary(Primary):
    """The primary of the slot in which a prefix's keys stand. One node that answers is enough to find it."""

    kind = "cluster"

    def __init__(self, servers: Servers, prefix: str, timeout_s: float) -> None:
        super().__init__()
        self.slot = key_slot(prefix.encode())
        self._servers = servers
        self._nodes = list(servers.hosts)
        self._timeout_s = timeout_s

    @property
    def askable(self) -> list[Host]:
        """The nodes that are known; first the one to ask next."""
        return list(self._nodes)

    def find(self) -> Host:
        """See Primary."""
        failures: list[str] = []
        refused: StoreUnavailable | None = None
        for node in self.askable:
            # Not the same one first each time: it may be the one that is cut off and does not know it.
            self._nodes.remove(node)
            self._nodes.append(node)
            try:
                answer = self._ask(node)
            except redis.AuthenticationError as error:
                refused = StoreUnavailable(
                    f"The node at {spelled(node)} refuses the login: {error}.",
                    hint=f"Put user and password into the URL: {EXAMPLE}",
                )
            except redis.ResponseError as error:
                if "cluster support disabled" not in str(error):
                    failures.append(f"{spelled(node)} ({error})")
                    continue
                refused = StoreUnavailable(
                    f"The server at {spelled(node)} is not part of a Cluster.",
                    hint="Name it as redis://HOST:PORT/DB, or start it with: cluster-enabled yes",
                )
            except redis.RedisError as error:
                failures.append(f"{spelled(node)} ({error})")
            else:
                found = self._read(node, answer)
                if found is not None:
                    return found
                failures.append(f"{spelled(node)} (nobody has slot {self.slot})")
        if refused is not None:
            raise refused
        raise redis.ConnectionError(f"no node of the Cluster knows the primary: {', '.join(failures)}")

    def _ask(self, node: Host) -> Any:
        with self._servers.asking(node, self._timeout_s) as client:
            return client.execute_command("CLUSTER", "SLOTS")

    def _read(self, asked: Host, answer: Any) -> Host | None:
        """The primary of our slot in the answer to CLUSTER SLOTS; nodes that it names can be asked from now on."""
        found = None
        named = []
        for first, last, *nodes in answer:
            # A node that was never told its own address leaves it out; we know it.
            hosts = [((node[0] or b"").decode() or asked[0], int(node[1])) for node in nodes]
            named += hosts
            if first <= self.slot <= last:
                found = hosts[0]
        known = set(self._nodes)
        fresh = [host for host in dict.fromkeys(named) if host not in known]
        random.shuffle(fresh)
        # Those in the URL stay: they may be names that lead elsewhere one day.
        kept = [host for host in self._nodes if host in self._servers.hosts or host in named]
        self._nodes = kept + fresh
        return found


def read(url: str) -> Servers:
    """The nodes to ask. Raises ConfigurationError."""
    servers = read_url(url, _PORT, EXAMPLE)
    if servers.parts not in ((), ("0",)):
        raise ConfigurationError(
            f"The address {shown_url(url)} is wrong: a Cluster has one database, and no service.",
            hint=f"Write {EXAMPLE}; redis+sentinel:// is for Sentinel.",
        )
    return servers
