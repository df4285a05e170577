"""Loggers of runs: ``get_run_logger`` inside flows and tasks, ``get_logger`` elsewhere."""

from __future__ import annotations

from orchestrator.logging.loggers import (
    RunLogger,
    disable_run_logger,
    flow_run_logger,
    get_logger,
    get_run_logger,
    task_run_logger,
)

__all__ = ["RunLogger", "disable_run_logger", "flow_run_logger", "get_logger", "get_run_logger", "task_run_logger"]
