"""What a scenario is, what it is given, and what it answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

QUICK_LEASE = timedelta(seconds=1)
FULL_LEASE = timedelta(seconds=15)


class CannotRun(Exception):
    """The machine lacks something that the scenario needs; the text says what, and how to get it."""


@dataclass(frozen=True)
class Trial:
    """One time that a scenario is played. ``home`` is an empty folder of its own; ``say`` tells the person who waits."""

    seed: int
    quick: bool
    home: Path
    say: Callable[[str], None]

    @property
    def lease(self) -> timedelta:
        """The namespace's lease: the default, and 1 s in quick forms."""
        return QUICK_LEASE if self.quick else FULL_LEASE

    def chance(self) -> random.Random:
        """Chance that the seed decides; a new one each time, so that two users do not disturb each other."""
        return random.Random(self.seed)

    def part(self, name: str) -> Trial:
        """The same trial in a new folder below this one's, for a world beside another."""
        home = self.home / name
        home.mkdir()
        return replace(self, home=home)


@dataclass
class Outcome:
    """What came of it: figures on one ``line``, ``problems`` as sentences (none: as expected), and ``facts`` for the JSON."""

    line: str
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """A row of the table in docs/faults.md.

    ``run`` plays it and may raise CannotRun. ``needs`` are programs that must be on the PATH. ``limit`` and ``quick_limit``
    say when it is ended by force, which is a failure.
    """

    id: str
    title: str
    expected: str
    run: Callable[[Trial], Outcome]
    needs: tuple[str, ...] = ()
    limit: timedelta = timedelta(minutes=20)
    quick_limit: timedelta = timedelta(seconds=120)
