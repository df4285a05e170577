"""A background task run: one task as a run of its own, from a worker's claim to the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator import clock, states
from orchestrator.context import TaskRunContext
from orchestrator.engine import outcomes, protocol
from orchestrator.engine.plain import kept_result
from orchestrator.engine.task_call import TaskCall
from orchestrator.exceptions import OrchError
from orchestrator.models import TaskRun
from orchestrator.states import State, StateType

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.tasks import Task


class Row(NamedTuple):
    """One run as it travels to an executor process.

    ``slot`` is where the start of its body is marked. ``run_count`` counts the starts before this one; ``is_started``: it has
    entered Running already. ``parameters`` of a task run are ``args`` and ``kwargs``; ``flow`` is, for a flow run, what the
    ``run`` frame of a worker's child holds beside these, with ``path`` as the folder of the entry point.
    """

    id: str
    slot: int
    attempt: int
    run_count: int
    crash_count: int
    task: str
    name: str
    entrypoint: str
    parameters: dict[str, Any]
    tags: Sequence[str]
    lease_ms: int
    is_started: bool
    flow: dict[str, Any] | None = None


class BackgroundCall(TaskCall):
    """The call of a task that a worker has claimed. Its end is gathered; whoever executes it flushes the link.

    ``before_end`` is called with the run's id before that.
    """

    def __init__(self, task: Task[..., Any], row: Row, link: Link, before_end: Callable[[str], object]) -> None:
        self.task = task
        self.fn = task.fn
        self.args = tuple(row.parameters.get("args") or ())
        self.kwargs = row.parameters.get("kwargs") or {}
        self.timeout = task.timeout_seconds
        self.delay = 0.0
        self.due_hooks = []
        self.slots = None  # the claim has taken those of its tags
        self.task_run = TaskRun(
            row.id, row.name, task.name, row.run_count, _PENDING, run_count=row.run_count, tags=tuple(row.tags)
        )
        self.has_told_end = False
        self._before_end = before_end
        self._flow = None
        self._link: Link = link
        self._run = row.id
        self._row = row
        self._is_started = row.is_started
        self._has_ended = False
        self._retry_in_ms: int | None = None
        self._value: Any = None
        self._problem: BaseException | None = None

    def open(self) -> None:
        """Arguments that do not fit end it Failed before its body starts."""
        task = self.task
        problem: OrchError | None = None
        try:
            self.args, self.kwargs = task.signature.made_again(self.args, self.kwargs)
        except OrchError as misfit:
            problem = misfit
        self.context = TaskRunContext(task, self.task_run, self.args, self.kwargs, bool(task.log_prints), self._link, self._run)
        if problem is not None:
            self._problem = problem
            self._say(logging.ERROR, "%s", problem)
            self._end(outcomes.of_exception(problem))

    def begin(self) -> bool:
        """Enter Running, or Retrying from the second time on. Where the claim has done that already nobody is told."""
        if not super().begin():
            return False
        state = self.task_run.state
        if not self._is_started:
            self._link.send([protocol.START, self._run, state.name, clock.to_ms(state.timestamp)])
        self._is_started = False
        return True

    def close(self) -> None:
        """Tell the end."""
        state = self.task_run.state
        result = kept_result(state.data) if state.type is StateType.COMPLETED else b""
        self.tell_end(state, result)

    def tell_end(self, state: State, result: bytes = b"") -> None:
        """Gather the frame of the end, once."""
        if not self.has_told_end:
            self.has_told_end = True
            self._before_end(self._run)
            message = state.message[: protocol.MESSAGE_CHARACTERS]
            end = [protocol.END, self._run, state.type.value, state.name, message, result, self._retry_in_ms]
            self._link.gather(end)

    def outcome(self) -> None:
        """Nobody waits for it here."""

    def stop(self, problem: BaseException) -> None:
        """End it where it was broken off at a moment at which its driver could not do that."""
        if not self._has_ended:
            self._end(self._interrupted(problem))
        self.close()

    @property
    def _failures(self) -> int:
        # A lost process is charged to the crash budget, not to the retries.
        return self.task_run.run_count - self._row.crash_count

    def raised(self, problem: BaseException) -> None:
        """As for any task; but a retry that waits longer than the lease goes back to the store meanwhile."""
        super().raised(problem)
        if self.delay * 1000 > self._row.lease_ms:
            self._retry_in_ms = round(self.delay * 1000)
            self._end(states.AwaitingRetry(self.task_run.state.message))

    def _level_of(self, state: State) -> int:
        # Its states are in its record in any case; see ``FlowCall._ordinary``.
        level = outcomes.level_of(state)
        return logging.DEBUG if level == logging.INFO else level

    def _tell(self) -> None:
        """Its record is no row of a flow run's: starts and the end are told as such."""


_PENDING = State(StateType.PENDING)
