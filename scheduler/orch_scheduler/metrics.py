"""What a scheduler tells Prometheus: about its own duties, and what Redis holds, which it reads when it is asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orch_scheduler.loop import Duty
from orchestrator import clock
from orchestrator.exceptions import StoreUnavailable
from orchestrator.metrics import Metrics
from orchestrator.store import Store, open_store
from orchestrator.store.census import Census, take

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.store.answers import Lapsed

KEPT_S = 5.0
"""A count of what Redis holds answers everybody who asks within so many seconds."""

log = logging.getLogger(__name__)


class SchedulerMetrics:
    """The metrics of one scheduler, and of its namespace.

    Every scheduler counts the same namespace: ask for ``max by``, not for ``sum``. While Redis cannot be reached, what it held
    is left out, and everything else is told.
    """

    def __init__(self, settings: Settings, duties: Sequence[Duty]) -> None:
        self.metrics = Metrics("scheduler", settings.metrics_max_series, self._refresh)
        # Who scrapes waits a few seconds at most, so a Redis that is away is not asked again and again.
        self._settings = replace(settings, redis_retry_s=0)
        self._store: Store | None = None
        self._duties = duties
        self._lock = threading.Lock()
        self._again_at = 0.0
        self._expired = self.metrics["orch_leases_expired_total"].value("run")
        self._recovered = self.metrics["orch_runs_recovered_total"].value("lease")

    def lapsed(self, lapsed: Lapsed) -> None:
        """The rescuer has dealt with leases that were over."""
        self._expired.value += lapsed.requeued + lapsed.crashed + lapsed.cancelled
        self._recovered.value += lapsed.requeued

    def _refresh(self) -> None:
        with self._lock:  # several may ask at once
            self._tell_duties()
            if clock.monotonic() < self._again_at:
                return
            try:
                census = self._count()
            except StoreUnavailable as error:
                log.warning("Metrics are told without what Redis holds: %s", error)
                census = None
            self._tell_census(census)
            self._again_at = clock.monotonic() + KEPT_S

    def _count(self) -> Census:
        if self._store is None:
            self._store = open_store(self._settings, start_embedded=False)
        return take(self._store)

    def _tell_duties(self) -> None:
        lag = self.metrics["orch_scheduler_lag_seconds"]
        success = self.metrics["orch_service_last_success_timestamp_seconds"]
        for duty in self._duties:
            if duty.last_success is not None:
                success.value(duty.name).value = duty.last_success.timestamp()
            if duty.name != "stager":  # it turns when a run is due, so how late its turn is says nothing
                lag.value(duty.name).value = duty.late_s

    def _tell_census(self, census: Census | None) -> None:
        told = self.metrics
        if census is None:
            for name in _OF_REDIS:
                told[name].replace(())
            return
        told["orch_runs"].replace(census.runs.items())
        told["orch_oldest_run_age_seconds"].replace(census.oldest.items())
        told["orch_redis_stream_length"].replace(census.streams.items())
        told["orch_redis_keys"].replace(((kind,), count) for kind, count in census.keys.items())
        told["orch_redis_memory_bytes"].replace(
            ((kind,), size) for kind, size in zip(("used", "max"), census.memory, strict=True)
        )
        told["orch_redis_eviction_enabled"].replace([((), census.evicts)])
        told["orch_concurrency_slots"].replace(
            ((limit, kind), count)
            for limit, counts in census.limits.items()
            for kind, count in zip(("used", "total"), counts, strict=True)
        )
        told["orch_scheduler_lag_seconds"].value("stager").value = census.overdue_s
        told["orch_events_total"].replace([] if census.events is None else [((), census.events)])


_OF_REDIS = (
    "orch_runs",
    "orch_oldest_run_age_seconds",
    "orch_redis_stream_length",
    "orch_redis_keys",
    "orch_redis_memory_bytes",
    "orch_redis_eviction_enabled",
    "orch_concurrency_slots",
    "orch_events_total",
)
