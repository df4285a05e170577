"""Which logger is whose."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.context import FlowRunContext, TaskRunContext
from orchestrator.exceptions import MissingContextError

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.engine.records import FlowRun
    from orchestrator.models import TaskRun

ROOT = "orchestrator"
FLOW_RUNS = logging.getLogger(f"{ROOT}.flow_runs")
TASK_RUNS = logging.getLogger(f"{ROOT}.task_runs")

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class RunLogger(_Adapter):
    """A logger that knows its run: every record carries the run's ids and names, and finds its way into the run's log."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the run's fields to those that the caller gave."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def getChild(self, suffix: str, extra: dict[str, Any] | None = None) -> RunLogger:  # noqa: N802 - logging's name
        """A logger for a part of the run."""
        return RunLogger(self.logger.getChild(suffix), {**(self.extra or {}), **(extra or {})})


def get_logger(name: str | None = None) -> logging.Logger:
    """Orch's logger of this name, below ``orchestrator``; without a name Orch's own. Its records belong to no run."""
    if name is None or name == ROOT or name.startswith(f"{ROOT}."):
        return logging.getLogger(name or ROOT)
    return logging.getLogger(f"{ROOT}.{name}")


def get_run_logger(context: FlowRunContext | TaskRunContext | None = None, **extra: Any) -> RunLogger | logging.Logger:
    """The logger of the task run or else the flow run that calls this; ``extra`` fields go with every record.

    Raises MissingContextError outside of runs.
    """
    task = context if isinstance(context, TaskRunContext) else None
    flow = context if isinstance(context, FlowRunContext) else FlowRunContext.get()
    if context is None:
        task = TaskRunContext.get()
    if task is not None:
        home = {} if task.run is None else {"orch_link": task.link, "orch_run": task.run}
        return task_run_logger(task.task_run, flow, **{"task_name": task.task.name, **home, **extra})
    if flow is not None:
        return flow_run_logger(flow.flow_run, flow.link, **extra)
    if FLOW_RUNS.disabled:
        return FLOW_RUNS
    raise MissingContextError(
        "There is no run logger here: no flow or task is running.", hint="Use logging.getLogger(__name__) outside of runs."
    )


def flow_run_logger(flow_run: FlowRun, link: Link | None = None, **extra: Any) -> RunLogger:
    """The logger of one flow run. Through ``link`` its records reach the run's log."""
    fields = {"flow_run_id": flow_run.id, "flow_run_name": flow_run.name, "flow_name": flow_run.flow_name}
    return RunLogger(FLOW_RUNS, {**fields, "orch_link": link, **extra})


def task_run_logger(task_run: TaskRun, flow: FlowRunContext | None = None, **extra: Any) -> RunLogger:
    """The logger of one task run. Its records reach the log of the flow run that it belongs to.

    Those of a background task run, and of what it calls, go through ``extra``'s ``orch_link`` into the log of ``orch_run``.
    """
    fields: dict[str, Any] = {"task_run_id": task_run.id, "task_run_name": task_run.name, "task_name": task_run.key}
    if flow is not None:
        fields |= {"flow_run_id": flow.flow_run.id, "flow_run_name": flow.flow_run.name, "flow_name": flow.flow_run.flow_name}
        fields["orch_link"] = flow.link
    return RunLogger(TASK_RUNS, {**fields, **extra})


@contextmanager
def disable_run_logger() -> Iterator[None]:
    """Silence the loggers of runs inside the block, and let ``get_run_logger`` work outside of runs: for unit tests."""
    before = FLOW_RUNS.disabled, TASK_RUNS.disabled
    FLOW_RUNS.disabled = TASK_RUNS.disabled = True
    try:
        yield
    finally:
        FLOW_RUNS.disabled, TASK_RUNS.disabled = before
