"""The outside ledger: what flow bodies and the killer write down as they go, in a local SQLite file.

An effect is the start or the end of a body, with the run, its attempt (the fence) and the three processes that it took: the
child, the template that it was forked from, and the supervisor. Another one is that a body got a slot of a limit, or is about
to give it back: ``take db``, ``give db``. Moments are of the machine's monotonic clock.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

_TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE effect (run TEXT, attempt INTEGER, phase TEXT, at REAL, child INTEGER, template INTEGER, supervisor INTEGER);
CREATE INDEX of_run ON effect (run, attempt);
CREATE INDEX at_moment ON effect (at);
CREATE TABLE kill (at REAL, kind TEXT, pid INTEGER);
"""


class Effect(NamedTuple):
    """A body did something; ``phase`` is start, end, ``take LIMIT``, ``give LIMIT``, or what a scenario's own flow says."""

    run: str
    attempt: int
    phase: str
    at: float
    child: int
    template: int
    supervisor: int

    @property
    def processes(self) -> tuple[int, int, int]:
        """Without each of which the body cannot go on."""
        return self.child, self.template, self.supervisor


class Kill(NamedTuple):
    """A process was harmed; ``kind`` is child, template, supervisor or group for SIGKILL, or another harm (SIGSTOP, cut)."""

    at: float
    kind: str
    pid: int


def create(path: Path) -> None:
    """An empty ledger."""
    with _open(path) as connection:
        connection.executescript(_TABLES)


def write_effect(path: Path, effect: Effect) -> None:
    """Write down an effect, in the kernel's hands before this returns: it survives any signal, not a power cut."""
    with _open(path) as connection, connection:
        connection.execute("INSERT INTO effect VALUES (?, ?, ?, ?, ?, ?, ?)", effect)


def write_kill(path: Path, kill: Kill) -> None:
    """Write down a kill."""
    with _open(path) as connection, connection:
        connection.execute("INSERT INTO kill VALUES (?, ?, ?)", kill)


def read(path: Path) -> tuple[list[Effect], list[Kill]]:
    """All effects and all kills, in the order of their moments."""
    with _open(path) as connection:
        effects = [Effect(*row) for row in connection.execute("SELECT * FROM effect ORDER BY at")]
        kills = [Kill(*row) for row in connection.execute("SELECT * FROM kill ORDER BY at")]
    return effects, kills


def since(path: Path, moment: float) -> list[Effect]:
    """The effects after that moment, in their order."""
    with _open(path) as connection:
        return [Effect(*row) for row in connection.execute("SELECT * FROM effect WHERE at > ? ORDER BY at", (moment,))]


def executing(path: Path, within_s: float = 5) -> list[Effect]:
    """The starts, not older than that, of bodies that have not ended. Some may have lost a process to a kill."""
    with _open(path) as connection:
        rows = connection.execute(
            "SELECT * FROM effect AS one WHERE phase = 'start' AND at > ? AND NOT EXISTS"
            " (SELECT 1 FROM effect WHERE run = one.run AND attempt = one.attempt AND phase = 'end') ORDER BY run, attempt",
            (time.monotonic() - within_s,),
        )
        return [Effect(*row) for row in rows]


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        yield connection
