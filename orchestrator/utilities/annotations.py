"""Marks around an argument that change how a task takes it."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Annotation(Generic[T]):
    """A value with a mark. ``unwrap`` gives the value back."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def unwrap(self) -> T:
        """The value without its mark."""
        return self.value

    def rewrap(self, value: Any) -> Annotation[Any]:
        """The same mark around another value."""
        return type(self)(value)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bool(self.value == getattr(other, "value", None))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class unmapped(Annotation[T]):  # noqa: N801 - reads like a function
    """``task.map(items, unmapped(whole))``: every call gets the whole value."""

    __slots__ = ()


class allow_failure(Annotation[T]):  # noqa: N801
    """``task(allow_failure(future))``: run even if that one failed, and get its exception as the value."""

    __slots__ = ()


class quote(Annotation[T]):  # noqa: N801
    """``task(quote(big))``: do not look inside for futures. Worth it for very large collections."""

    __slots__ = ()

    def unquote(self) -> T:
        """The value without its mark."""
        return self.value
