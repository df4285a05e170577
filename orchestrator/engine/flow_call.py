"""One call of a flow: its flow run from the call, or from the worker's claim, to the end, and who is told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator import clock, names, states
from orchestrator.context import FlowRunContext, TagsContext, TaskRunContext
from orchestrator.engine import outcomes, termination
from orchestrator.engine.drive import Call, Hook, forgotten
from orchestrator.engine.inputs import Producers, resolve, states_of
from orchestrator.engine.interruption import cancel_message, state_of_interruption
from orchestrator.engine.records import FlowRun
from orchestrator.exceptions import CancelledRun, OrchError, RunTimedOut
from orchestrator.keys import new_id
from orchestrator.logging.loggers import flow_run_logger
from orchestrator.states import State, StateType

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.flows import Flow

_NEVER_MS = 1 << 62


class FlowCall(Call):
    """One call of a flow.

    ``claimed`` is the ``run`` frame's content where a worker has claimed the run; without it this call is the run's beginning,
    and ``parent`` the flow run that it is called from.
    """

    context: FlowRunContext

    def __init__(
        self,
        flow: Flow[..., Any],
        values: dict[str, Any],
        *,
        parent: FlowRunContext | None = None,
        link: Link | None = None,
        claimed: Mapping[str, Any] | None = None,
        wait_for: Iterable[Any] | None = None,
        return_state: bool = False,
    ) -> None:
        self.flow = flow
        self.fn = flow.fn
        self.timeout = flow.timeout_seconds
        self.delay = 0.0
        self.due_hooks: list[Hook] = []
        self._values = values
        self._parent = parent
        self._link = parent.link if parent is not None else link
        self._claimed = claimed
        self._wait_for = wait_for
        self._return_state = return_state
        self._has_ended = False
        self._retry_in_ms: int | None = None
        self._value: Any = None
        self._problem: BaseException | None = None

    @property
    def what(self) -> str:
        """The flow run, for messages."""
        return f"Flow run '{self.run.name}'"

    def open(self) -> None:
        """Make the run known. Arguments that do not fit end it Failed before its body starts."""
        problem = self._prepare()
        self.run = self._new_run() if self._claimed is None else claimed_run(self._claimed, self._values)
        log_prints = self.flow.log_prints
        if log_prints is None:
            log_prints = self._parent is not None and self._parent.log_prints
        self.context = FlowRunContext(
            self.flow, self.run, self._values, self._link, log_prints, Producers(), parent=self._parent
        )
        self._logger = flow_run_logger(self.run, self._link)
        self._open_record()
        if self._parent is None and self.flow.isasync:
            termination.watch_asyncio_task(self.run.id)
        if problem is not None:
            self._problem = problem
            self._logger.error("%s", problem)
            self._end(outcomes.of_exception(problem))

    def _prepare(self) -> Exception | None:
        """Final arguments: futures resolved, values validated. The exception that prevents it, if any."""
        parent = self._parent
        upstream: list[str] = []
        producers = None if parent is None else parent.producers
        try:
            self._values = {name: resolve(value, upstream, producers) for name, value in self._values.items()}
            if self._wait_for is not None:
                resolve(list(self._wait_for), upstream, producers)
            if self.flow.should_validate_parameters:
                self._values = self.flow.signature.validate(self._values)
        except OrchError as problem:
            return problem
        finally:
            self.args, self.kwargs = self.flow.call_arguments(self._values)
        return None

    def _new_run(self) -> FlowRun:
        parent = self._parent
        tags = TagsContext.get().current_tags
        task = TaskRunContext.get()
        caller = None if task is None else task.run  # a background task run
        if parent is not None:
            tags |= set(parent.flow_run.tags)
            caller = parent.flow_run.id
        return FlowRun(
            id=new_id(),
            name=self.flow.name_of_run(self._values) or names.generate(),
            flow_name=self.flow.name,
            parameters=self._values,
            tags=tuple(sorted(tags)),
            parent=caller,
        )

    def _open_record(self) -> None:
        if self._link is not None and self._claimed is None:
            from orchestrator.engine import protocol
            from orchestrator.engine.plain import plain_parameters

            run = self.run
            fields = {
                "id": run.id,
                "flow": run.flow_name,
                "name": run.name,
                "parent": run.parent,
                "tags": run.tags,
                "parameters": plain_parameters(run.parameters),
                # Nobody could start it again: there is no deployment that says where its code is.
                "crash_budget": 1,
                "created_by": "a flow run" if run.parent else "python",
            }
            self._link.send([protocol.OPEN, 0, fields])
        if self._parent is None:
            self._logger.log(self._ordinary, "Started flow '%s'", self.run.flow_name)
        else:
            self._logger.info("Started flow '%s', called by flow run '%s'", self.run.flow_name, self._parent.flow_run.name)

    @property
    def _ordinary(self) -> int:
        """How loudly to tell that all is well.

        A worker's run tells its states in any case. Were they in its log too, the log of a run that says nothing itself would
        take four times as much of Redis as the run.
        """
        return logging.INFO if self._claimed is None else logging.DEBUG

    def begin(self) -> bool:
        """Enter Running, or Retrying from the second time on."""
        if self._has_ended:
            return False
        self.delay = 0.0
        run = self.run
        again = run.start_time is not None
        run.run_count += 1
        run.state = State(StateType.RUNNING, "Retrying" if again else "Running")
        run.start_time = run.start_time or run.state.timestamp
        # The record of a run that this process opened was born Running.
        if self._link is not None and (again or self._claimed is not None):
            from orchestrator.engine import protocol

            self._link.send([protocol.START, run.id, run.state.name, clock.to_ms(run.state.timestamp)])
        self._hook(self.flow.on_running_hooks)
        return True

    def returned(self, value: Any) -> None:
        """Completed, or what returned states and futures say. Waits for all tasks that were submitted."""
        if problem := forgotten(self, value):
            self.raised(problem)
            return
        value = states_of(value)
        self._finish_tasks()
        self._value = value
        state = outcomes.of_flow_value(value, lambda state: self.context.producers.of(state) is not None)
        if state.is_failed() and self._try_again(state):
            return
        self._end(state)

    def raised(self, problem: BaseException) -> None:
        """Tried again where the flow says so, else Failed; Crashed or Cancelled for what is no error."""
        outcomes.let_go(problem)
        if not isinstance(problem, Exception):
            self._interrupted(problem)
            return
        self._finish_tasks()
        state = outcomes.of_exception(problem)
        if isinstance(problem, RunTimedOut) and self.timeout is not None:
            state = State(StateType.FAILED, "TimedOut", f"It took longer than {self.timeout:g} seconds.", problem)
        if self._try_again(state):
            return
        self._problem = problem
        self._logger.error("Failed with %s", state.message, exc_info=problem)
        self._end(state)

    def break_off(self, problem: BaseException) -> None:
        """End a run that stopped between attempts, or while it waited for its tasks."""
        if not self._has_ended:
            self._interrupted(problem)

    def close(self) -> None:
        """Tell the end."""
        state = self.run.state
        termination.forget_asyncio_task(self.run.id)
        level = outcomes.level_of(state)
        self._logger.log(self._ordinary if level == logging.INFO else level, "Ended %s", state)
        if self._link is None:
            return
        from orchestrator.engine import protocol
        from orchestrator.engine.plain import packed_result

        result = packed_result(self._value) if state.is_completed() else b""
        message = state.message[: protocol.MESSAGE_CHARACTERS]
        frame = [protocol.END, self.run.id, state.type.value, state.name, message, result, self._retry_in_ms]
        self._link.send(frame)

    def outcome(self) -> Any:
        """The flow's value, or its final state where the caller asked for that."""
        state = self.run.state
        if self._problem is not None and not (self._return_state and isinstance(self._problem, Exception)):
            raise self._problem
        if self._parent is not None:
            self._parent.producers.note(state, self.run.id)
        if self._return_state or not state.is_final():
            return state
        return state.result() if isinstance(self._value, State) else self._value

    def _try_again(self, state: State) -> bool:
        """Whether there will be another attempt: here after ``delay``, or, if that is long, by whatever worker is free then."""
        run, retries = self.run, self.flow.retry_policy
        failures = run.run_count - run.crash_count
        if failures > retries.count:
            return False
        delay = retries.delay_before(failures)
        problem = state.data if isinstance(state.data, BaseException) else None
        told = "Failed with %s; retry %d of %d starts in %g seconds"
        self._logger.warning(told, state.message, failures, retries.count, delay, exc_info=problem)
        lease_ms = _NEVER_MS if self._claimed is None else self._claimed.get("lease_ms") or _NEVER_MS
        if delay * 1000 > lease_ms:
            self._retry_in_ms = round(delay * 1000)
            self._end(states.AwaitingRetry(state.message))
        else:
            run.state = states.AwaitingRetry(state.message)
            self.delay = delay
        return True

    def _interrupted(self, problem: BaseException) -> None:
        self._problem = problem
        self._finish_tasks(cancel=True)
        state = state_of_interruption(problem, self.context)
        if self._is_what_was_cancelled():
            # Whoever called the flow that was to be stopped goes on and sees what became of it.
            self._problem = CancelledRun(f"{self.what} was cancelled: {state.message}")
        self._end(state)

    def _is_what_was_cancelled(self) -> bool:
        return cancel_message(self.context) is not None and cancel_message(self._parent) is None

    def _finish_tasks(self, *, cancel: bool = False) -> None:
        runner, self.context.runner = self.context.runner, None
        if runner is not None:
            runner.finish(cancel=cancel)

    def _end(self, state: State) -> None:
        self._has_ended = True
        self.delay = 0.0
        self.run.state = state
        self.run.end_time = state.timestamp
        self._hook(self.flow.hooks_after(state))

    def _hook(self, hooks: Iterable[Any]) -> None:
        self.due_hooks.extend(partial(hook, self.flow, self.run, self.run.state) for hook in hooks)


def claimed_run(claimed: Mapping[str, Any], values: dict[str, Any]) -> FlowRun:
    """The flow run of a ``run`` frame."""
    deployment = claimed.get("deployment") or {}
    due_ms = claimed.get("due_ms")
    return FlowRun(
        id=claimed["id"],
        name=claimed["name"],
        flow_name=claimed["flow"],
        parameters=values,
        tags=tuple(claimed.get("tags") or ()),
        attempt=claimed.get("attempt", 1),
        run_count=claimed.get("run_count", 0),
        crash_count=claimed.get("crash_count", 0),
        expected_start_time=clock.now() if due_ms is None else clock.from_ms(due_ms),
        parent=claimed.get("parent"),
        deployment_id=deployment.get("id"),
        deployment_name=deployment.get("name"),
        deployment_slug=deployment.get("slug"),
        deployment_version=deployment.get("version"),
    )
