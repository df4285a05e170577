"""``orch flow``."""

from __future__ import annotations

import click

from orch_cli.commands import Noun
from orch_cli.connection import open_store
from orch_cli.output import Printer, shows
from orch_cli.views import FLOW


@click.group("flow", cls=Noun, examples=("orch flow ls",))
def flow() -> None:
    """Show the flows that have run or been deployed."""


@flow.command("ls", examples=("orch flow ls", "orch flow ls -o name"))
@shows(FLOW, many=True)
def ls(out: Printer[str]) -> None:
    """List flows."""
    with open_store() as store:
        out.many(store.deployments.flows())
