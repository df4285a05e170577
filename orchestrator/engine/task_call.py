"""One call of a task: its task run from Pending to the end, and who is told."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator import states
from orchestrator.context import FlowRunContext, TagsContext, TaskRunContext, recorded_run
from orchestrator.engine import outcomes
from orchestrator.engine.drive import Call, Hook, forgotten
from orchestrator.engine.inputs import UpstreamFailed, resolve, resolve_call
from orchestrator.engine.interruption import state_of_interruption
from orchestrator.exceptions import CrashedRun, RunTimedOut
from orchestrator.keys import new_id
from orchestrator.logging import handlers
from orchestrator.logging.loggers import TASK_RUNS, RunLogger, task_run_logger
from orchestrator.models import TaskRun
from orchestrator.states import State, StateType

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.engine.slots import Slots
    from orchestrator.tasks import Task


def new_task_run(task: Task[..., Any], flow: FlowRunContext | None) -> TaskRun:
    """A task run that waits to begin; its name is the task's and a number, unless the task names its runs."""
    index = 0 if flow is None else flow.next_index(task.name)
    parent = TaskRunContext.get()
    tags = TagsContext.get().current_tags | task.tags
    return TaskRun(
        id=new_id(),
        name=f"{task.name}-{index}",
        key=task.name,
        index=index,
        state=State(StateType.PENDING),
        parent=None if parent is None else parent.task_run.id,
        tags=tuple(sorted(tags)) if tags else (),
    )


