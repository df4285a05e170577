"""States: what a run can be, and which state may follow which.

``TRANSITIONS`` is the one table. Python reads it here; the Lua scripts get it from ``store/scripts.py``, and ``PLACE_STATES``
too. Its keys are the canonical state names. A flow may end in a state with a name of its own (``Completed(name="Skipped")``);
such a state follows the rules of its type's canonical name, see ``canonical_name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from orchestrator import clock
from orchestrator.exceptions import CancelledRun, CrashedRun, FailedRun, UnfinishedRun


class StateType(StrEnum):
    """The nine kinds of state."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLED = "CANCELLED"


TERMINAL: frozenset[StateType] = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED})

STATE_TYPES: Mapping[str, StateType] = MappingProxyType(
    {
        "Scheduled": StateType.SCHEDULED,
        "Late": StateType.SCHEDULED,
        "AwaitingRetry": StateType.SCHEDULED,
        "AwaitingConcurrencySlot": StateType.SCHEDULED,
        "Pending": StateType.PENDING,
        "Running": StateType.RUNNING,
        "Cancelling": StateType.CANCELLING,
        "Paused": StateType.PAUSED,
        "Suspended": StateType.PAUSED,
        "Completed": StateType.COMPLETED,
        "Failed": StateType.FAILED,
        "Crashed": StateType.CRASHED,
        "Cancelled": StateType.CANCELLED,
    }
)
"""Every canonical state name, with its type."""

_ENDS = frozenset({"Completed", "Failed", "Crashed", "Cancelled"})
_WAITING = frozenset({"Scheduled", "Late", "AwaitingConcurrencySlot", "Pending", "Running"}) | _ENDS

TRANSITIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        # Not started. Running directly: a worker that starts runs at once skips Pending. Ends: an operator's decision.
        "Scheduled": _WAITING,
        "Late": _WAITING - {"Late"},
        # Scheduled again before a worker gets them: when the time of the retry has come, when there is room.
        "AwaitingRetry": frozenset({"Scheduled"}) | _ENDS,
        "AwaitingConcurrencySlot": frozenset({"Scheduled"}) | _ENDS,
        # Leased. Back to Scheduled: the lease lapsed, or a draining worker handed the run back.
        "Pending": frozenset({"Running", "Scheduled", "AwaitingRetry", "Cancelling"}) | _ENDS,
        "Running": frozenset({"Running", "Scheduled", "AwaitingRetry", "Cancelling", "Paused", "Suspended"}) | _ENDS,
        "Cancelling": _ENDS,
        # Waiting for a person.
        "Paused": frozenset({"Scheduled"}) | _ENDS,
        "Suspended": frozenset({"Scheduled"}) | _ENDS,
        # Ended: only an explicit retry goes on.
        "Completed": frozenset({"Scheduled"}),
        "Failed": frozenset({"Scheduled"}),
        "Crashed": frozenset({"Scheduled"}),
        "Cancelled": frozenset({"Scheduled"}),
    }
)
"""For each canonical state name, the names that may follow it."""

PLACE_STATES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "due": frozenset({"Scheduled", "AwaitingRetry"}),
        "queued": frozenset({"Scheduled", "Late"}),
        "parked": frozenset({"AwaitingConcurrencySlot", "Scheduled", "Late"}),
        "leased": frozenset({"Pending", "Running", "Cancelling"}),
        "paused": frozenset({"Paused", "Suspended"}),
        "ended": _ENDS,
    }
)
"""The places of a run, and the canonical names of the states that it may be in there."""

_CANONICAL: Mapping[StateType, str] = MappingProxyType(
    {kind: next(name for name, of in STATE_TYPES.items() if of is kind) for kind in StateType}
)


def canonical_name(kind: StateType, name: str) -> str:
    """The table's name for a state: its own where the table knows it under that type, else its type's first."""
    return name if STATE_TYPES.get(name) is kind else _CANONICAL[kind]


