"""``orch task``."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click

from orch_cli import output
from orch_cli.commands import Noun
from orch_cli.completion import complete_pool
from orch_cli.connection import open_store, settings
from orch_cli.options import burst_option, metrics_port_option, worker_name_option, worker_queues_option
from orchestrator.settings import child_environment

if TYPE_CHECKING:
    from orchestrator.settings import Settings


@click.group("task", cls=Noun, examples=("orch task serve mail.py:send_mail",))
def task() -> None:
    """Serve and check tasks that run in the background."""


@task.command(
    "serve",
    examples=(
        "orch task serve mail.py:send_mail",
        "orch task serve shop.tasks:charge shop.tasks:refund --concurrency 200 --processes 2",
        "orch task serve reports.py:render --pool reports --work-queue urgent",
    ),
)
@click.argument("entrypoints", nargs=-1, required=True, metavar="ENTRYPOINT...")
@click.option(
    "-p",
    "--pool",
    metavar="NAME",
    shell_complete=complete_pool,
    help="The work pool; by default that of the setting task_pool. Created if it does not exist.",
)
@worker_name_option()
@click.option(
    "-l",
    "--limit",
    "--concurrency",
    "limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N runs at a time: by default 100.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    help="Share the runs among N executor processes: by default 1.",
)
@worker_queues_option()
@burst_option()
@metrics_port_option()
def serve(
    entrypoints: tuple[str, ...],
    pool: str | None,
    name: str,
    limit: int | None,
    processes: int,
    queues: tuple[str, ...],
    burst: bool,
    metrics_port: int | None,
) -> int:
    """Start a worker for tasks, in the foreground.

    An entry point is file.py:task or module.name:task. All of them must import; then the worker takes every run of its work
    pool, as with 'orch worker start --type thread'.

    The first Ctrl-C (or SIGTERM) takes no new runs and lets those that run end; the second stops now.
    """
    from orch_workers.base import DEFAULT_LIMITS, WorkerOptions
    from orch_workers.runner import run_worker
    from orchestrator.engine.submission import POOL_TYPE, ensure_pool

    now = settings()
    if code := _check(entrypoints, now):
        return code
    pool = pool or now.task_pool
    with open_store() as store:
        ensure_pool(store, pool)
    output.say(output.clean(f"Serving {', '.join(entrypoints)} from work pool '{pool}'."))
    return run_worker(
        WorkerOptions(
            pool=pool,
            name=name,
            type=POOL_TYPE,
            limit=limit or DEFAULT_LIMITS[POOL_TYPE],
            processes=processes,
            queues=queues,
            burst=burst,
            metrics_port=metrics_port,
            settings=now,
            announce=output.say,
        )
    )


@task.command("check", examples=("orch task check mail.py:send_mail", "orch task check shop.tasks:charge shop.tasks:refund"))
@click.argument("entrypoints", nargs=-1, required=True, metavar="ENTRYPOINT...")
def check(entrypoints: tuple[str, ...]) -> None:
    """Import tasks as a worker would, and print their names, or what is wrong."""
    from pathlib import Path

    from orchestrator.deployments.entrypoints import load_task

    for entrypoint in entrypoints:
        output.write(output.clean(load_task(entrypoint, Path.cwd()).name))


def _check(entrypoints: tuple[str, ...], now: Settings) -> int:
    """``orch task check`` in a process of its own, whose code the worker's supervisor is kept from; its exit code."""
    command = [sys.executable, "-m", "orch_cli", "task", "check", *entrypoints]
    return subprocess.run(
        command, env=child_environment(now), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
    ).returncode
