"""Prepared deployments and a real store: what is saved, what is warned of. Variables, too."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.deployments import file, plan
from orchestrator.deployments.templates import Sources
from orchestrator.exceptions import InvalidName, ObjectAlreadyExists, ObjectNotFound, PayloadTooLarge
from orchestrator.models import Worker
from orchestrator.settings import Settings
from orchestrator.store import Store
from orchestrator.variables import Variable

FILE = """\
deployments:
- name: hello_flow
  entrypoint: flow_to_deploy.py:hello_flow
  triggers: [{match: x}]
  work_pool: {name: pool}
  schedules:
  - {cron: 0 14 * * *, timezone: Asia/Tokyo, slug: tokyo-9am}
  - {cron: 0 12 * * *, timezone: UTC, slug: utc-noon, active: false}
"""


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[list[plan.Prepared]]:
    (tmp_path / "flow_to_deploy.py").write_text("from orchestrator import flow\n@flow\ndef hello_flow(): pass\n")
    (tmp_path / "orch.yaml").write_text(FILE)
    path = list(sys.path)
    yield plan.prepare(file.read(tmp_path), sources=Sources())
    sys.path[:] = path
    sys.modules.pop("flow_to_deploy", None)


def worker(name: str = "w", host: str | None = None) -> Worker:
    now = datetime.now(UTC)
    return Worker(
        name, "pool", "process", host or socket.gethostname(), 1, "1", "3", 1, 0, ("default",), now, now, "ONLINE", timedelta()
    )


def test_a_deploy_saves_what_was_prepared_and_a_second_one_changes_nothing(store: Store, prepared: list[plan.Prepared]) -> None:
    store.pools.create("pool")
    [saved] = plan.apply(store, prepared)
    assert saved.slug == "hello-flow/hello_flow"
    assert [(s.slug, s.active) for s in saved.schedules] == [("tokyo-9am", True), ("utc-noon", False)]
    assert plan.diff(saved, plan.settle(prepared[0], saved)) == []
    [again] = plan.apply(store, prepared)
    assert again.id == saved.id
    assert plan.diff(saved, again) == []


def test_a_schedule_that_was_paused_stays_paused_through_a_deploy(store: Store, prepared: list[plan.Prepared]) -> None:
    store.pools.create("pool")
    plan.apply(store, prepared)
    store.deployments.pause_schedule("hello-flow/hello_flow", "tokyo-9am")
    store.deployments.pause("hello-flow/hello_flow")
    [saved] = plan.apply(store, prepared)
    assert saved.paused
    assert [schedule.active for schedule in saved.schedules] == [False, False]


def test_a_pool_or_queue_that_is_not_there_stops_a_deploy_before_anything_is_saved(
    store: Store, prepared: list[plan.Prepared]
) -> None:
    assert plan.missing_pools(store, prepared) == ["pool"]
    with pytest.raises(ObjectNotFound, match="no work pool 'pool'") as caught:
        plan.apply(store, prepared)
    assert "orch work-pool create 'pool' --type process" in str(caught.value.hint)
    store.pools.create("pool")
    prepared[0].deployment = replace(prepared[0].deployment, queue="nowhere")
    with pytest.raises(ObjectNotFound, match="nowhere"):
        plan.apply(store, prepared)
    assert store.deployments.slugs() == []


def test_what_keeps_runs_from_starting_is_warned_of(store: Store, prepared: list[plan.Prepared]) -> None:
    store.pools.create("pool")
    texts = [f"{warning.text} {warning.hint}" for warning in plan.warnings(store, prepared)]
    assert len(texts) == 3
    assert "triggers has no effect" in texts[0]
    assert "orch scheduler start" in texts[1]
    assert "orch worker start --pool pool" in texts[2]
    store.pools.scheduler_heartbeat("s")
    store.pools.heartbeat(worker())
    store.pools.pause("pool")
    assert ["is paused" in warning.text for warning in plan.warnings(store, prepared)[1:]] == [True]


def test_a_worker_elsewhere_is_warned_of_where_only_this_machine_reaches_the_server(
    store: Store, prepared: list[plan.Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pools.create("pool")
    store.pools.scheduler_heartbeat("s")
    store.pools.heartbeat(worker())
    monkeypatch.setattr(store, "embedded", True)
    assert not [w for w in plan.warnings(store, prepared) if "private one" in w.text]
    store.pools.heartbeat(worker("far", "another-host"))
    [found] = [w for w in plan.warnings(store, prepared) if "private one" in w.text]
    assert "ORCH_REDIS_URL" in found.hint


@pytest.fixture
def _settings_everywhere(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_REDIS_URL", str(settings.redis_url))
    monkeypatch.setenv("ORCH_NAMESPACE", settings.namespace)


@pytest.mark.usefixtures("_settings_everywhere")
def test_a_variable_is_any_json_under_a_name(store: Store) -> None:
    assert Variable.get("region") is None
    assert Variable.get("region", "us") == "us"
    made = Variable.set("region", {"eu": [1, None, True]}, tags=["a"])
    assert made == Variable("region", {"eu": [1, None, True]}, ("a",))
    assert Variable.get("region") == {"eu": [1, None, True]}
    with pytest.raises(ObjectAlreadyExists):
        Variable.set("region", 1)
    Variable.set("region", 1, overwrite=True)
    assert Variable.get("region") == 1
    assert Variable.unset("region")
    assert not Variable.unset("region")


@pytest.mark.usefixtures("_settings_everywhere")
def test_a_variable_has_an_async_side(store: Store) -> None:
    async def use() -> Any:
        await Variable.aset("n", 1)
        found = await Variable.aget("n")
        return found, await Variable.aunset("n")

    assert asyncio.run(use()) == (1, True)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "{{x}}", "a:b", "x" * 201, "naïve", "a\n"])
def test_a_variables_name_is_one_that_templates_can_spell(name: str) -> None:
    with pytest.raises(InvalidName):
        Variable.set(name, 1)


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), b"x"])
def test_a_variable_that_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="no JSON"):
        Variable.set("x", value)


def test_a_variable_that_is_too_large_or_too_deep_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        Variable.set("x", "x" * 70_000)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        Variable.set("x", deep)


@pytest.mark.usefixtures("_settings_everywhere")
def test_inside_a_workers_flow_run_variables_go_through_the_worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import context
    from orchestrator.engine import protocol
    from orchestrator.engine.relay import Relay

    relay = Relay(store, "w")

    class ThroughRelay:
        def ask(self, what: str, *arguments: Any) -> Any:
            relay.feed("child", [protocol.ASK, 1, what, list(arguments)], 0.0)
            [reply] = relay.flush(1.0)
            _, _, ok, value = reply.frame
            assert ok, value
            return value

    class InAFlow:
        link = ThroughRelay()

    monkeypatch.setattr(context.FlowRunContext, "get", classmethod(lambda cls: InAFlow()))
    Variable.set("region", "eu", tags=["t"])
    Variable.set("region", "us", overwrite=True)
    assert Variable.get("region") == "us"
    assert Variable.unset("region")
