"""Limits on the command line: those of tags, global ones, and who holds what of any limit."""

from __future__ import annotations

from typing import Any

import pytest

from console import Orch, claim, finish
from orch_cli.completion import complete_global_limit, complete_limited_tag
from orch_cli.main import main
from orchestrator.keys import new_id, shorten
from orchestrator.models import Deployment, NewRun
from orchestrator.states import Completed
from orchestrator.store import Store
from orchestrator.store.answers import Acquire

TAGS, GCL = "concurrency-limit", "gcl"


def start(store: Store, *names: str, **fields: Any) -> list[tuple[str, int]]:
    """Runs of those names that a worker executes: (id, attempt)."""
    if not store.pools.exists("etl"):
        store.pools.create("etl")
    started = []
    for name in names:
        store.runs.create([NewRun(flow="load", pool="etl", name=name, **fields)])
        started.append(claim(store))
    return started


def ask(store: Store, run: tuple[str, int], call: int, name: str, **more: Any) -> str:
    """The answer to a run's code that asks for slots."""
    return store.limits.acquire(Acquire(*run, "w1", call, [name], **more)).answer


# --- limits of tags -------------------------------------------------------------------------------------------------------


def test_the_limit_of_a_tag_is_created_shown_changed_disabled_enabled_and_deleted(orch: Orch, store: Store) -> None:
    assert "orch concurrency-limit create" in orch(TAGS, "ls").err
    assert orch(TAGS, "create", "team:db", "5").err == "Runs with tag 'team:db' now run at most 5 at a time.\n"
    answer = orch(TAGS, "create", "team:db", "5")
    assert (answer.code, "orch concurrency-limit update team:db 5" in answer.err) == (5, True)
    assert orch(TAGS, "ls", "-o", "json").json == [{"tag": "team:db", "limit": 5, "active": True, "used": 0, "waiting": 0}]
    assert orch(TAGS, "update", "team:db", "1", "-o", "json").json["limit"] == 1
    assert "orch concurrency-limit enable team:db" in orch(TAGS, "disable", "team:db").err
    assert "is disabled" in orch(TAGS, "update", "team:db", "2").err
    assert orch(TAGS, "ls", "--no-headers").out == "team:db\t0\t2\t0\tDisabled\n"
    assert orch(TAGS, "enable", "team:db").err == "The limit of tag 'team:db' is in force: 0 of 2 slots are in use.\n"
    assert orch(TAGS, "delete", "team:db", "--dry-run", "-o", "name").out == "team:db\n"
    assert orch(TAGS, "delete", "team:db").code == 2
    assert orch(TAGS, "delete", "team:db", "--yes").err == "Deleted the limit of tag 'team:db'.\n"
    for words in (["inspect"], ["update", "1"], ["enable"], ["disable"], ["reset"], ["delete", "--yes"]):
        answer = orch(TAGS, words[0], "team:db", *words[1:])
        assert (answer.code, "orch concurrency-limit create team:db 5" in answer.err) == (3, True), words
    assert orch(TAGS, "create", "a\nb", "1").code == 2
    assert orch(TAGS, "create", "a", "-1").code == 2


def test_a_limit_shows_who_holds_it_and_who_waits_in_order(orch: Orch, store: Store) -> None:
    store.pools.create("etl")
    names = {"first": "high", "second": "normal", "third": "low"}
    created = store.runs.create(
        [NewRun(name=name, flow="load", pool="etl", tags=("db",), priority=priority) for name, priority in names.items()]
    )
    orch(TAGS, "create", "db", "1")
    store.runs.claim("w1", "etl", ["default"], 3)
    shown = orch(TAGS, "inspect", "db", "-o", "json").json
    [holder] = shown["holders"]
    assert (shown["used"], shown["limit"], shown["waiting"]) == (1, 1, 2)
    assert (holder["run"], holder["name"], holder["what"], holder["reserved"]) == (created[0].id, "first", "run", False)
    assert holder["since"] < holder["expires"]
    assert [(waiter["name"], waiter["priority"]) for waiter in shown["waiters"]] == [("second", "normal"), ("third", "low")]
    sheet = orch(TAGS, "inspect", "db").out
    assert sheet.index("first") < sheet.index("second") < sheet.index("third")
    finish(store, (created[0].id, 1), Completed())
    [reserved] = orch(TAGS, "inspect", "db", "-o", "json").json["holders"]
    assert (reserved["name"], reserved["reserved"]) == ("second", True)
    hint = orch("flow-run", "explain", "third", "-o", "json").json["hint"]
    assert (
        hint
        == "See who has it with: orch concurrency-limit inspect db. Let more through with: orch concurrency-limit update db N"
    )
    orch(TAGS, "disable", "db")
    assert orch(TAGS, "inspect", "db", "-o", "json").json["waiting"] == 0


