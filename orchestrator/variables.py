"""Variables: small values that flows share, in Redis under a name. Any JSON.

Inside a worker's flow run they are read and written through the worker, which has the connection; elsewhere a store is
opened for the one call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.exceptions import InvalidName, ObjectNotFound, PayloadTooLarge

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.store import Store

SIZE_LIMIT = 64 * 1024
"""Bytes of JSON that a variable may take."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Variable:
    """A stored value: any JSON under a name, with tags.

    ``Variable.get("region")`` returns the value itself. The methods that begin with ``a`` are for async code.
    """

    name: str
    value: Any
    tags: tuple[str, ...] = ()

    @classmethod
    def get(cls, name: str, default: Any = None) -> Any:
        """The value of a variable; ``default`` if there is none."""
        try:
            return look_up(name)
        except ObjectNotFound:
            return default

    @classmethod
    def set(cls, name: str, value: Any, tags: Iterable[str] = (), overwrite: bool = False) -> Variable:
        """Store a value.

        Raises ObjectAlreadyExists for a name that is taken, unless ``overwrite``; InvalidName; PayloadTooLarge beyond 64 KiB;
        TypeError for what JSON cannot carry.
        """
        check_variable_name(name)
        value, tags = _checked(name, value), tuple(tags)
        _through(
            lambda link: link.ask("set_variable", name, value, list(tags), overwrite),
            lambda store: store.documents.set_variable(name, value, tags=tags, overwrite=overwrite),
        )
        return cls(name, value, tags)

    @classmethod
    def unset(cls, name: str) -> bool:
        """Remove a variable; False if there was none."""
        try:
            _through(
                lambda link: link.ask("unset_variable", name),
                lambda store: store.documents.unset_variable(name),
            )
        except ObjectNotFound:
            return False
        return True

    @classmethod
    async def aget(cls, name: str, default: Any = None) -> Any:
        """``get`` for async code."""
        return await _in_thread(cls.get, name, default)

    @classmethod
    async def aset(cls, name: str, value: Any, tags: Iterable[str] = (), overwrite: bool = False) -> Variable:
        """``set`` for async code."""
        return await _in_thread(cls.set, name, value, tags, overwrite)

    @classmethod
    async def aunset(cls, name: str) -> bool:
        """``unset`` for async code."""
        return await _in_thread(cls.unset, name)


def look_up(name: str) -> Any:
    """The value of a variable. Raises ObjectNotFound."""
    return _through(
        lambda link: link.ask("get_variable", name)["value"],
        lambda store: store.documents.get_variable(name).value,
    )


def check_variable_name(name: str) -> str:
    """Return a name that templates can spell, else raise InvalidName."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(
            f"{ascii(name)[:80]} cannot be the name of a variable.", hint="Use letters, digits, '_' and '-', at most 200."
        )
    return name


def _checked(name: str, value: Any) -> Any:
    try:
        text = json.dumps(value, allow_nan=False)
    except RecursionError:
        raise TypeError(f"The value of the variable {name!r} is nested too deeply.") from None
    except (TypeError, ValueError) as error:
        raise TypeError(f"The value of the variable {name!r} is no JSON: {error}") from None
    if len(text) > SIZE_LIMIT:
        raise PayloadTooLarge(
            f"The variable {name!r} would take {len(text):,} bytes; the limit is {SIZE_LIMIT:,}.",
            hint="Keep large data in a file or a table and its path in the variable.",
        )
    return json.loads(text)


def _through(by_link: Callable[[Link], _T], by_store: Callable[[Store], _T]) -> _T:
    """By the link of the run that this code belongs to, where there is one; else by a store of its own."""
    from orchestrator.context import FlowRunContext

    context = FlowRunContext.get()
    if context is not None and context.link is not None:
        return by_link(context.link)
    from orchestrator.store import open_store

    with open_store() as store:
        return by_store(store)


async def _in_thread(call: Callable[..., _T], *arguments: Any) -> _T:
    import asyncio

    return await asyncio.to_thread(call, *arguments)
