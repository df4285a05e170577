"""orch.yaml: what is read, what is refused and where, and what a hostile file costs."""

from __future__ import annotations

import contextlib
import textwrap
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.deployments import file, located
from orchestrator.deployments.file import Entry
from orchestrator.exceptions import InvalidDefinition, InvalidName, OrchError, StepError

TUTORIAL = """\
name: my-first-project
prefect-version: 3.4.0
build: null
push: null
pull: null
deployments:
- name: hello_flow
  version: null
  tags: []
  concurrency_limit: null
  description: null
  flow_name: hello_flow
  entrypoint: hello_flow.py:hello_flow
  parameters: {}
  work_pool:
    name: null
    work_queue_name: null
    job_variables: {}
  enforce_parameter_schema: true
  schedules:
  - cron: 0 14 * * *
    timezone: Asia/Tokyo
    day_or: true
    active: true
    max_active_runs: null
    catchup: false
    slug: tokyo-9am
  - cron: 0 12 * * *
    timezone: UTC
    slug: utc-noon
    active: false
"""

ONE = """\
deployments:
- name: hello
  entrypoint: hello.py:hello
"""


def read(folder: Path, text: str, name: str = "orch.yaml") -> file.Project:
    (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return file.read(folder)


def entry(folder: Path, text: str) -> Entry:
    project = read(folder, text)
    return project.entry(project.deployments[0], lambda text: text, lambda text: text)


def refused(folder: Path, text: str, kind: type[OrchError] = InvalidDefinition) -> OrchError:
    with pytest.raises(kind) as caught:
        entry(folder, text)
    return caught.value


def test_the_tutorials_file_is_read(tmp_path: Path) -> None:
    found = entry(tmp_path, TUTORIAL)
    assert (found.name, found.flow_name, found.entrypoint) == ("hello_flow", "hello_flow", "hello_flow.py:hello_flow")
    assert (found.pool, found.queue, found.pull, found.concurrency_limit) == (None, None, None, None)
    assert [(s.slug, s.cron, s.timezone, s.active) for s in found.schedules] == [
        ("tokyo-9am", "0 14 * * *", "Asia/Tokyo", True),
        ("utc-noon", "0 12 * * *", "UTC", False),
    ]


def test_orch_yaml_comes_before_prefect_yaml(tmp_path: Path) -> None:
    read(tmp_path, ONE.replace("hello", "from_prefect"), "prefect.yaml")
    assert file.find(tmp_path).name == "prefect.yaml"
    read(tmp_path, ONE, "orch.yaml")
    assert file.find(tmp_path).name == "orch.yaml"


def test_a_folder_without_a_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidDefinition, match=r"no orch\.yaml") as caught:
        file.read(tmp_path)
    assert caught.value.hint == "Create one with: orch init"


def test_every_key_may_be_null(tmp_path: Path) -> None:
    keys = [*file._DEPLOYMENT_KEYS]
    text = "deployments:\n- " + "\n  ".join(f"{key}: null" for key in keys) + "\n"
    text += "\n".join(f"{key}:" for key in file._PROJECT_KEYS if key != "deployments") + "\n"
    assert entry(tmp_path, text).name is None


