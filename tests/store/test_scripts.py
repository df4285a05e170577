"""The loader and its promises: headers are contracts, a lost cache is nothing, and ends pass when memory is full."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from floor import Floor
from harness import SAFE, RedisServer
from orchestrator.clock import FrozenClock
from orchestrator.exceptions import StoreUnavailable
from orchestrator.keys import shorten
from orchestrator.models import NewRun
from orchestrator.settings import Settings
from orchestrator.states import Completed
from orchestrator.store import open_store
from orchestrator.store.answers import End
from orchestrator.store.invariants import check
from orchestrator.store.scripts import load_scripts

SCRIPTS = sorted(load_scripts())
AFTER_A_FAIL_OVER = {"epoch", "mended", "reassert", "missing"}
EVERY_RUN = {"renew", "finish", "lapse", "hand_back", "set_state", "pause", "acquire", "release", "wake", "record_tasks"}
EVERY_RUN |= {"heartbeat", "release_due", "redeliver", "expire", "mark_late", "resume", "create_leased", "memory"}
ROOM_MAKERS = {"cancel", "delete", "prune", "bury", "drop_letters", "delete_pool", "drain", "leave", "drop_consumers"}
MENDERS = {"set_gate", "reset_gate", "reschedule", "reconcile", "reconcile_members", "reconcile_gates"}


def source(name: str) -> str:
    return (resources.files("orchestrator.store") / "lua" / f"{name}.lua").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_says_what_the_script_does_takes_and_answers(name: str) -> None:
    header = source(name).split("\n\n")[0]
    assert header.startswith("-- ")
    assert re.search(r"^-- USES core", header, re.M)
    assert re.search(r"^-- ARGV \w+ +(str|int|packed) +\S", header, re.M)
    assert re.search(r"^-- RETURN \S", header, re.M) or "-- RETURN per" in header
    assert load_scripts()[name].arguments


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_writes_only_through_write_and_later(name: str) -> None:
    """All reads come before the first write; claim's XREADGROUP, which `redeliver` mends, is the exception."""
    reads = {"HGET", "HMGET", "HEXISTS", "HKEYS", "GET", "ZRANGE", "ZSCORE", "ZCARD", "ZCOUNT", "XRANGE", "XLEN", "XPENDING"}
    reads |= {"EXISTS", "PTTL", "TIME", "INFO", "XINFO", "HGETALL"}
    code = re.sub(r"later\(function\(\).*?\n?.*?end\)", "", source(name), flags=re.S)
    called = set(re.findall(r"redis\.p?call\('(\w+)'", code))
    assert called - reads <= ({"XREADGROUP", "XGROUP"} if name == "claim" else set())


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_text_of_a_script_fits_lua(floor: Floor, name: str) -> None:
    assert floor.store.client.script_load(load_scripts()[name].text) == load_scripts()[name].sha


def test_what_workers_need_to_end_runs_and_people_to_make_room_passes_at_maxmemory() -> None:
    allowed = {name for name in SCRIPTS if "-- FLAGS allow-oom" in source(name)}
    assert allowed == EVERY_RUN | ROOM_MAKERS | MENDERS | AFTER_A_FAIL_OVER


@pytest.mark.parametrize("arguments", [{}, {"limi": 1}, {"limit": 1, "more": 2}])
def test_a_call_takes_the_keywords_of_the_header_and_no_others(floor: Floor, arguments: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="release_due takes"):
        floor.store.scripts.call("release_due", **arguments)


def test_a_server_that_lost_its_scripts_is_sent_them_again(floor: Floor) -> None:
    run = floor.submit()
    floor.store.client.script_flush()
    assert floor.store.runs.cancel(run).answer == "ok"


def test_a_pipeline_survives_the_loss_of_the_scripts(floor: Floor) -> None:
    calls = [("mark_late", {"after_ms": 1, "limit": 1}), ("expire", {"limit": 1})]
    expected = floor.store.scripts.call_many(calls)
    floor.store.client.script_flush()
    assert floor.store.scripts.call_many(calls) == expected
    assert floor.store.scripts.call_many(calls) == expected


def test_one_failing_script_of_a_pipeline_does_not_keep_the_others_back(floor: Floor) -> None:
    run = floor.submit()
    floor.store.client.set(floor.key("log", run), "no stream")
    lines = [[shorten(run), ["line"]]]
    calls = [("append_log", {"items": lines, "kept": 10}), ("cancel", {"run": shorten(run), "message": ""})]
    with pytest.raises(Exception, match="WRONGTYPE"):
        floor.store.scripts.call_many(calls)
    assert floor.place(run) == ("ended", "Cancelled")
    floor.store.client.delete(floor.key("log", run))


def test_redis_own_clock_decides_where_none_is_frozen(settings: Settings) -> None:
    with open_store(settings) as store:
        store.pools.create("p")
        [run] = store.runs.create([NewRun("f", pool="p")])
        assert abs((store.now() - store.runs.get(run.id).created).total_seconds()) < 5
        assert store.runs.delete([run.id]) == ["ok"]
        assert check(store) == []
        for key in store.client.scan_iter(f"{store.keys}*"):
            store.client.unlink(key)


def test_at_maxmemory_nothing_is_submitted_and_everything_ends() -> None:
    server = RedisServer(*SAFE).start()
    try:
        frozen = FrozenClock(1_800_000_000_000)
        with open_store(Settings(redis_url=server.url), frozen=frozen) as store:
            store.pools.create("p", concurrency_limit=6)
            floor = Floor(store, frozen)
            finished, lapsed, returned, cancelled, suspended, _ = (floor.running() for _ in range(6))
            waiting = floor.submit()
            floor.claim()
            store.client.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable, match=r"full|memory"):
                floor.submit()
            assert store.runs.renew([(finished, 1)], worker="w") == ["ok"]
            assert store.runs.finish([End(finished, 1, Completed(), b"x" * 10_000)], worker="w") == ["ok"]
            assert store.runs.report_death(lapsed, 1, "gone", worker="w").requeued == 1
            assert store.runs.hand_back(returned, 1, worker="w") == "ok"
            assert store.runs.pause(suspended, 1, worker="w").answer == "ok"
            assert store.runs.cancel(cancelled).answer == "ok"
            assert store.runs.delete([finished]) == ["ok"]
            assert floor.place(waiting) == ("queued", "Scheduled")
            assert check(store) == []
            store.client.config_set("maxmemory", 0)
            floor.submit()
    finally:
        server.stop()