@dataclass(frozen=True, slots=True)
class State:
    """One state of one run.

    ``data`` is the value that a run returned or the exception that it raised, where this process has it.
    """

    type: StateType
    name: str = ""
    message: str = ""
    data: Any = field(default=None, repr=False, compare=False)
    timestamp: datetime = field(default_factory=clock.now, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", StateType(self.type))
        if not self.name:
            object.__setattr__(self, "name", _CANONICAL[self.type])

    def is_scheduled(self) -> bool:
        """Not started yet."""
        return self.type is StateType.SCHEDULED

    def is_pending(self) -> bool:
        """Claimed by a worker, the body not started."""
        return self.type is StateType.PENDING

    def is_running(self) -> bool:
        """The body runs."""
        return self.type is StateType.RUNNING

    def is_paused(self) -> bool:
        """Paused or suspended."""
        return self.type is StateType.PAUSED

    def is_cancelling(self) -> bool:
        """Asked to stop, not stopped yet."""
        return self.type is StateType.CANCELLING

    def is_completed(self) -> bool:
        """Ended well."""
        return self.type is StateType.COMPLETED

    def is_failed(self) -> bool:
        """Ended with an exception."""
        return self.type is StateType.FAILED

    def is_crashed(self) -> bool:
        """Ended because its process or machine died."""
        return self.type is StateType.CRASHED

    def is_cancelled(self) -> bool:
        """Ended because someone stopped it."""
        return self.type is StateType.CANCELLED

    def is_final(self) -> bool:
        """Ended, one way or another."""
        return self.type in TERMINAL

    def with_data(self, data: Any) -> State:
        """The same state, carrying ``data``."""
        return replace(self, data=data)

    def result(self, raise_on_failure: bool = True) -> Any:
        """What the run returned.

        For a run that did not complete: its exception is raised, or returned with ``raise_on_failure=False``.
        Raises UnfinishedRun before the end.
        """
        if not self.is_final():
            raise UnfinishedRun(f"The run is {self.name}; it has no result yet.")
        if self.is_completed():
            return self.data
        problem = self.data
        if isinstance(problem, (State, list, tuple, set, frozenset)):
            # It was decided by other runs' states: the first that did not complete has what to raise.
            group = [problem] if isinstance(problem, State) else problem
            deciding = next((state for state in group if isinstance(state, State) and not state.is_completed()), None)
            if deciding is not None:
                return deciding.result(raise_on_failure)
        if not isinstance(problem, BaseException):
            kinds = {StateType.CRASHED: CrashedRun, StateType.CANCELLED: CancelledRun}
            problem = kinds.get(self.type, FailedRun)(self.message or None)
        if raise_on_failure:
            raise problem
        return problem

    def __str__(self) -> str:
        return f"{self.name}({self.message})" if self.message else self.name


def Scheduled(message: str = "", **fields: Any) -> State:  # noqa: N802 - reads like the state it makes
    """A run that waits for its time."""
    return State(StateType.SCHEDULED, message=message, **fields)


def Pending(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that a worker has claimed."""
    return State(StateType.PENDING, message=message, **fields)


def Running(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run whose body runs."""
    return State(StateType.RUNNING, message=message, **fields)


def Completed(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that ended well."""
    return State(StateType.COMPLETED, message=message, **fields)


def Failed(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that raised."""
    return State(StateType.FAILED, message=message, **fields)


def Crashed(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run whose process died."""
    return State(StateType.CRASHED, message=message, **fields)


def Cancelled(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that was stopped."""
    return State(StateType.CANCELLED, message=message, **fields)


def Cancelling(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that was asked to stop."""
    return State(StateType.CANCELLING, message=message, **fields)


def Paused(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that waits for a person, its process alive."""
    return State(StateType.PAUSED, message=message, **fields)


def Suspended(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that waits for a person, its worker free."""
    return State(StateType.PAUSED, name="Suspended", message=message, **fields)


def AwaitingRetry(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that failed and will be tried again."""
    return State(StateType.SCHEDULED, name="AwaitingRetry", message=message, **fields)


def Retrying(message: str = "", **fields: Any) -> State:  # noqa: N802
    """A run that is being tried again."""
    return State(StateType.RUNNING, name="Retrying", message=message, **fields)
