"""The Prometheus metrics of Orch: which there are, how a process counts them, and how they are served.

Counting is in the hot path of workers that execute thousands of runs a second, so a series is an object whose value is added
to, and nothing else happens until somebody asks. ``prometheus_client`` writes the answer; it is imported then, not before.

One thread writes a series; any other may read it meanwhile.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.exceptions import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

OTHER = "__other__"
"""What stands for a flow, task, deployment or limit when its metric has ``metrics_max_series`` series already."""

ENDS = ("completed", "failed", "crashed", "cancelled")
"""Values of the label ``state`` of runs that ended."""

DURATIONS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)
WAITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
CALLS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Upper bounds of histograms, in seconds: of what runs take, of what they wait, and of calls to Redis."""

ADDRESS = "127.0.0.1"
"""Where ``--metrics-port`` listens unless told otherwise: metrics name flows, and nobody has to log in to read them."""

_OPEN_LABELS = frozenset({"flow", "task", "deployment", "limit"})


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as people know it. ``of``: which processes serve it. ``bounds``: of a histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    of: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names by which queries know it."""
        return tuple(self.name + end for end in ("_bucket", "_count", "_sum")) if self.kind == "histogram" else (self.name,)


_WORKER, _SCHEDULER, _BOTH = ("worker",), ("scheduler",), ("worker", "scheduler")

CATALOGUE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "orch_flow_runs_total",
            "counter",
            ("flow", "deployment", "state"),
            _WORKER,
            "Flow runs, subflows among them, that ended in this worker: completed, failed, crashed, cancelled.",
        ),
        Metric(
            "orch_task_runs_total",
            "counter",
            ("flow", "task", "deployment", "state"),
            _WORKER,
            "Task runs that ended in this worker. `flow` is empty for background tasks.",
        ),
        Metric(
            "orch_flow_run_duration_seconds",
            "histogram",
            ("flow", "outcome"),
            _WORKER,
            "From the start of a flow run's last attempt to its end.",
            DURATIONS,
        ),
        Metric(
            "orch_task_run_duration_seconds",
            "histogram",
            ("task", "outcome"),
            _WORKER,
            "From the first start of a task run to its end.",
            DURATIONS,
        ),
        Metric(
            "orch_run_queue_wait_seconds",
            "histogram",
            ("work_pool", "queue"),
            _WORKER,
            "From when a run was due to when its body first started.",
            WAITS,
        ),
        Metric(
            "orch_run_schedule_delay_seconds",
            "histogram",
            ("work_pool", "queue"),
            _WORKER,
            "From when a run was due to when a worker first claimed it.",
            WAITS,
        ),
        Metric(
            "orch_runs",
            "gauge",
            ("state", "work_pool", "queue"),
            _SCHEDULER,
            "Runs that have not ended. Of each state the 100 oldest are told apart by pool and queue; the others count where "
            "both labels are empty.",
        ),
        Metric(
            "orch_oldest_run_age_seconds",
            "gauge",
            ("state", "work_pool", "queue"),
            _SCHEDULER,
            "Of the oldest run: since it was due where it waits to start, else since it entered the state.",
        ),
        Metric(
            "orch_run_retries_total",
            "counter",
            ("flow", "task", "reason"),
            _WORKER,
            "Runs that start again: after an `error`, a timeout among them, or because their process was `lost`. `task` is "
            "empty for flow runs.",
        ),
        Metric(
            "orch_worker_up",
            "gauge",
            ("work_pool", "worker"),
            _WORKER,
            "1 while the worker reaches Redis. `worker` is what `--name` gave, else empty.",
        ),
        Metric(
            "orch_worker_last_heartbeat_timestamp_seconds",
            "gauge",
            ("work_pool", "worker"),
            _WORKER,
            "When Redis last heard of it.",
        ),
        Metric(
            "orch_worker_slots",
            "gauge",
            ("work_pool", "kind"),
            _WORKER,
            "Runs that it executes (`used`) and may execute (`total`) at a time.",
        ),
        Metric(
            "orch_leases_expired_total",
            "counter",
            ("kind",),
            _BOTH,
            "Leases that this process found to be over, their worker being gone: `run`.",
        ),
        Metric(
            "orch_runs_recovered_total",
            "counter",
            ("kind",),
            _BOTH,
            "Runs that start again because their worker (`lease`) or their process (`process`) was lost.",
        ),
        Metric(
            "orch_concurrency_slots",
            "gauge",
            ("limit", "kind"),
            _SCHEDULER,
            "Slots of a concurrency limit, `used` and `total`. `limit` is `global:NAME`, `tag:NAME`, `pool:NAME`, "
            "`queue:POOL:NAME`, `deployment:NAME`.",
        ),
        Metric(
            "orch_concurrency_wait_seconds",
            "histogram",
            ("limit",),
            _WORKER,
            "How long the code of a run waited for slots that it then got.",
            WAITS,
        ),
        Metric(
            "orch_scheduler_lag_seconds",
            "gauge",
            ("service",),
            _SCHEDULER,
            "How late the service is: `stager` by the oldest run that is due and not queued, the others by their last turn.",
        ),
        Metric(
            "orch_service_last_success_timestamp_seconds",
            "gauge",
            ("service",),
            _SCHEDULER,
            "When the service last did its duty.",
        ),
        Metric("orch_events_total", "counter", (), _SCHEDULER, "Events that were ever added to the namespace's feed."),
        Metric(
            "orch_log_lines_total",
            "counter",
            ("level",),
            _WORKER,
            "Log lines of runs, what they print among them: debug, info, warning, error, critical.",
        ),
        Metric(
            "orch_log_dropped_total",
            "counter",
            ("reason",),
            _WORKER,
            "Log lines that were dropped: more than are kept while Redis cannot be reached (`away`), or Redis was `full`.",
        ),
        Metric(
            "orch_redis_command_duration_seconds",
            "histogram",
            ("operation",),
            _BOTH,
            "Round trips to Redis by the operation that they do; `several` is different ones in one round trip.",
            CALLS,
        ),
        Metric(
            "orch_redis_errors_total",
            "counter",
            ("operation",),
            _BOTH,
            "Of these, those that Redis did not answer, or refused.",
        ),
        Metric("orch_redis_keys", "gauge", ("kind",), _SCHEDULER, "Keys of the server's database: a `run`'s hash, or `other`."),
        Metric(
            "orch_redis_memory_bytes",
            "gauge",
            ("kind",),
            _SCHEDULER,
            "Memory of the server: `used`, and `max`, which is 0 where nothing limits it.",
        ),
        Metric(
            "orch_redis_eviction_enabled",
            "gauge",
            (),
            _SCHEDULER,
            "1 if the server may evict keys when memory is short, which loses runs.",
        ),
        Metric(
            "orch_redis_stream_length",
            "gauge",
            ("kind", "work_pool", "queue"),
            _SCHEDULER,
            "Messages in streams: the depth of each `queue`, runs that are `resumed`, `events`, and `malformed` messages.",
        ),
        Metric("orch_build_info", "gauge", ("version", "python"), _BOTH, "1; what is running here."),
        Metric(
            "orch_metrics_series_dropped_total",
            "counter",
            ("metric",),
            _BOTH,
            "What was counted under `__other__` because the metric had `metrics_max_series` series already.",
        ),
    )
}
"""Every metric by its name."""


class Value:
    """The series of a counter or a gauge: add to ``value``, or set it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Distribution:
    """The series of a histogram."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one. What clocks that differ make negative does not count."""
        if seconds >= 0:
            self.counts[bisect_left(self.bounds, seconds)] += 1
            self.sum += seconds


