"""The flows that are disturbed: each says when it starts and when it ends, and takes its time in between."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.chaos.ledger import Effect, Kill, write_effect, write_kill
from orchestrator import clock, flow
from orchestrator.context import FlowRunContext
from orchestrator.runtime import deployment, flow_run


@flow
def work(ledger: str, milliseconds: int) -> None:
    """Sleep between the two entries."""
    with told(ledger):
        time.sleep(milliseconds / 1000)


@flow
def work_under(ledger: str, milliseconds: int, limit: str) -> None:
    """As ``work``, holding a slot of a global limit meanwhile: ``take`` and ``give`` stand in the ledger."""
    from orchestrator.concurrency.sync import concurrency  # the release before this one has none, and loads this file too

    with told(ledger) as tell, concurrency(limit):
        tell(f"take {limit}")
        time.sleep(milliseconds / 1000)
        tell(f"give {limit}")


@flow
def tick(ledger: str, milliseconds: int, first_milliseconds: int = 0) -> None:
    """Write ``tick`` every 50 ms until the time is over, so that what executes longer than it may is seen."""
    with told(ledger) as tell:
        end = time.monotonic() + (first_milliseconds or milliseconds if fence() == 1 else milliseconds) / 1000
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
            tell("tick")


@flow
def fired(ledger: str, milliseconds: int) -> None:
    """Write down of which deployment this is and for which moment it was planned: ``fire NAME MILLISECONDS``."""
    with told(ledger) as tell:
        tell(f"fire {deployment.name} {clock.to_ms(flow_run.scheduled_start_time)}")
        time.sleep(milliseconds / 1000)


@flow
def poison(ledger: str, milliseconds: int) -> None:
    """Kill the worker that executes this, its supervisor, after a while."""
    with told(ledger):
        time.sleep(milliseconds / 1000)
        supervisor = _parent(os.getppid())
        write_kill(Path(ledger), Kill(time.monotonic(), "poison", supervisor))
        os.kill(supervisor, signal.SIGKILL)
        signal.pause()


@flow
def die(ledger: str, milliseconds: int, how: str, until_attempt: int) -> None:
    """Die after a while in the way ``how``, a key of ``DEATHS``, in each attempt up to that one."""
    with told(ledger) as tell:
        time.sleep(milliseconds / 1000)
        if fence() <= until_attempt:
            tell(f"die {how}")
            DEATHS[how]()


def fence() -> int:
    """The attempt of the run that executes."""
    context = FlowRunContext.get()
    assert context is not None
    return context.flow_run.attempt


def _fill_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    held = []
    while True:
        held.append(bytearray(16 << 20))


def _segfault() -> None:
    # faulthandler has one for the purpose; a null pointer through ctypes does without its report on stderr.
    ctypes.string_at(0)


DEATHS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit(3)": lambda: sys.exit(3),
    "_exit(3)": lambda: os._exit(3),
    "out of memory": _fill_memory,
    "segfault": _segfault,
}
"""Ways in which a run's process can end without a word."""


@contextmanager
def told(ledger: str) -> Iterator[Callable[[str], None]]:
    """Write the start and the end of a body; yields what writes other phases."""
    context = FlowRunContext.get()
    assert context is not None
    run, attempt = context.flow_run.id, context.flow_run.attempt
    template = os.getppid()
    processes = os.getpid(), template, _parent(template)

    def tell(phase: str) -> None:
        write_effect(Path(ledger), Effect(run, attempt, phase, time.monotonic(), *processes))

    tell("start")
    yield tell
    tell("end")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