def test_every_value_is_read(tmp_path: Path) -> None:
    found = entry(
        tmp_path,
        """\
        deployments:
        - name: nightly
          version: 1.10
          description: Loads the night.
          tags: [etl, eu, etl]
          flow_name: Load
          entrypoint: flows/load.py:load
          parameters: {region: eu, days: 3, when: 2026-01-01, deep: {on: [1, null, true]}}
          enforce_parameter_schema: no
          concurrency_limit: {limit: 2, collision_strategy: cancel_new}
          crash_budget: 1
          paused: true
          work_pool: {name: gpu, work_queue_name: high, job_variables: {env: {A: "1"}}}
          pull:
          - prefect.deployments.steps.set_working_directory: {directory: /opt/flows}
          schedules:
          - {interval: 5400, anchor_date: "2026-01-01T09:00:00", timezone: Asia/Tokyo, slug: often, parameters: {days: 1}}
          - {rrule: "FREQ=WEEKLY;BYDAY=MO", active: off, max_scheduled_runs: 7, misfire: ALL, misfire_limit: 9}
        """,
    )
    assert (found.name, found.version, found.description, found.tags) == ("nightly", "1.10", "Loads the night.", ("etl", "eu"))
    assert found.parameters == {"region": "eu", "days": 3, "when": "2026-01-01", "deep": {"on": [1, None, True]}}
    assert (found.concurrency_limit, found.collision_strategy, found.crash_budget) == (2, "CANCEL_NEW", 1)
    assert (found.paused, found.enforce_parameter_schema) == (True, False)
    assert (found.pool, found.queue, found.job_variables) == ("gpu", "high", {"env": {"A": "1"}})
    assert found.pull == [{"prefect.deployments.steps.set_working_directory": {"directory": "/opt/flows"}}]
    often, weekly = found.schedules
    assert often.interval == timedelta(hours=1.5)
    assert often.anchor == datetime(2026, 1, 1, tzinfo=UTC)
    assert often.parameters == {"days": 1}
    assert (weekly.rrule, weekly.active, weekly.max_scheduled_runs) == ("FREQ=WEEKLY;BYDAY=MO", False, 7)
    assert [(s.misfire, s.misfire_limit) for s in (often, weekly)] == [("latest", 100), ("all", 9)]
    assert found.active_unsaid == ("often",)


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    found = entry(
        tmp_path,
        """\
        definitions:
          pool: &pool {name: gpu, work_queue_name: low}
          hourly: &hourly {interval: 3600, timezone: UTC}
        deployments:
        - name: a
          work_pool:
            <<: *pool
            work_queue_name: high
          schedule:
            <<: [*hourly]
        """,
    )
    assert (found.pool, found.queue, found.schedules[0].interval) == ("gpu", "high", timedelta(hours=1))


def test_a_project_may_give_steps_to_all_deployments(tmp_path: Path) -> None:
    step = "orchestrator.deployments.steps.set_working_directory: {directory: /opt}"
    assert entry(tmp_path, f"pull:\n- {step}\n{ONE}").pull == [
        {"orchestrator.deployments.steps.set_working_directory": {"directory": "/opt"}}
    ]


def test_schedules_without_a_slug_get_one_that_stays(tmp_path: Path) -> None:
    text = (
        ONE
        + "  schedules:\n  - cron: 0 9 * * *\n  - cron: 0 9 * * *\n"
        + "  - {interval: 60}\n  - {cron: 0 9 * * *, timezone: Asia/Tokyo}\n"
    )
    slugs = [schedule.slug for schedule in entry(tmp_path, text).schedules]
    assert slugs == ["cron-0-9-x-x-x", "cron-0-9-x-x-x-2", "every-60s", "cron-0-9-x-x-x-asia-tokyo"]
    lines = text.splitlines()
    moved = "\n".join([*lines[:-4], lines[-1], lines[-2], *lines[-4:-2]])
    assert {schedule.slug for schedule in entry(tmp_path, moved).schedules} == set(slugs)


def test_keys_without_effect_are_told(tmp_path: Path) -> None:
    text = ONE + "  triggers: [{match: {a: b}}]\n  sla: []\n  schedule: {cron: 0 9 * * *, catchup: true, replaces: null}\n"
    assert entry(tmp_path, text).ignored == ("triggers", "catchup")
    assert entry(tmp_path, TUTORIAL).ignored == ()


@pytest.mark.parametrize("strategy", ["ENQUEUE", "CANCEL_NEW", "CANCEL_RUNNING"])
def test_every_collision_strategy_is_read(tmp_path: Path, strategy: str) -> None:
    found = entry(tmp_path, f"deployments:\n- name: a\n  concurrency_limit: {{limit: 1, collision_strategy: {strategy}}}\n")
    assert found.collision_strategy == strategy


