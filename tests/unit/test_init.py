"""``orch init``: the file that it writes can be read, and nothing of the user's is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.deployments import file
from orchestrator.deployments.entrypoints import find_flows
from orchestrator.deployments.init import init
from orchestrator.exceptions import InvalidDefinition, InvalidName, ObjectAlreadyExists, OrchError

HELLO = "from orchestrator import flow\n\n@flow\ndef hello_flow():\n    pass\n"


def entries(folder: Path) -> list[file.Entry]:
    project = file.read(folder)
    return [project.entry(value, lambda text: text, lambda text: text) for value in project.deployments]


def test_an_empty_folder_gets_a_file_with_everything_left_open(tmp_path: Path) -> None:
    made = init(tmp_path)
    assert made.written == (tmp_path / "orch.yaml",)
    [found] = entries(tmp_path)
    assert (found.name, found.entrypoint, found.pool, found.schedules) == (None, None, None, [])


def test_flows_that_are_there_become_deployments(tmp_path: Path) -> None:
    (tmp_path / "hello_flow.py").write_text(HELLO)
    made = init(tmp_path, name="my project")
    assert [flow.name for flow in made.flows] == ["hello-flow"]
    [found] = entries(tmp_path)
    assert (found.name, found.entrypoint) == ("hello_flow", "hello_flow.py:hello_flow")
    assert file.read(tmp_path).name == "my project"


def test_two_flows_of_one_name_become_two_deployments(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "job.py").write_text(HELLO)
    init(tmp_path)
    assert [found.name for found in entries(tmp_path)] == ["a-job", "b-job"]


@pytest.mark.parametrize("name", ["true", "null", "007", "日本語", "a # b", "it's", "- x", "no"])
def test_any_name_survives_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "job.py").write_text(HELLO)
    init(tmp_path, name=name)
    assert file.read(tmp_path).name == name
    assert entries(tmp_path)[0].entrypoint == f"{name}/job.py:hello_flow"


def test_an_example_comes_with_a_flow_that_can_be_deployed(tmp_path: Path) -> None:
    made = init(tmp_path, example=True)
    assert made.written == (tmp_path / "flows/hello.py", tmp_path / "orch.yaml")
    [found] = find_flows(tmp_path)
    assert entries(tmp_path)[0].entrypoint == found.entrypoint == "flows/hello.py:hello"
    compile((tmp_path / "flows/hello.py").read_text(), "hello.py", "exec")


def test_an_example_does_not_replace_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/hello.py").write_text(HELLO)
    init(tmp_path, example=True)
    assert (tmp_path / "flows/hello.py").read_text() == HELLO


@pytest.mark.parametrize("present", ["orch.yaml", "prefect.yaml"])
def test_a_project_file_is_not_replaced_unless_forced(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("name: mine\n")
    with pytest.raises(ObjectAlreadyExists, match="is there already") as caught:
        init(tmp_path)
    assert "--force" in str(caught.value.hint)
    assert (tmp_path / present).read_text() == "name: mine\n"
    init(tmp_path, force=True)
    assert "deployments:" in (tmp_path / "orch.yaml").read_text()


def test_a_folder_whose_name_cannot_be_a_projects_is_a_project_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a*b").mkdir()
    init(tmp_path / "a*b")
    assert file.read(tmp_path / "a*b").name == "project"


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidDefinition, match="There is no directory"):
        init(tmp_path / "nowhere")
    with pytest.raises(InvalidDefinition, match="not available"):
        init(tmp_path, "docker")
    with pytest.raises(InvalidDefinition, match="There is no recipe"):
        init(tmp_path, "cake")
    with pytest.raises(InvalidName):
        init(tmp_path, name="a/b")
    (tmp_path / "flows").write_text("a file")
    with pytest.raises(OrchError, match="cannot be written"):
        init(tmp_path, example=True)
