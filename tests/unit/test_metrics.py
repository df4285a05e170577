"""How metrics are counted and told: series, their cap, and what a worker makes of the frames of its runs."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orch_workers.base import Job
from orch_workers.metrics import WorkerMetrics
from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.exceptions import ConfigurationError
from orchestrator.metrics import CATALOGUE, ENDS, OTHER, Metrics
from orchestrator.models import Deployment
from orchestrator.store.answers import ClaimedRun, Lapsed

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Told:
    """What a scrape told."""

    def __init__(self, metrics: Metrics) -> None:
        registry = CollectorRegistry()
        registry.register(metrics)
        text = generate_latest(registry).decode()
        self.samples: Samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset(labels.items())))

    def sum(self, name: str) -> float:
        return sum(value for (found, _), value in self.samples.items() if found == name)


NOW_MS = 1_800_000_000_000


def claimed(run: str = "r1", *, waited: timedelta = timedelta(seconds=3), **fields: Any) -> Job:
    due = clock.from_ms(NOW_MS) - waited
    place = {"pool": "etl", "queue": "default", "deployment": "d", "deployment_name": "nightly", "revision": 1}
    rest = {"run_count": 0, "crash_count": 0, "name": "n", "parameters": {}, "tags": (), "parent": None, "schedule": None}
    fields = {"attempt": 1, "kind": "flow", "flow": "load", "due": due, **place, **rest, **fields}
    return Job(ClaimedRun(id=run, **fields), Deployment(name="nightly", flow="load", entrypoint=""), trusted_until=0.0)


def end(run: str = "r1", kind: str = "COMPLETED", name: str = "Completed") -> list[Any]:
    return [protocol.END, run, kind, name, "", b"", None]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> WorkerMetrics:
    monkeypatch.setattr(clock, "now", lambda: clock.from_ms(NOW_MS))
    return WorkerMetrics("etl", "blue", 4, 500)


def test_a_scrape_tells_the_metrics_that_the_catalogue_has_for_the_process(worker: WorkerMetrics) -> None:
    expected = {name for name, metric in CATALOGUE.items() if "worker" in metric.of}
    assert {family.name for family in worker.metrics.collect()} == {name.removesuffix("_total") for name in expected}


def test_names_and_units_are_as_prometheus_wants_them() -> None:
    for metric in CATALOGUE.values():
        assert metric.name.startswith("orch_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind in ("counter", "gauge") or metric.name.endswith("_seconds")
        assert (metric.bounds != ()) == (metric.kind == "histogram")
        assert list(metric.bounds) == sorted(metric.bounds)
        assert not {"le", "instance", "job", "run", "id"} & set(metric.labels)


def test_a_histogram_counts_a_value_in_the_bucket_whose_bound_it_reaches(worker: WorkerMetrics) -> None:
    distribution = worker.metrics["orch_run_queue_wait_seconds"].distribution("etl", "default")
    for seconds in (0.01, 0.011, 1800.5, -0.2):
        distribution.observe(seconds)
    told = Told(worker.metrics)
    name, place = "orch_run_queue_wait_seconds", {"work_pool": "etl", "queue": "default"}
    assert [told(f"{name}_bucket", **place, le=le) for le in ("0.01", "0.05", "1800.0", "+Inf")] == [1, 2, 2, 3]
    assert (told(f"{name}_count", **place), told(f"{name}_sum", **place)) == (3, pytest.approx(1800.521))


def test_every_end_of_a_flow_is_told_from_its_first_run_on(worker: WorkerMetrics) -> None:
    worker.claimed(job := claimed(), started=True)
    worker.frame(job, end(kind="FAILED"))
    worker.reply(job, [protocol.ENDED, "r1", "ok"])
    told = Told(worker.metrics)
    counts = [told("orch_flow_runs_total", flow="load", deployment="nightly", state=state) for state in ENDS]
    assert dict(zip(ENDS, counts, strict=True)) == {"completed": 0, "failed": 1, "crashed": 0, "cancelled": 0}
    assert told("orch_flow_run_duration_seconds_count", flow="load", outcome="failed") == 1


def test_an_end_that_was_refused_does_not_count(worker: WorkerMetrics) -> None:
    worker.claimed(job := claimed(), started=True)
    worker.frame(job, end())
    worker.reply(job, [protocol.ENDED, "r1", "superseded"])
    assert Told(worker.metrics).sum("orch_flow_runs_total") == 0


def test_the_wait_of_a_run_is_that_of_its_first_attempt(worker: WorkerMetrics) -> None:
    worker.redis_ahead_s = 2  # the run was due a second ago on Redis's clock, three seconds from now on ours
    worker.claimed(job := claimed(waited=timedelta(seconds=-1)), started=False)
    worker.claimed(claimed("r2", attempt=2), started=True)
    told = Told(worker.metrics)
    place = {"work_pool": "etl", "queue": "default"}
    assert told("orch_run_schedule_delay_seconds_count", **place) == 1
    assert told("orch_run_schedule_delay_seconds_sum", **place) == 1
    assert told("orch_run_queue_wait_seconds_count", **place) == 0
    worker.frame(job, [protocol.START, "r1", "Running", NOW_MS + 4000])
    worker.frame(job, [protocol.START, "r1", "Retrying", NOW_MS + 5000])
    told = Told(worker.metrics)
    assert told("orch_run_queue_wait_seconds_sum", **place) == 5
    assert told("orch_run_queue_wait_seconds_count", **place) == 1


def test_retries_are_told_by_their_reason(worker: WorkerMetrics) -> None:
    worker.claimed(job := claimed(), started=True)
    worker.frame(job, [protocol.START, "r1", "Retrying", NOW_MS])
    worker.frame(job, end(kind="SCHEDULED", name="AwaitingRetry"))
    worker.reply(job, [protocol.ENDED, "r1", "ok"])
    worker.claimed(job := claimed("r2"), started=True)
    worker.reply(job, [protocol.ENDED, "r2", "requeued"])
    told = Told(worker.metrics)
    assert told("orch_run_retries_total", flow="load", task="", reason="error") == 2
    assert told("orch_run_retries_total", flow="load", task="", reason="lost") == 1
    assert told("orch_runs_recovered_total", kind="process") == 1
    assert told.sum("orch_flow_runs_total") == 0


def test_a_run_whose_process_dies_for_the_last_time_has_crashed(worker: WorkerMetrics) -> None:
    worker.claimed(job := claimed(), started=True)
    worker.reply(job, [protocol.ENDED, "r1", "crashed"])
    assert Told(worker.metrics)("orch_flow_runs_total", flow="load", deployment="nightly", state="crashed") == 1


def test_subflows_and_task_runs_count_with_the_deployment_that_they_belong_to(worker: WorkerMetrics) -> None:
    worker.claimed(job := claimed(), started=True)
    worker.frame(job, [protocol.OPEN, 1, {"id": "s1", "flow": "part"}])
    row = ["t1", "fetch-0", "fetch", 0, "COMPLETED", "Completed", "", 0, 1000, 1600, 3, [], None, []]
    running = [*row[:4], "RUNNING", "Running", *row[6:]]
    worker.frame(job, [protocol.TASKS, "s1", [running, row]])
    worker.frame(job, end("s1"))
    worker.reply(job, [protocol.ENDED, "s1", "ok"])
    told = Told(worker.metrics)
    assert told("orch_flow_runs_total", flow="part", deployment="nightly", state="completed") == 1
    assert told("orch_task_runs_total", flow="part", task="fetch", deployment="nightly", state="completed") == 1
    assert told("orch_task_run_duration_seconds_sum", task="fetch", outcome="completed") == pytest.approx(0.6)
    assert told("orch_run_retries_total", flow="part", task="fetch", reason="error") == 2


def test_a_background_task_counts_as_a_task_run(worker: WorkerMetrics) -> None:
    worker.claimed(job := claimed(kind="task", flow="mail", deployment_name=None), started=True)
    worker.frame(job, end())
    worker.reply(job, [protocol.ENDED, "r1", "again"])
    told = Told(worker.metrics)
    assert told("orch_task_runs_total", flow="", task="mail", deployment="", state="completed") == 1
    assert told.sum("orch_flow_runs_total") == 0


def test_a_wait_for_slots_is_told_when_they_are_granted(worker: WorkerMetrics) -> None:
    worker.claimed(job := claimed(), started=True)
    for request, answer in ((1, "granted"), (2, "missing")):
        worker.frame(job, [protocol.ACQUIRE, request, "r1", "global", ["db"], 1, False, False, True])
        worker.reply(job, [protocol.ANSWER, request, True, [answer, ""]])
    assert Told(worker.metrics)("orch_concurrency_wait_seconds_count", limit="global:db") == 1


def test_log_lines_count_by_level_and_dropped_ones_by_reason(worker: WorkerMetrics) -> None:
    worker.frame(claimed(), [protocol.LOG, "r1", [[0, 20, "a", "m", None], [0, 35, "a", "m", None], [0, 50, "a", "m", None]]])
    worker.dropped(away=7, full=2)
    told = Told(worker.metrics)
    assert [told("orch_log_lines_total", level=level) for level in ("debug", "info", "error", "critical")] == [0, 1, 1, 1]
    assert (told("orch_log_dropped_total", reason="away"), told("orch_log_dropped_total", reason="full")) == (7, 2)


def test_leases_that_a_worker_found_to_be_over_are_told(worker: WorkerMetrics) -> None:
    worker.lapsed(Lapsed(requeued=2, crashed=1, cancelled=0, seen=3))
    told = Told(worker.metrics)
    assert (told("orch_leases_expired_total", kind="run"), told("orch_runs_recovered_total", kind="lease")) == (3, 2)


@pytest.mark.parametrize("frame", [[protocol.END, "unknown"], [protocol.LOG, "r1", 3], [protocol.TASKS, "r1", [[1]]], ["?"]])
def test_a_frame_that_makes_no_sense_counts_nothing(worker: WorkerMetrics, frame: list[Any]) -> None:
    worker.frame(claimed(), frame)
    assert Told(worker.metrics).sum("orch_log_lines_total") == 0


def test_beyond_the_cap_what_people_named_is_other_and_the_sum_stays_right() -> None:
    worker = WorkerMetrics("etl", "", 4, 8)
    for number in range(10):
        worker.claimed(job := claimed(flow=f"generated-{number}"), started=True)
        worker.frame(job, end())
        worker.reply(job, [protocol.ENDED, "r1", "ok"])
    told = Told(worker.metrics)
    assert told("orch_flow_runs_total", flow="generated-1", deployment="nightly", state="completed") == 1
    assert told("orch_flow_runs_total", flow=OTHER, deployment=OTHER, state="completed") == 8
    assert told.sum("orch_flow_runs_total") == 10
    assert told("orch_metrics_series_dropped_total", metric="orch_flow_runs_total") == 8
    assert told("orch_flow_run_duration_seconds_count", flow=OTHER, outcome="completed") == 2


def test_labels_that_nobody_chose_are_never_other() -> None:
    metrics = Metrics("worker", 1)
    for operation in ("claim", "finish", "renew"):
        metrics.asked(operation, 0.001, failed=operation == "renew")
    told = Told(metrics)
    assert [told("orch_redis_errors_total", operation=name) for name in ("claim", "finish", "renew")] == [0, 0, 1]


def test_another_server_can_mount_them(worker: WorkerMetrics) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": [(b"accept", b"text/plain")]}
    asyncio.run(worker.metrics.asgi_app()(scope, receive, send))
    assert sent[0]["status"] == 200
    assert b'orch_worker_slots{kind="total",work_pool="etl"} 4.0' in sent[1]["body"]


def test_a_port_that_is_taken_says_what_to_do(worker: WorkerMetrics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="cannot be opened") as caught:
            worker.metrics.serve(taken.getsockname()[1])
    assert "--metrics-port" in str(caught.value.hint)
