"""What the demonstration checks, and what it says where it cannot run."""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from orch_cli import demo
from orch_cli.demonstration import check
from orch_cli.main import main

PROJECT = Path(check.__file__).with_name("project")


def test_without_its_data_set_the_demonstration_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "pip install 'orch[demo]'" in capsys.readouterr().err


def test_the_check_sees_a_log_without_the_greeting() -> None:
    assert check.wrong_with_greeting(["Hello, Prefect Flow! (reversed: wolF tceferP)"]) == ""
    assert "lacks the line" in check.wrong_with_greeting(["Hello, Prefect Flow!"])


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE region SET airports = airports + 1 WHERE name = 'Europe'",
        "UPDATE region SET median_elevation_m = 0 WHERE name = 'Asia'",
        "DELETE FROM region WHERE name = 'Arctic'",
        "DELETE FROM airport WHERE icao = 'LFLJ'",
        "DELETE FROM rejected WHERE line = (SELECT min(line) FROM rejected)",
    ],
)
def test_the_check_sees_every_wrong_number(loaded: Path, tmp_path: Path, harm: str) -> None:
    database = tmp_path / "harmed.sqlite"
    database.write_bytes(loaded.read_bytes())
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(harm)
    assert check.wrong_with_airports(loaded) == ""
    assert check.wrong_with_airports(database) != ""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pipeline makes of the data set, called as a plain function."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT))
        spec = importlib.util.spec_from_file_location("demo_airports", PROJECT / "airports.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        database = tmp_path_factory.mktemp("demo") / "airports.sqlite"
        module.airports(str(database))
    return database
