"""The flows that are disturbed: each says when it starts and when it ends, and takes its time in between."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.chaos.ledger import Effect, write_effect
from orchestrator import flow
from orchestrator.context import FlowRunContext


@flow
def work(ledger: str, milliseconds: int) -> None:
    """Sleep between the two entries."""
    with told(ledger):
        time.sleep(milliseconds / 1000)


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
