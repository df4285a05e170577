"""``orch scheduler``."""

from __future__ import annotations

import click

from orch_cli.commands import Noun
from orch_cli.options import metrics_address_option, metrics_port_option


@click.group("scheduler", cls=Noun, examples=("orch scheduler start",))
def scheduler() -> None:
    """Start schedulers.

    A scheduler plans the runs of schedules, starts runs whose time has come and brings back runs whose worker died. Any number
    can run at once.
    """


@scheduler.command(
    "start",
    examples=("orch scheduler start", "orch scheduler start --name blue", "orch scheduler start --metrics-port 9465"),
)
@click.option(
    "-n", "--name", metavar="NAME", default="", help="The scheduler's name; by default made of the host's and a number."
)
@metrics_port_option()
@metrics_address_option()
def start(name: str, metrics_port: int | None, metrics_address: str) -> int:
    """Start a scheduler, in the foreground. Ctrl-C or SIGTERM stops it."""
    from orch_cli.connection import settings
    from orch_cli.output import say
    from orch_scheduler.service import SchedulerOptions, run_scheduler

    options = SchedulerOptions(settings=settings(), name=name, metrics_port=metrics_port, metrics_address=metrics_address)
    return run_scheduler(options, say)
