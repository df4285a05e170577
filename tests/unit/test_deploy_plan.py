"""From a project's file to deployments that are ready to be saved."""

from __future__ import annotations

import socket
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.deployments import file, plan
from orchestrator.deployments.templates import Sources
from orchestrator.exceptions import (
    FlowLoadError,
    InvalidDefinition,
    InvalidName,
    ObjectNotFound,
    OrchError,
    ParameterTypeError,
    StepError,
)
from orchestrator.models import Deployment

FLOWS = '''
from orchestrator import flow

@flow
def hello_flow(name: str = "world"):
    """Say hello."""

@flow(name="Load", version="7", description="Loads.")
def load(region: str, days: int = 3):
    pass
'''


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "flows_of_plan.py").write_text(FLOWS)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("flows_of_plan", None)


def prepare(folder: Path, text: str, *names: str, **options: Any) -> list[plan.Prepared]:
    (folder / "orch.yaml").write_text(textwrap.dedent(text))
    return plan.prepare(file.read(folder), names, sources=options.pop("sources", Sources()), **options)


ONE = """\
deployments:
- name: hello_flow
  entrypoint: flows_of_plan.py:hello_flow
  work_pool: {name: pool}
"""

TWO = """\
deployments:
- name: morning
  entrypoint: flows_of_plan.py:hello_flow
  work_pool: {name: pool}
- name: nightly
  flow_name: Load
  entrypoint: flows_of_plan.py:load
  parameters: {region: eu}
  work_pool: {name: gpu, work_queue_name: high}
  schedules: [{cron: 0 9 * * *}]
"""


def test_the_files_only_deployment_is_prepared(project: Path) -> None:
    [found] = prepare(project, ONE)
    assert found.deployment.slug == "hello-flow/hello_flow"
    assert found.deployment.path == str(project)
    assert found.deployment.description == "Say hello."
    assert found.deployment.parameter_schema["properties"]["name"]["type"] == "string"
    assert (found.deployment.pool, found.deployment.queue) == ("pool", "default")
    assert found.deployment.deployed_from == socket.gethostname()
    assert str(found.place) == "orch.yaml:2:3"


def test_a_flows_own_version_and_description_fill_what_the_file_leaves_open(project: Path) -> None:
    [found] = prepare(project, TWO, "nightly")
    assert (found.deployment.slug, found.deployment.version, found.deployment.description) == ("Load/nightly", "7", "Loads.")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["morning"], ["morning"]),
        (["nightly", "morning", "nightly"], ["nightly", "morning"]),
        (["*"], ["morning", "nightly"]),
        (["n*"], ["nightly"]),
        (["Load/nightly"], ["nightly"]),
        (["Load/*"], ["nightly"]),
        (["hello-flow/morning"], ["morning"]),
        (["hello_flow/morning"], ["morning"]),
    ],
)
def test_deployments_are_chosen_by_name_or_pattern(project: Path, names: list[str], chosen: list[str]) -> None:
    assert [found.deployment.name for found in prepare(project, TWO, *names)] == chosen


def test_all_of_them_can_be_chosen(project: Path) -> None:
    assert len(prepare(project, TWO, every=True)) == 2


@pytest.mark.parametrize(
    ("text", "names", "says", "hint"),
    [
        (TWO, [], "2 deployments: morning, nightly", "--all"),
        (TWO, ["nightyl"], "no deployment 'nightyl'", "Did you mean 'nightly'?"),
        (TWO, ["Load/morning"], "no deployment", "morning, nightly"),
        ("deployments: []\n", [], "holds no deployment", "orch init"),
        ("name: x\n", [], "holds no deployment", "orch init"),
        (
            ONE.replace("flows_of_plan.py:hello_flow", "null"),
            [],
            "Entry point",
            "flows_of_plan.py:hello_flow, flows_of_plan.py:load",
        ),
        (ONE.replace("name: pool", "name: null"), [], "Work pool", "--pool NAME"),
        (ONE.replace("name: hello_flow", "name: null"), [], "Name of the deployment", "--name NAME"),
        (ONE + "  flow_name: other\n", [], "flow_name is 'other'", "flow_name"),
        (ONE + ONE.removeprefix("deployments:\n"), ["*"], "second time; the first is on line 2", "another name"),
    ],
)
def test_what_cannot_be_chosen_or_is_left_open_says_what_to_type(
    project: Path, text: str, names: list[str], says: str, hint: str
) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        prepare(project, text, *names)
    assert says in str(caught.value)
    assert hint in str(caught.value.hint)


