"""Dead letters: what stood in the place of a run, or of its message, and could not be read. Kept for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from orchestrator import clock, keys
from orchestrator.models import DeadLetter
from orchestrator.store.client import Redis
from orchestrator.store.scripts import Scripts


class Letters:
    """The dead letters of one namespace.

    Whoever meets a message or a run that makes no sense writes one, takes the message out of its stream, gives what is left of
    the run a TTL, and goes on with the others. The last 10,000 are kept, about.
    """

    def __init__(self, client: Redis, scripts: Scripts, names: keys.Keys) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = names

    def latest(self, limit: int = 50) -> list[DeadLetter]:
        """The newest letters, newest first."""
        return [_read_letter(entry, fields) for entry, fields in self._client.xrevrange(self._keys.malformed, count=limit)]

    def count(self) -> int:
        """How many there are."""
        return int(self._client.xlen(self._keys.malformed))

    def drop(self, letters: Sequence[str]) -> int:
        """Delete letters by their ids, and what is left of the runs that they are about. How many there were."""
        parts = [list(letters[start : start + 100]) for start in range(0, len(letters), 100)]
        return sum(int(self._scripts.call("drop_letters", ids=part)) for part in parts)


def _read_letter(entry: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="backslashreplace")

    run = text(b"r")
    return DeadLetter(
        id=entry.decode(),
        at=clock.from_ms(0) + timedelta(milliseconds=int(entry.split(b"-")[0])),
        reason=text(b"w"),
        run=keys.lengthen(run) if keys.is_short(run) else None,
        stream=text(b"s"),
        message=text(b"m"),
        content=text(b"c"),
    )
