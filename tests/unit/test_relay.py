"""The relay: frames of many children on one side, few calls of a store that may be away on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.engine.protocol import Frame
from orchestrator.engine.relay import Relay
from orchestrator.exceptions import NotReplicated, ObjectNotFound, StoreFull, StoreUnavailable
from orchestrator.models import LogLine, NewRun, TaskRun
from orchestrator.states import State, StateType
from orchestrator.store.answers import Acquire, Acquired, ClaimRequest, Claims, End, Lapsed, Turn, Turned
from orchestrator.store.failover import Asserted, Held


@dataclass
class FakeStore:
    """Keeps what it is told; away while ``is_away``; ``refuses`` holds runs that it will not take ends or openings of."""

    is_away: bool = False
    calls: int = 0
    opened: list[NewRun] = field(default_factory=list)
    starts: list[tuple[str, int, str]] = field(default_factory=list)
    lines: dict[str, list[LogLine]] = field(default_factory=dict)
    tasks: dict[str, dict[str, TaskRun]] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    deaths: list[tuple[str, int, str]] = field(default_factory=list)
    claims: list[ClaimRequest] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    has_no_replica: bool = False
    is_full: bool = False
    variables: dict[str, Any] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    asked: list[Acquire] = field(default_factory=list)
    released: list[tuple[str, int, int]] = field(default_factory=list)
    acquired: dict[int, Acquired] = field(default_factory=dict)
    limited: list[str] = field(default_factory=list)
    woken: int = 0
    asserted: dict[str, str] = field(default_factory=dict)

    @property
    def failover(self) -> FakeStore:
        return self

    def reassert(self, worker: str, ends: Sequence[Any], held: Sequence[Held]) -> tuple[list[Asserted], list[Asserted]]:
        self._call()
        self.order += [f"held {run} {attempt}" for run, attempt, _ in held]
        return [], [Asserted(self.asserted.get(run, "ok"), "") for run, _, _ in held]

    @property
    def limits(self) -> FakeStore:
        return self

    def acquire(self, asked: Acquire) -> Acquired:
        self._call()
        self.asked.append(asked)
        self.order.append(f"acquire {asked.call}")
        return self.acquired.get(asked.call, Acquired("granted"))

    def release(self, calls: Sequence[tuple[str, int, int]], *, worker: str) -> int:
        self._call()
        self.released += calls
        self.order += [f"release {call}" for _, _, call in calls]
        return len(calls)

    def tags(self) -> list[str]:
        self._call()
        return self.limited

    def wake(self) -> int:
        self._call()
        self.woken += 1
        return 0

    @property
    def runs(self) -> FakeStore:
        return self

    @property
    def documents(self) -> FakeStore:
        return self

    def _call(self) -> None:
        self.calls += 1
        if self.is_away:
            raise StoreUnavailable("away")

    def create_leased(self, run: NewRun, worker: str, *, again: bool = False) -> Any:
        self._call()
        if run.id in self.refuses:
            raise ValueError("no")
        self.opened.append(run)
        self.order.append(f"open {run.id}" + " again" * again)
        return SimpleNamespace(attempt=1)

    def exchange(self, turn: Turn) -> Turned:
        self._call()
        self.starts += [(start.run, start.attempt, start.name) for start in turn.starts]
        for run, lines in ({} if self.is_full else turn.logs).items():
            self.lines.setdefault(run, []).extend(lines)
        for run, _, tasks in turn.tasks:
            assert run not in {end.run for end in self.ends}, "nobody may write task runs after the end"
            self.tasks.setdefault(run, {}).update((task.id, task) for task in tasks)
        if turn.claim:
            self.claims.append(turn.claim)
        self.order += [f"start {s.run}" for s in turn.starts] + [f"log {r}" for r in turn.logs]
        ends: list[str] | Exception = [self._end(end) for end in turn.ends]
        if self.refuses & {end.run for end in turn.ends}:
            ends = ValueError("no")
        if self.has_no_replica and turn.ends:
            ends = NotReplicated()
        refused: list[Exception] = [StoreFull("no room")] if self.is_full and turn.logs else []
        return Turned(refused, ends, Claims([], [], 0, False) if turn.claim else None)

    def finish(self, ends: Sequence[End], *, worker: str) -> list[str]:
        self._call()
        if self.refuses & {end.run for end in ends}:
            raise ValueError("no")
        return [self._end(end) for end in ends]

    def _end(self, end: End) -> str:
        self.order.append(f"end {end.run}")
        known = {(known.run, known.attempt) for known in self.ends}
        self.ends.append(end)
        return "again" if (end.run, end.attempt) in known else "ok"

    def report_death(self, run: str, attempt: int, reason: str, *, worker: str) -> Lapsed:
        self._call()
        self.deaths.append((run, attempt, reason))
        return Lapsed(0, 1, 0, 1)

    def get_variable(self, name: str) -> Any:
        self._call()
        if name not in self.variables:
            raise ObjectNotFound(f"no {name}", hint="set it")
        return self.variables[name]

    def set_variable(self, name: str, value: Any, *, tags: tuple[str, ...], overwrite: bool) -> Any:
        self._call()
        self.variables[name] = value
        return value

    def unset_variable(self, name: str) -> None:
        self._call()
        del self.variables[name]


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def relay(store: FakeStore) -> Relay:
    return relay_on(store)


def relay_on(store: FakeStore, **options: Any) -> Relay:
    return Relay(cast(Any, store), "worker", **options)


def log(run: str, *texts: str) -> Frame:
    return ["log", run, [[n, 20, "l", text, None] for n, text in enumerate(texts)]]


def end(run: str, name: str = "Completed", **changes: Any) -> Frame:
    kind = {"Completed": "COMPLETED", "AwaitingRetry": "SCHEDULED"}.get(name, "FAILED")
    return ["end", run, kind, name, "", b"", changes.get("retry_in_ms")]


def opening(run: str, parent: str | None = None) -> Frame:
    return ["open", 0, {"id": run, "flow": "f", "name": "n", "parent": parent, "tags": ["t"], "crash_budget": 1}]


def tasks(run: str, *names: str, state: StateType = StateType.COMPLETED) -> Frame:
    rows = [protocol.task_row(TaskRun(name, name, "t", 0, State(state, timestamp=clock.from_ms(0)))) for name in names]
    return ["tasks", run, [list(row) for row in rows]]


def answers(replies: Sequence[Any]) -> list[Frame]:
    return [reply.frame for reply in replies]


# When it writes


def test_nothing_to_write_means_no_deadline(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 3)
    assert relay.deadline is None
    assert relay.is_idle
    assert relay.flush(0.0) == []
    assert store.calls == 0


@pytest.mark.parametrize("frame", [["start", "r", "Running", 0], log("r", "x"), tasks("r", "t"), opening("s", "r")])
def test_most_frames_wait_for_company(frame: Frame, relay: Relay) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", frame, 10.0)
    assert relay.deadline == 10.05
    relay.feed("child", log("r", "later"), 10.04)
    assert relay.deadline == 10.05


@pytest.mark.parametrize("frame", [end("r"), ["ask", 1, "get_variable", ["x"]]])
def test_an_end_and_a_question_are_urgent(frame: Frame, relay: Relay) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", log("r", "x"), 10.0)
    relay.feed("child", frame, 10.01)
    assert relay.deadline == 10.01


def test_all_that_one_turn_has_is_one_call(relay: Relay, store: FakeStore) -> None:
    for n in range(20):
        relay.adopt(n, f"r{n}", 1)
        for frame in (["start", f"r{n}", "Running", 0], log(f"r{n}", "x"), tasks(f"r{n}", f"t{n}"), end(f"r{n}")):
            relay.feed(n, frame, 0.0)
    replies = relay.flush(0.0)
    assert store.calls == 1
    assert [(reply.child, reply.frame) for reply in replies] == [(n, ["ended", f"r{n}", "ok"]) for n in range(20)]
    assert relay.is_idle
    assert relay.leases() == []


# What it writes


def test_a_run_is_told_from_start_to_end_under_its_attempt(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 7)
    for frame in (
        ["start", "r", "Running", 5],
        log("r", "one", "two"),
        ["start", "r", "Retrying", 9],
        tasks("r", "t"),
        end("r"),
    ):
        relay.feed("child", frame, 0.0)
    relay.flush(0.0)
    assert store.starts == [("r", 7, "Running"), ("r", 7, "Retrying")]
    assert [(line.message, line.attempt) for line in store.lines["r"]] == [("one", 7), ("two", 7)]
    assert list(store.tasks["r"]) == ["t"]
    assert [(e.run, e.attempt, e.state.name, e.retry_in) for e in store.ends] == [("r", 7, "Completed", None)]


def test_a_start_that_the_claim_has_counted_is_not_told_again(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1, started=True)
    relay.feed("child", ["start", "r", "Running", 0], 0.0)
    assert relay.is_idle
    relay.feed("child", ["start", "r", "Retrying", 0], 0.0)
    relay.flush(1.0)
    assert store.starts == [("r", 1, "Retrying")]


def test_an_opened_run_is_created_before_anything_else_is_said_of_it(relay: Relay, store: FakeStore) -> None:
    for frame in (opening("root"), log("root", "x"), opening("sub", "root"), tasks("sub", "t"), end("sub"), end("root")):
        relay.feed("child", frame, 0.0)
    assert relay.leases() == []
    replies = relay.flush(0.0)
    assert store.order == ["open root", "open sub", "log root", "end root", "end sub"]
    assert [run.parent for run in store.opened] == [None, "root"]
    assert store.opened[0].tags == ("t",)
    assert store.lines["root"][0].attempt == 1
    assert sorted(answers(replies)) == [["ended", "root", "ok"], ["ended", "sub", "ok"]]


def test_a_run_that_cannot_be_created_is_refused_and_forgotten(relay: Relay, store: FakeStore) -> None:
    store.refuses.add("bad")
    for frame in (opening("bad"), opening("good"), log("bad", "x"), log("good", "y")):
        relay.feed("child", frame, 0.0)
    assert answers(relay.flush(0.0)) == [["ended", "bad", "refused"]]
    assert list(store.lines) == ["good"]
    relay.feed("child", end("bad"), 0.0)
    assert relay.child_of("bad") is None
    assert relay.child_of("good") == "child"


def test_a_retry_much_later_is_an_end_too(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", end("r", "AwaitingRetry", retry_in_ms=60_000), 0.0)
    relay.flush(0.0)
    assert (store.ends[0].state.name, store.ends[0].retry_in) == ("AwaitingRetry", timedelta(minutes=1))


def test_of_a_task_run_the_last_state_counts(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", tasks("r", "t", state=StateType.RUNNING), 0.0)
    relay.feed("child", tasks("r", "t"), 0.0)
    relay.flush(0.0)
    assert store.tasks["r"]["t"].state.is_completed()


def test_a_run_with_very_much_to_say_says_it_all_before_its_end(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    for n in range(0, 3500, 500):
        relay.feed("child", tasks("r", *(f"t{i}" for i in range(n, n + 500))), 0.0)
        relay.feed("child", log("r", *(str(i) for i in range(n, n + 500))), 0.0)
    relay.feed("child", end("r"), 0.0)
    turns = 0
    while not relay.is_idle:
        relay.flush(0.0)
        turns += 1
    assert turns <= 5
    assert len(store.tasks["r"]) == 3500
    assert [line.message for line in store.lines["r"]] == [str(i) for i in range(3500)]
    assert len(store.ends) == 1


def test_ends_that_cannot_be_written_together_are_written_one_by_one(relay: Relay, store: FakeStore) -> None:
    store.refuses.add("bad")
    for run in ("good", "bad"):
        relay.adopt(run, run, 1)
        relay.feed(run, end(run), 0.0)
    assert answers(relay.flush(0.0)) == [["ended", "good", "again"], ["ended", "bad", "refused"]]
    assert relay.leases() == []


def test_an_end_that_no_replica_has_confirmed_is_told_again_until_one_has_and_what_went_with_it_is_not(
    relay: Relay, store: FakeStore
) -> None:
    store.has_no_replica = True
    relay.adopt("child", "r", 1)
    relay.feed("child", ["log", "r", [[0, 20, "flow", "said once", None]]], 0.0)
    relay.feed("child", end("r"), 0.0)
    assert [reply[0] for reply in answers(relay.flush(0.0, lambda _: ClaimRequest("worker", "pool", ["default"], 1)))] == [
        "trouble"
    ]
    assert relay.claims == Claims([], [], 0, False)
    assert relay.leases() == [("r", 1)]
    store.has_no_replica = False
    assert ["ended", "r", "again"] in answers(relay.flush(1.0))
    assert [line.message for line in store.lines["r"]] == ["said once"]


def test_the_claim_goes_along_with_the_ends(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", end("r"), 0.0)
    asked: list[list[str]] = []

    def claim(ending: list[str]) -> ClaimRequest:
        asked.append(ending)
        return ClaimRequest("worker", "pool", ["default"], 1)

    relay.flush(0.0, claim)
    assert asked == [["r"]]
    assert len(store.claims) == store.calls == 1
    assert relay.claims == Claims([], [], 0, False)


# Who may say what


@pytest.mark.parametrize(
    "frame",
    [
        *(
            ["start"],
            ["start", "r"],
            ["log", "r", 3],
            ["log", "r", [[1]]],
            ["tasks", "r", [[1, 2]]],
            ["end", "r"],
            ["nonsense"],
        ),
        *(
            ["open", 0, {"unknown": 1}],
            ["end", "r", "COMPLETED", "Completed", "", None, None],
            ["end", "r", "X", "Y", "", b"", None],
        ),
        *(["end", "r", "RUNNING", "Running", "", b"", None], ["ask", "x"], [None], ["start", None, None, None]),
        *(["acquire", 1, "r"], ["acquire", 1, "r", *range(10)], ["release", "r"], ["release", "r", "1"]),
    ],
)
def test_frames_that_make_no_sense_are_ignored(frame: Frame, relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", frame, 0.0)
    relay.flush(0.0)
    assert store.calls == 0
    relay.feed("child", end("r"), 0.0)
    assert answers(relay.flush(0.0)) == [["ended", "r", "ok"]]


@settings(max_examples=200)
@given(
    frame=st.lists(
        st.sampled_from(
            [
                "start",
                "log",
                "tasks",
                "end",
                "open",
                "ask",
                "acquire",
                "release",
                "r",
                "tag",
                "COMPLETED",
                "Completed",
                "",
                b"",
                None,
            ]
        )
        | st.integers()
        | st.lists(st.lists(st.integers() | st.text(), max_size=5), max_size=2)
        | st.dictionaries(st.sampled_from(["id", "flow", "tags"]), st.integers() | st.text(), max_size=3),
        min_size=1,
        max_size=8,
    )
)
def test_no_frame_disturbs_the_relay(frame: Frame) -> None:
    store = FakeStore()
    relay = relay_on(store)
    relay.adopt("child", "r", 1)
    relay.adopt("other", "o", 1)
    relay.feed("child", frame, 0.0)
    relay.flush(0.0)
    relay.feed("other", end("o"), 1.0)
    assert ["ended", "o", "ok"] in answers(relay.flush(1.0))


def test_a_child_speaks_only_for_its_own_runs(relay: Relay, store: FakeStore) -> None:
    relay.adopt("mine", "r", 1)
    for frame in (log("r", "x"), end("r"), ["start", "r", "Running", 0], tasks("r", "t")):
        relay.feed("other", frame, 0.0)
    assert relay.is_idle
    assert store.calls == 0


def test_a_run_that_was_given_away_is_no_longer_told(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", ["start", "r", "Running", 0], 0.0)
    relay.forget("r")
    relay.feed("child", end("r"), 0.0)
    relay.flush(1.0)
    assert (store.starts, store.ends) == ([], [])


# Deaths


def test_runs_of_a_dead_child_are_reported_subflows_first(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "root", 2)
    relay.adopt("other", "o", 1)
    relay.feed("child", opening("sub", "root"), 0.0)
    relay.flush(0.0)
    assert relay.leases("child") == [("root", 2), ("sub", 1)]
    relay.gone("child", "killed by SIGKILL", 1.0)
    assert relay.deadline == 1.0
    replies = relay.flush(1.0)
    assert store.deaths == [("sub", 1, "killed by SIGKILL"), ("root", 2, "killed by SIGKILL")]
    assert answers(replies) == [["ended", "sub", "crashed"], ["ended", "root", "crashed"]]
    assert relay.leases() == [("o", 1)]


def test_a_child_that_told_its_end_and_died_has_ended(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", end("r"), 0.0)
    relay.gone("child", "exit status 0", 0.0)
    assert answers(relay.flush(0.0)) == [["ended", "r", "ok"]]
    assert store.deaths == []


def test_open_task_runs_of_a_dead_child_have_crashed(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", tasks("r", "open", state=StateType.RUNNING), 0.0)
    relay.feed("child", tasks("r", "done"), 0.0)
    relay.flush(0.0)
    relay.gone("child", "killed", 1.0)
    relay.flush(1.0)
    states = {name: task.state for name, task in store.tasks["r"].items()}
    assert (states["open"].name, states["open"].message, states["done"].name) == ("Crashed", "killed", "Completed")
    assert store.deaths


def test_the_last_words_of_a_dead_child_are_written(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", log("r", "last words"), 0.0)
    relay.gone("child", "killed", 0.0)
    relay.flush(0.0)
    line = LogLine(clock.now(), 20, "stdout", "captured late", 1)
    relay.add_log("r", [line], 1.0)
    relay.flush(2.0)
    assert [line.message for line in store.lines["r"]] == ["last words", "captured late"]


def test_a_dead_child_gets_no_answers(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", ["ask", 1, "get_variable", ["x"]], 0.0)
    relay.gone("child", "killed", 0.0)
    assert answers(relay.flush(0.0)) == [["ended", "r", "crashed"]]


# Questions


def test_questions_are_answered_in_order(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", ["ask", 1, "set_variable", ["x", [1, 2], ["t"], True]], 0.0)
    relay.feed("child", ["ask", 2, "get_variable", ["x"]], 0.0)
    relay.feed("child", ["ask", 3, "get_variable", ["y"]], 0.0)
    relay.feed("child", ["ask", 4, "delete_everything", []], 0.0)
    replies = answers(relay.flush(0.0))
    assert replies[:3] == [
        ["answer", 1, True, [1, 2]],
        ["answer", 2, True, [1, 2]],
        ["answer", 3, False, {"type": "ObjectNotFound", "message": "no y", "hint": "set it"}],
    ]
    assert replies[3][1:3] == [4, False]


# Slots


WAITING = Acquired("waiting", "global limit 'db' (1/1 used)")


def acquire(call: int, run: str = "r", *, of: str = "global", patient: bool = True, rate: bool = False) -> Frame:
    return ["acquire", call, run, of, ["db"], 1, rate, False, patient]


def test_slots_are_asked_for_under_the_attempt_of_the_run(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 3)
    relay.feed("child", ["acquire", 7, "r", "global", ["db", "api"], 2, True, True, True], 1.0)
    assert relay.deadline == 1.0
    store.acquired[7] = Acquired("granted", "api")
    assert answers(relay.flush(1.0)) == [["answer", 7, True, ["granted", "api"]]]
    assert store.asked == [Acquire("r", 3, "worker", 7, ["db", "api"], "global", 2, True, True)]
    assert relay.is_idle


def test_a_call_of_a_subflow_that_cannot_be_created_is_told_so(relay: Relay, store: FakeStore) -> None:
    """It failed with the run's id as its message."""
    store.refuses.add("bad")
    relay.adopt("child", "r", 1)
    relay.feed("child", opening("bad", "r"), 0.0)
    relay.feed("child", acquire(1, "bad"), 0.0)
    assert sorted(answers(relay.flush(0.0))) == [["answer", 1, True, ["superseded", ""]], ["ended", "bad", "refused"]]


