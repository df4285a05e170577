"""The watchdog of a worker's loop."""

from __future__ import annotations

import threading
from datetime import timedelta

from orch_workers.watchdog import STEPS, LoopWatchdog


def make() -> LoopWatchdog:
    return LoopWatchdog(timedelta(hours=1), "Worker 'w'", lambda _: None)


def test_a_loop_that_turns_now_and_then_is_left_alone() -> None:
    watchdog = make()
    for _ in range(5):
        watchdog.turned()
        assert [watchdog.step() for _ in range(STEPS)] == [False] * STEPS


def test_a_loop_that_does_not_turn_is_ended_when_the_patience_is_over() -> None:
    watchdog = make()
    watchdog.turned()
    watchdog.step()
    assert [watchdog.step() for _ in range(STEPS)] == [False] * (STEPS - 1) + [True]


def test_a_process_that_was_stopped_for_hours_has_missed_one_step() -> None:
    """Measured by the clock, a worker that was paused and went on would have ended itself before its loop could turn."""
    watchdog = make()
    watchdog.turned()
    watchdog.step()
    assert not watchdog.step(), "the first thing that runs when the process goes on"
    watchdog.turned()
    assert not watchdog.step()


def test_it_says_where_the_loop_stands() -> None:
    said: list[str] = []
    ended = threading.Event()

    def end(message: str) -> None:
        said.append(message)
        ended.set()

    watchdog = LoopWatchdog(timedelta(milliseconds=40), "Worker 'w'", end)
    watchdog.start()
    assert ended.wait(30)
    assert said[0].startswith("Worker 'w' ends itself: its loop has not turned for 0.04 s.")
    assert "assert ended.wait(30)" in said[0]


def test_a_loop_that_is_over_is_not_watched() -> None:
    said: list[str] = []
    watchdog = LoopWatchdog(timedelta(milliseconds=8), "Worker 'w'", said.append)
    watchdog.stop()
    watchdog.start()
    watchdog.join()
    assert said == []
