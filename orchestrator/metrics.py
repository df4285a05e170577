"""The names of Orch's Prometheus metrics, and the metrics of a worker.

``prometheus_client`` is imported when somebody asks for metrics, not before.
"""

from __future__ import annotations

import platform
from typing import Any

from orchestrator._version import __version__
from orchestrator.exceptions import ConfigurationError

FLOW_RUNS = "orch_flow_runs_total"
WORKER_UP = "orch_worker_up"
WORKER_LAST_HEARTBEAT = "orch_worker_last_heartbeat_timestamp_seconds"
WORKER_SLOTS = "orch_worker_slots"
LEASES_EXPIRED = "orch_leases_expired_total"
BUILD_INFO = "orch_build_info"

ENDS = ("completed", "failed", "crashed", "cancelled")
"""Values of the label ``state`` of ended runs."""


class WorkerMetrics:
    """What one worker tells Prometheus, served at ``/metrics`` on a port of its own.

    Raises ConfigurationError when the port cannot be had.
    """

    def __init__(self, pool: str, worker: str, limit: int, port: int, address: str = "127.0.0.1") -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

        registry = CollectorRegistry()
        self._runs = Counter(FLOW_RUNS, "Flow runs that ended here.", ["flow", "state"], registry=registry)
        up = Gauge(WORKER_UP, "1 while the worker reaches Redis.", ["work_pool", "worker"], registry=registry)
        last = Gauge(WORKER_LAST_HEARTBEAT, "When Redis last heard of it.", ["work_pool", "worker"], registry=registry)
        slots = Gauge(
            WORKER_SLOTS, "Runs that it executes, and may execute, at a time.", ["work_pool", "kind"], registry=registry
        )
        self._expired = Counter(LEASES_EXPIRED, "Leases that ran out while held.", ["kind"], registry=registry).labels(
            kind="run"
        )
        build = Gauge(BUILD_INFO, "1; what is running here.", ["version", "python"], registry=registry)
        self._up = up.labels(work_pool=pool, worker=worker)
        self._last = last.labels(work_pool=pool, worker=worker)
        self._used = slots.labels(work_pool=pool, kind="used")
        slots.labels(work_pool=pool, kind="total").set(limit)
        build.labels(version=__version__, python=platform.python_version()).set(1)
        self._flows: set[str] = set()
        try:
            server: Any = start_http_server(port, address, registry)
        except OSError as error:
            raise ConfigurationError(
                f"The metrics port {port} on {address} cannot be opened: {error.strerror}.",
                hint="Choose another --metrics-port.",
            ) from None
        self.port: int = server[0].server_port
        self._server = server[0]

    def beat(self, used: int, *, is_up: bool) -> None:
        """Redis has, or has not, heard of the worker just now."""
        self._up.set(is_up)
        self._used.set(used)
        if is_up:
            self._last.set_to_current_time()

    def use(self, slots: int) -> None:
        """So many slots are in use."""
        self._used.set(slots)

    def run_ended(self, flow: str, state: str) -> None:
        """A run of ``flow`` ended in a state of this type."""
        if flow not in self._flows:
            self._flows.add(flow)
            for end in ENDS:  # a rate over a counter that appears at 1 misses its first event
                self._runs.labels(flow=flow, state=end)
        if state.lower() in ENDS:
            self._runs.labels(flow=flow, state=state.lower()).inc()

    def lease_expired(self) -> None:
        """A lease that this worker held was found to be over."""
        self._expired.inc()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
