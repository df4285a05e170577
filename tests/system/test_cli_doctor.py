"""``orch doctor``: every finding, and what it mends."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from console import Orch, beat, claim, finish
from orchestrator import clock
from orchestrator._version import __version__
from orchestrator.keys import GROUP, new_id, shorten
from orchestrator.models import Deployment, NewRun, Schedule
from orchestrator.states import Completed
from orchestrator.store import Store
from tampering import tamper


def findings(orch: Orch, check: str) -> list[dict[str, Any]]:
    """What one check found."""
    return [finding for finding in orch("doctor", "-o", "json").json if finding["check"] == check]


@pytest.fixture
def deployment(store: Store) -> Deployment:
    """A deployment with a schedule, to a pool without workers."""
    store.pools.create("etl")
    schedules = [Schedule("hourly", cron="0 * * * *")]
    return store.deployments.save(Deployment("nightly", "load", "load.py:load", pool="etl", schedules=schedules))


@pytest.fixture
def run(store: Store, deployment: Deployment) -> str:
    """The id of a queued run."""
    [created] = store.runs.create([NewRun(name="brave-otter", flow="load", deployment=deployment.id, pool="etl")])
    return created.id


def test_the_doctor_shows_the_settings_that_all_processes_share(orch: Orch, store: Store) -> None:
    [found] = findings(orch, "namespace")
    assert (found["status"], found["detail"]) == (
        "ok",
        f"'{store.namespace}': lease 15 s, retention 30 d, durability default",
    )


def test_the_doctor_says_what_kind_of_server_it_is_and_who_follows_it(orch: Orch) -> None:
    [found] = findings(orch, "server")
    assert found["detail"].endswith("(configured; one server, no replicas)")


def test_the_doctor_names_processes_that_run_with_other_settings(orch: Orch, store: Store) -> None:
    store.pools.create("etl")
    beat(store)
    store.pools.scheduler_heartbeat("s1")
    store.write_settings(replace(store.settings, lease=timedelta(seconds=5)))
    _, worker, scheduler = findings(orch, "namespace")
    assert (worker["status"], worker["detail"]) == ("warning", "The worker 'w1' on host1 runs with lease 15 s.")
    assert "scheduler 's1'" in scheduler["detail"]
    assert "Restart it" in worker["hint"]


def test_the_doctor_knows_the_schema_of_the_namespace(orch: Orch, store: Store) -> None:
    [found] = findings(orch, "schema")
    assert (found["status"], found["detail"]) == ("ok", "1, the one that this release writes")
    store.client.hset(store.keys.settings, "schema", "0")
    [found] = findings(orch, "schema")
    assert (found["status"], "schema 0" in found["detail"]) == ("warning", True)
    store.client.hset(store.keys.settings, "schema", "99")
    answer = orch("doctor", "-o", "json")
    assert (answer.code, answer.json[-1]["check"], "newer Orch" in answer.json[-1]["detail"]) == (1, "server", True)
    store.client.hdel(store.keys.settings, "schema")


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (__version__, "ok"),
        ("0.1.7", "warning"),
        ("0.2.0", "warning"),
        ("0.0.9", "warning"),
        ("0.3.0", "problem"),
        ("1.0.0", "problem"),
    ],
)
def test_the_doctor_says_which_releases_may_run_side_by_side(orch: Orch, store: Store, version: str, status: str) -> None:
    store.pools.create("etl")
    store.pools.scheduler_heartbeat("s1")
    beat(store, version=version)
    [found] = findings(orch, "releases")
    assert found["status"] == status
    assert version in found["detail"]
    assert ("worker 'w1' on host1" in found["detail"], found["hint"] != "") == (status != "ok", status != "ok")


def test_a_scheduler_whose_release_tells_nothing_is_of_an_older_one(orch: Orch, store: Store) -> None:
    store.client.zadd(store.keys.schedulers, {"old": clock.to_ms(store.now())})
    [found] = findings(orch, "releases")
    assert (found["status"], "unknown: scheduler 'old'" in found["detail"]) == ("warning", True)


def test_the_doctor_tells_of_the_last_fail_over_what_it_did_to_runs(orch: Orch, store: Store) -> None:
    assert "no worker or scheduler has worked here yet" in findings(orch, "fail-over")[0]["detail"]
    store.failover.check()
    [found] = findings(orch, "fail-over")
    assert (found["status"], found["detail"].startswith("none since 20")) == ("ok", True)
    lost, twice = new_id(), new_id()
    since = clock.to_ms(store.now())
    store.client.hset(
        store.keys.epoch,
        mapping={"number": 2, "how": "promoted", "before": "other", "since": since, "mended": 3, "mended_in": 2},
    )
    assert findings(orch, "fail-over")[0]["status"] == "ok"
    store.client.hset(
        store.keys.epoch,
        mapping={"lost": shorten(lost), "lost_count": 7, "twice": shorten(twice), "twice_count": 1, "restored_count": 2},
    )
    [found] = findings(orch, "fail-over")
    assert found["status"] == "warning"
    assert "a replica took over (epoch 2): 3 things mended, 7 runs lost" in found["detail"]
    assert f"({lost} and 2 more)" in found["detail"]
    assert f"1 run started twice ({twice}), 2 runs restored." in found["detail"]
    assert "Submit the lost runs again" in found["hint"]
    store.client.hset(store.keys.epoch, "since", since - 8 * 86_400_000)
    assert findings(orch, "fail-over")[0]["status"] == "ok"


def test_a_fail_over_that_nobody_has_mended_is_named_with_what_mends_it(orch: Orch, store: Store) -> None:
    store.failover.check()
    store.client.hset(store.keys.epoch, mapping={"number": 2, "how": "replaced"})
    store.client.hdel(store.keys.epoch, "mended")
    [found] = findings(orch, "fail-over")
    assert (found["status"], "nobody has mended the namespace yet" in found["detail"]) == ("warning", True)
    assert "orch doctor --repair" in found["hint"]


def test_the_doctor_says_that_the_rescue_is_braked(orch: Orch, store: Store) -> None:
    assert findings(orch, "rescue") == []
    store.client.set(store.keys.brake, clock.to_ms(store.now()) + 15_000, px=15_000)
    [found] = findings(orch, "rescue")
    assert (found["status"], "The server's clock has jumped" in found["detail"]) == ("warning", True)


def test_the_doctor_names_work_that_waits_where_workers_are_free(orch: Orch, store: Store, run: str) -> None:
    assert findings(orch, "claims")[0]["status"] == "ok"
    beat(store)
    stream, message = store.keys.queue("etl", "default", "normal"), "1700000000000-0"
    store.client.delete(stream)
    store.client.xadd(stream, {"r": shorten(run)}, id=message)
    store.client.xgroup_create(stream, GROUP, id="0")
    below = stream.removeprefix(store.keys.prefix)
    tamper(store, run, msg=f"{message} {below}")
    [found] = findings(orch, "claims")
    assert (found["status"], found["hint"]) == ("problem", "Restart w1; a worker that hangs takes nothing.")
    assert found["detail"].startswith("1 run waits in work queue 'default' of work pool 'etl' since 2023")
    finish(store, claim(store), Completed())


def test_the_doctor_counts_runs_in_quarantine(orch: Orch, store: Store) -> None:
    store.pools.create("etl")
    assert findings(orch, "quarantine")[0]["status"] == "ok"
    store.runs.create([NewRun(flow="load", pool="etl", crash_budget=1)])
    store.runs.report_death(*claim(store), "signal 9 (SIGKILL)", worker="w1")
    [found] = findings(orch, "quarantine")
    assert (found["status"], found["detail"], found["hint"]) == (
        "warning",
        "1 run lost every start that was allowed.",
        "orch dead ls",
    )


def test_the_doctor_sets_aside_what_cannot_be_read_and_counts_it(orch: Orch, store: Store, run: str) -> None:
    assert findings(orch, "dead letters") == []
    tamper(store, run, place="nowhere")
    answer = orch("doctor", "--repair")
    assert ("mended" in answer.out, "invariants\tok" in answer.out) == (True, True)
    [found] = findings(orch, "dead letters")
    assert (found["status"], found["hint"]) == ("warning", "orch dead letter ls")
    assert found["detail"].startswith("1 thing in the place of runs")


def test_the_doctor_names_what_is_wrong_and_what_to_type(orch: Orch, deployment: Deployment, run: str) -> None:
    answer = orch("doctor", "-o", "json")
    assert answer.code == 1
    problems = {finding["check"]: finding["hint"] for finding in answer.json if finding["status"] == "problem"}
    assert problems == {"schedulers": "Start one with: orch scheduler start", "work pool": "orch worker start --pool etl"}


def test_the_doctor_is_content_with_an_empty_namespace(orch: Orch) -> None:
    answer = orch("doctor")
    assert (answer.code, "problem" in answer.out) == (0, False)


def test_the_doctor_mends_what_a_lost_write_broke_and_says_what(orch: Orch, store: Store) -> None:
    store.pools.create("etl")
    store.limits.set("tag:db", 1)
    [held, waiting] = [r.id for r in store.runs.create([NewRun(flow="load", pool="etl", tags=("db",)) for _ in range(2)])]
    store.runs.claim("w1", "etl", ["default"], 2)
    store.client.zrem(store.keys.leases, shorten(held))
    store.client.delete(store.keys.slots("tag:db"))
    store.client.zrem(store.keys.index("all"), shorten(waiting))
    answer = orch("doctor", "-o", "json")
    broken = [finding for finding in answer.json if finding["check"] == "invariants"]
    assert (answer.code, len(broken)) == (1, 4)
    assert [finding["hint"] for finding in broken] == ["orch doctor --repair", "", "", ""]
    assert store.client.zscore(store.keys.leases, shorten(held)) is None

    answer = orch("doctor", "--repair", "-o", "json")
    mended = {finding["detail"] for finding in answer.json if finding["status"] == "mended"}
    assert mended == {
        f"{held}: was missing in leases",
        f"{held}: had lost its slot of tag:db",
        f"{waiting}: was missing in index:all",
    }
    assert answer.code == 0
    assert orch("doctor", "--repair").code == 0
    assert "mended" not in orch("doctor", "--repair").out


def test_the_doctor_says_what_it_could_not_mend(orch: Orch, store: Store, deployment: Deployment, run: str) -> None:
    tamper(store, run, label="Elsewhere")
    answer = orch("doctor", "--repair")
    assert (answer.code, "is Elsewhere, and its history ends with" in answer.out) == (1, True)
    assert "orch flow-run delete" in answer.err
    tamper(store, run, label="")
    assert "invariants\tok" in orch("doctor", "--repair").out
