"""Templates: what they stand for, with which type, and what is said when they stand for nothing."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.deployments.templates import Sources, render
from orchestrator.exceptions import InvalidDefinition, ObjectNotFound, OrchError

VARIABLES: dict[str, Any] = {"region": "eu", "rows": 1000, "limits": {"rows": 5, "names": ["a", "b"]}, "nothing": None}
ENVIRONMENT = {"HOME_REGION": "us", "EMPTY": None}


def variable(name: str) -> Any:
    if name not in VARIABLES:
        raise ObjectNotFound(f"There is no variable {name!r}.", hint=f"Set it with: orch variable set {name} VALUE")
    return VARIABLES[name]


SOURCES = Sources(variable, ENVIRONMENT.get, {"build": {"image": "reg/app", "tag": 7, "tags": ["x"]}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("{{ $HOME_REGION }}", "us"),
        ("{{$HOME_REGION}}", "us"),
        ("in {{ $HOME_REGION }}!", "in us!"),
        ("{{ orch.variables.region }}", "eu"),
        ("{{ prefect.variables.region }}", "eu"),
        ("{{ orch.variables.rows }}", 1000),
        ("{{ orch.variables.nothing }}", None),
        ("{{ orch.variables.limits }}", {"rows": 5, "names": ["a", "b"]}),
        ("{{ orch.variables.limits.rows }}", 5),
        ("{{ orch.variables.limits.names.1 }}", "b"),
        ("{{ build.image }}:{{ build.tag }}", "reg/app:7"),
        ("{{ build.tag }}", 7),
        ("x {{ orch.variables.limits }}", 'x {"rows": 5, "names": ["a", "b"]}'),
        ("a } b { c", "a } b { c"),
    ],
)
def test_a_template_is_what_it_stands_for_and_keeps_its_type_when_alone(text: str, value: Any) -> None:
    assert render(text, SOURCES) == value


def test_lists_and_mappings_are_filled_in_all_the_way_down() -> None:
    assert render({"a": ["{{ build.tag }}", {"b": "{{ $HOME_REGION }}"}], "c": 1}, SOURCES) == {"a": [7, {"b": "us"}], "c": 1}


def test_a_value_that_a_template_brings_in_is_not_rendered_again() -> None:
    sources = Sources(lambda name: "{{ $HOME_REGION }}", ENVIRONMENT.get)
    assert render("{{ orch.variables.x }}", sources) == "{{ $HOME_REGION }}"
    assert render("<{{ orch.variables.x }}>", Sources(lambda name: "$HOME_REGION", ENVIRONMENT.get)) == "<$HOME_REGION>"


def test_what_a_worker_is_to_fill_in_is_left_alone() -> None:
    text = "{{ build.tag }} {{ $HOME_REGION }} {{ orch.variables.x }} {{ later.directory }}"
    assert render(text, SOURCES, only_outputs=True) == "7 {{ $HOME_REGION }} {{ orch.variables.x }} {{ later.directory }}"
    assert render("{{ $HOME_REGION }}", SOURCES, only_outputs=True) == "{{ $HOME_REGION }}"
    assert render("{{ build.tags }}", SOURCES, only_outputs=True) == ["x"]


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("{{ $NOT_SET }}", "environment variable NOT_SET, which is not set", "NOT_SET=..."),
        ("{{ $EMPTY }}", "EMPTY", "EMPTY=..."),
        ("{{ orch.variables.regoin }}", "no variable 'regoin'", "orch variable set regoin"),
        ("{{ orch.variables.limits.row }}", "'row', which is not there", "Did you mean 'rows'?"),
        ("{{ orch.variables.limits.names.2 }}", "'2'", "Look"),
        ("{{ orch.variables.region.x }}", "'x'", "Look"),
        ("{{ bild.image }}", "step 'bild', which has not run", "build"),
        ("{{ build.imag }}", "'imag'", "Did you mean 'image'?"),
        ("{{ prefect.blocks.secret.key }}", "no blocks", "variable"),
        ("{{ 1 + 1 }}", "cannot be read", "Templates are"),
        ("{{ }}", "cannot be read", "Templates are"),
        ("{{ __import__('os').system('ls') }}", "cannot be read", "Templates are"),
        ("{{ $HOME_REGION", "not closed", "{{ $NAME }}"),
    ],
)
def test_a_template_that_stands_for_nothing_says_why(text: str, says: str, hint: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        render(text, SOURCES)
    assert says in str(caught.value)
    assert hint in str(caught.value.hint)


@given(st.text(st.sampled_from("{} $.abuild_orchvariables\n0"), max_size=40))
@settings(max_examples=400, deadline=None)
def test_any_text_is_rendered_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(OrchError):
        render(text, SOURCES)
