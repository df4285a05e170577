"""What is said about metrics: the page lists them all, and rules and dashboard ask only for those that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from documents import DOCS, ROOT, anchors, rows
from harness import needs
from orchestrator.metrics import CALLS, CATALOGUE, DURATIONS, WAITS

PAGE = DOCS / "metrics.md"
RULES = ROOT / "deploy" / "prometheus" / "orch-alerts.yml"
TESTS = RULES.with_name("orch-alerts-test.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "orch-overview.json"
SERIES = {name for metric in CATALOGUE.values() for name in metric.series}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def queries() -> list[str]:
    """Of the dashboard, with values in place of its variables."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [query.replace("$__rate_interval", "1m").replace("$flow", ".*").replace("$pool", ".*") for query in found]


def names(query: str) -> set[str]:
    return set(re.findall(r"\borch_\w+", query))


def test_the_page_lists_every_metric() -> None:
    expected = [
        [
            f"`{metric.name}`",
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels) or "none",
            ", ".join(metric.of),
            metric.meaning,
        ]
        for metric in CATALOGUE.values()
    ]
    assert rows(PAGE, "metric", "type", "labels", "served by", "meaning") == expected


def test_the_page_has_the_buckets() -> None:
    told = [row[1] for row in rows(PAGE, "of", "upper bounds")]
    assert told == [", ".join(f"{bound:g}" for bound in bounds) for bounds in (DURATIONS, WAITS, CALLS)]


def test_every_query_of_the_dashboard_asks_for_metrics_that_there_are() -> None:
    assert queries()
    for query in queries():
        assert names(query), query
        assert names(query) <= SERIES, query


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    asked = set().union(*(names(query) for query in [*queries(), *(str(alert["expr"]) for alert in alerts())]))
    for metric in CATALOGUE.values():
        assert asked & set(metric.series), metric.name


def test_labels_that_the_dashboard_filters_by_belong_to_the_metric() -> None:
    for query in (*queries(), *(str(alert["expr"]) for alert in alerts())):
        for name, matchers in re.findall(r"\b(orch_\w+)\{([^}]*)\}", query):
            [metric] = [metric for metric in CATALOGUE.values() if name in metric.series]
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers)) <= set(metric.labels), query


def test_the_panels_of_the_dashboard_do_not_cover_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    identities = [panel["id"] for panel in panels()]
    assert len(identities) == len(set(identities))


def test_every_alert_says_what_it_means_and_where_to_read_on() -> None:
    for alert in alerts():
        assert names(str(alert["expr"])) <= SERIES
        assert alert["labels"]["severity"] in ("page", "warning", "info", "none")
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"docs/metrics.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in anchors(PAGE)


def test_every_alert_is_tested() -> None:
    tested = TESTS.read_text()
    assert [alert["alert"] for alert in alerts() if alert["alert"] not in tested] == []


def test_the_alerts_fire_when_they_should() -> None:
    promtool = needs("promtool", "prometheus")
    done = subprocess.run([promtool, "test", "rules", str(TESTS)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_configuration_and_every_query_of_the_dashboard(tmp_path: Path) -> None:
    promtool = needs("promtool", "prometheus")
    config = RULES.with_name("prometheus.yml")
    subprocess.run([promtool, "check", "config", str(config)], check=True, capture_output=True, timeout=60)
    recorded = [{"record": f"query:number_{number}", "expr": query} for number, query in enumerate(queries())]
    rules = tmp_path / "queries.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", ["scheduler-1", "scheduler-2", "worker-1", "worker-2"])
def test_the_scrape_configuration_names_the_containers_of_compose(service: str) -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    command = " ".join(compose["services"][service]["command"])
    [port] = re.findall(r"--metrics-port[ =](\d+)", command)
    [scrape] = yaml.safe_load(RULES.with_name("prometheus.yml").read_text())["scrape_configs"]
    [targets] = [group["targets"] for group in scrape["static_configs"]]
    assert f"{service}:{port}" in targets
