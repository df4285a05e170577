"""Durability ``replicated``: an operation counts when a replica has it too."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from orchestrator.exceptions import NotReplicated
from orchestrator.store.client import Redis
from orchestrator.store.replication import read_replicas

PATIENCE = timedelta(seconds=1)
"""How long a confirmation may take. It is asked for within milliseconds; what takes a second is not coming."""


class Confirmation:
    """Has a connection's writes wait for a replica: durability ``replicated``.

    ``key`` is written to each time. The server only waits for what the asking connection itself has written (Valkey) or for
    all up to its last command (Redis): an answer "again" writes nothing, and a wait for nothing is met at once.
    """

    def __init__(self, client: Redis, key: str, patience: timedelta) -> None:
        self._client = client
        self._key = key
        self._patience_ms = max(1, round(patience / timedelta(milliseconds=1)))
        self._has_replica = False

    def expect_replica(self) -> None:
        """Raises NotReplicated before anything is written if no replica is connected. Asks only after a wait that was unmet."""
        if self._has_replica:
            return
        if not any(replica.is_online for replica in read_replicas(self._client.info("replication"))):
            raise NotReplicated(
                f"No replica of Redis at {self._client.address} is connected, and this namespace's durability is 'replicated'. "
                "Nothing was written.",
                hint="Start a replica, or lower it with: orch namespace update --durability default",
            )
        self._has_replica = True

    def append(self, pipeline: Any) -> None:
        """Have the pipeline's last answer say how many replicas have all that it writes."""
        pipeline.set(self._key, "", px=60_000)
        pipeline.execute_command("WAIT", 1, self._patience_ms)

    def unmet(self, replicas: object) -> NotReplicated | None:
        """What to tell if WAIT's answer says that no replica has confirmed."""
        self._has_replica = isinstance(replicas, int) and replicas > 0
        if self._has_replica:
            return None
        return NotReplicated(
            f"The change stands on the primary at {self._client.address}, but no replica has confirmed it within "
            f"{self._patience_ms} ms.",
            hint="Do it again with the same idempotency key or id, which is safe. See the replicas with: orch doctor",
        )
