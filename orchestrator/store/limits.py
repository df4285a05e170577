"""Gates and their limits: what runs may have to wait for. See ``lua/lib/gates.lua``."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.keys import Keys, lengthen
from orchestrator.models import Gate
from orchestrator.store.client import Redis
from orchestrator.store.scripts import Scripts


def pool_gate(pool: str) -> str:
    """The gate of a work pool."""
    return f"pool:{pool}"


def queue_gate(pool: str, queue: str) -> str:
    """The gate of a work queue."""
    return f"queue:{pool}:{queue}"


def deployment_gate(short: str) -> str:
    """The gate of a deployment, by its stored id."""
    return f"deployment:{short}"


class Limits:
    """Gates of one namespace, by name: ``pool:P``, ``queue:P:Q``, ``deployment:ID``, ``tag:T``."""

    def __init__(self, client: Redis, scripts: Scripts, names: Keys) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = names

    def set(self, gate: str, limit: int | None, *, strategy: str = "") -> int:
        """Let at most ``limit`` runs through at once (None = any number). How many waiters went on.

        Runs that execute behind the gate already are counted; when there are more than the limit, they finish.
        """
        text = "none" if limit is None else str(limit)
        return int(self._scripts.call("set_gate", gate=gate, limit=text, paused="", strategy=strategy))

    def pause(self, gate: str) -> None:
        """Let no new run through until ``resume``; those that execute go on."""
        self._scripts.call("set_gate", gate=gate, limit="", paused="1", strategy="")

    def resume(self, gate: str) -> int:
        """Let runs through again. How many waiters went on at once; the scheduler wakes the rest."""
        return int(self._scripts.call("set_gate", gate=gate, limit="", paused="0", strategy=""))

    def get(self, gate: str, shown: int = 100) -> Gate:
        """One gate with its holders and its first waiters, in the order in which they will be woken."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hget(self._keys.limits, gate)
        pipeline.zrange(self._keys.slots(gate), 0, shown - 1)
        pipeline.zcard(self._keys.slots(gate))
        pipeline.zrange(self._keys.parked(gate), 0, shown - 1)
        setting, members, used, waiters = pipeline.execute()
        values: dict[str, Any] = json.loads(setting) if setting else {}
        return Gate(
            name=gate,
            limit=int(values["limit"]) if "limit" in values else None,
            paused=bool(values.get("paused")),
            used=used,
            holders=[lengthen(member.split(b":")[0]) for member in members],
            waiters=[lengthen(member) for member in waiters],
        )

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every gate that holds anybody back: its name -> limit, paused, strategy, as far as set."""
        return {gate.decode(): json.loads(text) for gate, text in self._client.hgetall(self._keys.limits).items()}
