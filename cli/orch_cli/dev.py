"""``orch dev``: a server, a scheduler and workers, each a child process, under one Ctrl-C."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import click

from orch_cli import output
from orch_cli.commands import Command
from orch_cli.completion import complete_pool
from orch_cli.connection import open_store, settings
from orch_cli.server import stop_private

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.store import Store

DEFAULT_POOL = "default"
_KILL_AFTER_S = 30.0


@click.command("dev", cls=Command, examples=("orch dev", "orch dev --pool etl --limit 4"))
@click.option(
    "-p",
    "--pool",
    "pools",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_pool,
    help="The work pool of the worker; created if it does not exist. Can be given again. By default every process pool.",
)
@click.option("-l", "--limit", type=click.IntRange(min=1), metavar="N", help="At most N runs at a time in each worker.")
def dev(pools: tuple[str, ...], limit: int | None) -> int:
    """Run a server, a scheduler and a worker in one, for development.

    Ctrl-C stops all. The worker serves every work pool of type process, or those that are named; where there is none, the pool
    'default' is created.
    """
    now = settings()
    with open_store() as store:
        names = _pools(store, pools)
        commands = {"scheduler": ["scheduler", "start"]}
        for name in names:
            commands[f"worker of '{name}'"] = ["worker", "start", "--pool", name, *(["--limit", str(limit)] if limit else [])]
        output.say(f"The server is {store.address}. Starting {', '.join(commands)}. Ctrl-C stops all.")
        try:
            return _run(commands, now)
        finally:
            stop_private(store, now)


def _pools(store: Store, wanted: tuple[str, ...]) -> list[str]:
    """The pools to start workers for, created where they do not exist."""
    names = list(dict.fromkeys(wanted)) or [pool.name for pool in store.pools.all() if pool.type == "process"] or [DEFAULT_POOL]
    for name in names:
        if not store.pools.exists(name):
            store.pools.create(name)
            output.say(f"Created work pool '{name}'.")
    return names


def _run(commands: dict[str, list[str]], now: Settings) -> int:
    """Start the commands, each in a process group of its own, and stop them all when one ends or someone asks for it."""
    from orchestrator.settings import child_environment

    happened: queue.SimpleQueue[str | int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: happened.put(received))
    environment = child_environment(now)
    children: dict[str, subprocess.Popen[bytes]] = {}

    def wait(name: str, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        happened.put(name)

    for name, arguments in commands.items():
        child = subprocess.Popen(
            [sys.executable, "-m", "orch_cli", *arguments], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        children[name] = child
        threading.Thread(target=wait, args=(name, child), daemon=True).start()
    first = happened.get()
    if isinstance(first, str):
        output.warn(f"The {first} ended with exit code {children[first].returncode}; stopping the others.")
    else:
        output.say("Stopping; runs may finish. Ctrl-C again stops now.")
    _stop(children, happened)
    return 1 if isinstance(first, str) else 0


def _stop(children: dict[str, subprocess.Popen[bytes]], happened: queue.SimpleQueue[str | int]) -> None:
    """Ask every child to end, once more at each further signal, and kill what is left at last."""
    asked = 0
    while any(child.poll() is None for child in children.values()):
        if asked < 2:
            for child in children.values():
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM if asked == 0 else signal.SIGINT)
        try:
            while isinstance(happened.get(timeout=_KILL_AFTER_S), str):
                if all(child.poll() is not None for child in children.values()):
                    return
            asked += 1
        except queue.Empty:
            asked = 2
        if asked >= 2:
            for child in children.values():
                if child.poll() is None:
                    child.kill()