@pytest.mark.parametrize(
    ("text", "place", "says", "hint"),
    [
        ("deployments:\n- name: a\n  entry_point: x.py:f\n", "3:3", "'entry_point' is not a key of a deployment", "entrypoint"),
        ("deployment:\n- name: a\n", "1:1", "not a key of a project", "'deployments'"),
        ("deployments:\n- name: a\n  schedules:\n  - crno: 0 9 * * *\n", "4:5", "not a key of a schedule", "'cron'"),
        ("deployments:\n- name: a\n  work_pool:\n    nmae: x\n", "4:5", "not a key of a work pool", "'name'"),
        ("deployments:\n- name: a\n  name: b\n", "3:3", "second time; the first is on line 2", "Remove"),
        ("deployments:\n- name: a\n  schedules:\n  - cron: 0 9 * *\n", "4:11", "has 4 fields", "five"),
        ("deployments:\n- name: a\n  schedule: {cron: 0 9 * * *, timezone: Asia/Tokio}\n", "3:41", "Tokio", "Asia/Tokyo"),
        ("deployments:\n- name: a\n  schedule: {interval: 0}\n", "3:24", "interval", "1 second"),
        ("deployments:\n- name: a\n  schedule: {interval: soon}\n", "3:24", "number of seconds", "3600"),
        ("deployments:\n- name: a\n  schedule: {interval: 60, anchor_date: never}\n", "3:41", "date and a time", "2026"),
        ("deployments:\n- name: a\n  schedule: {interval: 60, cron: 0 9 * * *}\n", "3:34", "exactly one", "cron"),
        ("deployments:\n- name: a\n  schedule: {}\n", "3:13", "exactly one", "cron"),
        ("deployments:\n- name: a\n  schedule: {cron: 0 9 * * *}\n  schedules: []\n", "3:3", "both", "schedules"),
        (
            "deployments:\n- name: a\n  schedules: [{cron: 0 9 * * *, slug: x}, {interval: 60, slug: x}]\n",
            "3:43",
            "two",
            "unique",
        ),
        ("deployments:\n- name: a\n  schedules: daily\n", "3:14", "list", "dash"),
        ("deployments: {name: a}\n", "1:14", "is a list", "dash"),
        ("deployments:\n- hello\n", "2:3", "a deployment is a mapping", "name"),
        ("- name: a\n", "1:1", "a project is a mapping", "deployments"),
        ("deployments:\n- name: a\n  parameters: [1]\n", "3:15", "mapping", None),
        ("deployments:\n- name: a\n  tags: {a: b}\n", "3:9", "list", "tags"),
        ("deployments:\n- name: a\n  tags: [{a: b}]\n", "3:10", "tag is text", None),
        ("deployments:\n- name: a\n  paused: maybe\n", "3:11", "true or false", None),
        ("deployments:\n- name: a\n  concurrency_limit: 0\n", "3:22", "from 1", None),
        ("deployments:\n- name: a\n  concurrency_limit: {limit: 1, collision_strategy: FIGHT}\n", "3:53", "FIGHT", "ENQUEUE"),
        ("deployments:\n- name: a\n  entrypoint: [a, b]\n", "3:15", "is text", None),
        ("deployments:\n- name: a\n  pull: [nothing]\n", "3:10", "A step is one name", "set_working_directory"),
        ("deployments:\n- name: a\n bad: 1\n", "3:2", "not YAML", "indentation"),
        ("deployments:\n\t- name: a\n", "2:1", "not YAML", "tabs"),
        ("deployments: [\n", "2:1", "not YAML", "indentation"),
        ("deployments: 'open\n", "2:1", "not YAML", "quotes"),
        ("a: *nothing\n", "1:4", "undefined alias", None),
        ("a: 1\n---\nb: 2\n", "2:1", "single document", None),
        ("a: !!python/object/apply:os.system [ls]\n", "1:4", "tag", "plain"),
        ("a: !!python/name:os.system\n", "1:4", "tag", "plain"),
        ("a: !custom 1\n", "1:4", "tag", "plain"),
        ("a: !!binary aGk=\n", "1:4", "tag", "plain"),
        ("? [1, 2]\n: x\n", "1:3", "key is text", None),
        ("a: !!int lots\n", "1:4", "not a int", None),
        ("definitions: &a [*a]\n", "1:14", "contains itself", None),
        ("a: &x 1\nb:\n  <<: *x\n", "1:4", "takes a mapping", "anchored"),
        ("\n", "1:1", "empty", "orch init"),
        ("a: \x07\n", "1:4", "not YAML", None),
    ],
)
def test_a_mistake_is_shown_with_line_column_and_what_was_meant(
    tmp_path: Path, text: str, place: str, says: str, hint: str | None
) -> None:
    error = refused(tmp_path, text)
    assert str(error).startswith(f"orch.yaml:{place}: ")
    assert says in str(error)
    assert hint is None or hint in str(error.hint)


