"""What run the present code belongs to. Copied into the threads that task runners use, and so into everything they call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from orchestrator.exceptions import MissingContextError

if TYPE_CHECKING:
    from orchestrator.engine.inputs import Producers
    from orchestrator.engine.link import Link
    from orchestrator.engine.records import FlowRun
    from orchestrator.flows import Flow
    from orchestrator.models import TaskRun
    from orchestrator.task_runners import TaskRunner
    from orchestrator.tasks import Task

_flow_run: ContextVar[FlowRunContext | None] = ContextVar("orch_flow_run", default=None)
_task_run: ContextVar[TaskRunContext | None] = ContextVar("orch_task_run", default=None)
_tags: ContextVar[frozenset[str]] = ContextVar("orch_tags", default=frozenset())


@dataclass(slots=True, eq=False)
class FlowRunContext:
    """The flow run that the present code belongs to."""

    flow: Flow[..., Any]
    flow_run: FlowRun
    parameters: dict[str, Any]
    link: Link | None
    log_prints: bool
    producers: Producers
    parent: FlowRunContext | None = None
    counts: dict[str, count[int]] = field(default_factory=dict)
    runner: TaskRunner | None = None
    _tokens: list[tuple[Token[FlowRunContext | None], Token[TaskRunContext | None]]] = field(default_factory=list)

    @classmethod
    def get(cls) -> FlowRunContext | None:
        """The present one; None outside of flows."""
        return _flow_run.get()

    def __enter__(self) -> FlowRunContext:
        # A flow that a task calls is not that task: inside it no task runs at first.
        self._tokens.append((_flow_run.set(self), _task_run.set(None)))
        return self

    def __exit__(self, *_: object) -> None:
        flow_token, task_token = self._tokens.pop()
        _task_run.reset(task_token)
        _flow_run.reset(flow_token)

    @property
    def task_runner(self) -> TaskRunner:
        """What runs submitted tasks. Started when the first is submitted."""
        if self.runner is None:
            self.runner = self.flow.task_runner.duplicate()
            self.runner.__enter__()
        return self.runner

    def next_index(self, key: str) -> int:
        """How often the task with this key was called in this flow run before."""
        counter = self.counts.get(key)
        if counter is None:
            counter = self.counts.setdefault(key, count())
        return next(counter)


@dataclass(slots=True, eq=False)
class TaskRunContext:
    """The task run that the present code belongs to. Inside a flow that a task calls, that flow's context stands above it.

    Below a background task ``run`` is its id, and what belongs to it is recorded through ``link``; in flows both are None.
    """

    task: Task[..., Any]
    task_run: TaskRun
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    log_prints: bool
    link: Link | None = None
    run: str | None = None
    _token: Token[TaskRunContext | None] | None = None

    @classmethod
    def get(cls) -> TaskRunContext | None:
        """The present one; None outside of tasks."""
        return _task_run.get()

    def __enter__(self) -> TaskRunContext:
        self._token = _task_run.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _task_run.reset(self._token)

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments by name."""
        return self.task.signature.bind(self.args, self.kwargs)


class TagsContext:
    """The tags that ``tags`` has put on what runs here."""

    def __init__(self, current_tags: frozenset[str]) -> None:
        self.current_tags = current_tags

    @classmethod
    def get(cls) -> TagsContext:
        """The present one; it may hold no tags."""
        return cls(_tags.get())


def recorded_run() -> tuple[Link | None, str] | None:
    """The run to whose record the present code belongs, and the way there: a flow run or a background task run."""
    flow = _flow_run.get()
    if flow is not None:
        return flow.link, flow.flow_run.id
    task = _task_run.get()
    return None if task is None or task.run is None else (task.link, task.run)


def get_run_context() -> FlowRunContext | TaskRunContext:
    """The innermost run that the present code belongs to.

    Raises MissingContextError outside of runs.
    """
    context = _task_run.get() or _flow_run.get()
    if context is None:
        raise MissingContextError("No flow or task is running here.", hint="Call this from a flow or a task.")
    return context


@contextmanager
def tags(*new_tags: str) -> Iterator[frozenset[str]]:
    """Put tags on all flow runs and task runs that begin inside the block, beside those of blocks around it."""
    token = _tags.set(_tags.get() | frozenset(new_tags))
    try:
        yield _tags.get()
    finally:
        _tags.reset(token)
