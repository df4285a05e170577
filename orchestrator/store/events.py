"""The feed of what happened: one stream a namespace, trimmed, read without groups. Nobody's correctness depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from orchestrator import clock
from orchestrator.keys import Keys, lengthen
from orchestrator.models import Event
from orchestrator.store.client import Redis
from orchestrator.store.scripts import EVENTS_KEPT

_FIELDS = {
    b"r": "run",
    b"f": "flow",
    b"a": "attempt",
    b"p": "pool",
    b"q": "queue",
    b"d": "deployment",
    b"g": "gate",
    b"t": "title",
}


class Events:
    """Events of one namespace, oldest first."""

    def __init__(self, client: Redis, names: Keys) -> None:
        self._client = client
        self._keys = names

    def append(self, name: str, **fields: str) -> None:
        """Tell the feed."""
        entry: dict[Any, Any] = {"e": name, **fields}
        self._client.xadd(self._keys.events, entry, maxlen=EVENTS_KEPT, approximate=True)

    def last_id(self) -> str:
        """The place of the newest event, to follow from."""
        newest = self._client.xrevrange(self._keys.events, count=1)
        return newest[0][0].decode() if newest else "0-0"

    def latest(self, limit: int = 50) -> list[Event]:
        """The newest events, newest first."""
        return [read_event(entry, fields) for entry, fields in self._client.xrevrange(self._keys.events, count=limit)]

    def read(self, after: str, limit: int = 1000) -> list[Event]:
        """Events behind the place ``after``, oldest first."""
        entries = self._client.xrange(self._keys.events, min=f"({after}" if after else "-", count=limit)
        return [read_event(entry, fields) for entry, fields in entries]


def read_event(entry: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """One entry of the events stream."""
    known = {_FIELDS.get(key, key.decode()): value for key, value in fields.items() if key != b"e"}
    shown = {key: lengthen(value) if key == "run" else value.decode() for key, value in known.items()}
    at = clock.from_ms(0) + timedelta(milliseconds=int(entry.split(b"-")[0]))
    return Event(entry.decode(), fields[b"e"].decode(), at, shown)
