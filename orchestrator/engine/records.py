"""A flow run as its own process sees it while it runs. (A task run is ``models.TaskRun``, in both places.)"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator import clock
from orchestrator.states import Pending, State


@dataclass(slots=True)
class FlowRun:
    """What hooks, ``runtime.flow_run`` and contexts show of a flow run.

    ``run_count`` counts starts of the body over all attempts, this one included; ``crash_count`` of them were lost with their
    process. ``attempt`` is the fence. ``parent`` is the flow run that called this one.
    """

    id: str
    name: str
    flow_name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    state: State = field(default_factory=Pending)
    attempt: int = 1
    run_count: int = 0
    crash_count: int = 0
    expected_start_time: datetime = field(default_factory=clock.now)
    start_time: datetime | None = None
    end_time: datetime | None = None
    parent: str | None = None
    deployment_id: str | None = None
    deployment_name: str | None = None
    deployment_slug: str | None = None
    deployment_version: str | None = None

    @property
    def state_type(self) -> str:
        """The type of its present state."""
        return self.state.type.value

    @property
    def state_name(self) -> str:
        """The name of its present state."""
        return self.state.name