def test_the_limit_of_a_tag_shows_task_runs_beside_runs(orch: Orch, store: Store) -> None:
    orch(TAGS, "create", "db", "2")
    [tagged] = start(store, "tagged", tags=("db",))
    first, second = start(store, "first", "second")
    assert ask(store, first, 1, "db", of="tag") == "granted"
    assert ask(store, second, 7, "db", of="tag") == "waiting"
    shown = orch(TAGS, "inspect", "db", "-o", "json").json
    assert [(holder["name"], holder["what"], holder["call"]) for holder in shown["holders"]] == [
        ("tagged", "run", 0),
        ("first", "task", 1),
    ]
    assert [(waiter["name"], waiter["what"], waiter["call"]) for waiter in shown["waiters"]] == [("second", "task", 7)]
    assert "task run" in orch(TAGS, "inspect", "db").out
    for run in (tagged, first, second):
        finish(store, run, Completed())


def test_slots_that_no_live_run_holds_are_freed_by_reset(orch: Orch, store: Store) -> None:
    orch(TAGS, "create", "db", "3")
    [run] = start(store, "alive", tags=("db",))
    assert orch(TAGS, "reset", "db").err == (
        "Nothing was to be freed: live runs hold all used slots of the limit of tag 'db'.\n"
    )
    store.client.zadd(store.keys.slots("tag:db"), {f"{shorten(new_id())}:1:0:0": 1, f"{shorten(run[0])}:9:0:0": 1})
    assert orch(TAGS, "ls", "-o", "json").json[0]["used"] == 3
    assert orch(TAGS, "reset", "db").err == "Freed 2 slots of the limit of tag 'db' that no live run held.\n"
    [holder] = orch(TAGS, "inspect", "db", "-o", "json").json["holders"]
    assert holder["name"] == "alive"
    finish(store, run, Completed())


# --- global limits --------------------------------------------------------------------------------------------------------


def test_a_global_limit_is_created_shown_changed_disabled_enabled_and_deleted(orch: Orch, store: Store) -> None:
    assert "orch gcl create NAME --limit 5" in orch(GCL, "ls").err
    assert orch(GCL, "create", "db").code == 2
    assert orch(GCL, "create", "db", "--limit", "5").err == "Created global limit 'db': 5 slots.\n"
    answer = orch("global-concurrency-limit", "create", "db", "--limit", "6")
    assert (answer.code, "orch gcl update db --limit 6" in answer.err) == (5, True)
    [shown] = orch(GCL, "ls", "-o", "json").json
    assert shown == {
        "name": "db",
        "limit": 5,
        "active": True,
        "used": 0,
        "waiting": 0,
        "slot_decay_per_second": 0,
        "next_free": None,
    }
    assert orch(GCL, "update", "db", "--limit", "8").err == "Global limit 'db' is set: 8 slots.\n"
    assert orch(GCL, "disable", "db").code == 0
    assert "orch gcl enable db" in orch(GCL, "update", "db", "--limit", "7").err
    assert orch(GCL, "ls", "--no-headers", "--columns", "name,limit,status").out == "db\t7\tDisabled\n"
    assert orch(GCL, "enable", "db").err == "The global limit 'db' is in force: 0 of 7 slots are in use.\n"
    assert orch(GCL, "update", "db", "--disable", "-o", "json").json["active"] is False
    assert orch(GCL, "update", "db", "--enable", "-o", "json").json["active"] is True
    assert orch(GCL, "delete", "db", "--dry-run", "-o", "name").out == "db\n"
    assert orch(GCL, "delete", "db").code == 2
    assert orch(GCL, "delete", "db", "--yes").err == "Deleted the global limit 'db'.\n"
    for words in (["inspect"], ["update", "--limit", "1"], ["enable"], ["disable"], ["reset"], ["delete", "--yes"]):
        answer = orch(GCL, words[0], "db", *words[1:])
        assert (answer.code, "orch gcl create db --limit 5" in answer.err) == (3, True), words


