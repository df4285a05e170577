"""``orch init``."""

from __future__ import annotations

import click

from orch_cli.commands import Command


@click.command("init", cls=Command, examples=("orch init",))
def init() -> None:
    """Make this folder an Orch project: write an orch.yaml."""
