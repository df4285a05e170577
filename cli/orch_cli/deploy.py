"""``orch deploy``."""

from __future__ import annotations

import click

from orch_cli.commands import Command


@click.command("deploy", cls=Command, examples=("orch deploy --all",))
@click.option("--all", "every", is_flag=True, help="Every deployment of the file.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def deploy(every: bool, dry_run: bool) -> None:
    """Create or update the deployments of orch.yaml."""