def test_answers_fill_what_is_open_and_a_pool_replaces_the_files(project: Path) -> None:
    open_file = "deployments:\n- {name: null, entrypoint: null, work_pool: {name: null}}\n"
    answers = plan.Answers("mine", "flows_of_plan.py:hello_flow", "gpu", "high")
    [found] = prepare(project, open_file, "mine", answers=answers)
    assert (found.deployment.slug, found.deployment.pool, found.deployment.queue) == ("hello-flow/mine", "gpu", "high")
    [found] = prepare(project, ONE, answers=plan.Answers(pool="gpu"))
    assert found.deployment.pool == "gpu"


def test_what_is_open_is_asked_for(project: Path) -> None:
    asked: list[plan.Question] = []

    def ask(question: plan.Question) -> str:
        asked.append(question)
        return {"name": "mine", "entrypoint": question.choices[0] if question.choices else "", "pool": "gpu"}[question.field]

    [found] = prepare(project, "deployments:\n- {tags: [x]}\n", ask=ask)
    assert [question.field for question in asked] == ["name", "entrypoint", "pool"]
    assert asked[1].choices == ("flows_of_plan.py:hello_flow", "flows_of_plan.py:load")
    assert found.deployment.slug == "hello-flow/mine"


def test_an_entry_point_may_be_found_by_the_flows_name_in_either_spelling(project: Path) -> None:
    for name in ("hello_flow", "hello-flow"):
        [found] = prepare(project, f"deployments:\n- {{name: a, flow_name: {name}, work_pool: {{name: p}}}}\n")
        assert found.deployment.entrypoint == "flows_of_plan.py:hello_flow"


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ("parameters: {nmae: x}", ParameterTypeError, "no parameter 'nmae' (did you mean 'name'?)"),
        ("parameters: {name: 3}", ParameterTypeError, "name: 3 is not of type 'string'"),
        ("schedules: [{interval: 60, parameters: {nmae: x}}]", ParameterTypeError, "Schedule 'every-60s'"),
        ("name: a/b", InvalidName, "'/'"),
        ("entrypoint: nowhere.py:f", FlowLoadError, "There is no file"),
        ("entrypoint: ../x.py:f", FlowLoadError, "out of the project"),
        ("pull: [{prefect.deployments.steps.git_clone: {repository: x}}]", StepError, "not available"),
        ("build: [{prefect.deployments.steps.set_working_directory: {directory: /nowhere}}]", StepError, "no directory"),
        ("version: '{{ $NOT_SET_ANYWHERE }}'", InvalidDefinition, "NOT_SET_ANYWHERE"),
        ("description: '{{ nothing.there }}'", InvalidDefinition, "has not run"),
    ],
)
def test_a_deployment_that_would_fail_is_refused_with_its_line(
    project: Path, change: str, kind: type[OrchError], says: str
) -> None:
    key = change.partition(":")[0]
    text = "\n".join(line for line in ONE.replace("- name", "- version: x\n  name").splitlines() if f" {key}:" not in line)
    text = text if "- " in text else text.replace("deployments:\n  ", "deployments:\n- ")
    with pytest.raises(kind) as caught:
        prepare(project, text + f"\n  {change}\n")
    assert str(caught.value).startswith("orch.yaml:")
    assert says in str(caught.value)


