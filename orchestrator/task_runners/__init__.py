"""Where submitted tasks run: in threads of the flow's process, or on an RQ fleet, which is imported when it is first named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.task_runners.base import TaskRunner
from orchestrator.task_runners.threads import MAX_WORKERS, ThreadPoolTaskRunner

if TYPE_CHECKING:
    from orchestrator.task_runners.rq import RQTaskRunner as RQTaskRunner

__all__ = ["MAX_WORKERS", "RQTaskRunner", "TaskRunner", "ThreadPoolTaskRunner"]


def __getattr__(name: str) -> Any:
    if name == "RQTaskRunner":
        from orchestrator.task_runners.rq import RQTaskRunner

        return RQTaskRunner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
