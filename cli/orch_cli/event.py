"""``orch event``."""

from __future__ import annotations

import click

from orch_cli.commands import Noun
from orch_cli.connection import open_store
from orch_cli.options import EVERY
from orch_cli.output import Printer, shows
from orch_cli.views import EVENT
from orchestrator.models import Event


@click.group("event", cls=Noun, examples=("orch event ls",))
def event() -> None:
    """Show what happened."""


@event.command("ls", examples=("orch event ls --limit 20", "orch event ls -o jsonl"))
@click.option("--after", metavar="ID", help="The events behind this one, instead of the newest.")
@shows(EVENT, many=True, limit=100)
def ls(out: Printer[Event], after: str | None) -> None:
    """List the newest events, oldest first."""
    with open_store() as store:
        if after is None:
            found = store.events.latest(out.limit or EVERY)[::-1]
        else:
            found = store.events.read(after, out.limit + 1 if out.limit else EVERY)
    out.many(found)
