"""``orch namespace``: the settings that all processes share, and who runs with others."""

from __future__ import annotations

from datetime import timedelta

import pytest

from console import Orch, beat, claim, finish
from orchestrator import clock
from orchestrator.exceptions import NotReplicated
from orchestrator.models import NewRun
from orchestrator.settings import Settings
from orchestrator.states import Completed
from orchestrator.store import Store, open_store


def test_the_settings_of_a_namespace_are_shown_with_what_follows_from_them(orch: Orch, store: Store) -> None:
    shown = orch("namespace", "inspect", "-o", "json").json
    assert (shown["namespace"], shown["server"], shown["behind"]) == (store.namespace, store.address, [])
    assert (shown["lease"], shown["renewed_every"], shown["stops_after"], shown["gone_after"]) == (15, 5, 13, 30)
    assert (shown["retention"], shown["durability"]) == (30 * 86400, "default")
    assert orch("namespace", "inspect", "-o", "name").out == f"{store.namespace}\n"


def test_settings_are_changed_one_by_one_and_read_by_those_who_start_then(orch: Orch, settings: Settings) -> None:
    said = orch("namespace", "update", "--lease", "5s", "--retention", "90d").err
    assert said == f"Namespace '{settings.namespace}' now has lease 5 s, retention 90 d.\n"
    assert orch("namespace", "update", "--durability", "replicated", "--yes", "-o", "json").json["durability"] == "replicated"
    with open_store(settings) as started:
        now = started.settings
        assert (now.lease, now.retention, now.durability) == (timedelta(seconds=5), timedelta(days=90), "replicated")
    assert "has these settings already" in orch("namespace", "update", "--lease", "5s").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lease", "500ms"], "A lease of 0.5 s cannot be kept."),
        (["--lease", "2h"], "hint: Give 1 s to 1 h"),
        (["--retention", "10s"], "hint: Give 1 minute or more."),
        (["--durability", "eternal"], "'replicated'"),
        (["--lease", "soon"], "is no duration"),
        ([], "orch namespace inspect"),
    ],
)
def test_settings_that_nobody_could_live_with_are_refused(orch: Orch, store: Store, words: list[str], said: str) -> None:
    answer = orch("namespace", "update", *words)
    assert (answer.code, said in answer.err) == (2, True), answer.err
    assert not store.client.exists(store.keys.settings)


def test_a_shorter_retention_says_how_many_runs_it_deletes_and_asks(orch: Orch, store: Store) -> None:
    store.pools.create("etl")
    store.runs.create([NewRun(flow="load", pool="etl") for _ in range(3)])
    for _ in range(2):
        finish(store, claim(store), Completed())
    long_ago = clock.to_ms(clock.now() - timedelta(days=10))
    index = store.keys.index("state", "Completed")
    for member in store.client.zrange(index, 0, -1):
        store.client.zadd(index, {member: long_ago})
    answer = orch("namespace", "update", "--retention", "7d")
    assert (answer.code, "2 runs that ended longer ago will be deleted for good." in answer.err) == (2, True)
    assert "this would set retention 7 d" in orch("namespace", "update", "--retention", "7d", "--dry-run").err
    assert not store.client.exists(store.keys.settings)
    assert orch("namespace", "update", "--retention", "20d").code == 0
    assert orch("namespace", "update", "--retention", "7d", "--yes").code == 0


def test_a_durability_that_the_server_cannot_give_is_asked_about_and_can_be_lowered_again(
    orch: Orch, store: Store, settings: Settings
) -> None:
    answer = orch("namespace", "update", "--durability", "replicated")
    assert (answer.code, "No replica is connected" in answer.err) == (2, True)
    assert orch("namespace", "update", "--durability", "replicated", "--yes").code == 0
    store.pools.create("etl")
    with open_store(settings) as strict, pytest.raises(NotReplicated):
        strict.runs.create([NewRun(flow="load", pool="etl")])
    [problem] = [finding for finding in orch("doctor", "-o", "json").json if finding["check"] == "durability"]
    assert (problem["status"], "orch namespace update --durability default" in problem["hint"]) == ("problem", True)
    assert orch("namespace", "update", "--durability", "default").code == 0
    with open_store(settings) as again:
        assert again.runs.create([NewRun(flow="load", pool="etl")])[0].answer == "created"


def test_processes_that_started_before_a_change_are_named_until_they_start_again(
    orch: Orch, store: Store, settings: Settings
) -> None:
    store.pools.create("etl")
    beat(store)
    store.pools.scheduler_heartbeat("s1")
    answer = orch("namespace", "update", "--lease", "5s")
    assert (answer.code, "2 processes will go on with the settings of now" in answer.err) == (2, True)
    said = orch("namespace", "update", "--lease", "5s", "--yes").err
    assert "Restart these workers and schedulers, one after another: 'w1', 's1'" in said
    shown = orch("namespace", "inspect", "-o", "json").json
    assert (shown["processes"], [process["runs_with"] for process in shown["behind"]]) == (2, ["lease 15 s", "lease 15 s"])
    assert "worker 'w1' on host1" in orch("namespace", "inspect").out
    with open_store(settings) as restarted:
        beat(restarted)
        restarted.pools.scheduler_heartbeat("s1")
    assert orch("namespace", "inspect", "-o", "json").json["behind"] == []
