"""``orch version``."""

from __future__ import annotations

import platform
import sys
from typing import Any

import click

from orch_cli.commands import Command
from orch_cli.output import Column, Printer, View, shows
from orchestrator import __version__

VERSION: View[dict[str, Any]] = View(
    name=lambda it: str(it["version"]),
    columns=(
        Column("Orch", lambda it: it["version"]),
        Column("Python", lambda it: it["python"]),
        Column("Platform", lambda it: it["platform"]),
    ),
)


@click.command("version", cls=Command, examples=("orch version", "orch version -o json"))
@shows(VERSION)
def version(out: Printer[dict[str, Any]]) -> None:
    """Show the version of Orch and of what it runs on."""
    out.one({"version": __version__, "python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"})
