"""Schedules and deployments: plan under a generation and a mark, reschedule, save, pause, delete."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from floor import Floor
from orchestrator.exceptions import InvalidName, ObjectNotFound
from orchestrator.keys import new_id, shorten
from orchestrator.models import Deployment, Schedule
from orchestrator.store.answers import Planned


def deployed(floor: Floor, *schedules: Schedule, **fields: object) -> Deployment:
    return floor.store.deployments.save(
        Deployment("d", "f", "f.py:f", pool="p", schedules=list(schedules or [Schedule("s", cron="* * * * *")]), **fields)  # type: ignore[arg-type]
    )


def plan(floor: Floor, deployment: Deployment, *seconds: int, schedule: Schedule | None = None) -> tuple[Planned, list[str]]:
    """Plan fires so many seconds from now, as a planner does that has read the deployment just so."""
    schedule = schedule or deployment.schedules[0]
    fires = [(fire_id(schedule, floor.after(s)), f"run {s}", floor.after(s)) for s in seconds]
    answer = floor.store.runs.plan(deployment, schedule, fires, mark=fires[-1][2], next_plan=fires[0][2])
    return answer, [run for run, _, _ in fires]


def fire_id(schedule: Schedule, at: datetime) -> str:
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{schedule.generation} {at.isoformat()}"))


def test_fires_become_runs_with_what_deployment_and_schedule_give_them(floor: Floor) -> None:
    schedule = Schedule("s", cron="* * * * *", parameters={"b": 3})
    deployment = deployed(floor, schedule, parameters={"a": 1, "b": 2}, tags=("t",), crash_budget=1)
    answer, [run, _] = plan(floor, deployment, 60, 120)
    assert answer == Planned("created", 2)
    found = floor.get(run)
    assert (found.place, found.name, found.due, found.schedule) == ("due", "run 60", floor.after(60), "s")
    assert (found.parameters, found.tags, found.crash_budget) == ({"a": 1, "b": 3}, ("t",), 1)
    assert (found.deployment, found.deployment_name, found.created_by) == (deployment.id, "d", "schedule s")
    assert floor.store.deployments.planned(deployment, deployment.schedules[0], floor.now()) == 2
    assert floor.store.deployments.get("f/d").schedules[0].mark == floor.after(120)


def test_of_two_planners_that_read_the_same_mark_the_second_is_stale(floor: Floor) -> None:
    deployment = deployed(floor)
    assert plan(floor, deployment, 60, 120)[0] == Planned("created", 2)
    assert plan(floor, deployment, 60, 120)[0] == Planned("stale", 0)


def test_a_fire_that_is_a_run_already_is_not_created_again(floor: Floor) -> None:
    deployment = deployed(floor)
    _, [run] = plan(floor, deployment, 60)
    floor.store.runs.cancel(run)
    mark = floor.store.deployments.get("f/d").schedules[0].mark
    schedule = replace(deployment.schedules[0], mark=mark)
    assert plan(floor, deployment, 60, 120, schedule=schedule)[0] == Planned("created", 1)
    assert floor.place(run) == ("ended", "Cancelled")


def test_a_plan_of_an_older_generation_is_stale(floor: Floor) -> None:
    deployment = deployed(floor)
    floor.store.deployments.pause_schedule("f/d", "s")
    floor.store.deployments.resume_schedule("f/d", "s")
    assert plan(floor, deployment, 60)[0] == Planned("stale", 0)


def test_a_mark_never_goes_back_within_a_generation(floor: Floor) -> None:
    deployment = deployed(floor)
    plan(floor, deployment, 120)
    schedule = floor.store.deployments.get("f/d").schedules[0]
    assert plan(floor, deployment, 60, schedule=schedule)[0] == Planned("stale", 0)


def test_a_fire_that_is_due_already_is_queued(floor: Floor) -> None:
    deployment = deployed(floor)
    floor.wait(90)
    _, [run] = plan(floor, deployment, -30)
    assert floor.place(run) == ("queued", "Scheduled")
    assert floor.store.deployments.planned(deployment, deployment.schedules[0], floor.now()) == 0


def test_a_planned_run_that_becomes_due_is_planned_no_more(floor: Floor) -> None:
    deployment = deployed(floor)
    plan(floor, deployment, 60, 120)
    floor.wait(60)
    assert floor.store.runs.release_due().count == 1
    assert floor.store.deployments.planned(deployment, deployment.schedules[0], floor.now()) == 1


@pytest.mark.parametrize("change", ["pause", "pause_schedule", "change", "remove", "template", "delete"])
def test_a_schedule_that_changes_deletes_what_is_planned_and_not_due(floor: Floor, change: str) -> None:
    deployment = deployed(floor)
    generation = deployment.schedules[0].generation
    _, [started, planned] = plan(floor, deployment, 60, 120)
    floor.wait(60)
    floor.store.runs.release_due()
    floor.claim()
    match change:
        case "pause":
            floor.store.deployments.pause("f/d")
        case "pause_schedule":
            assert not floor.store.deployments.pause_schedule("f/d", "s").active
        case "change":
            deployed(floor, Schedule("s", cron="0 * * * *"))
        case "remove":
            deployed(floor, Schedule("other", cron="0 * * * *"))
        case "template":
            deployed(floor, parameters={"x": 1})
        case "delete":
            floor.store.deployments.delete("f/d")
    assert floor.place(started) == ("leased", "Pending")
    with pytest.raises(ObjectNotFound):
        floor.get(planned)
    if change not in ("remove", "delete"):
        schedule = floor.store.deployments.get("f/d").schedules[0]
        assert schedule.generation > generation
        assert schedule.mark == floor.now()
    due = floor.store.deployments.due_for_planning()
    assert [schedule.slug for _, schedule in due] == {"change": ["s"], "template": ["s"], "remove": ["other"]}.get(change, [])


def test_a_deployment_that_is_saved_unchanged_keeps_its_planned_runs(floor: Floor) -> None:
    deployment = deployed(floor)
    _, [run] = plan(floor, deployment, 60)
    again = deployed(floor, Schedule("s", cron="* * * * *"), description="changed")
    assert (again.id, again.revision, again.description) == (deployment.id, 2, "changed")
    assert floor.place(run) == ("due", "Scheduled")


def test_a_saved_deployment_is_read_back_whole(floor: Floor) -> None:
    schedules = [
        Schedule("a", cron="0 14 * * *", timezone="Asia/Tokyo", day_or=False, parameters={"x": [1]}, max_scheduled_runs=5),
        Schedule("b", interval=timedelta(minutes=5), anchor=floor.now(), active=False),
        Schedule("c", rrule="FREQ=DAILY", misfire="all", misfire_limit=7),
    ]
    new = Deployment(
        "日本語",
        "my flow",
        "f.py:f",
        path="/srv",
        description="d",
        version="1",
        tags=("t",),
        parameters={"n": None},
        parameter_schema={"type": "object"},
        enforce_parameter_schema=False,
        pool="p",
        queue="q",
        job_variables={"env": {"A": "1"}},
        pull=[{"step": {}}],
        concurrency_limit=3,
        collision_strategy="CANCEL_NEW",
        crash_budget=1,
        paused=True,
        schedules=schedules,
        deployed_from="host",
    )
    saved = floor.store.deployments.save(replace(new))
    read = floor.store.deployments.get(saved.id)
    assert read == saved == floor.store.deployments.get("my flow/日本語") == floor.store.deployments.find("my flow", "日本語")
    store_given = {"id": saved.id, "created": floor.now(), "updated": floor.now(), "revision": 1}
    marks = [{"generation": schedule.generation, "mark": floor.now()} for schedule in read.schedules]
    assert read == replace(new, **store_given, schedules=[replace(s, **m) for s, m in zip(schedules, marks, strict=True)])  # type: ignore[arg-type]
    assert floor.store.limits.get(f"deployment:{shorten(saved.id)}").limit == 3


def test_deployments_are_found_by_slug_id_flow_and_pool(floor: Floor) -> None:
    one, two = deployed(floor), floor.store.deployments.save(Deployment("e", "g", "g.py:g", pool="other"))
    everything = floor.store.deployments
    assert [found.slug for found in everything.all()] == ["f/d", "g/e"]
    assert [found.slug for found in everything.all(flow="f")] == [found.slug for found in everything.all(pool="p")] == ["f/d"]
    assert [found and found.slug for found in everything.get_many([two.id, new_id(), one.id])] == ["g/e", None, "f/d"]
    assert (everything.slugs(), everything.flows()) == (["f/d", "g/e"], ["f", "g"])
    with pytest.raises(ObjectNotFound) as caught:
        everything.get("f/b")
    assert "f/d" in (caught.value.hint or "")
    for unknown in (new_id(), "x" * 36, "nothing like it"):
        with pytest.raises(ObjectNotFound):
            everything.get(unknown)
    with pytest.raises(ObjectNotFound, match="no schedule"):
        everything.pause_schedule("f/d", "nope")
    with pytest.raises(InvalidName):
        everything.save(Deployment("a/b", "f", "f.py:f"))


def test_a_deleted_deployment_takes_its_waiting_runs_along_and_leaves_those_that_execute(floor: Floor) -> None:
    deployment = deployed(floor, concurrency_limit=1)
    executing = floor.running(deployment=deployment.id)
    waiting = [floor.submit(deployment=deployment.id), floor.submit(deployment=deployment.id, due=floor.after(60))]
    floor.claim()
    floor.store.deployments.delete("f/d")
    assert floor.place(executing) == ("leased", "Running")
    assert {floor.place(run) for run in waiting} == {("ended", "Cancelled")}
    assert floor.get(executing).deployment_name is None
    assert floor.finish(executing) == "ok"
    left = [key.decode() for key in floor.store.client.scan_iter(f"{floor.store.keys}*{shorten(deployment.id)}*")]
    assert left == [floor.store.keys.index("deployment", shorten(deployment.id))]


def test_a_schedule_of_a_deployment_that_is_gone_is_not_put_back(floor: Floor) -> None:
    # A pause beside a delete left half a deployment behind, on which every planner failed from then on.
    deployment = deployed(floor)
    floor.store.deployments.delete("f/d")
    floor.store.scripts.call("reschedule", deployment=shorten(deployment.id), slug="s", definition="x", active=1)
    assert floor.store.deployments.due_for_planning() == []
    assert not floor.store.client.exists(floor.store.keys.deployment(shorten(deployment.id)))


def test_the_most_urgent_schedule_is_planned_first(floor: Floor) -> None:
    deployment = deployed(floor, Schedule("a", cron="* * * * *"), Schedule("b", cron="* * * * *"))
    plan(floor, deployment, 60, schedule=deployment.schedules[0])
    assert [schedule.slug for _, schedule in floor.store.deployments.due_for_planning()] == ["b"]
    floor.wait(60)
    assert [schedule.slug for _, schedule in floor.store.deployments.due_for_planning()] == ["b", "a"]
