"""``orch init`` and ``orch deploy``: with flags, on a terminal, and where nobody can answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from orch_cli.main import main
from orchestrator.settings import Settings, child_environment
from orchestrator.store import Store

FLOW = """\
from orchestrator import flow

@flow
def hello(name: str = "world") -> str:
    return f"Hello, {name}"

@flow
def bye(days: int) -> None:
    pass
"""

PROJECT = """\
deployments:
  - name: hello
    entrypoint: flows.py:hello
    schedules:
      - {cron: "0 9 * * *", timezone: Asia/Tokyo, slug: tokyo-9am}
    work_pool: {name: %s}
  - name: bye
    entrypoint: flows.py:bye
    work_pool: {name: %s}
"""

Orch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two flows, in which commands find the test's namespace."""
    assert settings.redis_url is not None
    monkeypatch.setenv("ORCH_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("ORCH_NAMESPACE", settings.namespace)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "flows.py").write_text(FLOW)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def orch(capsys: pytest.CaptureFixture[str]) -> Orch:
    """Run one command: its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def write(project: Path, pool: str = "etl") -> None:
    (project / "orch.yaml").write_text(PROJECT % (pool, pool))


def on_terminal(project: Path, *words: str) -> pexpect.spawn[str]:
    arguments = ["-m", "orch_cli", *words]
    environment = child_environment()
    return pexpect.spawn(sys.executable, arguments, cwd=project, env=environment, timeout=60, encoding="utf-8")


def ended(child: pexpect.spawn[str]) -> tuple[int | None, str]:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.before or ""


def test_a_project_is_made_with_the_flows_that_are_there(project: Path, orch: Orch) -> None:
    code, _, said = orch("init")
    assert code == 0
    assert "Wrote orch.yaml" in said
    assert "flows.py:hello" in (project / "orch.yaml").read_text()
    assert orch("init")[0] == 5
    assert orch("init", "--force")[0] == 0


def test_a_missing_pool_is_an_error_with_the_command_that_creates_it(project: Path, orch: Orch, store: Store) -> None:
    write(project)
    code, out, said = orch("deploy", "--all")
    assert (code, out) == (3, "")
    assert "hint: Create it and deploy with: orch deploy --all --create-pool process" in said
    assert store.deployments.slugs() == []
    code, _, said = orch("deploy", "--all", "--create-pool", "process")
    assert code == 0
    assert "Created work pool 'etl'." in said
    assert "Created deployment 'hello/hello'." in said
    assert "orch scheduler start" in said
    assert "orch worker start --pool etl" in said
    assert sorted(store.deployments.slugs()) == ["bye/bye", "hello/hello"]


def with_queue(project: Path) -> None:
    text = (PROJECT % ("etl", "etl")).replace("work_pool: {name: etl}", "work_pool: {name: etl, work_queue_name: high}", 1)
    (project / "orch.yaml").write_text(text)


def test_the_queue_of_a_created_pool_is_created_too(project: Path, orch: Orch, store: Store) -> None:
    """It used to end with 'no such queue', the pool created and nothing deployed."""
    with_queue(project)
    assert "Would need work queue: high in work pool etl" in orch("deploy", "--all", "--dry-run")[1]
    code, _, said = orch("deploy", "--all", "--create-pool", "process")
    assert code == 0, said
    assert "Created work queue 'high' in work pool 'etl'." in said
    assert sorted(store.pools.queue_names("etl")) == ["default", "high"]
    assert store.deployments.get("hello/hello").queue == "high"


def test_a_missing_queue_of_a_pool_is_an_error_with_the_command_that_creates_it(
    project: Path, orch: Orch, store: Store
) -> None:
    with_queue(project)
    (project / "orch.yaml").write_text((project / "orch.yaml").read_text().replace("{name: etl}", "{name: other}"))
    store.pools.create("etl")
    code, out, said = orch("deploy", "--all", "--create-pool", "process")
    assert (code, out) == (3, "")
    assert "error: There is no work queue 'high' in work pool 'etl'." in said
    assert "hint: Create it and deploy with: orch deploy --all --create-pool process --create-queue" in said
    assert (store.deployments.slugs(), store.pools.names()) == ([], ["etl"])
    code, _, said = orch("deploy", "--all", "--create-pool", "process", "--create-queue")
    assert code == 0, said
    assert sorted(store.pools.queue_names("etl")) == ["default", "high"]


def test_on_a_terminal_a_missing_queue_is_offered(project: Path, store: Store) -> None:
    with_queue(project)
    store.pools.create("etl")
    child = on_terminal(project, "deploy", "-n", "hello")
    child.expect("There is no work queue 'high' in work pool 'etl'. Create it")
    child.sendline("y")
    code, said = ended(child)
    assert code == 0, said
    assert "Created work queue 'high'" in said


def test_without_a_scheduler_a_deploy_plans_the_next_runs_itself(project: Path, orch: Orch) -> None:
    write(project)
    orch("deploy", "--all", "--create-pool", "process")
    planned = json.loads(orch("work-pool", "preview", "etl", "--within", "7d", "-o", "json")[1])
    assert [run["state"]["name"] for run in planned] == ["Scheduled"] * 3


def test_deployments_are_chosen_by_name_or_pattern(project: Path, orch: Orch, store: Store) -> None:
    write(project)
    store.pools.create("etl")
    assert orch("deploy")[0] == 2
    assert orch("deploy", "-n", "helo")[0] == 2
    assert json.loads(orch("deploy", "-n", "h*", "-o", "json")[1])[0]["name"] == "hello"
    assert store.deployments.slugs() == ["hello/hello"]
    assert orch("deploy", "--all", "-n", "hello")[0] == 2


def test_a_dry_run_writes_nothing_and_a_diff_tells_drift_by_its_exit_code(project: Path, orch: Orch, store: Store) -> None:
    write(project)
    code, out, _ = orch("deploy", "--all", "--dry-run")
    assert code == 0
    assert "Would create: hello/hello" in out
    assert "Would need work pool: etl" in out
    assert orch("deploy", "--all", "--diff")[0] == 1
    assert (store.deployments.slugs(), store.pools.names()) == ([], [])
    orch("deploy", "--all", "--yes")
    code, out, _ = orch("deploy", "--all", "--diff")
    assert (code, "Would leave as it is: hello/hello" in out) == (0, True)
    (project / "orch.yaml").write_text((PROJECT % ("etl", "etl")).replace("0 9 *", "0 8 *"))
    code, out, _ = orch("deploy", "-n", "hello", "--diff")
    assert code == 1
    assert "  - schedules.tokyo-9am.cron: 0 9 * * *\n  + schedules.tokyo-9am.cron: 0 8 * * *\n" in out


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        ("- name: bye", "-name: bye", "orch.yaml:"),
        ("0 9 * * *", "0 9 * *", "cron"),
        ("Asia/Tokyo", "Asia/Tokio", "Asia/Tokyo"),
        ("flows.py:bye", "flows.py:by", "bye"),
        ("flows.py:bye", "../flows.py:bye", "flows.py"),
        ("name: bye", "name: a/b", "'/'"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_stored(
    find: str, put: str, said: str, project: Path, orch: Orch, store: Store
) -> None:
    (project / "orch.yaml").write_text((PROJECT % ("etl", "etl")).replace(find, put))
    code, _, error = orch("deploy", "--all", "--create-pool", "process")
    assert code == 2
    assert error.startswith("error: ")
    assert said in error
    assert "hint: " in error
    assert (store.deployments.slugs(), store.pools.names()) == ([], [])


def test_on_a_terminal_a_missing_pool_is_offered(project: Path, store: Store) -> None:
    write(project)
    store.pools.create("other")
    child = on_terminal(project, "deploy", "-n", "hello")
    child.expect("There is no work pool 'etl'")
    child.expect("Use 'other' instead")
    child.expect("Number")
    child.sendline("1")
    code, said = ended(child)
    assert code == 0
    assert "Created work pool 'etl'." in said
    assert store.deployments.get("hello/hello").pool == "etl"


def test_on_a_terminal_an_open_pool_is_asked_for(project: Path, store: Store) -> None:
    write(project, pool="null")
    child = on_terminal(project, "deploy", "-n", "hello")
    child.expect("Name of the new work pool.*: ")
    child.sendline("etl")
    assert ended(child)[0] == 0
    assert store.deployments.get("hello/hello").pool == "etl"
    child = on_terminal(project, "deploy", "-n", "hello")
    child.expect("1\\) etl")
    child.expect("Number")
    child.sendline("1")
    assert ended(child)[0] == 0


def test_without_a_terminal_an_open_pool_is_an_error_that_names_the_flag(project: Path, orch: Orch, store: Store) -> None:
    write(project, pool="null")
    code, _, said = orch("deploy", "-n", "hello")
    assert (code, "--pool" in said) == (2, True)
    assert orch("deploy", "-n", "hello", "--pool", "etl", "--create-pool", "process")[0] == 0


def test_ctrl_c_at_a_question_ends_with_130_and_changes_nothing(project: Path, store: Store) -> None:
    write(project)
    child = on_terminal(project, "deploy", "-n", "hello")
    child.expect("Number")
    child.sendintr()
    assert ended(child)[0] == 130
    assert (store.deployments.slugs(), store.pools.names()) == ([], [])