def test_a_schedule_needs_every_parameter_and_a_deployment_may_leave_some_to_whoever_runs_it(project: Path) -> None:
    text = TWO.replace("  parameters: {region: eu}\n", "")
    with pytest.raises(ParameterTypeError, match="'region' is missing"):
        prepare(project, text, "nightly")
    [found] = prepare(project, text.replace("  schedules: [{cron: 0 9 * * *}]\n", ""), "nightly")
    assert found.deployment.parameters == {}
    [found] = prepare(project, text.replace("0 9 * * *}", "0 9 * * *, parameters: {region: us}}"), "nightly")
    assert found.deployment.schedules[0].parameters == {"region": "us"}


def test_the_check_of_parameters_can_be_turned_off(project: Path) -> None:
    [found] = prepare(project, ONE + "  parameters: {anything: 1}\n  enforce_parameter_schema: false\n")
    assert found.deployment.parameters == {"anything": 1}


def test_templates_are_filled_in_from_variables_the_environment_and_build_steps(project: Path) -> None:
    (project / "src").mkdir()
    sources = Sources({"pool": "gpu", "days": 5}.__getitem__, {"REGION": "eu"}.get)
    text = """\
    build:
    - orchestrator.deployments.steps.set_working_directory: {id: here, directory: src}
    deployments:
    - name: n-{{ $REGION }}
      description: "{{ here.directory }}"
      entrypoint: flows_of_plan.py:load
      parameters: {region: "{{ $REGION }}", days: "{{ orch.variables.days }}"}
      work_pool: {name: "{{ prefect.variables.pool }}"}
      pull:
      - orchestrator.deployments.steps.set_working_directory: {directory: "{{ $HOME }}/{{ here.directory }}"}
    """
    [found] = prepare(project, text, "n-eu", sources=sources)
    made = found.deployment
    assert (made.name, made.pool, made.parameters) == ("n-eu", "gpu", {"region": "eu", "days": 5})
    assert made.description == str(project / "src")
    assert made.pull == [
        {"orchestrator.deployments.steps.set_working_directory": {"directory": f"{{{{ $HOME }}}}/{project}/src"}}
    ]
    assert made.path == ""


def test_a_variable_that_is_not_there_is_told_with_line_and_command(project: Path) -> None:
    def variable(name: str) -> Any:
        raise ObjectNotFound(f"There is no variable {name!r}.", hint=f"Set it with: orch variable set {name} VALUE")

    with pytest.raises(InvalidDefinition, match=r"orch\.yaml:5:16: .*no variable 'region'") as caught:
        prepare(project, ONE + "  description: '{{ orch.variables.region }}'\n", sources=Sources(variable))
    assert caught.value.hint == "Set it with: orch variable set region VALUE"


def test_the_difference_to_what_is_stored_is_told_field_by_field(project: Path) -> None:
    [found] = prepare(project, TWO, "nightly")
    new = found.deployment
    assert {change.field: change.new for change in plan.diff(None, new)}["pool"] == "gpu"
    assert plan.diff(new, replace(new, revision=9, id="x")) == []
    slug = new.schedules[0].slug
    changed = replace(
        new, pool="cpu", parameters={"days": 1}, schedules=[replace(new.schedules[0], cron="0 10 * * *", generation=3)]
    )
    assert plan.diff(new, changed) == [
        plan.Change("parameters.days", None, 1),
        plan.Change("pool", "gpu", "cpu"),
        plan.Change(f"schedules.{slug}.cron", "0 9 * * *", "0 10 * * *"),
        plan.Change("parameters.region", "eu", None),
    ]


def test_a_pause_outlives_a_deploy_unless_the_file_speaks_of_it(project: Path) -> None:
    [quiet] = prepare(project, TWO, "nightly")
    paused = replace(quiet.deployment, paused=True, schedules=[replace(quiet.deployment.schedules[0], active=False)])
    settled = plan.settle(quiet, paused)
    assert settled.paused
    assert not settled.schedules[0].active
    [loud] = prepare(project, TWO.replace("0 9 * * *}", "0 9 * * *, active: true}") + "  paused: false\n", "nightly")
    settled = plan.settle(loud, paused)
    assert not settled.paused
    assert settled.schedules[0].active
    assert plan.settle(quiet, None) is quiet.deployment
    assert isinstance(settled, Deployment)
