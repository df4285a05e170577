"""Runs whose record in Redis somebody has tampered with."""

from __future__ import annotations

from typing import Any

import msgpack

from orchestrator.keys import shorten
from orchestrator.store import Store
from orchestrator.store.layout import FIELDS, PLACES


def tamper(store: Store, of: str, /, **fields: Any) -> None:
    """Have fields of a run, or of its hash, hold something else; None in the hash = gone."""
    client, key = store.client, store.keys.run(shorten(of))
    stored = client.hget(key, "run")
    array = msgpack.unpackb(stored, raw=True, strict_map_key=False) if stored else [b""] * len(FIELDS)
    for name, value in fields.items():
        if name in PLACES:
            array[PLACES[name]] = value
        elif value is None:
            client.hdel(key, name)
        else:
            client.hset(key, name, value)
    if "run" not in fields:
        client.hset(key, "run", msgpack.packb(array, use_bin_type=False))
