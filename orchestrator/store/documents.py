"""Small documents that people keep in Redis: variables now, blocks with another release."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator import clock
from orchestrator.exceptions import ObjectAlreadyExists, ObjectNotFound, PayloadTooLarge
from orchestrator.keys import Keys, check_name
from orchestrator.store.client import Redis

VARIABLE_LIMIT = 64 * 1024
"""Bytes of JSON that a variable may hold."""


@dataclass(slots=True)
class StoredVariable:
    """A variable: any JSON value under a name."""

    name: str
    value: Any
    tags: tuple[str, ...]
    updated: datetime


class Documents:
    """Variables of one namespace, in one hash: name -> JSON."""

    def __init__(self, client: Redis, names: Keys) -> None:
        self._client = client
        self._keys = names

    def get_variable(self, name: str) -> StoredVariable:
        """One variable. Raises ObjectNotFound."""
        text = self._client.hget(self._keys.variables, name)
        if text is None:
            raise ObjectNotFound(f"There is no variable {name!r}.", hint=f"Set it with: orch variable set {name} VALUE")
        return _read(name, text)

    def set_variable(self, name: str, value: Any, *, tags: tuple[str, ...] = (), overwrite: bool = True) -> StoredVariable:
        """Store a JSON value. Raises ObjectAlreadyExists without ``overwrite``, PayloadTooLarge beyond 64 KiB."""
        check_name("variable", name)
        moment = clock.now()
        text = json.dumps({"value": value, "tags": list(tags), "updated": clock.to_ms(moment)}, separators=(",", ":"))
        if len(text) > VARIABLE_LIMIT:
            raise PayloadTooLarge(
                f"The variable {name!r} would take {len(text):,} bytes; the limit is {VARIABLE_LIMIT:,}.",
                hint="Keep large data in a file or a table and its path in the variable.",
            )
        if overwrite:
            self._client.hset(self._keys.variables, name, text)
        elif not self._client.hsetnx(self._keys.variables, name, text):
            raise ObjectAlreadyExists(f"There is a variable {name!r} already.", hint="Replace it with --overwrite.")
        return StoredVariable(name, value, tags, moment)

    def unset_variable(self, name: str) -> None:
        """Remove a variable. Raises ObjectNotFound."""
        if not self._client.hdel(self._keys.variables, name):
            raise ObjectNotFound(f"There is no variable {name!r}.", hint="List variables with: orch variable ls")

    def variables(self) -> list[StoredVariable]:
        """All variables by name."""
        stored = self._client.hgetall(self._keys.variables)
        return sorted((_read(name.decode(), text) for name, text in stored.items()), key=lambda variable: variable.name)


def _read(name: str, text: bytes) -> StoredVariable:
    fields = json.loads(text)
    return StoredVariable(name, fields["value"], tuple(fields["tags"]), clock.from_ms(fields["updated"]))
