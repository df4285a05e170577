"""The present run, as plain values: ``from orchestrator.runtime import flow_run; flow_run.id``."""

from __future__ import annotations

from orchestrator.runtime import deployment, flow_run, task_run

__all__ = ["deployment", "flow_run", "task_run"]
