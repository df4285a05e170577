"""The task run that the present code belongs to. Outside of tasks: None, 0 and empty collections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.context import TaskRunContext

_VALUES: dict[str, tuple[Callable[[TaskRunContext], Any], Callable[[], Any]]] = {
    "id": (lambda context: context.task_run.id, lambda: None),
    "name": (lambda context: context.task_run.name, lambda: None),
    "task_name": (lambda context: context.task.name, lambda: None),
    "parameters": (lambda context: context.parameters, dict),
    "tags": (lambda context: list(context.task_run.tags), list),
    "run_count": (lambda context: context.task_run.run_count, lambda: 0),
}


def __getattr__(name: str) -> Any:
    if name not in _VALUES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    inside, outside = _VALUES[name]
    context = TaskRunContext.get()
    return outside() if context is None else inside(context)


def __dir__() -> list[str]:
    return sorted(_VALUES)
