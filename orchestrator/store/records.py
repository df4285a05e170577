"""How runs, log lines and task runs stand in Redis: msgpack, and the fields of a run's hash."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgpack

from orchestrator import clock, keys
from orchestrator.exceptions import PayloadTooLarge
from orchestrator.keys import lengthen
from orchestrator.models import Call, HistoryEntry, LogLine, Run, TaskRun
from orchestrator.states import PLACE_STATES, STATE_TYPES, State, StateType

INLINE_LIMIT = 256 * 1024
"""Bytes of packed parameters, or of a packed result, that a run may carry."""


def pack(value: Any) -> bytes:
    """A value in the wire format: msgpack of None, bool, int, float, str, bytes, list and dict.

    Raises PayloadTooLarge beyond 256 KiB, TypeError for other types.
    """
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    if len(packed) > INLINE_LIMIT:
        raise PayloadTooLarge(
            f"{len(packed):,} bytes are more than a run may carry ({INLINE_LIMIT:,}).",
            hint="Put the data into a file or a table and pass its path or key.",
        )
    return packed


def unpack(packed: bytes) -> Any:
    """The value that ``pack`` was given (tuples come back as lists)."""
    return msgpack.unpackb(packed, raw=False, strict_map_key=False)


def pack_line(line: LogLine) -> bytes:
    """One line as it stands in a log stream."""
    packed: bytes = msgpack.packb([clock.to_ms(line.at), line.level, line.logger, line.message, line.attempt, line.task_run])
    return packed


def read_line(entry: bytes, packed: bytes) -> LogLine:
    """One entry of a log stream."""
    at, level, logger, message, attempt, task_run = msgpack.unpackb(packed)
    return LogLine(clock.from_ms(at), level, logger, message, attempt, task_run, entry.decode())


def pack_task(task: TaskRun) -> bytes:
    """A task run as it stands in its flow run's hash of tasks."""

    def ms(moment: datetime | None) -> int | None:
        return clock.to_ms(moment) if moment else None

    state = task.state
    packed: bytes = msgpack.packb(
        [
            *(task.name, task.key, task.index, state.type.value, state.name, state.message, ms(state.timestamp)),
            *(ms(task.started), ms(task.ended), task.run_count, list(task.upstream), task.parent, list(task.tags)),
        ]
    )
    return packed


def read_task(task: str, packed: bytes) -> TaskRun:
    """The task run that ``pack_task`` packed."""

    def moment(ms: int | None) -> datetime | None:
        return clock.from_ms(ms) if ms else None

    name, key, index, kind, label, message, at, started, ended, count, upstream, parent, tags = msgpack.unpackb(packed)
    return TaskRun(
        id=task,
        name=name,
        key=key,
        index=index,
        state=State(StateType(kind), label, message, timestamp=clock.from_ms(at)),
        started=moment(started),
        ended=moment(ended),
        run_count=count,
        upstream=tuple(upstream),
        parent=parent,
        tags=tuple(tags),
    )


def _read_history(packed: bytes) -> list[HistoryEntry]:
    """The entries, as far as they can be read."""
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(packed)
    found = []
    try:
        for name, at, attempt, message in unpacker:
            found.append(HistoryEntry(str(name), clock.from_ms(int(at)), int(attempt), str(message)))
    except (ValueError, TypeError, OverflowError):
        return found
    return found


class Unreadable(ValueError):
    """What stands in Redis is not what a run, or what belongs to it, looks like."""


_NUMBERS = ("attempt", "prio", "due", "ready", "starts", "crashes", "budget", "at", "started", "expires", "reserved", "ended")


def defect(fields: Mapping[str, str], calls: bytes = b"") -> str | None:
    """Why the scripts cannot work with a run of these fields (an absent one is ''); None if they can.

    As ``defect`` in lua/lib/runs.lua has it. Such a run counts as none, and there is a dead letter about it.
    """
    state, place = fields["state"], fields["place"]
    if not state or state not in STATE_TYPES:
        return "its state is unknown" if state else "it has no state"
    if state not in PLACE_STATES.get(place, ()):
        return "it cannot be in that state there" if place in PLACE_STATES else "its place is unknown"
    for name in _NUMBERS:
        if fields[name] and not (len(fields[name]) <= 16 and re.fullmatch(r"-?[0-9]+", fields[name])):
            return f"its {name} is no number"
    if not 0 <= int(fields["prio"] or 1) <= 2:
        return "its prio is unknown"
    if not fields["flow"] or not fields["at"]:
        return "it has no at" if fields["flow"] else "it has no flow"
    if any(fields[name] and not keys.is_short(fields[name]) for name in ("dep", "parent")):
        return "it names what is no id"
    if (place == "queued" or fields["msg"]) and not re.match(r"[0-9]{1,16}-[0-9]{1,16} [a-z]+:", fields["msg"]):
        return "its message is none"
    try:
        read_calls(calls)
    except Exception:
        return "its calls cannot be read"
    return None


