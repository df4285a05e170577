"""``orch worker``."""

from __future__ import annotations

import click

from orch_cli import output
from orch_cli.commands import Noun
from orch_cli.completion import complete_pool, complete_worker
from orch_cli.connection import open_store, settings
from orch_cli.options import (
    burst_option,
    metrics_address_option,
    metrics_port_option,
    pool_option,
    worker_name_option,
    worker_queues_option,
)
from orch_cli.output import Printer, shows
from orch_cli.views import WORKER
from orch_cli.work_pool import POOL_TYPES
from orchestrator.models import Worker


@click.group("worker", cls=Noun, examples=("orch worker start --pool etl", "orch worker ls"))
def worker() -> None:
    """Start, show and drain workers."""


@worker.command(
    "start",
    examples=(
        "orch worker start --pool etl",
        "orch worker start --pool etl --limit 4 --name blue --work-queue urgent",
        "orch worker start --pool etl --burst",
        "orch worker start --pool tasks --type thread --concurrency 200 --processes 2",
        "orch worker start --pool etl --metrics-port 9464",
    ),
)
@pool_option(required=True)
@worker_name_option()
@click.option(
    "-t", "--type", "kind", type=click.Choice(POOL_TYPES), default="process", show_default=True, help="How it runs flows."
)
@click.option(
    *("-l", "--limit", "--concurrency"),
    *("limit",),
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N runs at a time: by default 10, of type thread 100.",
)
@click.option(
    *("--processes",),
    type=click.IntRange(min=1),
    metavar="N",
    help="Share the runs among N executor processes; only of type thread.",
)
@worker_queues_option()
@burst_option()
@metrics_port_option()
@metrics_address_option()
def start(
    pool: str,
    name: str,
    kind: str,
    limit: int | None,
    processes: int | None,
    queues: tuple[str, ...],
    burst: bool,
    metrics_port: int | None,
    metrics_address: str,
) -> int:
    """Start a worker, in the foreground.

    The first Ctrl-C (or SIGTERM) takes no new runs and lets those that run end; the second stops now.
    """
    from orch_workers.base import DEFAULT_LIMITS, WorkerOptions
    from orch_workers.runner import run_worker

    if processes is not None and kind != "thread":
        raise click.UsageError("--processes goes with --type thread: a worker of type process has one for each run.")
    return run_worker(
        WorkerOptions(
            pool=pool,
            name=name,
            type=kind,
            limit=limit or DEFAULT_LIMITS[kind],
            processes=processes or 1,
            queues=queues,
            burst=burst,
            metrics_port=metrics_port,
            metrics_address=metrics_address,
            settings=settings(),
            announce=output.say,
        )
    )


@worker.command("ls", examples=("orch worker ls", "orch worker ls --pool etl -o wide"))
@click.option("-p", "--pool", metavar="NAME", shell_complete=complete_pool, help="Only workers of this work pool.")
@shows(WORKER, many=True)
def ls(out: Printer[Worker], pool: str | None) -> None:
    """List workers."""
    with open_store() as store:
        out.many(store.pools.workers(pool))


@worker.command("drain", examples=("orch worker drain blue", "orch worker drain blue green -o json"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_worker)
@shows(WORKER)
def drain(out: Printer[Worker], names: tuple[str, ...]) -> None:
    """Tell workers to take no new runs, let those that they have end, and stop.

    The runs may take as long as they need. A worker that a signal stops as well gives them the usual grace.
    """
    with open_store() as store:
        for name in names:
            store.pools.drain(name)
            if out.is_for_people:
                output.say(output.clean(f"Worker '{name}' takes no new runs, and stops when those that it has have ended."))
        if not out.is_for_people:
            out.many([found for found in store.pools.workers() if found.name in names])
