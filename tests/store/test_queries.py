"""Finding runs, reading on, following one live; and the feed of events."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from floor import Floor, missing_run, named
from orchestrator.exceptions import ObjectNotFound, OrchError
from orchestrator.keys import new_id, shorten
from orchestrator.models import LogLine, NewRun, RunFilter
from orchestrator.states import State
from orchestrator.store import Store


def ids(floor: Floor, **wanted: object) -> set[str]:
    return {run.id for run in floor.store.queries.runs(RunFilter(**wanted)).runs}  # type: ignore[arg-type]


def line(floor: Floor, text: str) -> LogLine:
    return LogLine(floor.now(), 20, "root", text, 1)


def texts(items: list[LogLine | State]) -> list[str]:
    return [item.message if isinstance(item, LogLine) else item.name for item in items]


def test_every_part_of_a_filter_counts(floor: Floor) -> None:
    deployment, parent = new_id(), new_id()
    three = floor.ended("Failed", flow="f")
    one = floor.submit(flow="f", name="brave-otter", tags=("a", "b"), deployment=deployment)
    two = floor.submit(flow="g", name="calm-bear", tags=("a",), parent=parent, due=floor.after(60))
    assert ids(floor) == {one, two, three}
    assert ids(floor, flow="f") == {one, three}
    assert ids(floor, deployment=deployment) == {one}
    assert ids(floor, parent=parent) == {two}
    assert ids(floor, tags=("a",)) == {one, two}
    assert ids(floor, tags=("a", "b")) == {one}
    assert ids(floor, name="OTTER") == {one}
    assert ids(floor, pool="other") == set()
    assert ids(floor, states=("failed",)) == {three}
    assert ids(floor, states=("SCHEDULED",)) == {one, two}
    assert ids(floor, states=("Failed",), flow="g") == set()
    assert ids(floor, states=("nonsense",)) == set()
    assert ids(floor, since=floor.after(1)) == {two}
    assert ids(floor, until=floor.after(1)) == {one, three}
    assert floor.store.queries.count() == 3
    assert floor.store.queries.count(RunFilter(states=("Failed",))) == 1
    assert floor.store.queries.count(RunFilter(tags=("a",))) == 2


def test_a_state_with_a_name_of_its_own_is_found_under_its_type(floor: Floor) -> None:
    run = floor.ended("COMPLETED:Skipped")
    assert ids(floor, states=("Completed",)) == ids(floor, states=("COMPLETED",)) == {run}


@pytest.mark.parametrize("wanted", [RunFilter(), RunFilter(flow="f"), RunFilter(states=("Scheduled",)), RunFilter(tags=("a",))])
def test_pages_go_on_where_they_stopped_though_scores_are_equal(floor: Floor, wanted: RunFilter) -> None:
    created = floor.store.runs.create([NewRun("f", pool="p", tags=("a",)) for _ in range(25)])
    floor.wait(1)
    created += floor.store.runs.create([NewRun("f", pool="p", tags=("a",)) for _ in range(5)])
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = floor.store.queries.runs(wanted, limit=7, cursor=cursor)
        found += page.runs
        cursor, pages = page.cursor, pages + 1
    assert sorted(run.id for run in found) == sorted(run.id for run in created)
    assert [run.due for run in found] == sorted((run.due for run in found), reverse=True)
    assert pages == 5


def test_a_cursor_stays_in_its_index_though_another_becomes_smaller(floor: Floor) -> None:
    # Its scores mean something else there: runs were skipped, and others came twice.
    flow_runs = floor.store.runs.create([NewRun("f", pool="p", due=floor.after(number)) for number in range(10, 0, -1)])
    wanted = RunFilter(flow="f", states=("Scheduled",))
    first = floor.store.queries.runs(wanted, limit=5)
    floor.store.runs.create([NewRun("other", pool="p") for _ in range(20)])
    rest = floor.store.queries.runs(wanted, limit=50, cursor=first.cursor)
    assert sorted(run.id for run in first.runs + rest.runs) == sorted(run.id for run in flow_runs)


@pytest.mark.parametrize("cursor", ["x", "5.abc", "slots:tag:a@5.abc", "index:all@x.y", "index:all@5."])
def test_what_is_no_cursor_is_refused(floor: Floor, cursor: str) -> None:
    with pytest.raises(OrchError, match="is no cursor"):
        floor.store.queries.runs(cursor=cursor)


def test_a_dangling_member_is_dropped_on_the_way(floor: Floor) -> None:
    runs = [floor.submit() for _ in range(3)]
    floor.store.client.zadd(floor.store.keys.index("all"), {shorten(missing_run()): floor.clock.ms})
    assert ids(floor) == set(runs)
    assert floor.store.client.zcard(floor.store.keys.index("all")) == 3


def test_a_run_is_found_by_what_people_type(floor: Floor) -> None:
    run, twin, other = floor.submit(name="calm-bear"), floor.submit(name="twin"), floor.submit(name="twin")
    find = floor.store.queries.find
    assert find(run).id == find(run.upper()).id == find(run[:30]).id == find("calm-bear").id == run
    with pytest.raises(OrchError, match="stands for 2 flow runs"):
        find("twin")
    with pytest.raises(OrchError, match="stands for 3 flow runs"):
        find(run[:6])
    for unknown in ("nobody", missing_run(), "ffffff", ""):
        with pytest.raises(ObjectNotFound):
            find(unknown)
    assert {twin, other} < ids(floor)


def test_upcoming_runs_come_in_the_order_of_their_start(floor: Floor) -> None:
    later, soon, far = (floor.submit(due=floor.after(seconds)) for seconds in (60, 30, 9000))
    late = floor.submit()
    floor.wait(16)
    floor.store.runs.mark_late()
    upcoming = floor.store.queries.upcoming
    assert [run.id for run in upcoming(pool="p", until=floor.after(3600))] == [late, soon, later]
    assert [run.id for run in upcoming(limit=1)] == [late]
    assert upcoming(pool="other") == upcoming(deployment=new_id()) == []
    assert far in [run.id for run in upcoming()]


def test_following_an_ended_run_gives_its_state_and_its_whole_log(floor: Floor) -> None:
    run = floor.running()
    floor.store.runs.append_log({run: [line(floor, str(number)) for number in range(3)]})
    floor.finish(run)
    assert texts(list(floor.store.queries.follow(run))) == ["Completed", "0", "1", "2"]
    first = floor.store.runs.read_log(run)[0]
    assert texts(list(floor.store.queries.follow(run, after=first.id))) == ["Completed", "1", "2"]
    with pytest.raises(ObjectNotFound):
        next(floor.store.queries.follow(missing_run()))


def test_following_a_live_run_gives_lines_and_states_as_they_come(floor: Floor) -> None:
    run = floor.submit()
    seen: list[LogLine | State] = []
    grown = threading.Condition()

    def follow() -> None:
        for item in floor.store.queries.follow(run):
            with grown:
                seen.append(item)
                grown.notify_all()

    def wait_for(predicate: Callable[[], bool]) -> None:
        with grown:
            assert grown.wait_for(predicate, timeout=20), texts(seen)

    follower = threading.Thread(target=follow)
    follower.start()
    wait_for(lambda: texts(seen) == ["Scheduled"])
    floor.claim(start=True)
    wait_for(lambda: texts(seen)[-1] == "Running")
    floor.submit()
    floor.store.runs.append_log({run: [line(floor, "one")]})
    wait_for(lambda: texts(seen)[-1] == "one")
    floor.store.runs.append_log({run: [line(floor, "two")]})
    floor.finish(run, "Failed")
    follower.join(timeout=20)
    assert texts(seen) == ["Scheduled", "Running", "one", "two", "Failed"]


def test_the_feed_is_read_in_order_and_from_a_place(floor: Floor) -> None:
    events = floor.store.events
    start = events.last_id()
    events.append("custom", colour="blue")
    run = floor.submit()
    first, second = events.read(start)
    assert (first.name, first.fields) == ("custom", {"colour": "blue"})
    assert (second.name, second.fields["run"]) == ("run.Scheduled", run)
    assert events.read(first.id, limit=1) == [second]
    assert events.read(events.last_id()) == []
    assert [event.name for event in events.latest(1)] == ["run.Scheduled"]


def test_an_empty_feed_has_a_place_to_follow_from(frozen_store: Store) -> None:
    assert (frozen_store.events.last_id(), frozen_store.events.latest()) == ("0-0", [])


def test_a_run_is_read_back_with_its_history(floor: Floor) -> None:
    run = floor.submit()
    floor.wait(1)
    floor.claim()
    floor.wait(1)
    floor.store.runs.set_state(run, named("Running"), attempt=1, worker="w")
    floor.wait(1)
    floor.finish(run, "Failed")
    found = floor.get(run)
    assert [(entry.name, entry.attempt) for entry in found.history] == [
        ("Scheduled", 0),
        ("Pending", 1),
        ("Running", 1),
        ("Failed", 1),
    ]
    assert found.history[-1].at - found.history[0].at == timedelta(seconds=3)
    assert found.duration == timedelta(seconds=1)
    with pytest.raises(ObjectNotFound):
        floor.get(missing_run())


def test_following_shows_every_state_between_two_looks(floor: Floor) -> None:
    """A run that was claimed and had ended before the follower looked again used to jump from Scheduled to Completed."""
    run = floor.submit()
    items = floor.store.queries.follow(run)
    assert texts([next(items)]) == ["Scheduled"]
    floor.claim(start=True)
    floor.finish(run)
    assert texts(list(items)) == ["Running", "Completed"]
    beginning = datetime.min.replace(tzinfo=UTC)
    assert texts(list(floor.store.queries.follow(run, since=beginning))) == ["Scheduled", "Running", "Completed"]
    assert texts(list(floor.store.queries.follow(run))) == ["Completed"]