class TaskCall(Call):
    """One call of a task, in the flow run and task run that it is made from."""

    context: TaskRunContext

    def __init__(
        self,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        wait_for: Iterable[Any] | None = None,
        return_state: bool = False,
        task_run: TaskRun | None = None,
    ) -> None:
        self.task = task
        self.fn = task.fn
        self.args = args
        self.kwargs = kwargs
        self.timeout = task.timeout_seconds
        self.delay = 0.0
        self.due_hooks: list[Hook] = []
        self.slots = None
        self._wait_for = wait_for
        self._return_state = return_state
        self._flow = FlowRunContext.get()
        self._link, self._run = recorded_run() or (None, "")
        self.task_run = new_task_run(task, self._flow) if task_run is None else task_run
        if self.task_run.tags and self._link is not None:
            self.slots = self._slots_of_tags(self._link, self._run)
        self._has_ended = False
        self._value: Any = None
        self._problem: BaseException | None = None

    @property
    def what(self) -> str:
        """The task run, for messages."""
        return f"Task run '{self.task_run.name}'"

    @property
    def has_ended(self) -> bool:
        """There will be no other attempt."""
        return self._has_ended

    def open(self) -> None:
        """Wait for what goes in; a task whose inputs did not complete never starts."""
        flow = self._flow
        upstream: list[str] = []
        try:
            producers = None if flow is None else flow.producers
            self.args, self.kwargs = resolve_call(self.args, self.kwargs, upstream, producers)
            if self._wait_for is not None:
                resolve(list(self._wait_for), upstream, producers)
        except UpstreamFailed as problem:
            # All of it before it is told: the row may be packed at once, by another thread.
            self.task_run.upstream = tuple(upstream)
            self.task_run.state = State(StateType.PENDING, "NotReady", str(problem))
            self._has_ended = True
            self._leave_slots()
            self._tell()
            self._say(logging.WARNING, "Did not start: %s", problem)
        if upstream:
            self.task_run.upstream = tuple(upstream)
        log_prints = self.task.log_prints
        if log_prints is None:
            log_prints = flow is not None and flow.log_prints
        home = (None, None) if flow is not None or not self._run else (self._link, self._run)
        self.context = TaskRunContext(self.task, self.task_run, self.args, self.kwargs, log_prints, *home)
        if self.task.task_run_name is not None and not self._has_ended:
            self.task_run.name = self.task.name_of_run(self.context)

    def begin(self) -> bool:
        """Enter Running, or Retrying from the second time on."""
        if self._has_ended:
            return False
        self.delay = 0.0
        run = self.task_run
        run.run_count += 1
        run.state = State(StateType.RUNNING, "Running" if run.run_count == 1 else "Retrying")
        if run.started is None:
            run.started = run.state.timestamp
        self._tell()
        if self.task.on_running_hooks:
            self._hook(self.task.on_running_hooks)
        return True

    def returned(self, value: Any) -> None:
        """Completed, or the state that the task returned."""
        if problem := forgotten(self, value):
            self.raised(problem)
            return
        self._value = value
        state = outcomes.of_task_value(value)
        if self._flow is not None:
            self._flow.producers.note(value, self.task_run.id)
        self._end(state)

    def raised(self, problem: BaseException) -> None:
        """Tried again where the task says so, else Failed; Crashed or Cancelled for what is no error."""
        outcomes.let_go(problem)
        if not isinstance(problem, Exception):
            self._problem = problem
            self._end(self._interrupted(problem))
            return
        state = outcomes.of_exception(problem)
        if isinstance(problem, RunTimedOut) and self.timeout is not None:
            state = State(StateType.FAILED, "TimedOut", f"It took longer than {self.timeout:g} seconds.", problem)
        if self._try_again(state, "Failed with %s"):
            return
        self._problem = problem
        self._say(logging.ERROR, "Failed with %s", state.message, exc_info=problem)
        self._end(state)

    def lost(self, message: str) -> None:
        """The process that ran the attempt is gone: tried again where the task says so, else Crashed."""
        state = states.Crashed(message, data=CrashedRun(message))
        if not self._try_again(state, "Crashed: %s"):
            self._problem = state.data
            self._end(state)

    def break_off(self, problem: BaseException) -> None:
        """End a run that stopped between attempts."""
        if not self._has_ended:
            self._problem = problem
            self._end(self._interrupted(problem))

    def close(self) -> None:
        """Nothing is left to do: each change was told as it came."""

    def outcome(self) -> Any:
        """The task's value, or its final state where the caller asked for that."""
        state = self.task_run.state
        if self._problem is not None and not (self._return_state and isinstance(self._problem, Exception)):
            raise self._problem
        if self._return_state:
            if self._flow is not None:
                self._flow.producers.note(state, self.task_run.id)
            return state
        return self._value if state.is_final() else state.result()

    def drop(self, message: str) -> None:
        """Cancel a run that has not begun."""
        self._end(states.Cancelled(message))

    @property
    def _failures(self) -> int:
        """How many attempts have failed, this one included."""
        return self.task_run.run_count

    def _interrupted(self, problem: BaseException) -> State:
        if self._flow is None and self._link is not None:
            message = self._link.cancel_message(self._run)
            if message is not None:
                return states.Cancelled(message, data=problem)
        return state_of_interruption(problem, self._flow)

    def _try_again(self, state: State, told: str) -> bool:
        """Whether there will be another attempt, ``delay`` seconds from now; ``told`` says what became of this one."""
        run, retries = self.task_run, self.task.retry_policy
        failures = self._failures
        if failures > retries.count or not self._may_retry(state):
            return False
        self.delay = retries.delay_before(failures)
        run.state = states.AwaitingRetry(state.message)
        self._tell()
        if self.slots is not None:
            self.slots.release()
        told += "; retry %d of %d starts in %g seconds"
        self._say(logging.WARNING, told, state.message, failures, retries.count, self.delay, exc_info=state.data)
        return True

    def _may_retry(self, state: State) -> bool:
        condition = self.task.retry_condition_fn
        if condition is None:
            return True
        try:
            return bool(condition(self.task, self.task_run, state))
        except Exception as problem:
            self._say(logging.ERROR, "retry_condition_fn raised, so there is no retry", exc_info=problem)
            return False

    def _end(self, state: State) -> None:
        self._has_ended = True
        self.delay = 0.0
        self._leave_slots()
        run = self.task_run
        run.ended = state.timestamp
        run.state = state
        self._tell()
        level = self._level_of(state)
        if TASK_RUNS.isEnabledFor(level):
            handlers.say(self._logger(), level, f"Ended {state}")
        hooks = self.task.hooks_after(state)
        if hooks:
            self._hook(hooks)

    def _level_of(self, state: State) -> int:
        return outcomes.level_of(state)

    def _logger(self) -> RunLogger:
        home = {} if self._flow is not None or not self._run else {"orch_link": self._link, "orch_run": self._run}
        return task_run_logger(self.task_run, self._flow, **home)

    def _slots_of_tags(self, link: Link, run: str) -> Slots:
        from orchestrator.engine.protocol import Wanted
        from orchestrator.engine.slots import Slots

        return Slots(link, run, Wanted("tag", list(self.task_run.tags)), self._wait)

    def _wait(self, sentence: str) -> None:
        if not self._has_ended:
            self.task_run.state = State(StateType.PENDING, message=sentence)
            self._tell()
            self._say(logging.INFO, "%s", sentence)

    def _leave_slots(self) -> None:
        slots, self.slots = self.slots, None
        if slots is not None:
            slots.release()

    def _hook(self, hooks: Iterable[Any]) -> None:
        self.due_hooks.extend(partial(hook, self.task, self.task_run, self.task_run.state) for hook in hooks)

    def _tell(self) -> None:
        if self._link is not None:
            self._link.task(self._run, self.task_run)

    def _say(self, level: int, message: str, *values: Any, exc_info: BaseException | None = None) -> None:
        if TASK_RUNS.isEnabledFor(level):
            self._logger().log(level, message, *values, exc_info=exc_info)
