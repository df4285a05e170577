"""Deployment steps: what ``build``, ``push`` and ``pull`` in orch.yaml do.

A step is a mapping of one name to its inputs::

    - orchestrator.deployments.steps.set_working_directory:
        id: here
        directory: /opt/flows

Names are looked up in a table, never imported: ``prefect.deployments.steps.NAME`` answers as well, with or without the module
between (``prefect.deployments.steps.pull.NAME``). Steps do not touch the process: each gets the directory that the one before
left, and the caller goes to the last.
"""

from __future__ import annotations

import difflib
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.deployments.templates import Sources, render
from orchestrator.exceptions import InvalidDefinition, StepError

_NAME = re.compile(r"(?:orchestrator|orch|prefect)\.(?:deployments|projects)\.steps(?:\.[a-z_]{1,40})?\.([a-z_]{1,60})")
_COMING = frozenset(
    {
        "git_clone",
        "git_clone_project",
        "run_shell_script",
        "pip_install_requirements",
        "pull_from_remote_storage",
        "pull_with_block",
    }
)
_KEYWORDS = frozenset({"id", "requires"})


@dataclass(slots=True)
class Outcome:
    """Where the steps have led: the directory that holds the code, and what each step with an id has answered."""

    directory: Path
    outputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One step as written: the name as the table knows it, its inputs, and its id if it has one."""

    name: str
    inputs: dict[str, Any]
    id: str | None


def set_working_directory(outcome: Outcome, directory: str) -> dict[str, Any]:
    """The code is in ``directory``; a relative one begins where the steps before have led."""
    path = outcome.directory / directory
    try:
        path = outcome.directory / Path(directory).expanduser()
        exists = path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such user in ~user, a NUL character
        exists = False
    if not exists:
        raise StepError(
            f"set_working_directory: there is no directory {str(path)!r} on host {socket.gethostname()!r}.",
            hint="Put the code there on every worker host (a shared disk, an image), or correct the step and deploy again.",
        )
    outcome.directory = path.resolve()
    return {"directory": str(outcome.directory)}


STEPS: Mapping[str, Callable[..., dict[str, Any]]] = MappingProxyType({"set_working_directory": set_working_directory})
"""Every step this version knows."""


def parse(step: Any) -> Step:
    """One step, checked: its name is known and its inputs are those it takes.

    Raises StepError for a step that Prefect has and this version has not, InvalidDefinition for anything else.
    """
    if not isinstance(step, Mapping) or len(step) != 1:
        raise InvalidDefinition(
            "A step is one name with its inputs below it.",
            hint="For example: - orchestrator.deployments.steps.set_working_directory: {directory: /opt/flows}",
        )
    [(full_name, inputs)] = step.items()
    name = _known(str(full_name))
    inputs = {} if inputs is None else inputs
    if not isinstance(inputs, Mapping):
        raise InvalidDefinition(f"The inputs of the step {name!r} are a mapping.", hint=f"Write {_example(name)}")
    given = {str(key): value for key, value in inputs.items() if key not in _KEYWORDS}
    takes = list(signature(STEPS[name]).parameters.values())[1:]
    if unknown := given.keys() - {parameter.name for parameter in takes}:
        raise InvalidDefinition(f"The step {name!r} has no input {min(unknown)!r}.", hint=f"Write {_example(name)}")
    missing = [p.name for p in takes if p.default is Parameter.empty and given.get(p.name) is None]
    if missing:
        raise InvalidDefinition(f"The step {name!r} needs {' and '.join(missing)}.", hint=f"Write {_example(name)}")
    step_id = inputs.get("id")
    return Step(name, given, None if step_id is None else str(step_id))


def run(steps: Sequence[Any], directory: Path, sources: Sources) -> Outcome:
    """Run steps in order, from ``directory`` on; templates in their inputs may name the outputs of those before.

    Raises StepError, InvalidDefinition.
    """
    outcome = Outcome(directory)
    for written in steps:
        step = parse(written)
        inputs = render(step.inputs, replace(sources, outputs={**sources.outputs, **outcome.outputs}))
        for name, value in inputs.items():
            if not isinstance(value, str):
                raise InvalidDefinition(f"The input {name!r} of the step {step.name!r} is text, not {value!r}.")
        answer = STEPS[step.name](outcome, **inputs)
        if step.id is not None:
            outcome.outputs[step.id] = answer
    return outcome


def run_pull(steps: Sequence[Any], path: str | Path, sources: Sources | None = None) -> Path:
    """Run a deployment's pull steps on the machine that is about to run its flow; where the code then is.

    Templates are filled in here: the environment is this machine's, variables are those of the moment.
    """
    if sources is None:
        from orchestrator.variables import look_up

        sources = Sources(variable=look_up)
    return run(steps, Path(path), sources).directory


def _known(full_name: str) -> str:
    match = _NAME.fullmatch(full_name)
    name = match[1] if match else full_name.rpartition(".")[2]
    if match and name in STEPS:
        return name
    available = ", ".join(sorted(STEPS))
    if match and name in _COMING:
        raise StepError(f"The step {name!r} is not available in this version of Orch.", hint=f"Available: {available}.")
    close = difflib.get_close_matches(name, STEPS, n=1)
    meant = f"Did you mean orchestrator.deployments.steps.{close[0]}? " if close else ""
    raise StepError(f"There is no step {full_name[:80]!r}.", hint=f"{meant}Available: {available}.")


def _example(name: str) -> str:
    takes = [parameter.name for parameter in list(signature(STEPS[name]).parameters.values())[1:]]
    return f"orchestrator.deployments.steps.{name}: {{{', '.join(f'{parameter}: ...' for parameter in takes)}}}"
