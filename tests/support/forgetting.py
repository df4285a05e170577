"""A fail-over with lost writes, as far as one namespace sees it: its keys are what they were, and the server is another."""

from __future__ import annotations

from orchestrator.store import Store


class Past:
    """A namespace at the moment when this is made, to go back to. A server that has lost the writes since looks like that."""

    def __init__(self, store: Store) -> None:
        store.failover.check()
        self._store = store
        self._keys = {key: (store.client.dump(key) or b"", store.client.pttl(key)) for key in self._names()}

    def return_to(self) -> None:
        """Forget everything since, and let the epoch's server be another one than this."""
        client = self._store.client
        for key in self._names():
            client.delete(key)
        for key, (value, ttl_ms) in self._keys.items():
            client.restore(key, max(0, ttl_ms), value)
        client.hset(self._store.keys.epoch, "server", "before")

    def _names(self) -> list[bytes]:
        return list(self._store.client.scan_iter(f"{self._store.keys}*", count=1000))
