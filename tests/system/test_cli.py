"""``orch`` against a real store: what it shows, what it changes, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from console import Orch, claim, finish
from orchestrator import clock
from orchestrator.models import Deployment, NewRun, Schedule, Worker
from orchestrator.settings import Settings
from orchestrator.states import Completed, Crashed, Failed, State
from orchestrator.store import Store, open_store


@pytest.fixture
def deployment(store: Store) -> Deployment:
    """A deployment of a flow with a parameter, to a pool without workers."""
    store.pools.create("etl")
    properties = {"days": {"type": "integer"}, "region": {"type": "string"}}
    return store.deployments.save(
        Deployment(
            name="nightly",
            flow="load",
            entrypoint="load.py:load",
            pool="etl",
            tags=("core",),
            parameters={"region": "eu"},
            parameter_schema={"type": "object", "properties": properties, "required": ["days"]},
            schedules=[Schedule("tokyo-9am", cron="0 9 * * *", timezone="Asia/Tokyo"), Schedule("hourly", cron="0 * * * *")],
        )
    )


@pytest.fixture
def run(store: Store, deployment: Deployment) -> str:
    """The id of a queued run."""
    [created] = store.runs.create([NewRun(name="brave-otter", flow="load", deployment=deployment.id, pool="etl")])
    return created.id


@contextmanager
def worker(settings: Settings, *ends: State) -> Iterator[None]:
    """A worker that claims one run after another and ends each as told."""

    def work() -> None:
        with open_store(settings) as store:
            for state in ends:
                finish(store, claim(store), state, "Hello", "\x1b[31mred\x1b[0m")

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(timeout=30)
    assert not thread.is_alive()


# --- pools and queues -----------------------------------------------------------------------------------------------------


def test_a_pool_is_created_shown_paused_resumed_limited_and_deleted(orch: Orch, store: Store) -> None:
    assert orch("work-pool", "create", "etl", "--concurrency-limit", "3").code == 0
    assert orch("work-pool", "create", "etl").code == 5
    [shown] = orch("work-pool", "ls", "-o", "json").json
    assert (shown["name"], shown["type"], shown["status"], shown["concurrency_limit"]) == ("etl", "process", "NOT_READY", 3)
    assert "orch work-pool resume etl" in orch("work-pool", "pause", "etl").err
    assert orch("work-pool", "inspect", "etl", "-o", "json").json["status"] == "PAUSED"
    assert orch("work-pool", "resume", "etl", "-o", "json").json["paused"] is False
    assert orch("work-pool", "set-concurrency-limit", "etl", "7", "-o", "json").json["concurrency_limit"] == 7
    assert orch("work-pool", "clear-concurrency-limit", "etl", "-o", "json").json["concurrency_limit"] is None
    assert orch("work-pool", "delete", "etl", "--dry-run").code == 0
    assert orch("work-pool", "delete", "etl").code == 2
    assert orch("work-pool", "delete", "etl", "--yes").code == 0
    assert orch("work-pool", "inspect", "etl").code == 3


def test_a_name_out_of_the_allowed_set_is_refused_before_anything_is_stored(orch: Orch, store: Store) -> None:
    for name in ("a/b", "a:b", "{a}", "a*", "a\r\nb", "a\x1b[31mb", "x" * 1000, "a\u202eb", " a"):
        answer = orch("work-pool", "create", name)
        assert answer.code == 2, name
        assert answer.err.startswith("error: ")
        assert "\x1b" not in answer.err
        assert len(answer.err) < 600
    assert store.pools.names() == []
    assert orch("work-pool", "create", "東京 🚀").code == 0


def test_a_queue_belongs_to_a_pool(orch: Orch) -> None:
    assert orch("work-queue", "create", "urgent", "--pool", "etl").code == 3
    orch("work-pool", "create", "etl")
    made = orch("work-queue", "create", "urgent", "-p", "etl", "--priority", "1", "--concurrency-limit", "2", "-o", "json").json
    assert (made["pool"], made["priority"], made["concurrency_limit"]) == ("etl", 1, 2)
    assert orch("work-queue", "ls", "-o", "name").out.split() == ["default", "urgent"]
    assert orch("work-queue", "pause", "urgent", "-p", "etl", "-o", "json").json["paused"] is True
    assert orch("work-queue", "resume", "urgent", "-p", "etl", "-o", "json").json["paused"] is False
    assert orch("work-queue", "inspect", "nope", "-p", "etl").code == 3
    assert orch("work-queue", "delete", "default", "-p", "etl", "-y").code == 5
    assert orch("work-queue", "delete", "urgent", "-p", "etl", "-y").code == 0


# --- deployments ----------------------------------------------------------------------------------------------------------


def test_a_run_of_a_deployment_takes_typed_parameters(orch: Orch, deployment: Deployment, store: Store) -> None:
    made = orch("deployment", "run", "load/nightly", "-p", "days=3", "--tag", "x", "--name", "mine", "-o", "json").json
    assert made["parameters"] == {"region": "eu", "days": 3}
    assert (made["name"], made["tags"], made["deployment"]) == ("mine", ["core", "x"], deployment.id)
    made = orch("deployment", "run", "load/nightly", "--params", '{"days": 1, "region": "us"}', "-o", "json").json
    assert made["parameters"] == {"region": "us", "days": 1}
    assert made["name"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["load/nightly"], 2, "'days' is missing"),
        (["load/nightly", "-p", "days=x"], 2, "days"),
        (["load/nightly", "-p", "days=3", "-p", "dayz=3"], 2, "dayz"),
        (["load/nightly", "--params", "{"], 2, "JSON"),
        (["load/nightly", "-p", "days=3", "-p", "region=" + "x" * 262_145], 2, "262,144"),
        (["load/nightly", "-p", "days=3", "--start-in", "1h", "--start-at", "12:00"], 2, "exclude each other"),
        (["load/nightly", "-p", "days=3", "--start-in", "soon"], 2, "no duration"),
        (["load/nigtly", "-p", "days=3"], 3, "load/nightly"),
    ],
)
def test_a_wrong_run_is_refused_before_anything_is_queued(
    words: list[str], code: int, said: str, orch: Orch, deployment: Deployment, store: Store
) -> None:
    answer = orch("deployment", "run", *words)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert store.queries.count() == 0


def test_a_run_in_a_missing_pool_is_refused_with_the_command_that_helps(
    orch: Orch, deployment: Deployment, store: Store
) -> None:
    store.pools.delete("etl")
    answer = orch("deployment", "run", "load/nightly", "-p", "days=3")
    assert (answer.code, "orch work-pool create etl --type process" in answer.err) == (3, True)
    assert store.queries.count() == 0


@pytest.mark.parametrize(
    ("gate", "said", "hint"),
    [
        ("pool:etl", "Work pool 'etl' is paused; the run will wait.", "orch work-pool resume etl"),
        (
            "queue:etl:default",
            "Work queue 'default' of 'etl' is paused; the run will wait.",
            "orch work-queue resume default --pool etl",
        ),
    ],
)
def test_a_run_behind_a_pause_is_accepted_with_a_warning_that_says_how_to_resume(
    gate: str, said: str, hint: str, orch: Orch, deployment: Deployment, store: Store
) -> None:
    """A paused pool refused it, and a paused queue said nothing."""
    store.limits.pause(gate)
    answer = orch("deployment", "run", "load/nightly", "-p", "days=3", "-o", "name")
    assert (answer.code, said in answer.err, hint in answer.err) == (0, True, True)
    assert store.runs.get(answer.out.strip()).state.name == "Scheduled"


def test_a_run_can_wait_for_its_time_and_expire(orch: Orch, deployment: Deployment, store: Store) -> None:
    made = orch("deployment", "run", "load/nightly", "-p", "days=3", "--start-in", "2h", "--expires-in", "10m", "-o", "name")
    run = store.runs.get(made.out.strip())
    assert timedelta(minutes=119) < run.due - store.now() < timedelta(minutes=121)
    assert run.expires is not None
    assert run.expires - run.due == timedelta(minutes=10)
    assert orch("work-pool", "preview", "etl", "--within", "3h", "-o", "name").out == made.out
    assert orch("work-pool", "preview", "etl", "--within", "1h", "-o", "name").out == ""


def test_the_same_idempotency_key_creates_one_run(orch: Orch, deployment: Deployment) -> None:
    words = ("deployment", "run", "load/nightly", "--idempotency-key", "k", "-o", "name")
    first = orch(*words, "-p", "days=3")
    assert orch(*words, "-p", "days=3").out == first.out
    assert orch(*words, "-p", "days=4").code == 5


def test_a_run_that_nobody_will_start_says_what_to_type(orch: Orch, deployment: Deployment) -> None:
    said = orch("deployment", "run", "load/nightly", "-p", "days=3").err
    assert "No worker polls work pool 'etl'" in said
    assert "orch worker start --pool etl" in said


def test_schedules_are_shown_paused_and_resumed_by_slug(orch: Orch, deployment: Deployment) -> None:
    shown = orch("deployment", "schedule", "ls", "load/nightly", "-o", "json").json
    assert [schedule["slug"] for schedule in shown] == ["hourly", "tokyo-9am"]
    paused = orch("deployment", "schedule", "pause", "load/nightly", "tokyo-9am", "-o", "json").json
    assert (paused["active"], paused["deployment"]) == (False, "load/nightly")
    assert orch("deployment", "schedule", "resume", "load/nightly", "tokyo-9am", "-o", "json").json["active"] is True
    assert orch("deployment", "schedule", "pause", "load/nightly", "nope").code == 3


def test_a_deployment_is_shown_paused_resumed_and_deleted(orch: Orch, deployment: Deployment) -> None:
    assert orch("deployment", "ls", "-o", "name").out == "load/nightly\n"
    assert orch("deployment", "ls", "--pool", "other", "-o", "json").json == []
    assert orch("deployment", "inspect", "load/nightly", "-o", "json").json["entrypoint"] == "load.py:load"
    assert orch("deployment", "pause", "load/nightly", "-o", "json").json["paused"] is True
    assert orch("deployment", "resume", "load/nightly", "-o", "json").json["paused"] is False
    assert orch("deployment", "delete", "load/nightly").code == 2
    assert orch("deployment", "delete", "load/nightly", "-y").code == 0
    assert "load/nightly" in orch("deployment", "inspect", "load/nightly").err


# --- flow runs ------------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_id_by_the_beginning_of_it_and_by_name(orch: Orch, run: str) -> None:
    for text in (run, run[:10], "brave-otter"):
        assert orch("flow-run", "inspect", text, "-o", "name").out == f"{run}\n"
    assert orch("flow-run", "inspect", "nobody").code == 3


def test_runs_are_listed_by_filter(orch: Orch, run: str, deployment: Deployment) -> None:
    assert orch("flow-run", "ls", "-o", "name").out == f"{run}\n"
    for words in (["--state", "scheduled"], ["--flow", "load"], ["--deployment", "load/nightly"], ["--pool", "etl"]):
        assert orch("flow-run", "ls", *words, "-o", "name").out == f"{run}\n", words
    for words in (["--state", "failed"], ["--flow", "other"], ["--tag", "x"], ["--name", "zebra"]):
        assert orch("flow-run", "ls", *words, "-o", "json").json == [], words
    assert orch("flow-run", "ls", "--deployment", "load/nope").code == 3


def test_a_list_of_runs_is_cut_with_a_warning(orch: Orch, store: Store, deployment: Deployment) -> None:
    store.runs.create([NewRun(flow="load", deployment=deployment.id, pool="etl") for _ in range(7)])
    answer = orch("flow-run", "ls", "--limit", "5", "-o", "json")
    assert len(answer.json) == 5
    assert "Only 5 are shown" in answer.err
    answer = orch("flow-run", "ls", "--limit", "0", "-o", "jsonl")
    assert (len(answer.out.splitlines()), answer.err) == (7, "")


@pytest.mark.parametrize(("end", "code"), [(Completed(), 0), (Failed("ValueError: no"), 1), (Crashed("SIGKILL"), 1)])
def test_watching_shows_the_log_and_ends_as_the_run_does(
    end: State, code: int, orch: Orch, run: str, settings: Settings
) -> None:
    with worker(settings, end):
        answer = orch("flow-run", "watch", "brave-otter")
    assert answer.code == code
    assert [line.split()[-1] for line in answer.out.splitlines()] == ["Hello", "red"]
    assert f"Flow run 'brave-otter' is {end.name}" in answer.err


def test_running_a_deployment_can_watch_it(orch: Orch, deployment: Deployment, settings: Settings) -> None:
    with worker(settings, Completed()):
        answer = orch("deployment", "run", "load/nightly", "-p", "days=3", "--watch")
    assert answer.code == 0
    assert "Hello" in answer.out
    assert "is Completed" in answer.err


def test_a_watched_run_that_is_cancelled_ends_with_7(orch: Orch, run: str, store: Store) -> None:
    store.runs.cancel(run)
    assert orch("flow-run", "watch", run).code == 7
    assert orch("flow-run", "wait", run).code == 7


def test_watching_and_waiting_give_up_with_124(orch: Orch, run: str) -> None:
    answer = orch("flow-run", "watch", run, "--timeout", "50ms")
    assert (answer.code, "The run goes on." in answer.err) == (124, True)
    assert orch("flow-run", "wait", run, "--timeout", "50ms").code == 124


def test_waiting_ends_with_the_state_that_was_asked_for(orch: Orch, run: str, store: Store, settings: Settings) -> None:
    assert orch("flow-run", "wait", run, "--for", "scheduled").code == 0
    with worker(settings, Failed()):
        assert orch("flow-run", "wait", run, "--for", "failed", "--timeout", "30s").code == 0
    assert orch("flow-run", "wait", run, "--for", "completed").code == 1
    assert orch("flow-run", "wait", run).code == 1


def test_a_log_is_printed_in_any_form(orch: Orch, run: str, store: Store) -> None:
    finish(store, claim(store), Completed(), "one", "two\nlines", "\x1b[31mred")
    assert [line.split()[-1] for line in orch("flow-run", "logs", run).out.splitlines()] == ["one", "two", "lines", "red"]
    assert [line["message"] for line in orch("flow-run", "logs", run, "-o", "json").json] == [
        "one",
        "two\nlines",
        "\x1b[31mred",
    ]
    assert orch("flow-run", "logs", run, "--tail", "1", "-o", "name").out == "red\n"
    assert orch("flow-run", "logs", run, "--tail", "0").out == ""
    assert orch("flow-run", "logs", "-f", run).out.count("\n") == 4
    assert orch("flow-run", "logs", "-f", run, "-o", "json").code == 2


def test_a_run_is_cancelled_retried_and_deleted(orch: Orch, run: str, store: Store) -> None:
    assert orch("flow-run", "cancel", run).code == 2
    assert orch("flow-run", "cancel", run, "--dry-run").code == 0
    assert store.runs.get(run).state.name == "Scheduled"
    assert orch("flow-run", "retry", run).code == 5
    assert orch("flow-run", "cancel", run, "--yes").code == 0
    assert store.runs.get(run).state.name == "Cancelled"
    assert orch("flow-run", "cancel", run, "--yes").code == 5
    assert orch("flow-run", "retry", run, "-o", "json").json["state"]["name"] == "Scheduled"
    assert orch("flow-run", "delete", run, "--yes").code == 0
    assert orch("flow-run", "inspect", run).code == 3


def test_a_run_that_executes_is_asked_to_stop_and_not_called_cancelled(orch: Orch, run: str, store: Store) -> None:
    claim(store)
    name = store.runs.get(run).name
    said = orch("flow-run", "cancel", run, "--yes").err
    assert said == f"Asked flow run '{name}' to stop; watch it with: orch flow-run watch {run}\n"
    assert store.runs.get(run).state.name == "Cancelling"


def test_nobody_is_asked_whether_to_cancel_a_run_that_has_ended(orch: Orch, run: str) -> None:
    """Without a terminal the question is an error of its own, 2; the refusal is 5."""
    orch("flow-run", "cancel", run, "--yes")
    again = orch("flow-run", "cancel", run)
    assert (again.code, "is Cancelled and cannot be cancelled" in again.err) == (5, True)


def test_runs_are_cancelled_by_filter_and_never_all_by_accident(orch: Orch, store: Store, deployment: Deployment) -> None:
    store.runs.create([NewRun(flow="load", deployment=deployment.id, pool="etl", tags=(tag,)) for tag in "aab"])
    assert orch("flow-run", "cancel", "--yes").code == 2
    assert orch("flow-run", "cancel", "somebody", "--tag", "a", "--yes").code == 2
    assert orch("flow-run", "cancel", "--tag", "a", "--yes").err == "Cancelled 2 flow runs.\n"
    assert orch("flow-run", "ls", "--state", "scheduled", "-o", "json").json[0]["tags"] == ["b"]
    assert len(orch("flow-run", "delete", "--all", "--yes", "-o", "json").json) == 3
    assert store.queries.count() == 0


@pytest.fixture
def poisoned(store: Store, deployment: Deployment) -> list[str]:
    """The ids of three runs in quarantine, of one that was ended as Crashed, and of one that failed."""
    names = ("poison-1", "poison-2", "poison-3", "ended", "failed")
    runs = []
    for name in names:
        new = NewRun(name=name, flow="load", deployment=deployment.id, pool="etl", crash_budget=1, tags=(name,))
        [created] = store.runs.create([new])
        runs.append(created.id)
        if name.startswith("poison"):
            store.runs.report_death(*claim(store), "signal 9 (SIGKILL)", worker="w1")
        else:
            finish(store, claim(store), Crashed() if name == "ended" else Failed())
    return runs


def test_runs_whose_crash_budget_is_spent_are_listed_with_the_reason(orch: Orch, poisoned: list[str]) -> None:
    assert [run["id"] for run in orch("dead", "ls", "-o", "json").json] == poisoned[2::-1]
    row = orch("dead", "ls", "--tag", "poison-1", "--columns", "name,starts-lost,reason", "--no-headers").out
    assert row == "poison-1\t1\tIts process was lost (1 of 1 starts): signal 9 (SIGKILL).\n"
    assert "Only 2 are shown" in orch("dead", "ls", "--limit", "2").err
    assert [run["id"] for run in orch("dead", "ls", "--since", "1h", "-o", "json").json] == poisoned[2::-1]
    assert orch("dead", "ls", "--since", "1h", "--flow", "other", "-o", "json").json == []
    assert "No flow run is in quarantine" in orch("dead", "ls", "--flow", "other").err


def test_a_redriven_run_starts_again_with_a_fresh_budget(orch: Orch, poisoned: list[str], store: Store) -> None:
    assert orch("dead", "redrive", "poison-1").code == 2
    assert orch("dead", "redrive", "poison-1", "--dry-run", "-o", "name").out == f"{poisoned[0]}\n"
    assert store.runs.get(poisoned[0]).is_quarantined
    assert orch("dead", "redrive", "poison-1", "--yes").err == "Redrove flow run 'poison-1'.\n"
    run = store.runs.get(poisoned[0])
    assert (run.state.name, run.crash_count, run.attempt) == ("Scheduled", 0, 1)
    assert claim(store) == (poisoned[0], 2)


def test_runs_in_quarantine_are_redriven_by_filter_and_never_all_by_accident(
    orch: Orch, poisoned: list[str], store: Store
) -> None:
    for verb in ("redrive", "drop"):
        answer = orch("dead", verb, "--yes")
        assert (answer.code, "orch dead ls" in answer.err) == (2, True)
        assert orch("dead", verb, "poison-1", "--all", "--yes").code == 2
    assert len(orch("dead", "redrive", "--deployment", "load/nightly", "--tag", "poison-2", "-y", "-o", "json").json) == 1
    assert orch("dead", "redrive", "--all", "--yes").err == "Redrove 2 flow runs.\n"
    assert [store.runs.get(run).state.name for run in poisoned] == [*["Scheduled"] * 3, "Crashed", "Failed"]
    assert orch("dead", "redrive", "--all", "--yes").err == "No run matches.\n"


def test_only_runs_in_quarantine_are_redriven_or_dropped(orch: Orch, poisoned: list[str], store: Store) -> None:
    for verb, instead in (("redrive", "retry"), ("drop", "delete")):
        answer = orch("dead", verb, "failed", "--yes")
        assert (answer.code, f"orch flow-run {instead} {poisoned[4]}" in answer.err) == (5, True)
    assert orch("dead", "drop", "poison-1", "--yes").code == 0
    assert orch("flow-run", "inspect", "poison-1").code == 3
    assert orch("dead", "drop", "--all", "--yes").err == "Dropped 2 flow runs.\n"
    assert store.queries.count() == 2


def test_what_could_not_be_read_is_shown_and_dropped(orch: Orch, store: Store, run: str) -> None:
    assert "There are no dead letters" in orch("dead", "letter", "ls").err
    for garbage in ({"r": "no id"}, {"x": "\x1b[31mred"}):
        store.client.xadd(store.keys.queue("etl", "default", "normal"), garbage)
    delivered = store.pools.wait_for_runs("etl", "w1", ["default"], timedelta(seconds=1))
    store.runs.claim("w1", "etl", ["default"], 5, delivered)
    newest, oldest = orch("dead", "letter", "ls", "-o", "json").json
    assert oldest["stream"] == "queue:etl:default:normal"
    assert oldest["reason"]
    assert "Only 1 are shown" in orch("dead", "letter", "ls", "--limit", "1").err
    assert "2 dead letters: orch dead letter ls" in orch("dead", "ls").err
    shown = orch("dead", "letter", "inspect", newest["id"]).out
    assert ("red" in shown, "\x1b" in shown) == (True, False)
    assert orch("dead", "letter", "inspect", "1-1").code == 3
    assert orch("dead", "letter", "drop").code == 2
    assert orch("dead", "letter", "drop", newest["id"], "--all").code == 2
    assert orch("dead", "letter", "drop", newest["id"]).code == 2
    assert orch("dead", "letter", "drop", newest["id"], "--dry-run", "-o", "name").out == f"{newest['id']}\n"
    assert orch("dead", "letter", "drop", newest["id"], "--yes").err == "Dropped 1 dead letter.\n"
    assert orch("dead", "letter", "drop", "--all", "--yes").err == "Dropped 1 dead letter.\n"
    assert store.letters.count() == 0


# --- the rest -------------------------------------------------------------------------------------------------------------


def test_workers_are_listed_with_what_they_run_on(orch: Orch, store: Store, deployment: Deployment) -> None:
    now = clock.now()
    store.pools.heartbeat(
        Worker("w1", "etl", "process", "host1", 42, "0.1", "3.11.7", 4, 1, ("default",), now, now, "ONLINE", timedelta())
    )
    [shown] = orch("worker", "ls", "-o", "json").json
    assert (shown["name"], shown["host"], shown["version"], shown["python"]) == ("w1", "host1", "0.1", "3.11.7")
    assert orch("worker", "ls", "--pool", "other", "-o", "json").json == []
    assert orch("work-pool", "inspect", "etl", "-o", "json").json["status"] == "READY"


def test_a_worker_is_told_to_drain(orch: Orch, store: Store, deployment: Deployment) -> None:
    now = clock.now()
    for name in ("w1", "w2"):
        store.pools.heartbeat(
            Worker(name, "etl", "process", "h", 42, "0.1", "3.11.7", 4, 1, ("default",), now, now, "ONLINE", timedelta())
        )
    assert "stops when those that it has have ended" in orch("worker", "drain", "w1").err
    assert [shown["name"] for shown in orch("worker", "drain", "w1", "w2", "-o", "json").json] == ["w1", "w2"]
    assert [told.what for told in store.pools.wait_for_control("w1", "0", timedelta(seconds=1))] == ["drain", "drain"]
    answer = orch("worker", "drain", "nope")
    assert (answer.code, "orch worker ls" in answer.err) == (3, True)


def test_variables_hold_json_or_text(orch: Orch, store: Store) -> None:
    assert orch("variable", "set", "limits", '{"rows": 10}').code == 0
    assert orch("variable", "set", "region", "eu").code == 0
    assert orch("variable", "set", "code", "007", "--text").code == 0
    assert orch("variable", "set", "region", "us").code == 5
    assert orch("variable", "set", "region", "us", "--overwrite").code == 0
    assert orch("variable", "get", "limits").out == '{"rows": 10}\n'
    assert orch("variable", "get", "region").out == "us\n"
    assert store.documents.get_variable("code").value == "007"
    assert orch("variable", "get", "nope").code == 3
    assert orch("variable", "get", "nope", "--default", "x").out == "x\n"
    assert orch("variable", "ls", "-o", "name").out.split() == ["code", "limits", "region"]
    assert orch("variable", "unset", "region").code == 2
    assert orch("variable", "unset", "region", "--yes").code == 0


def test_events_are_listed_oldest_first(orch: Orch, run: str) -> None:
    names = [event["name"] for event in orch("event", "ls", "-o", "json").json]
    assert names[0].startswith("work-pool.")
    assert len(orch("event", "ls", "--limit", "1", "-o", "json").json) == 1


def test_flows_and_task_runs_of_nothing_are_empty_lists(orch: Orch, run: str) -> None:
    assert orch("flow", "ls", "-o", "json").json == [{"name": "load"}]
    assert orch("task-run", "ls", run, "-o", "json").json == []
    assert orch("task-run", "inspect", run, "nope").code == 3


def test_a_password_in_the_url_is_never_shown(orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_REDIS_URL", "redis://:canary@127.0.0.1:1/0")
    for words in (["config", "view"], ["config", "view", "-o", "json"], ["doctor"], ["server", "status"], ["flow-run", "ls"]):
        answer = orch(*words)
        assert "canary" not in answer.out + answer.err, words
    assert orch("config", "set", "redis_url", "redis://:canary@h/0").code == 2
    assert orch("profile", "create", "p", "redis_url=redis://:canary@h/0").code == 2
    assert orch("profile", "ls", "-o", "name").out == "default\n"
