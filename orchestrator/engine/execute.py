"""Executes one claimed run in a worker's child."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.engine import direct, outcomes, protocol, termination
from orchestrator.engine.flow_call import FlowCall
from orchestrator.exceptions import OrchError
from orchestrator.logging import handlers
from orchestrator.logging.loggers import flow_run_logger
from orchestrator.states import StateType

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.flows import Flow


def execute_run(run: dict[str, Any], link: Link, flow: Flow[..., Any]) -> None:
    """Run the flow of a ``run`` frame to its end and tell ``link`` all about it.

    Call it on the main thread, once per process. SIGTERM stops the run: it ends Cancelled when a ``cancel`` frame came
    before, else Crashed. What the flow raises is the run's affair; only SystemExit and KeyboardInterrupt go on after its end,
    and what has kept its end from being told.
    """
    handlers.prepare(console=False)
    direct.use(link)
    try:
        values = flow.signature.bind_names(run.get("parameters") or {})
    except OrchError as problem:
        _refuse(run, link, problem)
        return
    call = FlowCall(flow, values, link=link, claimed=run, return_state=True)
    termination.install()
    try:
        flow.execute(call)
    except (Exception, termination.Terminated):
        if not link.has_told_end(run["id"]):
            raise
    finally:
        termination.uninstall()


def _refuse(run: dict[str, Any], link: Link, problem: OrchError) -> None:
    """The parameters do not fit the function: it fails before it starts."""
    from orchestrator.engine.flow_call import claimed_run

    logger = flow_run_logger(claimed_run(run, {}), link)
    logger.error("%s %s", problem, problem.hint or "")
    message = outcomes.describe(problem)
    link.send([protocol.END, run["id"], StateType.FAILED.value, "Failed", message, b"", None])
