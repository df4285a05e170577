"""Every exception that Orch raises on purpose.

    OrchError
    ├── StoreUnavailable        Redis cannot be reached, or went away and did not come back in time
    │   ├── NotReplicated       written, but no replica has confirmed it; see the durability of a namespace
    │   └── StoreFull           its memory is so full that it takes no new runs; those that it has go on
    ├── UnsuitableServer        Redis answers, but is too old or set up so that it would lose runs
    ├── DataGone                Redis answers, but the namespace that was there is not there any more
    ├── ConfigurationError      a setting, a profile or an environment variable is wrong
    ├── InvalidName             a name holds a character that names may not hold
    ├── InvalidDefinition       orch.yaml, a schedule or a template is wrong
    ├── ParameterTypeError      parameters whose values do not fit the flow's annotations
    ├── ParameterBindError      arguments that do not fit a flow's or task's signature (a TypeError too)
    ├── ReservedArgumentError   a flow or task has a parameter that calls use themselves (a TypeError too)
    ├── MappingLengthMismatch   ``map`` over collections of different lengths
    ├── MappingMissingIterable  ``map`` over nothing
    ├── PayloadTooLarge         parameters or a result beyond the inline limit
    ├── ObjectNotFound          no such run, deployment, pool, queue, variable, profile
    ├── ObjectAlreadyExists     the name is taken, or an idempotency key stands for something else
    ├── Refused                 the table of transitions, or the thing's present state, forbids it
    ├── FlowLoadError           the entry point does not import, or holds no such flow
    ├── StepError               a deployment step failed
    ├── MissingContextError     called outside a flow or task run (a RuntimeError too)
    ├── RunTimedOut             a flow or task took longer than its timeout_seconds (a TimeoutError too)
    ├── ConcurrencySlotAcquisitionError      slots of a concurrency limit cannot be had, however long one waits
    ├── AcquireConcurrencySlotTimeoutError   they were not free within timeout_seconds (a TimeoutError too)
    ├── CannotTravel            a value that no message to another machine can carry (a TypeError too)
    ├── RemoteTaskError         what a task raised on another machine: its type, its text and its traceback as text
    ├── MissingResult           the state carries no result
    ├── FailedRun               a run ended Failed and left no exception to raise
    ├── CrashedRun              a run ended Crashed
    ├── CancelledRun            a run ended Cancelled
    └── UnfinishedRun           the run has not ended yet

A class's docstring is its default message; ``hint`` says what to do next and is printed below the message by the command line.
"""

from __future__ import annotations


class OrchError(Exception):
    """Something went wrong in Orch."""

    exit_code = 1

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.hint = hint


class StoreUnavailable(OrchError):
    """Redis cannot be reached."""

    exit_code = 6


class NotReplicated(StoreUnavailable):
    """No replica has confirmed the change."""


class StoreFull(StoreUnavailable):
    """Redis's memory is nearly full."""


class UnsuitableServer(OrchError):
    """This Redis server cannot hold runs safely."""

    exit_code = 6


class DataGone(OrchError):
    """The namespace's data are gone."""

    exit_code = 6


class ConfigurationError(OrchError):
    """A setting is wrong."""

    exit_code = 2


class InvalidName(OrchError):
    """This name cannot be used."""

    exit_code = 2


class InvalidDefinition(OrchError):
    """The definition is wrong."""

    exit_code = 2


class ParameterTypeError(OrchError):
    """The parameters do not fit the flow's signature."""

    exit_code = 2


class ParameterBindError(OrchError, TypeError):
    """The arguments do not fit the signature."""

    exit_code = 2


class ReservedArgumentError(OrchError, TypeError):
    """A parameter has a name that is taken."""

    exit_code = 2


class MappingLengthMismatch(OrchError):
    """The collections to map over have different lengths."""


class MappingMissingIterable(OrchError):
    """There is no collection to map over."""


class PayloadTooLarge(OrchError):
    """The payload is larger than a run may carry."""

    exit_code = 2


class ObjectNotFound(OrchError):
    """There is no such thing."""

    exit_code = 3


class ObjectAlreadyExists(OrchError):
    """That name is taken."""

    exit_code = 5


class Refused(OrchError):
    """The present state does not allow this."""

    exit_code = 5


class FlowLoadError(OrchError):
    """The flow could not be loaded from its entry point."""

    exit_code = 2


class StepError(OrchError):
    """A deployment step failed."""


class MissingContextError(OrchError, RuntimeError):
    """This works only inside a flow run or a task run."""


class RunTimedOut(OrchError, TimeoutError):
    """The run took longer than it may."""


class ConcurrencySlotAcquisitionError(OrchError):
    """The slots cannot be had."""


class AcquireConcurrencySlotTimeoutError(OrchError, TimeoutError):
    """The slots were not free in time."""


class CannotTravel(OrchError, TypeError):
    """The value cannot be sent to another machine."""


class RemoteTaskError(OrchError):
    """The task raised on another machine.

    ``type`` is the name of the exception's class there, ``traceback`` its traceback as text, which Python shows below ours. The
    message is ``Type: text``.
    """

    def __init__(self, message: str | None = None, *, hint: str | None = None, kind: str = "", traceback: str = "") -> None:
        super().__init__(message, hint=hint)
        self.type = kind
        self.traceback = traceback
        if traceback:
            self.add_note(f"It was raised there:\n{traceback}")


class MissingResult(OrchError):
    """The state carries no result."""


class FailedRun(OrchError):
    """The run failed."""


class CrashedRun(OrchError):
    """The run crashed."""


class CancelledRun(OrchError):
    """The run was cancelled."""

    exit_code = 7


class UnfinishedRun(OrchError):
    """The run has not ended yet."""