def test_a_call_of_a_subflow_waits_until_the_store_knows_the_subflow(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", opening("s", "r"), 0.0)
    relay.feed("child", acquire(1, "s"), 0.0)
    relay.flush(0.0)
    assert store.order == ["open s", "acquire 1"]
    assert store.asked[0].attempt == 1


def test_who_must_wait_is_told_once_and_answered_when_the_grant_comes(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    store.acquired[1] = WAITING
    relay.feed("child", acquire(1), 0.0)
    assert answers(relay.flush(0.0)) == [["waits", 1, WAITING.detail]]
    assert relay.is_idle
    relay.ask_again(5.0)
    assert answers(relay.flush(5.0)) == []
    relay.granted("r", 2, 6.0)
    assert relay.is_idle
    store.acquired[1] = Acquired("granted")
    relay.granted("r", 1, 6.0)
    assert answers(relay.flush(6.0)) == [["answer", 1, True, ["granted", ""]]]
    relay.granted("r", 1, 7.0)
    assert relay.is_idle


def test_slots_that_are_held_are_taken_again_from_a_server_that_may_have_forgotten_them(
    relay: Relay, store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    relay.adopt("child", "r", 1)
    for frame in (acquire(1), acquire(2), acquire(3, rate=True), acquire(4)):
        relay.feed("child", frame, 0.0)
    relay.flush(0.0)
    relay.feed("child", ["release", "r", 2], 1.0)
    relay.flush(1.0)
    store.asked.clear()
    store.acquired[4] = WAITING
    relay.reassert(2.0)
    assert answers(relay.flush(2.0)) == []
    assert sorted(asked.call for asked in store.asked) == [1, 4]
    assert "Run r goes on without slots that a fail-over has lost" in caplog.text
    relay.feed("child", ["end", "r", "COMPLETED", "Completed", "", b"", None], 3.0)
    relay.flush(3.0)
    relay.reassert(4.0)
    assert relay.is_idle


def test_runs_that_children_opened_are_created_anew_on_another_server_unless_their_parent_is_lost(
    relay: Relay, store: FakeStore
) -> None:
    for run in ("kept", "lost"):
        relay.adopt(run, run, 3)
        relay.feed(run, ["open", 0, {"flow": "f", "id": f"child of {run}", "parent": run}], 0.0)
        relay.feed(run, ["open", 0, {"flow": "f", "id": f"grandchild of {run}", "parent": f"child of {run}"}], 0.0)
    relay.feed("kept", ["open", 0, {"flow": "f", "id": "root"}], 0.0)
    relay.flush(0.0)
    relay.feed("kept", ["open", 0, {"flow": "f", "id": "not told yet"}], 1.0)
    store.order.clear()
    store.asserted = dict.fromkeys(("lost", "child of lost", "grandchild of lost"), "missing")
    answers = relay.reassert(1.0)
    assert store.order == [
        *("held kept 3", "held lost 3"),
        *("open child of kept again", "open grandchild of kept again", "open root again"),
        *(
            "held child of kept 1",
            "held grandchild of kept 1",
            "held child of lost 1",
            "held grandchild of lost 1",
            "held root 1",
        ),
    ]
    assert {held.run: asserted.answer for held, asserted in answers if asserted.answer != "ok"} == store.asserted


def test_the_server_is_looked_at_before_anything_is_written_and_whenever_it_may_be_another(store: FakeStore) -> None:
    looks: list[int] = []

    def look() -> None:
        store._call()
        looks.append(len(store.ends))

    relay = relay_on(store, prepare=look)
    for number, prepare in enumerate((None, None, relay.doubt_server)):
        if prepare is not None:
            prepare()
        relay.adopt("child", f"r{number}", 1)
        relay.feed("child", ["end", f"r{number}", "COMPLETED", "Completed", "", b"", None], number)
        relay.flush(number)
    assert looks == [0, 2]
    relay.adopt("child", "r3", 1)
    relay.feed("child", ["end", "r3", "COMPLETED", "Completed", "", b"", None], 4.0)
    store.is_away = True
    relay.flush(4.0)
    relay.flush(5.0)
    store.is_away = False
    assert [reply.frame for reply in relay.flush(8.0)] == [["ended", "r3", "ok"]]
    assert looks == [0, 2, 3]


def test_calls_for_what_has_no_limit_are_forgotten_at_once(relay: Relay, store: FakeStore) -> None:
    """Nobody gives them back, so they stayed until the run's end: after a fail-over each was asked for again."""
    relay.adopt("child", "r", 1)
    for number in range(1, 4):
        store.acquired[number] = Acquired("granted", "db")
        relay.feed("child", acquire(number), 0.0)
    relay.flush(0.0)
    store.asked.clear()
    relay.reassert(1.0)
    relay.flush(1.0)
    assert store.asked == []


def test_a_grant_that_an_earlier_attempt_was_told_of_is_none(relay: Relay, store: FakeStore) -> None:
    """Calls are numbered anew in each attempt, and what a worker is told does not name the attempt."""
    relay.adopt("child", "r", 2)
    store.acquired[1] = WAITING
    relay.feed("child", acquire(1), 0.0)
    relay.flush(0.0)
    relay.granted("r", 1, 1.0)
    assert answers(relay.flush(1.0)) == []


def test_who_does_not_want_to_wait_gives_its_place_back(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 4)
    store.acquired[1] = WAITING
    relay.feed("child", acquire(1, patient=False), 0.0)
    assert answers(relay.flush(0.0)) == [["answer", 1, True, ["full", WAITING.detail]]]
    relay.flush(0.0)
    assert store.released == [("r", 4, 1)]


def test_a_release_goes_before_the_calls_that_came_after_it(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 2)
    relay.feed("child", acquire(1), 0.0)
    relay.flush(0.0)
    relay.feed("child", ["release", "r", 1], 1.0)
    relay.feed("child", acquire(2), 1.0)
    assert relay.deadline == 1.0
    relay.flush(1.0)
    assert store.order == ["acquire 1", "release 1", "acquire 2"]
    assert store.released == [("r", 2, 1)]


def test_a_call_that_is_taken_back_before_it_was_made_is_never_made(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", acquire(1), 0.0)
    relay.feed("child", ["release", "r", 1], 0.0)
    assert relay.flush(0.0) == []
    assert (store.asked, store.released) == ([], [])


def test_a_call_whose_answer_was_lost_is_taken_back(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    store.is_away = True
    relay.feed("child", acquire(1), 0.0)
    relay.flush(0.0)
    relay.feed("child", ["release", "r", 1], 0.1)
    store.is_away = False
    relay.flush(1.0)
    assert store.released == [("r", 1, 1)]


def test_releases_wait_for_redis_in_order(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.adopt("other", "o", 1)
    store.is_away = True
    for call in range(1, 251):
        relay.feed("child", ["release", "r", call], 0.0)
    relay.flush(0.0)
    relay.feed("other", ["release", "o", 1], 0.1)
    store.is_away = False
    relay.flush(1.0)
    assert store.released == [*(("r", 1, call) for call in range(1, 251)), ("o", 1, 1)]


def test_what_a_run_had_when_it_ended_needs_no_release(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.feed("child", ["release", "r", 1], 0.0)
    relay.feed("child", end("r"), 0.0)
    relay.flush(0.0)
    assert store.order == ["end r"]
    relay.feed("child", ["release", "r", 2], 1.0)
    assert relay.is_idle


def test_what_is_left_of_a_run_gets_no_slots_after_its_end(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    store.acquired[1] = WAITING
    relay.feed("child", acquire(1), 0.0)
    relay.flush(0.0)
    relay.feed("child", end("r"), 1.0)
    superseded = ["superseded", ""]
    assert answers(relay.flush(1.0)) == [["answer", 1, True, superseded], ["ended", "r", "ok"]]
    relay.feed("child", acquire(2), 2.0)
    assert answers(relay.flush(2.0)) == [["answer", 2, True, superseded]]
    assert [asked.call for asked in store.asked] == [1]


def test_waiting_calls_of_a_run_that_was_taken_away_are_answered(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    store.acquired[1] = WAITING
    relay.feed("child", acquire(1), 0.0)
    relay.flush(0.0)
    relay.forget("r")
    assert relay.deadline is not None
    assert answers(relay.flush(1.0)) == [["answer", 1, True, ["superseded", ""]]]


def test_a_dead_child_waits_for_nothing(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    store.acquired[1] = WAITING
    relay.feed("child", acquire(1), 0.0)
    relay.flush(0.0)
    relay.gone("child", "killed", 1.0)
    relay.ask_again(1.0)
    assert answers(relay.flush(1.0)) == [["ended", "r", "crashed"]]
    assert len(store.asked) == 1


def test_slots_are_not_handed_to_another_child(relay: Relay, store: FakeStore) -> None:
    relay.adopt("mine", "r", 1)
    relay.feed("other", acquire(1), 0.0)
    relay.feed("other", ["release", "r", 1], 0.0)
    assert answers(relay.flush(0.0)) == [["answer", 1, True, ["superseded", ""]]]
    assert (store.asked, store.released) == ([], [])


def test_what_the_store_refuses_is_an_error_of_the_caller(relay: Relay, store: FakeStore, monkeypatch: Any) -> None:
    relay.adopt("child", "r", 1)

    def refuse(asked: Acquire) -> Acquired:
        raise ValueError("odd")

    monkeypatch.setattr(store, "acquire", refuse)
    relay.feed("child", acquire(1), 0.0)
    assert answers(relay.flush(0.0)) == [["answer", 1, False, {"type": "ValueError", "message": "odd", "hint": None}]]


def test_a_rate_limit_is_woken_by_time_where_nobody_else_does(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    for call in (1, 2):
        store.acquired[call] = Acquired("waiting", "rate", retry_ms=200 * call)
        relay.feed("child", acquire(call, rate=True), 0.0)
    relay.flush(0.0)
    assert (relay.deadline, relay.is_idle) == (0.2, True)
    store.acquired[1] = Acquired("granted")
    assert answers(relay.flush(0.2)) == [["answer", 1, True, ["granted", ""]]]
    assert store.woken == 1
    relay.flush(0.2)
    assert relay.deadline == pytest.approx(0.6)
    assert [asked.call for asked in store.asked] == [1, 2, 1, 2]


def test_of_very_many_that_wait_some_are_asked_for_at_each_renewal(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    for call in range(1, 251):
        store.acquired[call] = WAITING
        relay.feed("child", acquire(call), 0.0)
    while not relay.is_idle:
        relay.flush(0.0)
    store.asked.clear()
    for turn in (1.0, 2.0, 3.0):
        relay.ask_again(turn)
        relay.flush(turn)
        assert relay.is_idle
    assert {asked.call for asked in store.asked} == set(range(1, 251))


def test_who_asks_for_a_tag_is_told_which_tags_are_limited(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    relay.adopt("other", "o", 1)
    store.limited = ["db"]
    relay.feed("child", acquire(1, of="tag"), 0.0)
    relay.feed("other", acquire(1, "o"), 0.0)
    replies = relay.flush(0.0)
    assert [(reply.child, reply.frame[:2]) for reply in replies] == [
        ("child", ["limited", ["db"]]),
        ("child", ["answer", 1]),
        ("other", ["answer", 1]),
    ]
    relay.ask_again(5.0)
    assert relay.flush(5.0) == []
    store.limited = ["db", "gpu"]
    relay.ask_again(10.0)
    assert answers(relay.flush(10.0)) == [["limited", ["db", "gpu"]]]
    relay.gone("child", "killed", 11.0)
    relay.flush(11.0)
    calls = store.calls
    relay.ask_again(15.0)
    assert (relay.is_idle, store.calls) == (True, calls)


# Redis away


def test_while_redis_is_away_nothing_is_lost(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    store.is_away = True
    now = 0.0
    relay.feed("child", opening("s", "r"), now)
    for n in range(50):
        relay.feed("child", ["start", "r", "Retrying", n], now)
        relay.feed("child", log("r", str(n)), now)
        relay.feed("child", tasks("r", f"t{n}"), now)
        relay.feed("child", log("s", str(n)), now)
        if n % 10 == 0:
            now = relay.deadline or now
            relay.flush(now)
    relay.feed("child", end("s"), now)
    relay.feed("child", end("r"), now)
    relay.feed("child", ["ask", 1, "get_variable", ["x"]], now)
    relay.flush(now)
    store.is_away = False
    store.variables["x"] = 1
    replies = []
    while not relay.is_idle:
        now = relay.deadline or now
        replies += [frame for frame in answers(relay.flush(now)) if frame[0] != "trouble"]
    assert sorted(map(str, replies)) == sorted(map(str, [["ended", "r", "ok"], ["ended", "s", "ok"], ["answer", 1, True, 1]]))
    assert [line.message for line in store.lines["r"]] == [str(n) for n in range(50)]
    assert [line.message for line in store.lines["s"]] == [str(n) for n in range(50)]
    assert len(store.tasks["r"]) == len(store.starts) == 50


def test_it_tries_again_after_growing_pauses(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    store.is_away = True
    relay.feed("child", end("r"), 0.0)
    moments = [0.0]
    for _ in range(8):
        relay.flush(moments[-1])
        relay.feed("child", log("r", "x"), moments[-1])
        assert relay.deadline is not None
        moments.append(relay.deadline)
    pauses = [round(after - before, 3) for before, after in pairwise(moments)]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert store.calls == 8


def test_trouble_is_told_once_an_outage(relay: Relay, store: FakeStore) -> None:
    relay.adopt("child", "r", 1)
    for _ in range(2):
        store.is_away = True
        told = []
        for now in (0.0, 1.0, 2.0):
            relay.feed("child", log("r", "x"), now)
            told += answers(relay.flush(now))
        assert [frame[0] for frame in told] == ["trouble"]
        store.is_away = False
        assert answers(relay.flush(10.0)) == [["trouble", ""]]


def test_the_oldest_lines_go_first_and_the_log_says_how_many(store: FakeStore) -> None:
    relay = relay_on(store, log_lines=10)
    relay.adopt("child", "r", 1)
    store.is_away = True
    for n in range(100):
        relay.feed("child", log("r", str(n)), 0.0)
        if n % 7 == 0:
            relay.flush(0.0)
    store.is_away = False
    relay.flush(100.0)
    assert [line.message for line in store.lines["r"]] == [
        "90 log lines before this one were dropped: Redis could not be reached, or was full.",
        *(str(n) for n in range(90, 100)),
    ]


def test_what_a_full_server_takes_no_lines_for_is_counted_and_runs_end_all_the_same(relay: Relay, store: FakeStore) -> None:
    for run in ("r", "s"):
        relay.adopt("child", run, 1)
    store.is_full = True
    for n in range(30):
        relay.feed("child", log("r", str(n)), float(n))
        relay.flush(float(n))
    relay.feed("child", log("s", "last"), 30.0)
    relay.feed("child", end("s"), 30.0)
    relay.flush(30.0)
    assert [ended.run for ended in store.ends] == ["s"]
    store.is_full = False
    relay.feed("child", log("r", "again"), 40.0)
    relay.flush(40.0)
    assert [line.message for line in store.lines["r"]] == [
        "30 log lines before this one were dropped: Redis could not be reached, or was full.",
        "again",
    ]


def test_runs_that_are_not_created_yet_have_no_lease_to_renew(relay: Relay, store: FakeStore) -> None:
    store.is_away = True
    relay.feed("child", opening("root"), 0.0)
    relay.flush(0.0)
    assert relay.leases() == []
    store.is_away = False
    relay.flush(1.0)
    assert relay.leases() == [("root", 1)]


def test_an_end_that_waited_for_redis_says_how_long_ago_it_was() -> None:
    store = FakeStore(is_away=True)
    relay = Relay(cast(Any, store), "w")
    relay.adopt("child", "run", 1)
    relay.feed("child", [protocol.END, "run", "COMPLETED", "Completed", "", b"", None], 10.0)
    relay.flush(10.0)
    store.is_away = False
    relay.flush(70.0)
    [end] = store.ends
    assert end.ago == timedelta(seconds=60)
