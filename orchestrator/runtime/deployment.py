"""The deployment that the present flow run belongs to. Outside of deployments: None and empty collections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.context import FlowRunContext

_VALUES: dict[str, Callable[[FlowRunContext], Any]] = {
    "id": lambda context: context.flow_run.deployment_id,
    "name": lambda context: context.flow_run.deployment_name,
    "version": lambda context: context.flow_run.deployment_version,
    "parameters": lambda context: dict(context.parameters) if context.flow_run.deployment_id else {},
    "flow_run_id": lambda context: context.flow_run.id,
}


def __getattr__(name: str) -> Any:
    if name not in _VALUES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    context = FlowRunContext.get()
    if context is None:
        return {} if name == "parameters" else None
    return _VALUES[name](context)


def __dir__() -> list[str]:
    return sorted(_VALUES)
