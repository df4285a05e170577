"""Executes one claimed run in a worker's child."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.flows import Flow


def execute_run(run: dict[str, Any], link: Link, flow: Flow[..., Any]) -> None:
    """Run the flow of a ``run`` frame to its end and tell ``link`` all about it. Whatever user code does, nothing is raised.

    Call it on the main thread, once per process. SIGTERM stops the run: it ends Cancelled when a ``cancel`` frame came before,
    else Crashed.
    """
    raise NotImplementedError
