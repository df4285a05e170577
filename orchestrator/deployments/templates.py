"""Templates in orch.yaml: ``{{ $NAME }}``, ``{{ orch.variables.NAME }}`` and ``{{ STEP_ID.OUTPUT }}``.

``prefect.variables`` is read like ``orch.variables``. A value that is one template and nothing else takes on the type of what
it stands for; inside a longer text it becomes text. Behind a variable or an output a path picks a part:
``{{ orch.variables.limits.rows }}``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator import settings
from orchestrator.exceptions import InvalidDefinition, ObjectNotFound

_TEMPLATE = re.compile(r"\{\{([^{}]{0,500})\}\}")
_VARIABLES = re.compile(r"(?:orch|prefect)\.variables\.(.+)", re.ASCII)
_BLOCKS = re.compile(r"(?:orch|prefect)\.blocks\.", re.ASCII)
_ENVIRONMENT = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
_OUTPUT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+", re.ASCII)


def no_variables(name: str) -> Any:
    """A lookup for where no store is at hand."""
    raise ObjectNotFound(
        f"The variable {name!r} cannot be looked up here.", hint="Variables are read when deploying or running."
    )


@dataclass(frozen=True, slots=True)
class Sources:
    """Where templates get their values from.

    ``variable`` returns a variable's value or raises ObjectNotFound; ``environment`` returns None for what is not set;
    ``outputs`` are those of the steps so far, by step id.
    """

    variable: Callable[[str], Any] = no_variables
    environment: Callable[[str], str | None] = settings.variable
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def render(value: Any, sources: Sources, *, only_outputs: bool = False) -> Any:
    """The value, a text or any nesting of lists and mappings, with its templates filled in.

    ``only_outputs`` leaves templates that name no step of ``sources`` as they are, for whoever renders later.

    Raises InvalidDefinition for a template that stands for nothing.
    """
    if isinstance(value, Mapping):
        return {key: render(part, sources, only_outputs=only_outputs) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [render(part, sources, only_outputs=only_outputs) for part in value]
    if not isinstance(value, str) or "{{" not in value:
        return value
    return _render_text(value, sources, only_outputs)


def _render_text(text: str, sources: Sources, only_outputs: bool) -> Any:
    whole = _TEMPLATE.fullmatch(text.strip())
    if whole and not (only_outputs and not _names_a_step(whole[1], sources)):
        return _look_up(whole[1].strip(), sources)

    def fill(match: re.Match[str]) -> str:
        if only_outputs and not _names_a_step(match[1], sources):
            return match[0]
        found = _look_up(match[1].strip(), sources)
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    filled = _TEMPLATE.sub(fill, text)
    rest = _TEMPLATE.sub("", text)
    if not only_outputs and ("{{" in rest or "}}" in rest):
        raise InvalidDefinition(f"The template in {text[:60]!r} is not closed.", hint="A template looks like {{ $NAME }}.")
    return filled


def _names_a_step(expression: str, sources: Sources) -> bool:
    return expression.strip().partition(".")[0] in sources.outputs


def _look_up(expression: str, sources: Sources) -> Any:
    if match := _ENVIRONMENT.fullmatch(expression):
        found = sources.environment(match[1])
        if found is None:
            raise InvalidDefinition(
                f"The template {{{{ {expression} }}}} stands for the environment variable {match[1]}, which is not set.",
                hint=f"Set it before the command: {match[1]}=... orch deploy",
            )
        return found
    if match := _VARIABLES.fullmatch(expression):
        name, *path = match[1].split(".")
        return _pick(_variable(expression, name, sources), path, expression)
    if _BLOCKS.match(expression):
        raise InvalidDefinition(
            f"The template {{{{ {expression} }}}} names a block; this version of Orch has no blocks.",
            hint="Use an environment variable ({{ $NAME }}) or a variable ({{ orch.variables.name }}).",
        )
    if _OUTPUT.fullmatch(expression):
        step, *path = expression.split(".")
        if step in sources.outputs:
            return _pick(sources.outputs[step], path, expression)
        known = ", ".join(sources.outputs) or "there are none"
        raise InvalidDefinition(
            f"The template {{{{ {expression} }}}} names the step {step!r}, which has not run.",
            hint=f"Give a build step that id. Steps with an id so far: {known}.",
        )
    raise InvalidDefinition(
        f"The template {{{{ {expression[:60]} }}}} cannot be read.",
        hint="Templates are {{ $NAME }}, {{ orch.variables.NAME }} and {{ STEP_ID.OUTPUT }}.",
    )


def _variable(expression: str, name: str, sources: Sources) -> Any:
    try:
        return sources.variable(name)
    except ObjectNotFound as error:
        raise InvalidDefinition(
            f"The template {{{{ {expression} }}}} stands for nothing: {error}",
            hint=error.hint or f"orch variable set {name} VALUE",
        ) from error


def _pick(value: Any, path: list[str], expression: str) -> Any:
    for step in path:
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and step.isascii() and int(step[:9]) < len(value):
            value = value[int(step[:9])]
        else:
            close = difflib.get_close_matches(step, value, n=1) if isinstance(value, Mapping) else []
            raise InvalidDefinition(
                f"The template {{{{ {expression} }}}} asks for {step!r}, which is not there.",
                hint=f"Did you mean {close[0]!r}?" if close else "Look at the value it picks from.",
            )
    return value
