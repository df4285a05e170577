"""The files in deploy/ are what docs/several-machines.md says: they parse, and the commands in them exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from documents import ROOT, orch_commands, parse, rows
from harness import needs
from orchestrator.settings import NAMES

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def orch_services() -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose()["services"].items() if service["image"] == "orch"}


def parses(arguments: list[str]) -> None:
    """The arguments fit a command; variables of the environment stand for themselves, or for a number."""
    parse([re.sub(r"\$\{?(?:ORCH_)?LIMIT.*", "8", argument) for argument in arguments])


def test_compose_has_two_schedulers_two_workers_and_one_redis() -> None:
    starts = [service["command"][:2] for service in orch_services().values()]
    assert starts.count(["scheduler", "start"]) == 2
    assert starts.count(["worker", "start"]) == 2
    assert [service["image"] for service in compose()["services"].values()].count("redis:7") == 1


def test_every_command_of_compose_exists() -> None:
    for service in orch_services().values():
        if service.get("entrypoint"):
            [script] = service["command"]
            found = orch_commands(script.replace("$$", "$"))
            assert found
            for arguments in found:
                parses(arguments)
        else:
            parses(service["command"])


def test_the_redis_of_compose_is_one_that_orch_accepts() -> None:
    settings = " ".join(compose()["services"]["redis"]["command"])
    assert re.search(r"appendonly yes\\n", settings)
    assert re.search(r"maxmemory-policy noeviction\\n", settings)
    assert re.search(r"requirepass %s\\n", settings)


def test_compose_takes_the_password_from_the_environment_and_refuses_to_start_without() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert used == offered
    assert re.findall(r"\$\{ORCH_REDIS_PASSWORD(?!:\?)", text) == []


def test_the_grace_of_containers_and_units_is_longer_than_a_drain() -> None:
    from orch_workers.base import WorkerOptions

    drain_s = WorkerOptions(pool="p").grace.total_seconds()
    for service in orch_services().values():
        if service["command"][:2] == ["worker", "start"]:
            assert int(service["stop_grace_period"].removesuffix("s")) > drain_s
    assert int(option(DEPLOY / "systemd" / "orch-worker@.service", "TimeoutStopSec")) > drain_s


def test_the_image_does_not_run_as_root() -> None:
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    assert last_stage.startswith("python:3.12-slim\n")
    user = re.findall(r"^USER (\w+)$", last_stage, re.MULTILINE)
    assert user == ["orch"]
    assert last_stage.index("\nUSER ") < last_stage.index("\nENTRYPOINT ")


def option(unit: Path, name: str) -> str:
    [value] = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)
    return str(value)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_command_of_a_unit_exists(unit: Path) -> None:
    [arguments] = orch_commands(option(unit, "ExecStart"))
    parses(arguments)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_without_rights_and_starts_again(unit: Path) -> None:
    assert option(unit, "User") == "orch"
    assert option(unit, "Restart") == "always"
    assert option(unit, "NoNewPrivileges") == "yes"
    assert option(unit, "CapabilityBoundingSet") == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_worker_is_told_to_stop_before_its_runs_are(unit: Path) -> None:
    """With systemd's default, SIGTERM goes to every process of the unit: it would end the flows that are to drain."""
    if "worker" in unit.name:
        assert option(unit, "KillMode") == "mixed"


def test_every_variable_of_the_files_is_a_setting_or_used_by_them() -> None:
    text = "".join(path.read_text() for path in (*UNITS, *DEPLOY.glob("systemd/*.example"), DEPLOY / "Dockerfile"))
    own = {"ORCH_LIMIT"}
    assert set(re.findall(r"\bORCH_\w+", text)) <= {f"ORCH_{name.upper()}" for name in NAMES} | own


def test_the_documentation_names_every_file() -> None:
    listed = " ".join(row[0] for row in rows(ROOT / "docs" / "several-machines.md", "file", "for"))
    files = (path for path in DEPLOY.rglob("*") if path.is_file() and path.name not in (".gitkeep", ".env"))
    for path in files:
        if path.parts[-2] != "flows":
            assert f"`{path.relative_to(DEPLOY)}`" in listed


@pytest.mark.full
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = needs("systemd-analyze", "systemd")
    copies = []
    for unit in UNITS:
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/orch/bin/orch", sys.executable))
        copies.append(str(copy))
    done = subprocess.run([program, "verify", *copies], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
