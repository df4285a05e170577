"""What state a run ends in, given what its function returned or raised."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from orchestrator import states
from orchestrator.exceptions import RemoteTaskError
from orchestrator.states import State, StateType


def of_task_value(value: Any) -> State:
    """A returned state stands; any other value means Completed."""
    return value if isinstance(value, State) else State(StateType.COMPLETED, data=value)


def of_flow_value(value: Any, is_a_runs: Callable[[State], bool]) -> State:
    """The state that a flow ends in which returned ``value``, in which futures are replaced by states already.

    A state that the flow made itself stands. States of runs (``is_a_runs``), alone or in a collection, decide: all must have
    completed. Any other value means Completed.
    """
    if isinstance(value, State):
        return _of_states([value], value) if is_a_runs(value) else value
    if isinstance(value, (list, tuple, set, frozenset)) and value and all(isinstance(item, State) for item in value):
        return _of_states(list(value), value)
    return states.Completed(data=value)


def of_exception(problem: BaseException) -> State:
    """Failed, saying ``Type: text``."""
    return states.Failed(describe(problem), data=problem)


def let_go(problem: BaseException) -> None:
    """Free what the frames of a MemoryError hold: to tell of it takes memory too, and a thread that may have to be started."""
    if isinstance(problem, MemoryError):
        traceback.clear_frames(problem.__traceback__)


def level_of(state: State) -> int:
    """How loudly to tell an end."""
    if state.is_completed() or state.is_scheduled():
        return logging.INFO
    return logging.WARNING if state.is_cancelled() else logging.ERROR


def describe(problem: BaseException) -> str:
    """``Type: text`` on one line's worth of text."""
    # Python says nothing more when an allocation fails.
    text = str(problem) or ("out of memory" if isinstance(problem, MemoryError) else "")
    if isinstance(problem, RemoteTaskError):
        shown = text  # it begins with the type that was raised
    else:
        shown = f"{type(problem).__name__}: {text}" if text else type(problem).__name__
    return shown if len(shown) <= 2000 else f"{shown[:2000]}..."


def _of_states(group: list[State], data: Any) -> State:
    total = len(group)
    if all(state.is_completed() for state in group):
        return states.Completed(f"{_all(total)} completed.", data=data)
    cancelled = sum(state.is_cancelled() or state.is_cancelling() for state in group)
    if cancelled:
        return states.Cancelled(f"{cancelled} of {total} were cancelled.", data=data)
    failed = sum(state.is_failed() or state.is_crashed() for state in group)
    if failed:
        return states.Failed(f"{failed} of {total} failed.", data=data)
    unfinished = sum(not state.is_final() for state in group)
    return states.Failed(f"{unfinished} of {total} did not end.", data=data)


def _all(total: int) -> str:
    return "The one" if total == 1 else f"All {total}"
