"""Gates and their limits: what runs and their code may have to wait for. See ``lua/lib/gates.lua``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from orchestrator import clock
from orchestrator.exceptions import InvalidName
from orchestrator.keys import Keys, check_name, lengthen, new_id, shorten
from orchestrator.models import Call, Gate, Slot, Waiter
from orchestrator.store.answers import Acquire, Acquired
from orchestrator.store.client import Redis
from orchestrator.store.records import Unreadable, read_calls, read_fields, read_rate, read_setting
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
    """Gates of one namespace, by name: ``pool:P``, ``queue:P:Q``, ``deployment:ID``, ``tag:T``, ``global:ID``."""

    def __init__(self, client: Redis, scripts: Scripts, names: Keys, silence: timedelta) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = names
        self._silence_ms = round(silence / timedelta(milliseconds=1))

    # --- for code that runs ----------------------------------------------------------------------------------------------

    def acquire(self, asked: Acquire) -> Acquired:
        """Take slots for code that runs, all or none; where they are not free, the call waits and its worker will be told.

        Idempotent: a call that is there already is answered as it stands. The slots end with the attempt, or by ``release``.
        """
        answer, detail, *rest = self._scripts.call(
            "acquire",
            run=shorten(asked.run),
            attempt=asked.attempt,
            worker=asked.worker,
            call=asked.call,
            of=asked.of,
            names=list(dict.fromkeys(asked.names)),
            slots=asked.occupy,
            rate=int(asked.rate),
            strict=int(asked.strict),
            alive_ms=self._silence_ms,
        )
        return Acquired(answer.decode(), detail.decode() if isinstance(detail, bytes) else str(detail), _ms(rest))

    def release(self, calls: Iterable[tuple[str, int, int]], *, worker: str) -> int:
        """Give back the slots of a worker's calls (run, attempt, number), or let them wait no longer. How many there were."""
        items = [[shorten(run), attempt, number] for run, attempt, number in calls]
        return int(self._scripts.call("release", worker=worker, calls=items)) if items else 0

    # --- global limits ---------------------------------------------------------------------------------------------------

    def create_global(self, name: str, limit: int, *, decay: float = 0.0, active: bool = True) -> bool:
        """A new global limit; ``decay`` slots a second come back by time (0 = none: they are given back). False: it exists.

        Raises InvalidName.
        """
        check_name("concurrency limit", name)
        given = {"limit": str(limit), "decay": repr(decay), "disabled": str(int(not active))}
        return self._change(f"global:{name}", **given, expect="new")[0] == "ok"

    def update_global(
        self,
        name: str,
        *,
        limit: int | None = None,
        decay: float | None = None,
        active: bool | None = None,
        new_name: str | None = None,
    ) -> str:
        """Change a global limit; None = as it is. ok, missing, or exists (``new_name`` is another's). Holders and waiters stay.

        Raises InvalidName for the new name.
        """
        answer, _ = self._change(
            f"global:{name}",
            name=check_name("concurrency limit", new_name) if new_name is not None else "",
            limit="" if limit is None else str(limit),
            decay="" if decay is None else repr(decay),
            disabled="" if active is None else str(int(not active)),
            expect="old",
        )
        return {"taken": "exists"}.get(answer, answer)

    def delete_global(self, name: str) -> bool:
        """Remove a global limit; its waiters go on. False where there is none."""
        return self._change(f"global:{name}", limit="none", expect="old")[0] == "ok"

    def global_limits(self, shown: int = 0) -> list[Gate]:
        """The global limits by name, each with its first ``shown`` holders and waiters."""
        names = self.global_names()
        return self.get_many(sorted(names, key=lambda gate: names[gate]), shown)

    def get_global(self, name: str, shown: int = 100) -> Gate | None:
        """One global limit with its first holders and waiters; None where there is none of that name."""
        gates = {called: gate for gate, called in self.global_names().items()}
        return self.get(gates[name], shown) if name in gates else None

    def global_names(self) -> dict[str, str]:
        """The gates of the global limits -> what these are called; by the hash of names where their settings do not say so."""
        pointers = {_text(gate): _text(name) for name, gate in self._client.hgetall(self._keys.global_limits).items()}
        settings = {gate: setting for gate, setting in self.settings().items() if gate.startswith("global:")}
        return {gate: setting.get("name") or pointers.get(gate[7:], gate[7:]) for gate, setting in settings.items()}

    # --- gates -----------------------------------------------------------------------------------------------------------

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

    def reset(self, gate: str) -> int:
        """Free the slots of a gate that no live run holds; of a rate limit, all of them. How many."""
        return int(self._scripts.call("reset_gate", gate=gate))

    def _change(self, gate: str, **given: str) -> tuple[str, int]:
        unchanged = dict.fromkeys(("name", "limit", "decay", "disabled", "paused", "strategy", "expect"), "")
        answer, woken = self._scripts.call("set_gate", gate=gate, id=shorten(new_id()), **{**unchanged, **given})
        return answer.decode(), int(woken)

    def get(self, gate: str, shown: int = 100) -> Gate:
        """One gate with its first holders and waiters, in the order in which these will be woken."""
        return self.get_many([gate], shown)[0]

    def get_many(self, gates: Sequence[str], shown: int = 0) -> list[Gate]:
        """Gates in the order asked for. One round trip."""
        if not gates:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for gate in gates:
            pipeline.hget(self._keys.limits, gate)
            pipeline.hget(self._keys.rates, gate)
            for key in (self._keys.slots(gate), self._keys.parked(gate)):
                pipeline.zcard(key)
                pipeline.zrange(key, 0, shown - 1) if shown else pipeline.echo("")
        answers = iter(pipeline.execute())
        now_ms = self._scripts.now_ms()
        found = []
        for gate in gates:
            setting, rate, used, members, waiting, waiters = (next(answers) for _ in range(6))
            values = read_setting(gate, setting) if setting is not None else {}
            is_nameless = gate.startswith("global:") and "defect" in values
            read = Gate(
                name=gate,
                title=values.get("name") or (self.global_names()[gate] if is_nameless else gate.partition(":")[2]),
                limit=int(values["limit"]) if "limit" in values else None,
                paused=bool(values.get("paused")),
                used=used,
                holders=[lengthen(member.split(b":")[0]) for member in members],
                waiters=[_waiter(member.decode()) for member in waiters],
                waiting=waiting,
                active=not values.get("disabled"),
                decay=float(values.get("decay", 0)),
                defect=values.get("defect", ""),
            )
            found.append(_with_rate(read, read_rate(b"0" if rate is None else rate), now_ms) if read.decay else read)
        return found

    def tags(self) -> list[str]:
        """The tags that have a limit, by name."""
        limited = (gate for gate, setting in self.settings().items() if "limit" in setting)
        return sorted(gate.removeprefix("tag:") for gate in limited if gate.startswith("tag:"))

    def slots(self, gate: str, shown: int = 100) -> list[Slot]:
        """Who holds a gate's slots, the oldest first; a call that holds several of them is there once. Two round trips."""
        members = self._client.zrange(self._keys.slots(gate), 0, shown - 1, withscores=True)
        holders: dict[tuple[bytes, int], float] = {}
        for member, since in members:
            run, _, number, _ = member.split(b":")
            holders.setdefault((run, int(number)), since)
        pipeline = self._client.pipeline(transaction=False)
        for run, _ in holders:
            for key in (self._keys.leases, self._keys.reservations):
                pipeline.zscore(key, run)
            pipeline.hget(self._keys.run(run.decode()), "run")
        answers = iter(pipeline.execute())
        found = []
        for (run, number), since in holders.items():
            lease, reserved, packed = next(answers), next(answers), next(answers)
            until = reserved if reserved is not None else lease
            expires = clock.from_ms(int(until)) if until is not None else None
            slot = Slot(lengthen(run), clock.from_ms(int(since)), expires, reserved is not None)
            by_number = {call.number: call for call in _calls(packed)} if number else {}
            found.append(_of_call(slot, number, by_number) if number else slot)
        return found

    def settings(self) -> dict[str, dict[str, Any]]:
        """Every gate with a limit or a pause: its name -> what ``read_setting`` finds there."""
        stored = self._client.hgetall(self._keys.limits)
        return {_text(gate): read_setting(_text(gate), text) for gate, text in stored.items()}


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _ms(rest: Sequence[Any]) -> int | None:
    return int(rest[0]) if rest and rest[0] != b"" else None


