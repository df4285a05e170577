"""Orch: Python flows on a fleet of worker machines, with Redis as the only server.

What a flow's author imports is here. A name is loaded when it is first used: ``import orchestrator`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from orchestrator._version import __version__

if TYPE_CHECKING:
    from orchestrator.context import tags
    from orchestrator.flows import Flow, flow
    from orchestrator.futures import (
        DistributedFuture,
        Future,
        FutureList,
        allow_failure,
        as_completed,
        quote,
        unmapped,
        wait,
    )
    from orchestrator.logging import get_run_logger
    from orchestrator.states import State
    from orchestrator.tasks import Task, task
    from orchestrator.variables import Variable

__all__ = [
    "flow",
    "task",
    "Flow",
    "Task",
    "State",
    "Future",
    "FutureList",
    "DistributedFuture",
    "wait",
    "as_completed",
    "unmapped",
    "allow_failure",
    "quote",
    "get_run_logger",
    "tags",
    "Variable",
    "__version__",
]

_MODULES = {
    **dict.fromkeys(("flow", "Flow"), "flows"),
    **dict.fromkeys(("task", "Task"), "tasks"),
    "State": "states",
    **dict.fromkeys(("Future", "FutureList", "DistributedFuture", "wait", "as_completed"), "futures"),
    **dict.fromkeys(("unmapped", "allow_failure", "quote"), "futures"),
    "get_run_logger": "logging",
    "tags": "context",
    "Variable": "variables",
}
"""Each public name and the module it lives in."""


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    value = getattr(import_module(f"orchestrator.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