class Instrument:
    """One metric of this process: its series by the values of its labels, in the order of the catalogue."""

    def __init__(self, metric: Metric, max_series: int, dropped: Callable[[str], object]) -> None:
        self.metric = metric
        self._max_series = max_series
        self._dropped = dropped
        self._values: dict[tuple[str, ...], Value] = {}
        self._distributions: dict[tuple[str, ...], Distribution] = {}

    def value(self, *labels: str) -> Value:
        """The series of a counter or gauge, which begins at 0."""
        found = self._values.get(labels)
        if found is None:
            labels = self._within_cap(labels, self._values)
            if self.metric.kind == "counter" and "state" in self.metric.labels:
                for end in ENDS:  # a rate over a counter that appears at 1 misses its first event
                    self._values.setdefault((*labels[:-1], end), Value())
            found = self._values.setdefault(labels, Value())
        return found

    def distribution(self, *labels: str) -> Distribution:
        """The series of a histogram."""
        found = self._distributions.get(labels)
        if found is None:
            labels = self._within_cap(labels, self._distributions)
            found = self._distributions.setdefault(labels, Distribution(self.metric.bounds))
        return found

    def replace(self, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Have these series instead of those there are; those beyond the cap are added up."""
        fresh: dict[tuple[str, ...], Value] = {}
        for labels, value in values:
            known = labels if labels in fresh else self._within_cap(labels, fresh)
            fresh.setdefault(known, Value()).value += value
        self._values = fresh

    def family(self) -> Family:
        """All series as ``prometheus_client`` writes them."""
        from prometheus_client import core

        metric = self.metric
        if metric.kind == "histogram":
            histogram = core.HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
            for labels, found in list(self._distributions.items()):
                histogram.add_metric(labels, _cumulated(found), found.sum)
            return histogram
        make = core.CounterMetricFamily if metric.kind == "counter" else core.GaugeMetricFamily
        family: core.Metric = make(metric.name, metric.meaning, labels=metric.labels)
        for labels, value in list(self._values.items()):
            family.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), value.value)
        return family

    def _within_cap(self, labels: tuple[str, ...], known: dict[tuple[str, ...], Any]) -> tuple[str, ...]:
        if len(known) < self._max_series or _OPEN_LABELS.isdisjoint(self.metric.labels):
            return labels
        self._dropped(self.metric.name)
        return tuple(
            OTHER if name in _OPEN_LABELS and label else label for name, label in zip(self.metric.labels, labels, strict=True)
        )


class Metrics:
    """The metrics of one process, all that ``of`` has in the catalogue.

    A metric has at most ``max_series`` series by flow, task, deployment or limit; what is beyond counts as ``__other__``.
    ``refresh`` is called before they are read, in the thread that reads.
    """

    def __init__(self, of: str, max_series: int, refresh: Callable[[], None] | None = None) -> None:
        import platform

        from orchestrator._version import __version__

        names = [metric for metric in CATALOGUE.values() if of in metric.of]
        self._instruments = {metric.name: Instrument(metric, max_series, self._drop) for metric in names}
        self._refresh = refresh
        self["orch_build_info"].value(__version__, platform.python_version()).value = 1

    def __getitem__(self, name: str) -> Instrument:
        return self._instruments[name]

    def collect(self) -> Iterator[Family]:
        """As ``prometheus_client`` asks a collector."""
        if self._refresh is not None:
            self._refresh()
        for instrument in self._instruments.values():
            yield instrument.family()

    def asgi_app(self) -> Callable[..., Any]:
        """For an HTTP server to mount: answers each request with the metrics, in the form that the client asks for."""
        from prometheus_client import make_asgi_app

        app: Callable[..., Any] = make_asgi_app(self._registry())
        return app

    def serve(self, port: int, address: str = ADDRESS) -> str:
        """Serve them until the process ends, in a thread of its own; port 0 picks one. The URL.

        Raises ConfigurationError when the port cannot be had.
        """
        from prometheus_client import start_http_server

        try:
            server, _ = start_http_server(port, address, self._registry())
        except OSError as error:
            raise ConfigurationError(
                f"The metrics port {port} on {address} cannot be opened: {error.strerror}.",
                hint="Choose another --metrics-port or --metrics-address.",
            ) from None
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{server.server_port}/metrics"

    def asked(self, operation: str, seconds: float, *, failed: bool) -> None:
        """A round trip to Redis is over. See ``store.scripts.Scripts.observe``."""
        self["orch_redis_command_duration_seconds"].distribution(operation).observe(seconds)
        errors = self["orch_redis_errors_total"].value(operation)
        if failed:
            errors.value += 1

    def _registry(self) -> Any:
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def _drop(self, metric: str) -> None:
        self["orch_metrics_series_dropped_total"].value(metric).value += 1


def _cumulated(found: Distribution) -> list[tuple[str, float]]:
    from prometheus_client.utils import floatToGoString

    total, buckets = 0, []
    for bound, count in zip((*found.bounds, float("inf")), list(found.counts), strict=True):
        total += count
        buckets.append((floatToGoString(bound), float(total)))  # type: ignore[no-untyped-call]
    return buckets
