"""Replicas: what a primary says about them, and what is wrong about that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

KINDS = {"standalone": "one server", "sentinel": "primary by Sentinel", "cluster": "shard of a Cluster"}

_SILENT_FOR_TOO_LONG = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica as its primary sees it. ``silence``: since its last acknowledgement; ``behind_bytes`` it lacks."""

    address: str
    is_online: bool
    silence: timedelta
    behind_bytes: int


def read_replicas(facts: Mapping[str, Any]) -> tuple[Replica, ...]:
    """The replicas in a primary's INFO."""
    offset = int(facts.get("master_repl_offset", 0))
    listed = [value for name, value in facts.items() if name.startswith("slave") and isinstance(value, Mapping)]
    return tuple(
        Replica(
            f"{replica.get('ip', '?')}:{replica.get('port', '?')}",
            replica.get("state") == "online",
            timedelta(seconds=int(replica.get("lag", 0))),
            max(0, offset - int(replica.get("offset", 0))),
        )
        for replica in listed
    )


def topology(kind: str, replicas: Sequence[Replica]) -> str:
    """What kind of server it is and who follows it, in words."""
    online = [replica for replica in replicas if replica.is_online]
    if not online:
        return f"{KINDS[kind]}, no replicas"
    silence = max(replica.silence for replica in online).total_seconds()
    behind = max(replica.behind_bytes for replica in online)
    count = "1 replica" if len(online) == 1 else f"{len(online)} replicas"
    return f"{KINDS[kind]}, {count}, at most {behind:,} bytes and {silence:g} s behind"


def warnings(kind: str, replicas: Sequence[Replica], min_replicas: str) -> Iterator[str]:
    """What is wrong with the replicas, in sentences. ``min_replicas`` is the server's setting, '' where it cannot be read."""
    if kind == "standalone":
        return
    online = [replica for replica in replicas if replica.is_online]
    if not online:
        yield "No replica is connected: nobody can stand in for this primary when it dies. Start one, or see why it is away."
    for replica in online:
        if replica.silence > _SILENT_FOR_TOO_LONG:
            yield f"The replica {replica.address} has not answered for {replica.silence.total_seconds():g} s."
    if kind == "sentinel" and min_replicas == "0":
        yield (
            "min-replicas-to-write is 0: a primary that is cut off goes on taking writes, and they are lost when another "
            "stands in for it. CONFIG SET min-replicas-to-write 1"
        )
