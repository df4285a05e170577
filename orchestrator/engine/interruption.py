"""The state of a run that was broken off by something that is no error: a signal, an exit, a cancellation."""

from __future__ import annotations

from orchestrator import states
from orchestrator.context import FlowRunContext
from orchestrator.engine import outcomes, termination
from orchestrator.states import State


def state_of_interruption(problem: BaseException, flow: FlowRunContext | None) -> State:
    """Cancelled where someone asked for that, else Crashed, saying by what."""
    message = cancel_message(flow)
    if message is not None:
        return states.Cancelled(message, data=problem)
    if isinstance(problem, termination.Terminated) and not termination.was_told():
        return states.Crashed("It was stopped with its flow run.", data=problem)
    if isinstance(problem, termination.Terminated) or termination.was_told():
        return states.Crashed("Its process was told to stop (SIGTERM).", data=problem)
    if isinstance(problem, KeyboardInterrupt):
        return states.Crashed("It was interrupted from the keyboard.", data=problem)
    if isinstance(problem, SystemExit):
        return states.Crashed(f"Its code left Python with exit status {problem.code}.", data=problem)
    if isinstance(problem, Exception):
        return outcomes.of_exception(problem)
    if type(problem).__name__ == "CancelledError":
        return states.Crashed("The asyncio task that it ran in was cancelled.", data=problem)
    return states.Crashed(outcomes.describe(problem), data=problem)


def cancel_message(flow: FlowRunContext | None) -> str | None:
    """What the request said to cancel this flow run, or one that called it; None if there was none."""
    while flow is not None:
        if flow.link is not None and (message := flow.link.cancel_message(flow.flow_run.id)) is not None:
            return message
        flow = flow.parent
    return None