def test_a_limit_can_be_born_disabled(orch: Orch) -> None:
    assert "orch gcl enable db" in orch(GCL, "create", "db", "--limit", "1", "--disable").err
    assert orch(GCL, "inspect", "db", "-o", "json").json["active"] is False


@pytest.mark.parametrize(
    "words",
    [
        ["create", "a/b", "--limit", "1"],
        ["create", "a", "--limit", "-1"],
        ["create", "a", "--limit", "1", "--slot-decay-per-second", "-1"],
        ["create", "a", "--limit", "1", "--slot-decay-per-second", "nan"],
        ["create", "a", "--limit", "1", "--slot-decay-per-second", "inf"],
        ["create", "a", "--limit", "1", "--slot-decay-per-second", "1e-9"],
        ["update", "db"],
        ["update", "db", "--name", "a:b"],
    ],
)
def test_a_wrong_global_limit_is_refused_and_nothing_is_stored(orch: Orch, store: Store, words: list[str]) -> None:
    store.limits.create_global("db", 1)
    answer = orch(GCL, *words)
    assert (answer.code, answer.err.startswith("error: "), "hint: " in answer.err) == (2, True, True), answer.err
    assert [limit.title for limit in store.limits.global_limits()] == ["db"]


def test_a_limit_is_renamed_while_code_holds_it_and_waits_for_it(orch: Orch, store: Store) -> None:
    orch(GCL, "create", "db", "--limit", "1")
    orch(GCL, "create", "api", "--limit", "1")
    holder, waiter = start(store, "holder", "waiter")
    ask(store, holder, 1, "db")
    ask(store, waiter, 1, "db")
    answer = orch(GCL, "update", "db", "--name", "api")
    assert (answer.code, "orch gcl inspect api" in answer.err) == (5, True)
    assert orch(GCL, "update", "db", "--name", "warehouse", "--limit", "1").err == (
        "Global limit 'db' is called 'warehouse' now: 1 slot.\n"
    )
    assert orch(GCL, "inspect", "db").code == 3
    shown = orch(GCL, "inspect", "warehouse", "-o", "json").json
    assert ([one["name"] for one in shown["holders"]], [one["name"] for one in shown["waiters"]]) == (["holder"], ["waiter"])
    assert "of global limit 'warehouse'" in orch("flow-run", "explain", "waiter").out
    for run in (holder, waiter):
        finish(store, run, Completed())


def test_code_that_holds_and_waits_is_shown_with_its_slots(orch: Orch, store: Store) -> None:
    orch(GCL, "create", "db", "--limit", "3")
    holder, waiter = start(store, "holder", "waiter")
    ask(store, holder, 1, "db", occupy=2)
    ask(store, waiter, 4, "db", occupy=3)
    shown = orch(GCL, "inspect", "db", "-o", "json").json
    assert (shown["used"], shown["waiting"]) == (2, 1)
    [held], [waits] = shown["holders"], shown["waiters"]
    assert (held["name"], held["what"], held["call"], held["slots"]) == ("holder", "code", 1, 2)
    assert (waits["name"], waits["what"], waits["call"], waits["slots"]) == ("waiter", "code", 4, 3)
    assert held["since"] < held["expires"]
    sheet = orch(GCL, "inspect", "db").out
    assert "code, 2 slots" in sheet
    assert "code, 3 slots" in sheet
    assert "1 waiter" in orch(GCL, "delete", "db").err
    explained = orch("flow-run", "explain", "waiter", "-o", "json").json
    hint = "See who has it with: orch gcl inspect db. Let more through with: orch gcl update db --limit N"
    assert (explained["reason"], explained["hint"]) == ("waiting_for_slot", hint)
    said = orch("flow-run", "inspect", "waiter").err
    assert "for 3 slots of global limit 'db': 2/3 held by 'holder' since" in said
    assert f"hint: {hint}" in said
    assert "hint: Let more through with: orch gcl update db --limit N" in orch("gcl", "inspect", "db").err
    for run in (holder, waiter):
        finish(store, run, Completed())


