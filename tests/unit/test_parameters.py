"""Parameters of flows: binding by name, coercion by annotation, and their JSON schema."""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Callable
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from harness import python
from orchestrator import flow
from orchestrator.engine.parameters import Signature
from orchestrator.exceptions import ParameterBindError, ParameterTypeError

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTheTypeChecker


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Order(BaseModel):
    number: int
    day: date = date(2026, 1, 1)


class Unknown:
    """A class that pydantic knows nothing about."""


def signature(fn: Callable[..., Any]) -> Signature:
    return Signature(fn, "Flow 'f'")


def validated(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    of = signature(fn)
    return of.validate(of.bind(args, kwargs))


# Binding


def everything(a: Any, /, b: Any, c: Any = 3, *d: Any, e: Any, f: Any = 6, **g: Any) -> Any:
    return a, b, c, d, e, f, g


@given(
    args=st.lists(st.integers(), max_size=6).map(tuple),
    kwargs=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(), max_size=5),
)
def test_arranged_arguments_call_the_function_as_the_given_ones_do(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    of = signature(everything)
    try:
        expected = everything(*args, **kwargs)
    except TypeError:
        with pytest.raises(ParameterBindError):
            of.bind(args, kwargs)
        with pytest.raises(ParameterBindError):
            of.check(args, kwargs)
        return
    of.check(args, kwargs)
    arranged_args, arranged_kwargs = of.arrange(of.bind(args, kwargs))
    assert everything(*arranged_args, **arranged_kwargs) == expected


@given(args=st.lists(st.integers(), max_size=4).map(tuple))
def test_the_quick_check_agrees_with_python(args: tuple[int, ...]) -> None:
    functions: list[Callable[..., Any]] = [
        *(lambda: 0, lambda a: 0, lambda a, b=1: 0, lambda *a: 0, lambda a, *, b: 0, lambda a, *, b=1: 0, lambda **a: 0),
    ]
    for fn in functions:
        try:
            inspect.signature(fn).bind(*args)
        except TypeError:
            with pytest.raises(ParameterBindError):
                signature(fn).check(args, {})
        else:
            signature(fn).check(args, {})


def test_parameters_of_a_deployment_are_known_by_name() -> None:
    def f(a: int, b: int = 2, *, c: int = 3, **more: int) -> None: ...

    of = signature(f)
    assert of.bind_names({"a": 1, "x": 9}) == {"a": 1, "b": 2, "c": 3, "more": {"x": 9}}
    with pytest.raises(ParameterBindError, match="'a'"):
        of.bind_names({"b": 1})

    def only(a: int) -> None: ...

    with pytest.raises(ParameterBindError, match="unexpected keyword argument 'z'"):
        signature(only).bind_names({"a": 1, "z": 2})


def test_a_binding_error_lists_what_is_wanted() -> None:
    with pytest.raises(ParameterBindError) as caught:
        signature(lambda a, b=2: 0).bind((), {})
    assert caught.value.hint == "Its parameters: a, b=2"


# Validation


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        *((int, "3", 3), (float, 3, 3.0), (bool, "no", False), (str, "x", "x"), (date, "2026-03-01", date(2026, 3, 1))),
        *((int | None, None, None), (int | None, "4", 4), (Literal["a", "b"], "b", "b"), (Colour, "red", Colour.RED)),
        *((list[int], ["1", 2], [1, 2]), (dict[str, int], {"a": "1"}, {"a": 1}), (timedelta, 60, timedelta(minutes=1))),
        *((Order, {"number": "7"}, Order(number=7)), (list[Order], [{"number": 1}], [Order(number=1)])),
        *((Annotated[int, Field(ge=0)], "5", 5), (Any, object, object), (set[int], [1, 1], {1})),
    ],
)
def test_values_become_what_the_annotation_says(annotation: Any, value: Any, expected: Any) -> None:
    def f(x: Any) -> None: ...

    f.__annotations__["x"] = annotation
    assert validated(f, value) == {"x": expected}


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        *((int, "many"), (int, None), (Literal["a"], "b"), (Colour, "green"), (list[int], ["x"]), (Order, {})),
        *((Annotated[int, Field(ge=0)], -1), (Unknown, 3), (bool, "perhaps")),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_parameters_name(annotation: Any, value: Any) -> None:
    def f(wrong: Any) -> None: ...

    f.__annotations__["wrong"] = annotation
    with pytest.raises(ParameterTypeError, match="wrong"):
        validated(f, value)


