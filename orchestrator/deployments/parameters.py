"""Parameters that arrive as text, checked against a deployment's JSON schema before anything is queued."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from orchestrator.exceptions import ParameterTypeError, PayloadTooLarge
from orchestrator.models import Deployment

SIZE_LIMIT = 256 * 1024
"""Bytes of msgpack that the parameters of a run may take."""

_SHOWN = 5
_DEPTH = 100


def parse_parameters(deployment: Deployment, pairs: Sequence[str] = (), document: str | None = None) -> dict[str, Any]:
    """The parameters of a run: the deployment's own, then those of a JSON object, then ``key=value`` pairs.

    A pair's value is JSON where it can be read so and the schema does not ask for text; else it is text.

    Raises ParameterTypeError naming everything that is wrong: unknown, missing, of the wrong type. PayloadTooLarge.
    """
    given: dict[str, Any] = {}
    if document is not None:
        given.update(_read_document(document))
    seen: set[str] = set()
    for pair in pairs:
        name, value = _read_pair(pair, deployment)
        if name in seen:
            raise ParameterTypeError(f"The parameter {name!r} is given twice.", hint="Give each parameter once.")
        seen.add(name)
        given[name] = value
    merged = {**deployment.parameters, **given}
    check_size(merged)
    if deployment.enforce_parameter_schema:
        check_parameters(deployment.parameter_schema, merged, what=f"Deployment {deployment.slug!r}")
    return merged


def check_parameters(schema: Mapping[str, Any], parameters: Mapping[str, Any], *, what: str, complete: bool = True) -> None:
    """Refuse parameters that do not fit a flow's JSON schema; without ``complete``, some may still be missing.

    Raises ParameterTypeError that begins with ``what``.
    """
    problems = [
        *_unknown(schema, parameters),
        *(_missing(schema, parameters) if complete else ()),
        *_misfits(schema, parameters),
    ]
    if problems:
        listed = "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
        raise ParameterTypeError(f"{what}: {listed}.", hint=_signature(schema))


def check_size(parameters: Mapping[str, Any]) -> None:
    """Refuse what a run cannot carry: beyond 256 KiB, or not plain data. Raises PayloadTooLarge, ParameterTypeError."""
    import msgpack

    _check_depth(parameters)
    try:
        size = len(msgpack.packb(dict(parameters)))
    except (TypeError, ValueError, OverflowError) as error:
        raise ParameterTypeError(
            f"The parameters hold something that cannot be sent to a worker: {error}.",
            hint="Parameters are text, numbers up to 64 bits, true, false, null, and lists and mappings of these.",
        ) from None
    if size > SIZE_LIMIT:
        raise PayloadTooLarge(
            f"The parameters take {size:,} bytes; a run may carry {SIZE_LIMIT:,}.",
            hint="Put the data into a file or a table and pass its path or key.",
        )


def _read_document(document: str) -> dict[str, Any]:
    _check_length(document)
    try:
        values = json.loads(document, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ParameterTypeError(
            f"The parameters are not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            hint="""Give a JSON object, for example '{"region": "eu", "days": 3}'.""",
        ) from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ParameterTypeError(f"The parameters are not JSON: {why}.", hint="Give a JSON object.") from None
    if not isinstance(values, dict):
        raise ParameterTypeError(
            f"The parameters are a JSON {_kind(values)}, not an object.", hint="""Give names and values: '{"days": 3}'."""
        )
    return values


def _read_pair(pair: str, deployment: Deployment) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ParameterTypeError(f"{ascii(pair)[:60]} is no parameter.", hint="Write name=value, for example -p days=3.")
    _check_length(text)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return name, text
    schema = deployment.parameter_schema
    wanted = schema.get("properties", {}).get(name)
    if wanted is None or isinstance(value, str) or (isinstance(value, bool) and text not in ("true", "false")):
        return name, value
    # What fits as text only is text: a postcode, or a version such as 1.10.
    if not _fits(schema, wanted, value) and _fits(schema, wanted, text):
        return name, text
    return name, value


def _fits(schema: Mapping[str, Any], part: Any, value: Any) -> bool:
    return not list(_errors({**_definitions(schema), "allOf": [part]}, value))


def _unknown(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterable[str]:
    known = schema.get("properties", {})
    if schema.get("additionalProperties", False):
        return
    for name in parameters:
        if name not in known:
            close = difflib.get_close_matches(str(name)[:100], known, n=1)
            yield f"there is no parameter {ascii(name)[:60]}" + (f" (did you mean {close[0]!r}?)" if close else "")


def _missing(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterable[str]:
    missing = [name for name in schema.get("required", ()) if name not in parameters]
    if missing:
        yield f"{' and '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing"


def _misfits(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterable[str]:
    for name, part in schema.get("properties", {}).items():
        if name in parameters and not (parameters[name] is None and part.get("default", ...) is None):
            for error in _errors({**_definitions(schema), "allOf": [part]}, parameters[name]):
                inside = "".join(f"[{step!r}]" for step in error.absolute_path)
                message = error.message if len(error.message) <= 160 else f"{error.message[:160]}..."
                yield f"{name}{inside}: {message}"


def _errors(schema: Mapping[str, Any], value: Any) -> Iterable[Any]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # A registry of its own: by default a $ref to elsewhere would be fetched over the network.
    validator = Draft202012Validator(schema, registry=Registry(), format_checker=_formats())
    try:
        for error in validator.iter_errors(value):
            yield best_match([error]) or error
    except (Unresolvable, re.error, RecursionError):
        return  # a schema that the flow's own types have made; the flow's signature is checked again when it runs


@cache
def _formats() -> Any:
    """Judges dates and the like as the flow's signature does: by pydantic, where a schema asks for them."""
    from jsonschema import FormatChecker

    def judge(kind: type) -> Callable[[object], bool]:
        def fits(value: object) -> bool:
            from pydantic import TypeAdapter, ValidationError

            try:
                TypeAdapter(kind).validate_python(value)
            except ValidationError:
                return False
            return not isinstance(value, bool)

        return fits

    checker = FormatChecker(formats=())
    kinds = {"date": date, "date-time": datetime, "time": time, "duration": timedelta, "uuid": UUID}
    for name, kind in kinds.items():
        checker.checkers[name] = (judge(kind), ())
    return checker


def _definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _signature(schema: Mapping[str, Any]) -> str:
    """The flow's parameters as a hint: ``It takes region, days (optional)``."""
    known, required = schema.get("properties", {}), set(schema.get("required", ()))
    if not known:
        return "It takes no parameters."
    shown = [f"{name}{_type(part)}{'' if name in required else ', optional'}" for name, part in list(known.items())[:12]]
    more = f"; and {len(known) - 12} more" if len(known) > 12 else ""
    return f"It takes {'; '.join(shown)}{more}."


def _type(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return f": {kind}" if isinstance(kind, str) else ""


def _check_length(text: str) -> None:
    # JSON is at most twelve bytes for one of msgpack ("\u00e9" in ASCII): more cannot fit, so it is not even parsed.
    if len(text) > 12 * SIZE_LIMIT:
        raise PayloadTooLarge(
            f"The parameters are {len(text):,} characters long; a run may carry {SIZE_LIMIT:,} bytes.",
            hint="Put the data into a file or a table and pass its path or key.",
        )


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEPTH):
        level = [part for item in level if isinstance(item, dict | list | tuple) for part in _parts(item)]
        if not level:
            return
    raise ParameterTypeError("The parameters are nested too deeply.", hint=f"At most {_DEPTH} levels are possible.")


def _parts(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    kinds = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
