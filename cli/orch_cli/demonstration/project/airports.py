"""A pipeline on real data: the airports of the world, from a source that fails at times, by region into SQLite.

download (retried)  ->  validate  ->  summarise, once per region  ->  load
"""

import csv
import io
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from statistics import median
from urllib.request import urlopen

from flaky_source import FlakySource
from pydantic import BaseModel, Field, ValidationError

from orchestrator import flow, get_run_logger, task

METRES_PER_FOOT = 0.3048


class Airport(BaseModel):
    """One row of the source that can be used."""

    icao: str = Field(pattern="^[A-Z0-9-]{3,5}$")
    name: str = Field(min_length=1)
    city: str = Field(min_length=1)
    country: str = Field(pattern="^[A-Z]{2}$")
    elevation: float = Field(ge=-1_400, le=30_000)
    lat: float = Field(ge=-90, le=90)
    lon: float = Field(ge=-180, le=180)
    tz: str = Field(pattern="^[A-Za-z_]+/")

    @property
    def region(self) -> str:
        """The part of the world, as the name of its timezone has it."""
        return self.tz.partition("/")[0]

    @property
    def elevation_m(self) -> float:
        """Its height above the sea in metres; the source counts in feet."""
        return round(self.elevation * METRES_PER_FOOT, 1)


@dataclass
class Rejected:
    """One row of the source that cannot be used: its line in the file, its first field, and why."""

    line: int
    icao: str
    reason: str


@dataclass
class Region:
    """What we want to know about a part of the world."""

    name: str
    airports: int
    countries: int
    median_elevation_m: float
    highest: str
    highest_elevation_m: float
    northernmost: str


@task(retries=2, retry_delay_seconds=0.5)
def download(url: str) -> str:
    """The source's text. Sources drop connections at times: then it is tried again."""
    with urlopen(url, timeout=10) as answer:
        content: bytes = answer.read()
    return content.decode()


@task
def validate(text: str) -> tuple[list[Airport], list[Rejected]]:
    """The rows that can be used, and the others with the reason."""
    airports, rejected = [], []
    for line, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            airports.append(Airport.model_validate(row))
        except ValidationError as error:
            problem = error.errors()[0]
            rejected.append(Rejected(line, row["icao"], f"{problem['loc'][0]}: {problem['msg']}"))
    return airports, rejected


@task
def summarise(region: str, airports: Sequence[Airport]) -> Region:
    """One region in numbers."""
    highest = max(airports, key=lambda airport: (airport.elevation, airport.icao))
    northernmost = max(airports, key=lambda airport: (airport.lat, airport.icao))
    get_run_logger().info("%s: %d airports, the highest is %s", region, len(airports), highest.name)
    return Region(
        name=region,
        airports=len(airports),
        countries=len({airport.country for airport in airports}),
        median_elevation_m=round(median(airport.elevation_m for airport in airports), 1),
        highest=highest.icao,
        highest_elevation_m=highest.elevation_m,
        northernmost=northernmost.icao,
    )


@task
def load(database: str, airports: Sequence[Airport], regions: Sequence[Region], rejected: Sequence[Rejected]) -> None:
    """Replace the tables in one transaction: whoever reads them sees the old ones or the new ones."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("BEGIN")
        for table, columns in TABLES.items():
            connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(f"CREATE TABLE {table} ({columns})")
        connection.executemany(
            "INSERT INTO airport VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((a.icao, a.name, a.city, a.country, a.region, a.elevation_m, a.lat, a.lon) for a in airports),
        )
        connection.executemany("INSERT INTO region VALUES (?, ?, ?, ?, ?, ?, ?)", map(astuple, regions))
        connection.executemany("INSERT INTO rejected VALUES (?, ?, ?)", map(astuple, rejected))


TABLES = {
    "airport": "icao TEXT PRIMARY KEY, name TEXT, city TEXT, country TEXT, region TEXT, elevation_m REAL, lat REAL, lon REAL",
    "region": "name TEXT PRIMARY KEY, airports INTEGER, countries INTEGER, median_elevation_m REAL, highest TEXT, "
    "highest_elevation_m REAL, northernmost TEXT",
    "rejected": "line INTEGER, icao TEXT, reason TEXT",
}


@flow
def airports(database: str = "airports.sqlite") -> dict[str, int]:
    """Bring the airports of the world into a database, with a summary of each region."""
    logger = get_run_logger()
    with FlakySource() as url:
        text = download(url)
    found, rejected = validate(text)
    for reason, rows in Counter(row.reason for row in rejected).most_common():
        logger.warning("Left out %s rows: %s", f"{rows:,}", reason)
    by_region = defaultdict(list)
    for airport in found:
        by_region[airport.region].append(airport)
    regions = summarise.map(list(by_region), list(by_region.values())).result()
    load(database, found, regions, rejected)
    logger.info("Loaded %s airports in %d regions into %s", f"{len(found):,}", len(regions), database)
    return {"airports": len(found), "regions": len(regions), "rejected": len(rejected)}


if __name__ == "__main__":
    airports()
