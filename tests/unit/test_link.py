"""The engine's end of the socket: order, batching, answers, and a recorder that is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import eventually
from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.exceptions import ObjectNotFound, OrchError, StoreUnavailable
from orchestrator.models import TaskRun
from orchestrator.states import Completed, Running, State, StateType
from recording import Recording


@pytest.fixture
def told() -> dict[str, list[Any]]:
    return {"lost": [], "cancel": [], "trouble": [], "unfit": []}


@pytest.fixture
def recording(told: dict[str, list[Any]]) -> Iterator[Recording]:
    recording = Recording(
        on_lost=told["lost"].append,
        on_cancel=lambda run, message: told["cancel"].append((run, message)),
        on_trouble=told["trouble"].append,
        on_unfit=told["unfit"].append,
    )
    yield recording
    recording.end()


def task_run(name: str = "t-0", state: State | None = None) -> TaskRun:
    return TaskRun(f"id of {name}", name, name.split("-")[0], 0, state or Running())


# Frames


def test_frames_survive_any_cut() -> None:
    frames: list[protocol.Frame] = [
        ["start", "r", "Running", 1],
        ["log", "r", [[1, 20, "l", "text", None]]],
        ["end", "r", "x", "y", "", b"\x00", None],
    ]
    packed = b"".join(map(protocol.pack, frames))
    for cut in range(len(packed) + 1):
        reader = protocol.Frames()
        assert [*reader.feed(packed[:cut]), *reader.feed(packed[cut:])] == frames


@pytest.mark.parametrize("garbage", [b"\xc1", protocol.pack([])[:0] + b"\x01", b"\x90"])
def test_bytes_that_are_no_frames_are_an_error(garbage: bytes) -> None:
    with pytest.raises(ValueError):
        list(protocol.Frames().feed(garbage))


def test_text_that_is_no_unicode_arrives_all_the_same() -> None:
    [frame] = protocol.Frames().feed(protocol.pack(["log", "a\udcff"]))
    assert frame == ["log", "a?"]


moments = st.none() | st.integers(0, 4_000_000_000_000).map(clock.from_ms)


@given(
    run=st.builds(
        TaskRun,
        id=st.text(),
        name=st.text(),
        key=st.text(),
        index=st.integers(0, 1000),
        state=st.builds(State, st.sampled_from(StateType), st.text(min_size=1), st.text()),
        started=moments,
        ended=moments,
        run_count=st.integers(0, 100),
        upstream=st.lists(st.text()).map(tuple),
        parent=st.none() | st.text(),
        tags=st.lists(st.text()).map(tuple),
    )
)
def test_a_task_run_arrives_as_it_left(run: TaskRun) -> None:
    [frame] = protocol.Frames().feed(protocol.pack(["tasks", "r", [protocol.task_row(run)]]))
    assert protocol.task_of(frame[2][0]) == run


# Sending


def test_what_was_noted_goes_before_the_next_frame(recording: Recording) -> None:
    link = recording.link
    link.log("r", 1, 20, "l", "first")
    link.task("r", task_run())
    link.log("r", 2, 20, "l", "second")
    link.send(["end", "r", "COMPLETED", "Completed", "", b"", None])
    eventually(lambda: any(frame[0] == "end" for frame in recording.frames))
    assert [frame[0] for frame in recording.frames] == ["log", "tasks", "end"]
    assert recording.log == ["first", "second"]


def test_notes_are_sent_without_being_asked_for(recording: Recording) -> None:
    recording.link.log("r", 1, 20, "l", "alone")
    eventually(lambda: recording.frames)
    recording.link.task("r", task_run())
    eventually(lambda: len(recording.frames) == 2)


def test_of_a_task_run_only_the_latest_state_travels(recording: Recording) -> None:
    run = task_run()
    with recording.link._sending:  # the flusher waits
        recording.link.task("r", run)
        run.state = Completed()
        recording.link.task("r", run)
    [frame] = recording.of("tasks")
    assert [protocol.task_of(row).state.name for row in frame[2]] == ["Completed"]


def test_lines_of_several_runs_do_not_mix(recording: Recording) -> None:
    for n in range(10):
        recording.link.log(f"r{n % 2}", n, 20, "l", str(n))
    recording.link.flush()
    texts: dict[str, list[str]] = {"r0": [], "r1": []}
    for frame in recording.of("log"):
        texts[frame[1]] += [line[3] for line in frame[2]]
    assert texts == {"r0": list("02468"), "r1": list("13579")}


def test_many_threads_may_note_and_send(recording: Recording) -> None:
    def work(n: int) -> None:
        for i in range(200):
            recording.link.log(f"r{n}", i, 20, "l", str(i))
            recording.link.task(f"r{n}", task_run(f"t{n}-{i}"))
            if i % 50 == 0:
                recording.link.send(["start", f"r{n}", "Running", i])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recording.of("start")) == 16
    for n in range(4):
        lines = [line[3] for frame in recording.of("log") if frame[1] == f"r{n}" for line in frame[2]]
        assert lines == [str(i) for i in range(200)]
    assert len(recording.tasks) == 800


def test_a_very_long_line_is_cut(recording: Recording) -> None:
    recording.link.log("r", 1, 20, "l", "x" * 1_000_000)
    [line] = recording.log
    assert len(line) < 70_000
    assert line.endswith("... (934464 more characters)")


def test_lines_that_come_faster_than_they_can_be_sent_are_counted(recording: Recording) -> None:
    with recording.link._sending:
        for n in range(10_100):
            recording.link.log("r", n, 20, "l", "x")
    assert len(recording.log) == 10_001
    assert any("100 log lines were dropped" in line for line in recording.log)


# Answers


def test_a_question_is_answered(recording: Recording) -> None:
    recording.answers = lambda what, arguments: (True, [what, *arguments])
    assert recording.link.ask("get_variable", "x", 1) == ["get_variable", "x", 1]


def test_an_error_of_the_recorder_is_raised_here(recording: Recording) -> None:
    recording.answers = lambda what, arguments: (False, {"type": "ObjectNotFound", "message": "no x", "hint": "make one"})
    with pytest.raises(ObjectNotFound, match="no x") as caught:
        recording.link.ask("get_variable", "x")
    assert caught.value.hint == "make one"
    recording.answers = lambda what, arguments: (False, {"type": "SystemExit", "message": "odd", "hint": None})
    with pytest.raises(OrchError, match="odd"):
        recording.link.ask("get_variable", "x")


def test_a_question_without_an_answer_ends(recording: Recording) -> None:
    with pytest.raises(StoreUnavailable, match="no answer"):
        recording.link.ask("get_variable", "x", timeout=0.01)


def test_several_threads_get_their_own_answers(recording: Recording) -> None:
    recording.answers = lambda what, arguments: (True, arguments[0])
    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: recording.link.ask("echo", n)})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: n for n in range(8)}


def test_the_end_of_a_run_is_waited_for(recording: Recording) -> None:
    recording.link.send(["end", "r", "COMPLETED", "Completed", "", b"", None])
    assert recording.link.wait_ended("r", 10, timeout_in_trouble=10) == "ok"
    recording.acknowledges = False
    recording.link.send(["end", "s", "COMPLETED", "Completed", "", b"", None])
    assert recording.link.wait_ended("s", 0.01, timeout_in_trouble=10) is None
    recording.send("trouble", "no Redis")
    assert recording.link.wait_ended("s", 1000, timeout_in_trouble=0.01) is None


def test_a_worker_child_receives_its_run_first(recording: Recording) -> None:
    recording.send("cancel", "r", "early")
    recording.send("run", {"id": "r"})
    assert recording.link.receive(10) == ["run", {"id": "r"}]
    assert recording.link.cancel_message("r") == "early"
    assert recording.link.receive(0.01) is None


def test_a_request_to_cancel_is_seen_without_a_thread(recording: Recording) -> None:
    assert recording.link.cancel_message("r") is None
    recording.send("cancel", "r", "now")
    eventually(lambda: recording.link.cancel_message("r"))
    assert recording.link.cancel_message("r") == "now"


def test_a_request_to_cancel_that_has_arrived_is_seen_at_once_by_who_listens_too(recording: Recording) -> None:
    """SIGTERM follows the request. The thread that reads had not come to it yet, and a cancelled run ended Crashed."""
    recording.link.listen()
    for n in range(300):
        recording.send("cancel", f"r{n}", "now")
        assert recording.link.cancel_message(f"r{n}") == "now"


def test_who_listens_is_told_at_once(recording: Recording, told: dict[str, list[Any]]) -> None:
    recording.link.listen()
    recording.send("cancel", "r", "now")
    recording.send("trouble", "no Redis")
    eventually(lambda: told["trouble"])
    assert told == {"lost": [], "cancel": [("r", "now")], "trouble": ["no Redis"], "unfit": []}
    assert recording.link.trouble == "no Redis"
    recording.send("trouble", "")
    eventually(lambda: recording.link.trouble is None)
    assert told["trouble"] == ["no Redis"]


# Slots


DB = protocol.Wanted("global", ["db"])


def words_of(recording: Recording, call: int) -> list[Any]:
    words: list[Any] = []
    recording.link.acquire(call, "r", DB, words.append)
    return words


def test_every_word_about_a_call_is_told_by_the_reader(recording: Recording) -> None:
    recording.is_granting = False
    call = recording.link.new_call()
    words = words_of(recording, call)
    eventually(lambda: recording.calls == {call: DB})
    recording.send("waits", call, "a limit")
    recording.grant(call)
    eventually(lambda: len(words) == 2)
    assert words == [("waits", "a limit"), ("granted", "")]


def test_what_was_released_is_not_heard_of_again(recording: Recording) -> None:
    recording.is_granting = False
    words = words_of(recording, 1)
    recording.link.release(1, "r")
    recording.send("waits", 1, "a limit")
    recording.send("answer", 1, True, ["granted", ""])
    other = words_of(recording, 2)
    eventually(lambda: 2 in recording.calls)
    recording.grant(2)
    eventually(lambda: other)
    assert words == []


def test_an_error_of_the_recorder_reaches_the_call(recording: Recording) -> None:
    recording.is_granting = False
    words = words_of(recording, 1)
    recording.send("answer", 1, False, {"type": "ObjectNotFound", "message": "no x", "hint": None})
    eventually(lambda: words)
    assert (words[0][0], type(words[0][1])) == ("error", ObjectNotFound)


def test_calls_hear_of_the_loss_of_the_recorder(recording: Recording) -> None:
    recording.is_granting = False
    before = words_of(recording, 1)
    recording.hang_up()
    eventually(lambda: before)
    assert [word[0] for word in (*before, *words_of(recording, 2))] == ["lost", "lost"]


# A recorder that is gone


def test_a_dead_recorder_is_told_once_and_then_ignored(recording: Recording, told: dict[str, list[Any]]) -> None:
    recording.hang_up()
    for n in range(10):
        recording.link.log("r", n, 20, "l", "x")
        recording.link.send(["start", "r", "Running", n])
    assert len(told["lost"]) == 1
    assert recording.link.wait_ended("r", 10, timeout_in_trouble=10) is None
    with pytest.raises(StoreUnavailable):
        recording.link.ask("get_variable", "x")


def test_a_recorder_that_can_never_record_says_why_and_nothing_else_is_said(
    recording: Recording, told: dict[str, list[Any]]
) -> None:
    recording.link.listen()
    recording.send("unfit", "no Redis there")
    assert recording.link.wait_ended("r", 10, timeout_in_trouble=10) is None
    recording.link.send(["more"])
    assert (recording.link.lost, told["unfit"], told["lost"]) == ("no Redis there", ["no Redis there"], [])


def test_the_end_of_the_socket_ends_receiving(recording: Recording) -> None:
    recording.hang_up()
    assert recording.link.receive() is None
    assert recording.link.lost


def test_garbage_from_the_recorder_loses_the_link(recording: Recording, told: dict[str, list[Any]]) -> None:
    recording._socket.sendall(b"\x01\x02")
    assert recording.link.receive() is None
    assert told["lost"]


def test_a_forked_process_leaves_the_socket_to_its_parent(recording: Recording) -> None:
    pid = os.fork()
    if pid == 0:
        recording.link.log("r", 1, 20, "l", "from the child")
        recording.link.send(["start", "r", "Running", 1])
        os._exit(0 if recording.link.lost else 1)
    assert os.waitpid(pid, 0)[1] == 0
    recording.link.log("r", 2, 20, "l", "from the parent")
    assert recording.log == ["from the parent"]
    assert recording.of("start") == []
