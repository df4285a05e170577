"""Deployment steps: their names, their inputs, where they lead, and what they refuse."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.deployments import steps
from orchestrator.deployments.templates import Sources
from orchestrator.exceptions import InvalidDefinition, OrchError, StepError

HERE = "orchestrator.deployments.steps.set_working_directory"


@pytest.mark.parametrize(
    "name",
    [
        "orchestrator.deployments.steps.set_working_directory",
        "prefect.deployments.steps.set_working_directory",
        "prefect.deployments.steps.pull.set_working_directory",
        "prefect.projects.steps.set_working_directory",
    ],
)
def test_a_step_answers_to_our_name_and_to_prefects(tmp_path: Path, name: str) -> None:
    assert steps.run_pull([{name: {"directory": str(tmp_path)}}], "/") == tmp_path.resolve()


def test_each_step_begins_where_the_one_before_has_led_and_the_process_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = Path.cwd()
    assert steps.run_pull([{HERE: {"directory": "a"}}, {HERE: {"directory": "b"}}], tmp_path) == tmp_path / "a" / "b"
    assert Path.cwd() == before


def test_a_step_with_an_id_hands_on_what_it_answers(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    listed = [{HERE: {"id": "first", "directory": "a"}}, {HERE: {"directory": "{{ first.directory }}", "requires": "x"}}]
    outcome = steps.run(listed, tmp_path, Sources())
    assert outcome.outputs == {"first": {"directory": str(tmp_path / "a")}}
    assert outcome.directory == tmp_path / "a"


def test_pull_steps_read_the_workers_own_environment_and_variables(tmp_path: Path) -> None:
    (tmp_path / "eu" / "v2").mkdir(parents=True)
    sources = Sources(variable={"version": "v2"}.__getitem__, environment={"REGION": "eu"}.get)
    assert steps.run_pull([{HERE: {"directory": "{{ $REGION }}/{{ orch.variables.version }}"}}], tmp_path, sources).name == "v2"


@pytest.mark.parametrize("directory", ["nowhere", "a\0b", "x" * 5000, "~no-such-user/x", "/dev/null"])
def test_a_directory_that_is_not_there_is_named_with_the_host_and_what_to_do(tmp_path: Path, directory: str) -> None:
    with pytest.raises(StepError, match="there is no directory") as caught:
        steps.run_pull([{HERE: {"directory": directory}}], tmp_path)
    assert socket.gethostname() in str(caught.value)
    assert "every worker host" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["git_clone", "run_shell_script", "pip_install_requirements", "utility.run_shell_script"])
def test_a_step_that_comes_later_says_which_there_are(name: str) -> None:
    with pytest.raises(StepError, match="not available in this version") as caught:
        steps.parse({f"prefect.deployments.steps.{name}": {}})
    assert caught.value.hint == "Available: set_working_directory."


@pytest.mark.parametrize(
    "name", ["os.system", "prefect_docker.deployments.steps.build_docker_image", "set_working_directory", "", "a" * 9999]
)
def test_a_name_that_is_no_step_is_never_imported(name: str) -> None:
    with pytest.raises(StepError, match="There is no step"):
        steps.run([{name: {"directory": "/"}}], Path.cwd(), Sources())


def test_a_misspelt_step_is_recognised() -> None:
    with pytest.raises(StepError) as caught:
        steps.parse({"orchestrator.deployments.steps.set_workin_directory": {}})
    assert "Did you mean orchestrator.deployments.steps.set_working_directory?" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("text", "A step is one name"),
        ({}, "A step is one name"),
        ({HERE: {"directory": "a"}, "other": {}}, "A step is one name"),
        (None, "A step is one name"),
        ({HERE: "a"}, "are a mapping"),
        ({HERE: {"directory": "a", "dir": "b"}}, "has no input 'dir'"),
        ({HERE: {}}, "needs directory"),
        ({HERE: None}, "needs directory"),
        ({HERE: {"directory": 7}}, "is text, not 7"),
    ],
)
def test_a_step_that_is_none_says_what_one_looks_like(tmp_path: Path, step: Any, says: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        steps.run([step], tmp_path, Sources())
    assert says in str(caught.value)


def test_a_template_without_a_source_stops_the_steps(tmp_path: Path) -> None:
    with pytest.raises(OrchError, match="NOT_SET_ANYWHERE"):
        steps.run([{HERE: {"directory": "{{ $NOT_SET_ANYWHERE }}"}}], tmp_path, Sources())
    assert "NOT_SET_ANYWHERE" not in os.environ
