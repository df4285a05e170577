"""What the demonstration must have brought about, found out another way: from the data set itself, in plain Python."""

from __future__ import annotations

import csv
import sqlite3
import statistics
from collections.abc import Iterable, Mapping
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

GREETING = "Hello, Prefect Flow! (reversed: wolF tceferP)"
DATA_SET = "airportsdata"


class Region(NamedTuple):
    """One row of the table ``region``."""

    name: str
    airports: int
    countries: int
    median_elevation_m: float
    highest: str
    highest_elevation_m: float
    northernmost: str


def read_regions(database: Path) -> list[Region]:
    """What the pipeline wrote, the largest region first."""
    with closing(sqlite3.connect(database)) as connection:
        return [Region(*row) for row in connection.execute("SELECT * FROM region ORDER BY airports DESC, name")]


def wrong_with_greeting(messages: Iterable[str]) -> str:
    """What is wrong with the log of the tutorial's flow; empty if nothing is."""
    return "" if GREETING in messages else f"its log lacks the line {GREETING!r}"


def wrong_with_airports(database: Path) -> str:
    """What is wrong with the pipeline's tables; empty if nothing is."""
    usable, unusable = _rows()
    expected = {region: _region(region, rows) for region, rows in _by_region(usable).items()}
    found = {region.name: region for region in read_regions(database)}
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            return f"the summary of {name} is {found.get(name)}, not {expected.get(name)}"
    with closing(sqlite3.connect(database)) as connection:
        [airports] = connection.execute("SELECT count(*) FROM airport").fetchone()
        rejected = {icao for (icao,) in connection.execute("SELECT icao FROM rejected")}
    if airports != len(usable):
        return f"{airports:,} airports were loaded, not {len(usable):,}"
    if rejected != unusable:
        return f"{len(rejected):,} rows were left out, not {len(unusable):,}"
    return ""


def _rows() -> tuple[list[Mapping[str, str]], set[str]]:
    """The rows that have a town and a real code, and the codes of the others."""
    text = (files(DATA_SET) / "airports.csv").read_text(encoding="utf-8")
    usable: list[Mapping[str, str]] = []
    unusable: set[str] = set()
    for row in csv.DictReader(text.splitlines()):
        if row["city"] and row["icao"].isascii() and row["icao"].replace("-", "").isalnum():
            usable.append(row)
        else:
            unusable.add(row["icao"])
    return usable, unusable


def _by_region(rows: Iterable[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    regions: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        regions.setdefault(row["tz"].split("/")[0], []).append(row)
    return regions


def _region(name: str, rows: list[Mapping[str, str]]) -> Region:
    metres = [round(float(row["elevation"]) * 0.3048, 1) for row in rows]
    height, highest = max((float(row["elevation"]), row["icao"]) for row in rows)
    _, northernmost = max((float(row["lat"]), row["icao"]) for row in rows)
    countries = len({row["country"] for row in rows})
    return Region(
        name, len(rows), countries, round(statistics.median(metres), 1), highest, round(height * 0.3048, 1), northernmost
    )
