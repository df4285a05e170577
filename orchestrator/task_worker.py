"""Serving tasks: a worker for what ``Task.delay`` submits, started from Python.

``python -m orch_cli task serve`` is the worker. It runs beside this process, which waits for it: the process that renews leases
never runs user code.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator import settings
from orchestrator.exceptions import InvalidDefinition
from orchestrator.tasks import Task

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(
    *tasks: Task[..., Any],
    limit: int | None = None,
    processes: int = 1,
    pool: str | None = None,
    name: str = "",
    metrics_port: int | None = None,
    timeout: float | None = None,
) -> None:
    """Run a worker for these tasks until it is stopped, with Ctrl-C or SIGTERM, or for ``timeout`` seconds.

    The worker takes every run of its work pool, as every worker does: tasks that it cannot import belong into another pool.
    It is told the tasks so that a mistake shows now.

    limit: at most so many runs at a time; by default 100. processes: so many executor processes share them.
    pool: the work pool; by default that of the setting ``task_pool``. It is created if need be.
    name: the worker's; by default made from the host's. metrics_port: serve Prometheus metrics there.

    Raises InvalidDefinition for a task that no other process can find; SystemExit where the worker failed.
    """
    child = subprocess.Popen(_command(tasks, limit, processes, pool, name, metrics_port), **_options())
    with _signals_passed_to(child):
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
            status = _as_asked(child.wait())
    _judge(status)


async def aserve(
    *tasks: Task[..., Any],
    limit: int | None = None,
    processes: int = 1,
    pool: str | None = None,
    name: str = "",
    metrics_port: int | None = None,
    timeout: float | None = None,
) -> None:
    """``serve`` for async code. Cancelled, it lets the worker finish what it has."""
    command = _command(tasks, limit, processes, pool, name, metrics_port)
    child = await asyncio.create_subprocess_exec(*command, **_options())
    try:
        async with asyncio.timeout(timeout):
            status = await child.wait()
    except TimeoutError:
        child.send_signal(signal.SIGTERM)
        status = _as_asked(await child.wait())
    except asyncio.CancelledError:
        child.send_signal(signal.SIGTERM)
        await child.wait()
        raise
    _judge(status)


def _command(
    tasks: tuple[Task[..., Any], ...],
    limit: int | None,
    processes: int,
    pool: str | None,
    name: str,
    metrics_port: int | None,
) -> list[str]:
    if not tasks:
        raise InvalidDefinition("No task to serve was given.", hint="Call serve(my_task), or my_task.serve()")
    for wrong in (task for task in tasks if not isinstance(task, Task)):
        raise InvalidDefinition(f"{wrong!r} is not a task.", hint="Decorate the function with @task.")
    options = {"--limit": limit, "--pool": pool, "--name": name or None, "--metrics-port": metrics_port}
    words = [f"{option}={value}" for option, value in options.items() if value is not None]
    entrypoints = [task.entrypoint for task in tasks]
    return [sys.executable, "-m", "orch_cli", "task", "serve", *entrypoints, f"--processes={processes}", *words]


def _options() -> dict[str, Any]:
    """The worker imports what this process could, and hears of signals from this process alone."""
    own = (sys.prefix, sys.base_prefix)
    path = [str(Path(entry).absolute()) for entry in sys.path if not entry.startswith(own)]
    environment = settings.child_environment(PYTHONPATH=os.pathsep.join(dict.fromkeys(path)))
    return {"env": environment, "stdin": subprocess.DEVNULL, "start_new_session": True}


@contextmanager
def _signals_passed_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_asked(status: int) -> int:
    """Its exit status after it was told to end, which may have been before it listened."""
    return 0 if status == -signal.SIGTERM else status


def _judge(status: int) -> None:
    """The worker has said itself what was wrong."""
    if status:
        raise SystemExit(status if status > 0 else 128 - status)
