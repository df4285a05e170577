"""A retry that waits longer than the lease holds no worker meanwhile."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from orchestrator.settings import Settings
from orchestrator.store import open_store
from worker_processes import deploy, submit, wait_for_state, worker

FLOWS = """
from orchestrator import flow


@flow(retries=1, retry_delay_seconds=1.5)
def moody():
    raise ValueError("not yet")
"""


def test_a_retry_that_waits_longer_than_the_lease_frees_its_slot(settings: Settings, tmp_path: Path) -> None:
    """The engine was not told how long the lease is, took every retry for a short one, and kept the slot all the time."""
    (tmp_path / "flows.py").write_text(FLOWS)
    with open_store(settings) as store:
        store.write_settings(replace(store.settings, lease=timedelta(seconds=1)))
    with open_store(settings) as store:
        deployment = deploy(store, tmp_path, "moody")
        with worker(settings):
            run = submit(store, deployment)
            waiting = wait_for_state(store, run, "AwaitingRetry")
            assert waiting.place == "due"
            ended = wait_for_state(store, run, "Failed")
    assert [entry.name for entry in ended.history].count("AwaitingRetry") == 1
    assert ended.attempt == 2
