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
from orchestrator.store.layout import FIELDS, may_hold

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


def unpack_fields(packed: bytes) -> dict[str, Any]:
    """``read_fields`` of what a script has just read and packed itself: nobody has to look at it again."""
    array = msgpack.unpackb(packed, raw=False, unicode_errors="surrogateescape", strict_map_key=False)
    if type(array) is not list:
        raise Unreadable("its fields cannot be read")
    return dict(zip(FIELDS, array, strict=False))


def read_fields(packed: bytes | None) -> dict[str, Any]:
    """The field ``run`` of a run's hash, by name, as layout.py lists them.

    Bytes that are no UTF-8 stand as surrogates. Raises Unreadable for what the scripts cannot work with: such a run counts as
    none, and there is a dead letter about it.
    """
    if not packed:
        raise Unreadable("it has no fields")
    try:
        fields = unpack_fields(packed)
    except Exception as error:
        raise Unreadable("its fields cannot be read") from error
    for name, kind in FIELDS.items():
        if not may_hold(kind, fields.get(name)):
            raise Unreadable(f"its {name} is no {kind}")
    if why := defect(fields):
        raise Unreadable(why)
    return fields


def pack_fields(fields: Mapping[str, Any]) -> bytes:
    """The opposite of ``read_fields``."""
    packed: bytes = msgpack.packb([fields[name] for name in FIELDS], use_bin_type=False, unicode_errors="surrogateescape")
    return packed


def defect(fields: Mapping[str, Any]) -> str | None:
    """Why the scripts cannot work with a run of these fields; None if they can. As ``defect`` in lua/lib/runs.lua has it."""
    state, place = fields["state"], fields["place"]
    if state not in STATE_TYPES or place not in PLACE_STATES:
        return "its place is unknown" if state in STATE_TYPES else "its state is unknown"
    if state not in PLACE_STATES[place]:
        return "it cannot be in that state there"
    if fields["prio"] > 2:
        return "its prio is unknown"
    if not fields["flow"] or fields["at"] == "":
        return "it has no at" if fields["flow"] else "it has no flow"
    if any(fields[name] and not keys.is_short(fields[name]) for name in ("dep", "parent")):
        return "it names what is no id"
    if (place == "queued" or fields["msg"]) and not re.match(r"[0-9]{1,16}-[0-9]{1,16} [a-z]+:", fields["msg"]):
        return "its message is none"
    try:
        read_calls(fields["calls"])
    except Exception:
        return "its calls cannot be read"
    return None


def read_run(
    run: str, fields: Mapping[str, Any], stored: Mapping[bytes, bytes], deployments: Mapping[str, bytes | None]
) -> Run:
    """The run of its fields and its hash. ``deployments``: stored deployment id -> its name. Raises Unreadable."""
    try:
        return _read_run(run, fields, stored, deployments)
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def text_of(value: str) -> str:
    """Text of a run's fields as it may be shown to people."""
    return value if value.isascii() else value.encode(errors="surrogateescape").decode(errors="replace")


def _read_run(
    run: str, fields: Mapping[str, Any], stored: Mapping[bytes, bytes], deployments: Mapping[str, bytes | None]
) -> Run:
    def text(name: str) -> str:
        return text_of(fields[name])

    deployment = fields["dep"]
    deployment_name = deployments.get(deployment) if deployment else None
    state = State(
        STATE_TYPES[fields["state"]], text("label") or fields["state"], text("message"), timestamp=clock.from_ms(fields["at"])
    )
    return Run(
        id=run,
        kind=text("kind"),
        name=text("name"),
        flow=text("flow"),
        state=state,
        place=text("place"),
        gate=text("gate") or None,
        deployment=lengthen(deployment) if deployment else None,
        deployment_name=deployment_name.decode(errors="replace") if deployment_name else None,
        pool=text("pool"),
        queue=text("queue"),
        priority=keys.PRIORITIES[fields["prio"]],
        parameters=unpack(stored[b"params"]) if stored.get(b"params") else {},
        tags=tags_of(fields),
        created=clock.from_ms(fields["created"]),
        due=clock.from_ms(fields["ready"] or fields["due"]),
        started=moment_of(fields["started"]),
        ended=moment_of(fields["ended"]),
        attempt=fields["attempt"],
        run_count=fields["starts"],
        crash_count=fields["crashes"],
        crash_budget=fields["budget"],
        worker=text("worker") or None,
        parent=lengthen(fields["parent"]) if fields["parent"] else None,
        schedule=text("sched") or None,
        created_by=text("by"),
        entrypoint=text("entry") or None,
        expires=moment_of(fields["expires"]),
        history=_read_history(stored.get(b"history", b"")),
        has_result=b"result" in stored,
        calls=read_calls(fields["calls"]),
    )


def tags_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The tags of a run's fields."""
    return tuple(text_of(fields["tags"]).split("\n")) if fields["tags"] else ()


def read_calls(packed: str) -> tuple[Call, ...]:
    """The field ``calls`` of a run, as lua/lib/calls.lua packs it."""
    if not packed:
        return ()
    found = []
    for number, kind, slots, waits, since, gates in msgpack.unpackb(packed.encode(errors="surrogateescape")):
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


def moment_of(value: bytes | int | None) -> datetime | None:
    """A stored time in ms; None where none is stored."""
    return clock.from_ms(int(value)) if value else None