def test_a_name_that_cannot_be_used_is_shown_with_its_line(tmp_path: Path) -> None:
    assert str(refused(tmp_path, "deployments:\n- name: a/b\n", InvalidName)).startswith("orch.yaml:2:9: ")


def test_a_step_of_prefects_that_is_not_here_yet_says_so_with_its_line(tmp_path: Path) -> None:
    text = "deployments:\n- name: a\n  pull:\n  - prefect.deployments.steps.git_clone: {repository: x}\n"
    error = refused(tmp_path, text, StepError)
    assert str(error).startswith("orch.yaml:4:5: ")
    assert "not available in this version" in str(error)
    assert "set_working_directory" in str(error.hint)


def test_a_file_that_is_not_utf8_is_shown_where(tmp_path: Path) -> None:
    (tmp_path / "orch.yaml").write_bytes("name: x\ndescription: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(InvalidDefinition, match=r"orch\.yaml:2:17: this is not UTF-8"):
        file.read(tmp_path)


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    (tmp_path / "orch.yaml").write_bytes(b"\xef\xbb\xbf" + ONE.encode())
    assert len(file.read(tmp_path).deployments) == 1


def test_what_is_no_regular_file_is_not_read() -> None:
    with pytest.raises(InvalidDefinition, match="not a file"):
        located.read(Path("/dev/zero"))
    with pytest.raises(InvalidDefinition, match="not a file"):
        located.read(Path("a\0b"))


def bomb(levels: int = 30) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int = 40) -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: v}}" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE: dict[str, Any] = {
    "aliases": bomb(),
    "merges": merge_bomb(),
    "deep lists": "[" * 500_000,
    "deep mappings": "{a: " * 200_000,
    "deep blocks": "\n".join(" " * n + "a:" for n in range(1_000)),
    "deep aliases": "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 5_000)),
    "many": "a:\n" + "- 1\n" * 250_000,
    "too large": "#" * (located.SIZE_LIMIT + 1),
    "a long number": "a: " + "9" * 100_000,
    "a long line": "a: '" + "x" * 900_000 + "'\nb: [",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_quickly_and_in_little_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "orch.yaml").write_text(HOSTILE[name])
    began = time.process_time()
    with pytest.raises(InvalidDefinition):
        file.read(tmp_path)
    assert time.process_time() - began < 1
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDefinition):
            file.read(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 1024 * 1024
    finally:
        tracemalloc.stop()


yaml_like = st.lists(
    st.sampled_from(
        [
            *(
                "deployments:",
                "- ",
                "name",
                ": ",
                "a",
                "\n",
                "  ",
                "schedules:",
                "cron",
                "'",
                '"',
                "[",
                "]",
                "{",
                "}",
                ",",
                "&x ",
                "*x",
            ),
            *(
                "<<: ",
                "!!",
                "!x ",
                "|",
                ">",
                "?",
                "null",
                "0 9 * * *",
                "1e9",
                ".nan",
                "0x1F",
                "12:30:00",
                "2026-01-01",
                "\t",
                "#",
                "---",
            ),
            *(
                "interval: ",
                "work_pool: ",
                "concurrency_limit: ",
                "tags: ",
                "pull: ",
                "\u3042",
                "\0",
                "\x85",
                "\ufeff",
                "%YAML 9",
            ),
        ]
    ),
    max_size=40,
).map("".join)


@given(yaml_like | st.text(max_size=60))
@settings(max_examples=600, deadline=None)
def test_any_text_is_a_project_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(OrchError):
        root = located.parse(text.encode("utf-8", "surrogatepass"), "orch.yaml")
        assert isinstance(root.plain(), dict | list | str | int | float | bool | type(None))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0 9 * * *", "UTC", "a/b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from((*file._DEPLOYMENT_KEYS, *file._SCHEDULE_KEYS, *file._POOL_KEYS, *file._LIMIT_KEYS)),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(file._DEPLOYMENT_KEYS), plain, max_size=8))
@settings(max_examples=400, deadline=None)
def test_any_value_under_any_key_is_read_or_a_clear_error(deployment: dict[str, Any]) -> None:
    place = located.Place("orch.yaml", 1, 1)
    root = located.located({"deployments": [deployment]}, place)
    with contextlib.suppress(OrchError):
        project = file.project_of(Path("orch.yaml"), root)
        file_entry = project.entry(project.deployments[0], lambda text: text, lambda text: text)
        assert isinstance(file_entry, Entry)
