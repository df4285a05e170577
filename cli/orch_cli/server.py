"""``orch server``: the private Redis of this ORCH_HOME and a scheduler, in the foreground."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from orch_cli import output
from orch_cli.commands import Noun, Usage
from orch_cli.connection import open_store, settings
from orch_cli.output import Column, Printer, View, Word, shows
from orchestrator.exceptions import Refused

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.store import Store

NOT_RUNNING = 6

SERVER: View[dict[str, Any]] = View(
    name=lambda server: str(server["address"]),
    columns=(
        Column("Status", lambda server: Word("Running", "green") if server["running"] else Word("Stopped", "yellow")),
        Column("Address", lambda server: server["address"]),
        Column("Kind", lambda server: "private" if server["embedded"] else "configured"),
        Column("Product", lambda server: server["product"]),
        Column("Persistence", lambda server: server["persistence"]),
        Column("Memory", lambda server: f"{server['used_bytes'] / 1e6:.1f} MB" if server["running"] else None),
        Column("Workers", lambda server: server["workers"]),
        Column("Schedulers", lambda server: server["schedulers"]),
    ),
)


@click.group("server", cls=Noun, examples=("orch server start", "orch server status"))
def server() -> None:
    """Start, show and stop the server.

    With no redis_url set, the server is a private Redis in ORCH_HOME. Commands start it when they need it; it stays.
    """


@server.command("start", examples=("orch server start", "orch server start --no-scheduler"))
@click.option("--no-scheduler", is_flag=True, help="Only the private Redis, no scheduler.")
def start(no_scheduler: bool) -> int:
    """Start the server and a scheduler, in the foreground. Ctrl-C stops both.

    With redis_url set, that server is used and only the scheduler is started.
    """
    now = settings()
    if no_scheduler and now.redis_url is not None:
        raise Usage("redis_url is set, so without a scheduler there is nothing to start.", hint="Leave --no-scheduler out.")
    with open_store() as store:
        output.say(f"The server is {store.address}. Ctrl-C stops it.")
        try:
            if no_scheduler:
                _wait_for_signal()
                return 0
            from orch_scheduler.service import SchedulerOptions, run_scheduler

            return run_scheduler(SchedulerOptions(settings=now))
        finally:
            stop_private(store, now)


@server.command("status", examples=("orch server status", "orch server status -o json"))
@shows(SERVER)
def status(out: Printer[dict[str, Any]]) -> int:
    """Show the server. Exit code 6 if none runs."""
    from orchestrator.store import embedded

    now = settings()
    if now.redis_url is None and not embedded.running(now.home):
        stopped = dict.fromkeys(("product", "persistence", "used_bytes", "workers", "schedulers"))
        out.one({"running": False, "address": str(now.home), "embedded": True, **stopped})
        output.say_hint("Any command that needs the server starts it. In the foreground, with a scheduler: orch server start")
        return NOT_RUNNING
    with open_store(start_embedded=False) as store:
        info = store.server_info()
        out.one(
            {
                "running": True,
                "address": store.address,
                "embedded": store.embedded,
                "product": f"{info.product} {info.version}",
                "persistence": info.persistence,
                "used_bytes": info.used_bytes,
                "workers": len(live_workers(store)),
                "schedulers": len(store.pools.schedulers()),
            }
        )
    return 0


@server.command("stop", examples=("orch server stop", "orch server stop --force"))
@click.option("--force", is_flag=True, help="Even while workers or schedulers are connected.")
def stop(force: bool) -> None:
    """Stop the private server of this ORCH_HOME. Its data stay."""
    from orchestrator.store import embedded

    now = settings()
    if now.redis_url is not None:
        raise Refused(
            "redis_url is set: the server in use was not started by Orch.", hint="Stop it with the tool that started it."
        )
    if not embedded.running(now.home):
        embedded.stop(now.home)  # also one that died stays stopped then, whoever misses it
        output.say(f"No server runs in {now.home}.")
        return
    if not force:
        with open_store(start_embedded=False) as store:
            users = connected(store)
        if users:
            raise Refused(
                f"{users} still connected.",
                hint="Stop them first, or stop the server all the same with: orch server stop --force",
            )
    embedded.stop(now.home)
    output.say(f"Stopped the server in {now.home}. Its data stay.")


def stop_private(store: Store, now: Settings) -> None:
    """End the private server with the command that ran it in the foreground, unless others still use it."""
    from orchestrator.store import embedded

    if not store.embedded:
        return
    users = connected(store)
    store.close()
    if users:
        output.say(f"The server in {now.home} goes on: {users} still connected. Stop it with: orch server stop")
    elif embedded.stop(now.home):
        output.say(f"Stopped the server in {now.home}. Its data stay.")


def connected(store: Store) -> str:
    """Who would miss the server, as the beginning of a sentence; empty for nobody."""
    workers, schedulers = len(live_workers(store)), len(store.pools.schedulers())
    parts = [output.plural(count, noun) for count, noun in ((workers, "worker"), (schedulers, "scheduler")) if count]
    return f"{' and '.join(parts)} {'is' if workers + schedulers == 1 else 'are'}" if parts else ""


def live_workers(store: Store) -> list[Any]:
    """Workers heard of lately."""
    return [worker for worker in store.pools.workers() if worker.status != "OFFLINE"]


def _wait_for_signal() -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
