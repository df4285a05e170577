"""The flow that is disturbed: it says when it starts and when it ends, and takes its time in between."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.chaos.ledger import Effect, write_effect
from orchestrator import flow
from orchestrator.context import FlowRunContext


@flow
def work(ledger: str, milliseconds: int) -> None:
    context = FlowRunContext.get()
    assert context is not None
    run, attempt = context.flow_run.id, context.flow_run.attempt
    template = os.getppid()
    processes = os.getpid(), template, _parent(template)
    write_effect(Path(ledger), Effect(run, attempt, "start", time.monotonic(), *processes))
    time.sleep(milliseconds / 1000)
    write_effect(Path(ledger), Effect(run, attempt, "end", time.monotonic(), *processes))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
