"""Flows for processes whose wall clock is moved: under libfaketime ``time.sleep`` fails with EINVAL, ``select`` does not."""

from __future__ import annotations

import select

from bench.chaos.flows import told
from orchestrator import clock, flow
from orchestrator.runtime import deployment, flow_run


@flow
def work(ledger: str, milliseconds: int) -> None:
    """As ``flows.work``."""
    with told(ledger):
        select.select([], [], [], milliseconds / 1000)


@flow
def fired(ledger: str, milliseconds: int) -> None:
    """As ``flows.fired``."""
    with told(ledger) as tell:
        tell(f"fire {deployment.name} {clock.to_ms(flow_run.scheduled_start_time)}")
        select.select([], [], [], milliseconds / 1000)
