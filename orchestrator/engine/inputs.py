"""What goes into a call: futures and states are replaced by their results, and where each came from is noted.

A value that a task returned is recognised when it goes into another task, so that calls in sequence show as a chain.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from weakref import ref

from orchestrator.exceptions import OrchError
from orchestrator.futures import Future, FutureList
from orchestrator.states import State
from orchestrator.utilities.annotations import Annotation, allow_failure, quote

ATOMS = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type),
        *(date, datetime, time, timedelta, Decimal),
    }
)
"""Types that hold nothing that could be a future."""

_UNTRACEABLE = frozenset({type(None), bool, int, float, complex, type})
_KEPT = 16


class UpstreamFailed(OrchError):
    """A future or state that goes into a task did not complete."""


class Producers:
    """Which task run returned which object, as long as anybody else holds that object."""

    __slots__ = ("_known", "_sweep_at")

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}
        self._sweep_at = _KEPT

    def note(self, value: Any, task_run: str) -> None:
        """``task_run`` returned this value."""
        if type(value) in _UNTRACEABLE:
            return
        try:
            held: Any = ref(value)
        except TypeError:
            held = value  # a str, a list: no weak references to these
        self._known[id(value)] = (held, task_run)
        if len(self._known) >= self._sweep_at:
            self._sweep()

    def of(self, value: Any) -> str | None:
        """The task run that returned this very object."""
        found = self._known.get(id(value))
        if found is None:
            return None
        held, task_run = found
        # Where the object has died, another may have its address.
        return task_run if held is value or (type(held) is ref and held() is value) else None

    def _sweep(self) -> None:
        for key in list(self._known):
            held = self._known[key][0]
            # Three references: our tuple, our name for it here, and the call's own. Nobody can pass on what nobody holds.
            if held() is None if type(held) is ref else sys.getrefcount(held) <= 3:
                del self._known[key]
        self._sweep_at = max(_KEPT, 2 * len(self._known))


def pending_futures(values: Iterable[Any]) -> list[Future[Any]]:
    """The futures anywhere inside ``values`` whose runs have not ended."""
    found: dict[int, Future[Any]] = {}

    def look(value: Any, _: bool) -> Any:
        if isinstance(value, Future) and not value.is_done:
            found[id(value)] = value
        return value

    for value in values:
        _visit(value, look, set(), False)
    return list(found.values())


def resolve(value: Any, upstream: list[str], producers: Producers | None) -> Any:
    """``value`` with every future and state inside replaced by its result; waits for futures.

    The ids of the task runs that these came from are added to ``upstream``. Collections without any are returned as they
    are, others as copies.

    Raises UpstreamFailed for one that did not complete, unless it is marked with ``allow_failure``.
    """

    def look(item: Any, failure_allowed: bool) -> Any:
        if isinstance(item, Future):
            _note(upstream, item.task_run_id)
            item.wait()
            return _result(item.state, failure_allowed, f"Task run '{item.name}'")
        if isinstance(item, State):
            origin = producers.of(item) if producers else None
            _note(upstream, origin)
            return _result(item, failure_allowed, "A run whose state goes in here")
        if producers is not None:
            _note(upstream, producers.of(item))
        return item

    return _visit(value, look, set(), False)


def resolve_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], upstream: list[str], producers: Producers | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``resolve`` for the arguments of a call; plain numbers cost next to nothing."""
    if not _UNTRACEABLE.issuperset(map(type, args)):
        args = tuple(resolve(value, upstream, producers) for value in args)
    if kwargs and not _UNTRACEABLE.issuperset(map(type, kwargs.values())):
        kwargs = {name: resolve(value, upstream, producers) for name, value in kwargs.items()}
    return args, kwargs


def states_of(value: Any) -> Any:
    """``value`` with every future inside replaced by its final state; waits for them."""

    def look(item: Any, _: bool) -> Any:
        if isinstance(item, Future):
            item.wait()
            return item.state
        return item

    return _visit(value, look, set(), False)


def _note(upstream: list[str], origin: str | None) -> None:
    if origin is not None and origin not in upstream:
        upstream.append(origin)


def _result(state: State, failure_allowed: bool, what: str) -> Any:
    if state.is_completed():
        return state.data
    if failure_allowed and state.is_final():
        return state.result(raise_on_failure=False)
    raise UpstreamFailed(f"{what} did not complete: {state}.")


_Look = Callable[[Any, bool], Any]


def _visit(value: Any, look: _Look, inside: set[int], failure_allowed: bool) -> Any:
    """Rebuild ``value`` with ``look`` applied to every item; the same object where nothing changed.

    ``inside`` holds the containers around it, so that one that contains itself does not go on for ever.
    """
    kind = type(value)
    if kind in ATOMS:
        return look(value, failure_allowed)
    if isinstance(value, Annotation):
        if kind is quote:
            return value.unwrap()
        return _visit(value.unwrap(), look, inside, failure_allowed or kind is allow_failure)
    seen = look(value, failure_allowed)
    if seen is not value or isinstance(value, (Future, State, type)) or id(value) in inside:
        return seen
    inside.add(id(value))
    try:
        return _visit_inside(value, kind, lambda item: _visit(item, look, inside, failure_allowed))
    finally:
        inside.discard(id(value))


def _visit_inside(value: Any, kind: type, visit: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        if ATOMS.issuperset(map(type, value)) and len(value) > _KEPT:
            return value  # a long collection of plain values need not be walked in Python
        items = [visit(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        if hasattr(value, "_fields"):
            return kind(*items)
        return list(items) if kind is FutureList else kind(items)
    if isinstance(value, dict):
        changed = {key: new for key, old in value.items() if (new := visit(old)) is not old}
        if not changed:
            return value
        copied = copy.copy(value)
        copied.update(changed)
        return copied
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return _with_changes(value, {name: getattr(value, name) for name in names if hasattr(value, name)}, visit)
    if _is_model(value):
        return _with_changes(value, {name: getattr(value, name) for name in type(value).model_fields}, visit)
    return value


def _with_changes(value: Any, attributes: Mapping[str, Any], visit: Callable[[Any], Any]) -> Any:
    changed = {name: new for name, old in attributes.items() if (new := visit(old)) is not old}
    if not changed:
        return value
    copied = copy.copy(value)
    for name, new in changed.items():
        object.__setattr__(copied, name, new)  # frozen ones too: nobody has seen the copy yet
    return copied


def _is_model(value: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, pydantic.BaseModel)