def _waiter(member: str) -> Waiter:
    """A member of a gate's waiters: a run, or a call of its code."""
    run, _, call = member.partition(":")
    return Waiter(lengthen(run), int(call.partition(":")[2]) if call else 0)


def _with_rate(gate: Gate, back_at_ms: float | None, now_ms: int) -> Gate:
    """A rate limit's slots are not held by anybody: how many have not come back yet, and when the next one does.

    Where that cannot be read, all of them are taken just now, as the scripts have it.
    """
    if back_at_ms is None:
        back_at_ms = now_ms + (gate.limit or 0) * 1000 / gate.decay
    left = max(0.0, (back_at_ms - now_ms) * gate.decay / 1000)
    used = int(-(-(left - 1e-6) // 1)) if left else 0
    next_ms = back_at_ms - (used - 1) * 1000 / gate.decay
    return replace(gate, used=max(0, used), next_free=clock.from_ms(round(next_ms)) if used > 0 else None)


def _calls(packed: bytes | None) -> tuple[Call, ...]:
    try:
        return read_calls(read_fields(packed)["calls"])
    except Unreadable:
        return ()


def _of_call(slot: Slot, number: int, calls: Mapping[int, Call]) -> Slot:
    call = calls.get(number)
    return replace(slot, call=number, kind=call.kind if call else "code", occupy=call.slots if call else 1)
