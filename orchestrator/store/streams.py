"""Reading the streams of runs without taking anything from them."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.keys import GROUP
from orchestrator.store.client import Redis

_PAGE = 1000


def entries(client: Redis, stream: str) -> Iterator[tuple[str, str]]:
    """Every entry of a stream, oldest first: its id, and the run it stands for (stored id, or '')."""
    after = "-"
    while found := client.xrange(stream, min=after, count=_PAGE):
        yield from ((entry.decode(), fields.get(b"r", b"").decode(errors="replace")) for entry, fields in found)
        after = f"({found[-1][0].decode()}"


def pending(client: Redis, stream: str) -> Iterator[str]:
    """The ids of the entries that were handed out and not claimed yet, oldest first."""
    # It may be gone by now, or bear a name that is no text.
    if not client.exists(stream) or not any(group["name"] == GROUP.encode() for group in client.xinfo_groups(stream)):
        return
    after = "-"
    while found := client.xpending_range(stream, GROUP, min=after, max="+", count=_PAGE):
        yield from (entry["message_id"].decode() for entry in found)
        after = f"({found[-1]['message_id'].decode()}"
