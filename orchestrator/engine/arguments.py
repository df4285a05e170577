"""Arguments that travel: what a call in the background is made with, as what a run can carry.

Text, numbers, bytes, true, false, None and lists and mappings of these travel as they are. What pydantic knows besides (models,
dataclasses, dates, enums, UUIDs, decimals, paths, sets) travels in its JSON form, and the annotation of the parameter makes it
again what it was, where the task runs. Whether it does is tried at the call: a date must not arrive as a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.exceptions import ParameterTypeError

if TYPE_CHECKING:
    from orchestrator.tasks import Task

PLAIN = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose values travel as they are. Of ``int`` that holds up to 64 bits; the store says so of others."""

_DEPTH = 100


def travelling(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of the task, as a run can carry them.

    Raises ParameterTypeError, with the name of the parameter, for what has no such form, or would arrive as something else.
    """
    signature = task.signature
    given = signature.bind_given(args, kwargs)
    forms = {name: _form(value, name, task) for name, value in given.items()}
    converted = {name: form for name, form in forms.items() if not _is_same(form, given[name])}
    if converted:
        _try_back(task, given, converted)
    return signature.arrange(forms)


def _form(value: Any, where: str, task: Task[..., Any], depth: int = 0) -> Any:
    """The value as it travels; ``where`` it stands, for messages."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if depth > _DEPTH:
        raise ParameterTypeError(
            f"Task '{task.name}' cannot be sent {where.split('[')[0]}: it is nested too deeply.",
            hint=f"At most {_DEPTH} levels are possible.",
        )
    if kind is dict:
        return {_key(key, where, task): _form(item, f"{where}[{key!r}]", task, depth + 1) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_form(item, f"{where}[{place}]", task, depth + 1) for place, item in enumerate(value)]
    if kind is set or kind is frozenset:
        return [_form(item, f"an item of {where}", task, depth + 1) for item in value]
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError, RecursionError) as problem:
        why = "" if isinstance(problem, PydanticSerializationError) and "unknown type" in str(problem) else f" ({problem})"
        raise ParameterTypeError(
            f"Task '{task.name}' cannot be sent {where}: a {kind.__name__} does not travel to a worker{why}.",
            hint="Pass plain data, a pydantic model or a dataclass; or where the task finds the thing itself.",
        ) from None


def _key(key: Any, where: str, task: Task[..., Any]) -> Any:
    if type(key) in PLAIN:
        return key
    return _form(key, f"a key of {where}", task)


def _is_same(form: Any, value: Any) -> bool:
    """The form is the value itself, but for tuples that are lists now."""
    if form is value:
        return True
    if type(value) is dict:
        return form.keys() == value.keys() and all(_is_same(form[key], value[key]) for key in value)
    if type(value) in (list, tuple):
        return all(map(_is_same, form, value))
    return False


def _try_back(task: Task[..., Any], given: Mapping[str, Any], converted: Mapping[str, Any]) -> None:
    """Raise ParameterTypeError unless the task, where it runs, makes of the converted arguments what they were."""
    made = task.signature.validate(converted)
    for name in converted:
        was = given[name]
        if made[name] == was:
            continue
        arrives = type(made[name]).__name__ if type(made[name]) is not type(was) else f"another {type(was).__name__}"
        raise ParameterTypeError(
            f"Task '{task.name}' would not get the {type(was).__name__} that it is sent as {name}, but {_a(arrives)}.",
            hint=f"Annotate the parameter with its type, such as {name}: {_spelled(was)}; that is what it is made again from.",
        )


def _a(what: str) -> str:
    return what if what.startswith("another ") else f"a {what}"


def _spelled(value: Any) -> str:
    """The annotation that would bring a value back: ``date``, ``list[date]``."""
    kind = type(value).__name__
    if isinstance(value, dict) and value:
        key, item = next(iter(value.items()))
        return f"{kind}[{_spelled(key)}, {_spelled(item)}]"
    if isinstance(value, (list, set, frozenset)) and value:
        return f"{kind}[{_spelled(next(iter(value)))}]"
    if isinstance(value, tuple) and type(value) is tuple and value:
        return f"tuple[{', '.join(map(_spelled, value))}]"
    return kind
