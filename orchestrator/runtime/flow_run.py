"""The flow run that the present code belongs to. Outside of flows: None, 0 and empty collections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator import clock
from orchestrator.context import FlowRunContext

_VALUES: dict[str, tuple[Callable[[FlowRunContext], Any], Callable[[], Any]]] = {
    "id": (lambda context: context.flow_run.id, lambda: None),
    "name": (lambda context: context.flow_run.name, lambda: None),
    "flow_name": (lambda context: context.flow.name, lambda: None),
    "flow_version": (lambda context: context.flow.version, lambda: None),
    "parameters": (lambda context: dict(context.parameters), dict),
    "tags": (lambda context: list(context.flow_run.tags), list),
    "run_count": (lambda context: context.flow_run.run_count, lambda: 0),
    "scheduled_start_time": (lambda context: context.flow_run.expected_start_time, clock.now),
    # Grows with every claim: what an outside system may compare to refuse an earlier attempt that is still alive. A nested flow
    # is a run of its own each time, so there the fence of the run that a worker claimed says more.
    "fence": (lambda context: _root(context).flow_run.attempt, lambda: 0),
    "parent_flow_run_id": (lambda context: context.flow_run.parent, lambda: None),
    "root_flow_run_id": (lambda context: _root(context).flow_run.id, lambda: None),
    "parent_deployment_id": (lambda context: context.parent.flow_run.deployment_id if context.parent else None, lambda: None),
}


def __getattr__(name: str) -> Any:
    if name not in _VALUES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    inside, outside = _VALUES[name]
    context = FlowRunContext.get()
    return outside() if context is None else inside(context)


def __dir__() -> list[str]:
    return sorted(_VALUES)


def _root(context: FlowRunContext) -> FlowRunContext:
    while context.parent is not None:
        context = context.parent
    return context
