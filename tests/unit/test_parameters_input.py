"""Parameters from the command line: read as JSON or text as the schema wants, and refused before anything is queued."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import date, datetime
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from orchestrator import flow
from orchestrator.deployments import parse_parameters
from orchestrator.deployments.parameters import check_parameters, check_size
from orchestrator.exceptions import OrchError, ParameterTypeError, PayloadTooLarge
from orchestrator.models import Deployment


class Item(BaseModel):
    name: str
    count: Annotated[int, Field(ge=1)] = 1


@flow
def etl(
    region: str,
    days: int = 3,
    ratio: float = 0.5,
    dry: bool = False,
    day: date | None = None,
    at: datetime | None = None,
    item: Optional[Item] = None,  # noqa: UP045
    items: list[Item] = [],  # noqa: B006
    mode: Literal["full", "part"] = "full",
    either: int | str = 1,
    limit: int = None,  # type: ignore[assignment]  # noqa: RUF013
    anything: Any = None,
) -> None:
    pass


def deployment(**changes: Any) -> Deployment:
    return Deployment("nightly", "etl", "etl.py:etl", **{"parameter_schema": etl.parameters, "pool": "p", **changes})


def parsed(*pairs: str, document: str | None = None, **changes: Any) -> dict[str, Any]:
    return parse_parameters(deployment(**changes), ["region=eu", *pairs], document)


def refused(*pairs: str, document: str | None = None) -> ParameterTypeError:
    with pytest.raises(ParameterTypeError) as caught:
        parsed(*pairs, document=document)
    return caught.value


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("days=5", 5),
        ("days=-1", -1),
        ("ratio=2", 2),
        ("ratio=2.5e3", 2500.0),
        ("dry=true", True),
        ("day=2026-01-31", "2026-01-31"),
        ("day=null", None),
        ("at=2026-01-31T09:00:00+09:00", "2026-01-31T09:00:00+09:00"),
        ('item={"name": "x", "count": 2}', {"name": "x", "count": 2}),
        ('items=[{"name": "x"}]', [{"name": "x"}]),
        ("mode=part", "part"),
        ('mode="part"', "part"),
        ("either=7", 7),
        ("either=seven", "seven"),
        ("limit=null", None),
        ("anything=1.10", 1.1),
        ("anything=a=b", "a=b"),
        ("anything=", ""),
        ('anything=[1, {"a": null}]', [1, {"a": None}]),
        ("anything=NaN", "NaN"),
    ],
)
def test_a_value_is_json_where_it_can_be_and_text_else(pair: str, value: Any) -> None:
    assert parsed(pair)[pair.partition("=")[0]] == value


@pytest.mark.parametrize("text", ["007", "1.10", "true", "null", "[1]", '{"a": 1}', " eu "])
def test_what_the_schema_wants_as_text_stays_text(text: str) -> None:
    assert parse_parameters(deployment(), [f"region={text}"])["region"] == text


def test_pairs_come_over_the_document_which_comes_over_the_deployments_own() -> None:
    found = parsed("days=1", document='{"days": 2, "ratio": 1}', parameters={"days": 3, "ratio": 2, "dry": True})
    assert found == {"region": "eu", "days": 1, "ratio": 1, "dry": True}


def test_defaults_are_left_to_the_flow() -> None:
    assert parsed() == {"region": "eu"}


def test_everything_that_is_missing_is_named() -> None:
    schema = {"properties": {"a": {}, "b": {}, "c": {}}, "required": ["a", "b"]}
    with pytest.raises(ParameterTypeError) as caught:
        check_parameters(schema, {}, what="Flow 'x'")
    assert str(caught.value) == "Flow 'x': 'a' and 'b' are missing."
    assert caught.value.hint == "It takes a; b; c, optional."


def test_a_deployments_own_parameters_count_as_given() -> None:
    assert parse_parameters(deployment(parameters={"region": "eu"})) == {"region": "eu"}
    with pytest.raises(ParameterTypeError, match="'region' is missing"):
        parse_parameters(deployment())


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("ratoi=5", "there is no parameter 'ratoi' (did you mean 'ratio'?)"),
        ("days=soon", "days: 'soon' is not of type 'integer'"),
        ("days=1.5", "days: 1.5 is not of type 'integer'"),
        ("days=true", "days: True is not of type 'integer'"),
        ("ratio=x", "ratio: 'x' is not of type 'number'"),
        ("day=someday", "day: 'someday'"),
        ("at=2026-13-01", "at: '2026-13-01'"),
        ("mode=half", "mode: 'half' is not one of"),
        ('items=[{"name": "x", "count": 0}]', "items[0]['count']: 0 is less than the minimum of 1"),
        ("items=[{}]", "items[0]: 'name' is a required property"),
    ],
)
def test_what_does_not_fit_is_named_with_its_parameter(pair: str, says: str) -> None:
    error = refused(pair)
    assert str(error).startswith("Deployment 'etl/nightly': ")
    assert says in str(error)
    assert "region: string" in str(error.hint)


def test_all_mistakes_are_told_at_once() -> None:
    error = str(refused("dasy=5", "ratio=x", "mode=half"))
    assert "dasy" in error
    assert "ratio" in error
    assert "mode" in error


@pytest.mark.parametrize(
    ("pairs", "document", "says"),
    [
        (["days"], None, "'days' is no parameter"),
        (["=5"], None, "is no parameter"),
        (["days=1", "days=2"], None, "given twice"),
        ([], "{", "not JSON"),
        ([], "[1]", "a JSON list, not an object"),
        ([], "7", "a JSON number, not an object"),
        ([], "{'a': 1}", "line 1, column 2"),
        ([], '{"days": NaN}', "NaN is not JSON"),
        ([], "[" * 100_000, "nested too deeply"),
        ([], '{"anything": 1' + "0" * 5000 + "}", "not JSON"),
        (["anything=" + "[" * 200 + "]" * 200], None, "nested too deeply"),
        (["anything=99999999999999999999"], None, "cannot be sent"),
    ],
)
def test_what_cannot_be_read_is_refused(pairs: list[str], document: str | None, says: str) -> None:
    assert says in str(refused(*pairs, document=document))


def test_too_large_a_payload_is_refused() -> None:
    assert check_size({"a": "x" * (256 * 1024 - 20)}) is None
    for oversized in ("x" * 256 * 1024, "x" * 64 * 1024 * 1024):
        began = time.process_time()
        with pytest.raises(PayloadTooLarge):
            parsed(f"anything={oversized}")
        with pytest.raises(PayloadTooLarge):
            parsed(document=json.dumps({"anything": oversized}))
        assert time.process_time() - began < 2


def test_a_deployment_may_leave_the_check_to_the_flow() -> None:
    assert parse_parameters(deployment(enforce_parameter_schema=False), ["dasy=5"]) == {"dasy": 5}


def test_a_flow_that_takes_anything_by_keyword_takes_anything() -> None:
    @flow
    def open_to_all(a: int, **rest: Any) -> None:
        pass

    found = parse_parameters(deployment(parameter_schema=open_to_all.parameters), ["a=1", "b=2"])
    assert found == {"a": 1, "b": 2}


def test_a_schema_never_reaches_for_the_network_and_a_strange_one_is_left_to_the_flow() -> None:
    for part in ({"$ref": "http://localhost:1/schema.json"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "(?<"}):
        check_parameters({"properties": {"a": part}}, {"a": "x"}, what="Flow 'x'")


@given(st.lists(st.text(max_size=20), max_size=3), st.none() | st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_parameters_or_a_clear_error(pairs: list[str], document: str | None) -> None:
    with contextlib.suppress(OrchError):
        assert isinstance(parse_parameters(deployment(), pairs, document), dict)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(etl.parameters["properties"])), json_values, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_json_fits_or_is_a_clear_error(values: dict[str, Any]) -> None:
    with contextlib.suppress(OrchError):
        parse_parameters(deployment(), document=json.dumps(values))
