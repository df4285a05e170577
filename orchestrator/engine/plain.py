"""Any Python value as what msgpack and JSON can carry: the recorded parameters of runs, and small results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from orchestrator.engine.protocol import INLINE_BYTES
from orchestrator.exceptions import MissingResult

_SHOWN = 200
_NOT_KEPT = 1
"""The type of msgpack's extension that stands in place of a result, with the reason why there is none."""


def plain(value: Any) -> Any:
    """The value itself where it can travel, else its JSON form, else what it looks like, shortened."""
    kind = type(value)
    if value is None or kind in (bool, str, float, bytes):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return _described(value)


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a run that is only being recorded: what is too large for a record is replaced by its size."""
    result: dict[str, Any] = {}
    left = INLINE_BYTES // 2
    for name, value in parameters.items():
        try:
            form = plain(value)
            size = len(msgpack.packb(form, unicode_errors="replace"))
        except (RecursionError, ValueError, OverflowError):
            form, size = shorten(value), _SHOWN
        if size > left:
            form, size = f"<{type(value).__name__} of {size:,} bytes>", _SHOWN
        left -= size
        result[name] = form
    return result


def packed_result(value: Any) -> bytes:
    """A returned value for the run's record; empty for None, for what msgpack cannot carry, and beyond 256 KiB."""
    if value is None:
        return b""
    try:
        packed: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return b""
    return packed if len(packed) <= INLINE_BYTES else b""


def kept_result(value: Any) -> bytes:
    """A returned value for the record of a run whose result others read; empty for None.

    What pydantic knows is kept in its JSON form. In place of what cannot be kept at all stands why: ``read_result`` raises it.
    """
    if value is None:
        return b""
    packed = packed_result(value)
    if packed:
        return packed
    try:
        from pydantic_core import to_jsonable_python

        packed = msgpack.packb(to_jsonable_python(value))
        problem = f"its value takes {len(packed):,} bytes, and {INLINE_BYTES:,} are kept"
    except (ValueError, TypeError, OverflowError, RecursionError):
        packed, problem = b"", f"a {type(value).__name__} is nothing that a run can keep"
    if packed and len(packed) <= INLINE_BYTES:
        return packed
    return bytes(msgpack.packb(msgpack.ExtType(_NOT_KEPT, problem.encode())))


def read_result(packed: bytes) -> Any:
    """The value that ``kept_result`` kept. Raises MissingResult."""
    value = msgpack.unpackb(packed, strict_map_key=False) if packed else None
    if isinstance(value, msgpack.ExtType) and value.code == _NOT_KEPT:
        raise MissingResult(
            f"The run completed, but its result was not kept: {value.data.decode()}.",
            hint="Return plain data, a model or a dataclass; or write the data to a file or a table and return where.",
        )
    return value


def shorten(value: Any) -> str:
    """What a value looks like, in 200 characters at most."""
    try:
        shown = repr(value)
    except Exception:
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


def _described(value: Any) -> Any:
    import sys

    # Whoever has a model, a date or an enum that pydantic knows has mostly imported it; without it, text will do.
    core = sys.modules.get("pydantic_core")
    if core is None:
        return str(value.isoformat()) if hasattr(value, "isoformat") else shorten(value)
    try:
        return core.to_jsonable_python(value, fallback=shorten)
    except ValueError:
        return shorten(value)
