"""One file per scenario; each has a ``SCENARIO``."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from bench.chaos.trial import Scenario


def all_scenarios() -> list[Scenario]:
    """Every scenario, F1 first."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    found = [import_module(f"{__name__}.{name}").SCENARIO for name in names]
    return sorted(found, key=lambda scenario: _order(scenario.id))


def _order(name: str) -> tuple[bool, int, str]:
    number = re.fullmatch(r"F(\d+)", name)
    return number is None, int(number[1]) if number else 0, name