def test_a_rate_limit_shows_its_pace_and_when_the_next_slot_comes_back(orch: Orch, store: Store) -> None:
    said = orch(GCL, "create", "api", "--limit", "2", "--slot-decay-per-second", "0.01").err
    assert said == "Created global limit 'api': 2 slots, of which 0.01 a second come back.\n"
    [run] = start(store, "caller")
    assert [ask(store, run, call, "api", rate=True) for call in (1, 2, 3)] == ["granted", "granted", "waiting"]
    shown = orch(GCL, "inspect", "api", "-o", "json").json
    assert (shown["used"], shown["slot_decay_per_second"], shown["holders"]) == (2, 0.01, [])
    assert shown["next_free"] > shown["waiters"][0]["since"]
    assert "0.01 a second" in orch(GCL, "inspect", "api").out
    assert orch(GCL, "update", "api", "--slot-decay-per-second", "0.02", "-o", "json").json["slot_decay_per_second"] == 0.02
    assert orch(GCL, "reset", "api").err == "All slots of the global limit 'api' are back: 2 slots had been used.\n"
    shown = orch(GCL, "inspect", "api", "-o", "json").json
    assert (shown["used"], shown["waiting"]) == (1, 0)
    finish(store, run, Completed())


def test_names_of_limits_complete(orch: Orch, store: Store) -> None:
    for name in ("db", "data", "api"):
        store.limits.create_global(name, 1)
        store.limits.create(f"tag:{name}-tag", 1)
    import click

    context, parameter = click.Context(click.Command("x")), click.Argument(["name"])
    assert sorted(item.value for item in complete_global_limit(context, parameter, "d")) == ["data", "db"]
    assert sorted(item.value for item in complete_limited_tag(context, parameter, "d")) == ["data-tag", "db-tag"]


def test_the_short_name_is_the_long_one(orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gcl", "--help"]) == main(["global-concurrency-limit", "--help"]) == 0
    short, long = capsys.readouterr().out.split("Usage: orch ")[1:]
    assert short.removeprefix("gcl") == long.removeprefix("global-concurrency-limit")


# --- limits of pools, queues and deployments --------------------------------------------------------------------------------


def test_pools_queues_and_deployments_show_who_holds_their_slots_and_who_waits(orch: Orch, store: Store) -> None:
    store.pools.create("etl")
    deployment = store.deployments.save(Deployment("nightly", "load", "load.py:load", pool="etl"))
    gates = {
        f"deployment:{shorten(deployment.id)}": (
            ("deployment", "inspect", "load/nightly"),
            "deploy, with another concurrency_limit in orch.yaml",
        ),
        "queue:etl:default": (
            ("work-queue", "inspect", "default", "--pool", "etl"),
            "work-queue set-concurrency-limit default N --pool etl",
        ),
        "pool:etl": (("work-pool", "inspect", "etl"), "work-pool set-concurrency-limit etl N"),
    }
    for gate, (words, helps) in gates.items():
        store.limits.set(gate, 1)
        [first] = start(store, "first", deployment=deployment.id)
        [waiting] = store.runs.create([NewRun(flow="load", pool="etl", name="second", deployment=deployment.id)])
        store.runs.claim("w1", "etl", ["default"], 1)
        shown = orch(*words, "-o", "json").json
        assert [(one["name"], one["what"]) for one in shown["holders"]] == [("first", "run")], gate
        assert [one["name"] for one in shown["waiters"]] == ["second"], gate
        assert "Holders" in orch(*words).out
        assert orch("flow-run", "explain", waiting.id, "-o", "json").json["hint"] == (
            f"See who has it with: orch {' '.join(words)}. Let more through with: orch {helps}"
        )
        store.runs.cancel(waiting.id)
        finish(store, first, Completed())
        store.limits.set(gate, None)
        shown = orch(*words, "-o", "json").json
        assert (shown["holders"], shown["waiters"]) == ([], [])
