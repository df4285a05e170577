"""``orch task-run``."""

from __future__ import annotations

import click

from orch_cli.commands import Noun
from orch_cli.connection import open_store
from orch_cli.output import Printer, shows
from orch_cli.views import TASK_RUN
from orchestrator.exceptions import ObjectNotFound
from orchestrator.models import TaskRun


@click.group("task-run", cls=Noun, examples=("orch task-run ls brave-otter",))
def task_run() -> None:
    """Show the task runs inside a flow run."""


@task_run.command("ls", examples=("orch task-run ls brave-otter", "orch task-run ls brave-otter -o json"))
@click.argument("flow_run")
@shows(TASK_RUN, many=True, limit=500)
def ls(out: Printer[TaskRun], flow_run: str) -> None:
    """List the task runs of a flow run."""
    with open_store() as store:
        out.many(store.runs.tasks(store.queries.find(flow_run).id))


@task_run.command("inspect", examples=("orch task-run inspect brave-otter hello-0",))
@click.argument("flow_run")
@click.argument("task_run")
@shows(TASK_RUN)
def inspect(out: Printer[TaskRun], flow_run: str, task_run: str) -> None:
    """Show everything about a task run, named by its name or id."""
    with open_store() as store:
        run = store.queries.find(flow_run)
        for task in store.runs.tasks(run.id):
            if task_run in (task.id, task.name):
                out.one(task)
                return
    raise ObjectNotFound(
        f"Flow run '{run.name}' has no task run '{task_run}'.", hint=f"List them with: orch task-run ls {run.id}"
    )