def test_every_wrong_parameter_is_named() -> None:
    def f(a: int, b: Order, c: str) -> None: ...

    with pytest.raises(ParameterTypeError) as caught:
        validated(f, "x", {"number": "y"}, "fine")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == [" - a", " - b.number"]


def test_defaults() -> None:
    def f(
        limit: int = None,  # type: ignore[assignment]  # noqa: RUF013 - as everyone writes it
        text: int = "5",  # type: ignore[assignment]
        made: list[int] = Field(default_factory=list),  # noqa: B008
        bounded: int = Field(default=3, ge=0),
    ) -> None: ...

    assert validated(f) == {"limit": None, "text": 5, "made": [], "bounded": 3}
    with pytest.raises(ParameterTypeError, match="bounded"):
        validated(f, bounded=-1)


def test_a_field_without_a_default_is_required() -> None:
    def f(a: int = Field(ge=0)) -> None: ...

    assert signature(f).schema()["required"] == ["a"]


def test_any_name_will_do_for_a_parameter() -> None:
    def f(schema: int, json: int, copy: int, _private: int, model_config: int, values: int) -> None: ...

    assert validated(f, *"123456") == {
        "schema": 1,
        "json": 2,
        "copy": 3,
        "_private": 4,
        "model_config": 5,
        "values": 6,
    }


def test_classes_that_pydantic_does_not_know_are_checked_by_isinstance() -> None:
    def f(x: Unknown) -> None: ...

    thing = Unknown()
    assert validated(f, thing) == {"x": thing}


def test_annotations_that_nobody_can_resolve_are_taken_as_anything() -> None:
    def f(x: OnlyForTheTypeChecker, n: int) -> None: ...

    assert validated(f, "anything", "3") == {"x": "anything", "n": 3}


def test_annotations_may_name_what_stands_around_the_function() -> None:
    class Local(BaseModel):
        n: int

    def f(x: Local) -> int:
        return Local.model_validate(x).n

    assert validated(f, {"n": "3"}) == {"x": Local(n=3)}


def test_plain_values_of_the_right_type_need_no_pydantic() -> None:
    program = """
import sys
from orchestrator.engine.parameters import Signature

def f(a: int, b: str = "x", c: "float | None" = None, *, d: bool = True): ...

of = Signature(f, "Flow 'f'")
assert of.validate(of.bind((1,), {"c": 0.5})) == {"a": 1, "b": "x", "c": 0.5, "d": True}
assert "pydantic" not in sys.modules
"""
    process = python("-c", program)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert "pydantic" in sys.modules


# Schema


def test_the_schema_describes_every_parameter() -> None:
    @flow
    def f(
        name: str,
        order: Order,
        colour: Colour = Colour.RED,
        day: date = date(2026, 1, 2),
        many: list[Order] = [],  # noqa: B006
        anything: Any = None,
        thing: Unknown = None,  # type: ignore[assignment]
        *,
        flag: bool = False,
    ) -> None: ...

    schema = f.parameters
    assert (schema["title"], schema["type"], schema["required"]) == ("Parameters", "object", ["name", "order"])
    properties = schema["properties"]
    assert properties["name"] == {"title": "name", "type": "string", "position": 0}
    assert properties["order"]["$ref"] == "#/definitions/Order"
    assert properties["colour"]["default"] == "red"
    assert properties["day"] == {"title": "day", "type": "string", "format": "date", "default": "2026-01-02", "position": 3}
    assert properties["anything"] == {"title": "anything", "default": None, "position": 5}
    assert properties["thing"]["default"] is None
    assert properties["flag"] == {"title": "flag", "type": "boolean", "default": False, "position": 7}
    assert set(schema["definitions"]) == {"Order", "Colour"}


def test_a_flow_completes_and_validates_parameters_without_running() -> None:
    @flow
    def f(n: int, day: date = date(2026, 1, 1)) -> None:
        raise AssertionError

    assert f.validate_parameters({"n": "3"}) == {"n": 3, "day": date(2026, 1, 1)}
    with pytest.raises(ParameterTypeError):
        f.validate_parameters({"n": "x"})
    with pytest.raises(ParameterBindError):
        f.validate_parameters({})
