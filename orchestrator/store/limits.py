"""Gates and their limits: what runs may have to wait for. See ``lua/lib/gates.lua``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from orchestrator import clock
from orchestrator.exceptions import InvalidName
from orchestrator.keys import Keys, lengthen
from orchestrator.models import Gate, Slot
from orchestrator.store.client import Redis
from orchestrator.store.scripts import Scripts

_TAG_BYTES = 200


def pool_gate(pool: str) -> str:
    """The gate of a work pool."""
    return f"pool:{pool}"


def queue_gate(pool: str, queue: str) -> str:
    """The gate of a work queue."""
    return f"queue:{pool}:{queue}"


def deployment_gate(short: str) -> str:
    """The gate of a deployment, by its stored id."""
    return f"deployment:{short}"


def tag_gate(tag: str) -> str:
    """The gate of a tag.

    Raises InvalidName for what no run can be tagged with.
    """
    if not tag or tag != tag.strip() or len(tag.encode()) > _TAG_BYTES or not tag.isprintable():
        raise InvalidName(
            f"{tag[:60]!a} is no tag.",
            hint=f"A tag is printable text of at most {_TAG_BYTES} bytes that neither begins nor ends with a space.",
        )
    return f"tag:{tag}"


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
        return self._change(gate, limit="none" if limit is None else str(limit), strategy=strategy)[1]

    def create(self, gate: str, limit: int) -> bool:
        """As ``set``; False, and nothing is changed, where the gate has a limit already."""
        return self._change(gate, limit=str(limit), expect="new")[0] == "ok"

    def update(self, gate: str, limit: int | None) -> bool:
        """As ``set``; False, and nothing is changed, where the gate has no limit yet."""
        return self._change(gate, limit="none" if limit is None else str(limit), expect="old")[0] == "ok"

    def disable(self, gate: str) -> bool:
        """Remember the limit and hold nobody back; False where there is none. Its waiters go on."""
        return self._change(gate, disabled="1", expect="old")[0] == "ok"

    def enable(self, gate: str) -> bool:
        """Hold to a disabled limit again; False where there is none. Runs that execute by then are counted."""
        return self._change(gate, disabled="0", expect="old")[0] == "ok"

    def pause(self, gate: str) -> None:
        """Let no new run through until ``resume``; those that execute go on."""
        self._change(gate, paused="1")

    def resume(self, gate: str) -> int:
        """Let runs through again. How many waiters went on at once; the scheduler wakes the rest."""
        return self._change(gate, paused="0")[1]

    def _change(self, gate: str, **given: str) -> tuple[str, int]:
        unchanged = {"limit": "", "disabled": "", "paused": "", "strategy": "", "expect": ""}
        answer, woken = self._scripts.call("set_gate", gate=gate, **{**unchanged, **given})
        return answer.decode(), int(woken)

    def get(self, gate: str, shown: int = 100) -> Gate:
        """One gate with its first holders and waiters, in the order in which these will be woken."""
        return self.get_many([gate], shown)[0]

    def get_many(self, gates: Sequence[str], shown: int = 0) -> list[Gate]:
        """Gates in the order asked for. One round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for gate in gates:
            pipeline.hget(self._keys.limits, gate)
            for key in (self._keys.slots(gate), self._keys.parked(gate)):
                pipeline.zcard(key)
                pipeline.zrange(key, 0, shown - 1) if shown else pipeline.echo("")
        answers = iter(pipeline.execute())
        found = []
        for gate in gates:
            setting, used, members, waiting, waiters = (next(answers) for _ in range(5))
            values: dict[str, Any] = json.loads(setting) if setting else {}
            found.append(
                Gate(
                    name=gate,
                    limit=int(values["limit"]) if "limit" in values else None,
                    paused=bool(values.get("paused")),
                    used=used,
                    holders=[lengthen(member.split(b":")[0]) for member in members],
                    waiters=[lengthen(member) for member in waiters],
                    waiting=waiting,
                    active=not values.get("disabled"),
                )
            )
        return found

    def tags(self) -> list[str]:
        """The tags that have a limit, by name."""
        limited = (gate for gate, setting in self.settings().items() if "limit" in setting)
        return sorted(gate.removeprefix("tag:") for gate in limited if gate.startswith("tag:"))

    def slots(self, gate: str, shown: int = 100) -> list[Slot]:
        """Who holds a gate's slots, the oldest first. Two round trips."""
        members = self._client.zrange(self._keys.slots(gate), 0, shown - 1, withscores=True)
        pipeline = self._client.pipeline(transaction=False)
        for member, _ in members:
            for key in (self._keys.leases, self._keys.reservations):
                pipeline.zscore(key, member.split(b":")[0])
        answers = iter(pipeline.execute())
        found = []
        for member, since in members:
            lease, reserved = next(answers), next(answers)
            until = reserved if reserved is not None else lease
            expires = clock.from_ms(int(until)) if until is not None else None
            run = lengthen(member.split(b":")[0])
            found.append(Slot(run, clock.from_ms(int(since)), expires, reserved is not None))
        return found

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every gate with a limit or a pause: its name -> limit, disabled, paused, strategy, as far as set."""
        return {gate.decode(): json.loads(text) for gate, text in self._client.hgetall(self._keys.limits).items()}
