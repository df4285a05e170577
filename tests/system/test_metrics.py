"""A worker and a scheduler, scraped by a real Prometheus; and a scheduler whose Redis is away."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from harness import RedisServer, eventually, needs, python
from orch_scheduler.service import Scheduler
from orchestrator.exceptions import StoreUnavailable
from orchestrator.metrics import CATALOGUE
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from worker_processes import WorkerProcess, deploy, environment_of, make_project, submit, wait_for_end, worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FLOWS = """
from orchestrator import flow, task
from orchestrator.concurrency.sync import concurrency

@task(retries=1, retry_delay_seconds=0)
def fetch(fails: bool):
    from orchestrator.runtime import task_run
    if fails or task_run.run_count == 1:
        raise ValueError("no luck")

@flow
def load(fails: bool = False):
    print("loads")
    with concurrency("db"):
        fetch(fails)
"""


class Prometheus:
    """A Prometheus of the test's own, which scrapes each second."""

    def __init__(self, program: str, folder: Path, targets: list[str]) -> None:
        scrape = {"job_name": "orch", "static_configs": [{"targets": targets}]}
        rules = Path(__file__).parents[2] / "deploy" / "prometheus" / "orch-alerts.yml"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [scrape],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._url = f"http://{address}"
        self._process = subprocess.Popen(
            [
                *(program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
                *(f"--web.listen-address={address}", "--log.level=error"),
            ],
            cwd=folder,
        )

    def get(self, path: str, **parameters: str) -> Any:
        """What its API answers; None while it does not listen yet."""
        assert self._process.poll() is None
        try:
            with urlopen(f"{self._url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
                return json.loads(answer.read())["data"]
        except URLError:
            return None

    def value(self, query: str) -> float | None:
        """The one value of a query, None while there is none."""
        found = self.get("query", query=query)
        return float(found["result"][0]["value"][1]) if found and found["result"] else None

    def end(self) -> None:
        """Kill it: what it has stored is nobody's any more."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Any]:
    """Start one that scrapes these URLs."""
    program = needs("prometheus", "prometheus")
    started: list[Prometheus] = []
    folder = tmp_path / "prometheus"
    folder.mkdir()

    def start(*urls: str) -> Prometheus:
        started.append(Prometheus(program, folder, [url.split("/")[2] for url in urls]))
        return started[-1]

    yield start
    for running in started:
        running.end()
    shutil.rmtree(folder)


def url_of(process: WorkerProcess) -> str:
    process.wait_until_said("Metrics at")
    return next(line.split()[-1] for line in process.said if "Metrics at" in line)


@contextmanager
def scheduler(settings: Settings) -> Iterator[str]:
    """A scheduler; the URL of its metrics."""
    process = python("-m", "orch_cli", "scheduler", "start", "--metrics-port", "0", env=environment_of(settings))
    try:
        assert process.stderr is not None
        yield next(line.split()[-1] for line in process.stderr if "Metrics at" in line)
    finally:
        process.kill()
        process.communicate()


def test_prometheus_scrapes_a_worker_and_a_scheduler(store: Store, settings: Settings, tmp_path: Path, prometheus: Any) -> None:
    store.limits.create_global("db", 3)
    folder = make_project(tmp_path / "project", FLOWS)
    deployment = deploy(store, folder, "load")
    with worker(settings, metrics_port=0, name="blue") as blue, scheduler(settings) as serving:
        watching = prometheus(url_of(blue), serving)
        for fails in (False, False, True):
            wait_for_end(store, submit(store, deployment, fails=fails))
        expected = {
            'sum(up{job="orch"})': 2,
            'orch_flow_runs_total{flow="load", deployment="test", state="completed"}': 2,
            'orch_flow_runs_total{flow="load", deployment="test", state="failed"}': 1,
            'orch_task_runs_total{flow="load", task="fetch", state="completed"}': 2,
            'orch_run_retries_total{flow="load", task="fetch", reason="error"}': 3,
            'orch_flow_run_duration_seconds_count{flow="load", outcome="completed"}': 2,
            'orch_run_queue_wait_seconds_count{work_pool="pool", queue="default"}': 3,
            'orch_concurrency_wait_seconds_count{limit="global:db"}': 3,
            'orch_concurrency_slots{limit="global:db", kind="total"}': 3,
            'orch_worker_up{work_pool="pool", worker="blue"}': 1,
            'orch_worker_slots{work_pool="pool", kind="total"}': 2,
            'orch_redis_keys{kind="run"}': 3,
            'sum(orch_runs{state="running"})': 0,
            'orch_service_last_success_timestamp_seconds{service="planner"} > bool 0': 1,
            'orch_redis_command_duration_seconds_count{operation="heartbeat"} > bool 0': 1,
            'orch_log_lines_total{level="info"} > bool 0': 1,
        }
        for query, value in expected.items():
            eventually(lambda: watching.value(query) == value, what=f"{value} of {query}")  # noqa: B023 - asked at once
        stored = set(watching.get("label/__name__/values"))
        assert {name for name in stored if name.startswith("orch_")} <= {
            name for metric in CATALOGUE.values() for name in metric.series
        }
        told = watching.get("metadata")
        for name in ("orch_runs", "orch_run_queue_wait_seconds"):
            [meaning] = {entry["help"] for entry in told[name]}
            assert meaning == CATALOGUE[name].meaning
        alerts = eventually(lambda: watching.get("alerts")["alerts"], what="the watchdog")
        assert {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"} <= {
            "OrchWatchdog",
            "OrchFailureRatio",
        }


def test_a_scheduler_whose_redis_is_away_tells_the_rest(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orch_scheduler.metrics.KEPT_S", 0)
    server = RedisServer().start()
    own = replace(settings, redis_url=server.url, redis_retry_s=0)
    try:
        with open_store(own) as store:
            serving = Scheduler(store)
            metrics = serving.count_into(own)
            serving.run_once()
            registry = CollectorRegistry()
            registry.register(metrics)
            assert b"orch_redis_keys{" in generate_latest(registry)
            server.kill()
            with pytest.raises(StoreUnavailable):
                serving.run_once()
            told = generate_latest(registry).decode()
    finally:
        server.stop()
    assert "orch_redis_keys{" not in told
    assert "orch_runs{" not in told
    assert 'orch_scheduler_lag_seconds{service="planner"} 0.0' in told
    assert re.search(r'^orch_redis_errors_total{operation="\w+"} [1-9]', told, re.MULTILINE)
