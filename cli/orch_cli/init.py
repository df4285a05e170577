"""``orch init``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from orch_cli import output
from orch_cli.commands import Command

RECIPES = ("local",)


@click.command("init", cls=Command, examples=("orch init", "orch init --example", "orch init --name etl --force"))
@click.argument("directory", type=click.Path(path_type=Path), default=".")
@click.option("--recipe", type=click.Choice(RECIPES), default="local", show_default=True, help="Where workers find the code.")
@click.option("--name", metavar="NAME", help="The project's name instead of the folder's.")
@click.option("--example", is_flag=True, help="Write a first flow too.")
@click.option("--force", is_flag=True, help="Replace an orch.yaml that is there.")
def init(directory: Path, recipe: str, name: str | None, example: bool, force: bool) -> None:
    """Make this folder an Orch project: write an orch.yaml.

    It gets a deployment for each flow that is found in the folder.
    """
    from orchestrator.deployments import init as project

    done = project.init(directory, recipe, name, example=example, force=force)
    for path in done.written:
        output.say(f"Wrote {output.clean(os.path.relpath(path))}")
    for flow in done.flows:
        output.say(f"  with the flow '{output.clean(flow.name)}' of {output.clean(flow.entrypoint)}")
    if done.flows:
        output.say_hint("Read it, then create a work pool and deploy with: orch deploy --all")
    else:
        output.say_hint("No flow was found here. Write a first one too with: orch init --example --force")
