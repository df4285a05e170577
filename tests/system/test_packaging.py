"""What people install: a wheel built from the source distribution, as `pip install` would build it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import orchestrator

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "orchestrator": ROOT / "orchestrator",
    "orch_workers": ROOT / "workers/orch_workers",
    "orch_scheduler": ROOT / "scheduler/orch_scheduler",
    "orch_cli": ROOT / "cli/orch_cli",
}

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("packaging")]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # Without --sdist and --wheel, build makes the wheel from the source distribution.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [wheel] = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel; its dependencies are ours, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    site = Path(_run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path file inside this folder is not read from there, so our own editable install stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    there = {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == there
    assert {f"{package}/py.typed" for package in FOLDERS} <= packed
    assert any(name.endswith(".lua") for name in packed)


def test_the_wheel_puts_no_generic_name_into_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert top == {*FOLDERS, f"orch-{orchestrator.__version__}.dist-info"}


def test_the_source_distribution_holds_what_is_needed_to_build_and_to_judge_it(dist: Path) -> None:
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "build/", ".git/")) or "__pycache__" in name]


def test_the_installed_packages_import_from_where_they_were_installed(installed: Path, tmp_path: Path) -> None:
    program = f"import {', '.join(FOLDERS)}; print(*(m.__file__ for m in ({', '.join(FOLDERS)})), sep='\\n')"
    files = _run(str(installed / "python"), "-c", program, cwd=tmp_path).splitlines()
    assert [file.startswith(str(installed.parent)) for file in files] == [True] * len(FOLDERS)


def test_the_installed_scripts_find_their_lua_files(installed: Path, tmp_path: Path) -> None:
    program = "import importlib.resources as r; print(len(list((r.files('orchestrator.store') / 'lua').iterdir())))"
    count = int(_run(str(installed / "python"), "-c", program, cwd=tmp_path))
    assert count == len(list((FOLDERS["orchestrator"] / "store/lua").iterdir()))


def test_the_installed_command_tells_the_version(installed: Path, tmp_path: Path) -> None:
    assert orchestrator.__version__ in _run(str(installed / "orch"), "version", cwd=tmp_path)


def test_every_entry_point_loads(installed: Path, tmp_path: Path) -> None:
    program = """
from importlib.metadata import distribution, entry_points
[runner] = entry_points(group="orch.runners", name="process")
print(runner.load().__name__, distribution("orch").metadata["License-Expression"])
"""
    assert _run(str(installed / "python"), "-c", program, cwd=tmp_path).split() == ["ProcessExecutor", "Apache-2.0"]


def _run(*command: str, cwd: Path | None = None) -> str:
    """What a command prints; the test fails with its errors if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