def read_run(run: str, fields: dict[bytes, bytes], deployments: Mapping[bytes, bytes | None]) -> Run:
    """The run of a hash. ``deployments``: stored deployment id -> its name. Raises Unreadable."""
    try:
        return _read_run(run, fields, deployments)
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _read_run(run: str, fields: dict[bytes, bytes], deployments: Mapping[bytes, bytes | None]) -> Run:

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    def number(name: bytes, default: int = 0) -> int:
        return int(fields.get(name, default))

    name = text(b"state")
    state = State(STATE_TYPES[name], text(b"label") or name, text(b"message"), timestamp=clock.from_ms(number(b"at")))
    deployment = fields.get(b"dep")
    deployment_name = deployments.get(deployment) if deployment else None
    return Run(
        id=run,
        kind=text(b"kind"),
        name=text(b"name"),
        flow=text(b"flow"),
        state=state,
        place=text(b"place"),
        gate=text(b"gate") or None,
        deployment=lengthen(deployment) if deployment else None,
        deployment_name=deployment_name.decode(errors="replace") if deployment_name else None,
        pool=text(b"pool"),
        queue=text(b"queue"),
        priority=keys.PRIORITIES[number(b"prio", 1)],
        parameters=unpack(fields[b"params"]) if fields.get(b"params") else {},
        tags=tuple(text(b"tags").split("\n")) if fields.get(b"tags") else (),
        created=clock.from_ms(number(b"created")),
        due=clock.from_ms(number(b"ready") or number(b"due")),
        started=moment_of(fields.get(b"started")),
        ended=moment_of(fields.get(b"ended")),
        attempt=number(b"attempt"),
        run_count=number(b"starts"),
        crash_count=number(b"crashes"),
        crash_budget=number(b"budget", 1),
        worker=text(b"worker") or None,
        parent=lengthen(fields[b"parent"]) if fields.get(b"parent") else None,
        schedule=text(b"sched") or None,
        created_by=text(b"by"),
        expires=moment_of(fields.get(b"expires")),
        history=_read_history(fields.get(b"history", b"")),
        has_result=b"result" in fields,
        calls=read_calls(fields.get(b"calls", b"")),
    )


def read_calls(packed: bytes) -> tuple[Call, ...]:
    """The field ``calls`` of a run's hash, as lua/lib/calls.lua packs it."""
    if not packed:
        return ()
    found = []
    for number, kind, slots, waits, since, gates in msgpack.unpackb(packed):
        # Lua packs an empty list as an empty map, and numbers of milliseconds as floats.
        found.append(Call(int(number), kind, int(slots), waits or None, clock.from_ms(int(since)), tuple(gates)))
    return tuple(found)


_STRATEGIES = ("ENQUEUE", "CANCEL_NEW", "CANCEL_RUNNING")


def _is_between(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_count(value: Any) -> bool:
    return _is_between(value, 0, 2**53) and value == int(value)


_FITS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("limit", "held"), _is_count),
    **dict.fromkeys(("disabled", "paused"), lambda value: isinstance(value, bool)),
    "strategy": lambda value: value in _STRATEGIES,
    "decay": lambda value: _is_between(value, 1e-9, 1e9),
    "name": lambda value: isinstance(value, str),
}


def read_setting(gate: str, text: bytes) -> dict[str, Any]:
    """What a gate is set to. Where nobody can read that, a limit of 0, and under ``defect`` why.

    As ``read_setting`` in lua/lib/gates.lua has it; only numbers that nobody writes (010, 0x10) Lua reads and Python does not.
    """
    try:
        values = json.loads(text.decode(errors="replace"), strict=False)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return {"limit": 0, "defect": "it is no JSON object"}
    values = {field: value for field, value in values.items() if value is not None}
    wrong = [field for field, fits in _FITS.items() if field in values and not fits(values[field])]
    if wrong:
        return {"limit": 0, "defect": f"its {wrong[0]} makes no sense"}
    if "limit" not in values and not values.get("paused"):
        return {"limit": 0, "defect": "it has neither a limit nor a pause"}
    if gate.startswith("global:") and "name" not in values:
        return {"limit": 0, "defect": "it has no name"}
    return values


def read_rate(text: bytes) -> float | None:
    """When all slots of a rate limit will have come back, in ms; None where nobody can read that."""
    try:
        back_at = float(text)
    except ValueError:
        return None
    return back_at if 0 <= back_at <= 1e15 else None


def moment_of(value: bytes | None) -> datetime | None:
    """A stored time in ms; None where none is stored."""
    return clock.from_ms(int(value)) if value else None
