"""What the rescuer expects of Redis's clock, and what it does when that has jumped."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

import pytest

from orch_scheduler import rescuer
from orchestrator.clock import RemoteClock
from orchestrator.store import Store
from orchestrator.store.answers import Lapsed


class Machine:
    """Two clocks, Redis's and one that never jumps, and a store that only tells the time."""

    def __init__(self) -> None:
        self.redis_ms = 1_800_000_000_000
        self.ticks = 50.0
        self.expected: list[int | None] = []
        self.seen = [0]
        runs = SimpleNamespace(
            lapse=self._lapse,
            **dict.fromkeys(("wake", "expire", "time_out_paused", "mark_late"), lambda: 0),
        )
        settings = SimpleNamespace(lease=timedelta(seconds=15))
        self.store = cast(Store, SimpleNamespace(runs=runs, settings=settings, pools=SimpleNamespace(names=list)))
        self.clock = RemoteClock(lambda: self.ticks)

    def pass_time(self, seconds: float, jump: float = 0) -> None:
        self.ticks += seconds
        self.redis_ms += round((seconds + jump) * 1000)

    def _lapse(self, _limit: int, *, expected_ms: int | None) -> Lapsed:
        self.expected.append(expected_ms)
        jump = self.redis_ms - expected_ms if expected_ms is not None else 0
        return Lapsed(0, 0, 0, self.seen.pop() if self.seen else 0, bool(jump), jump, self.redis_ms)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def sweep(machine: Machine) -> int | None:
    """One sweep; what it expected of Redis's clock."""
    rescuer.run_once(machine.store, machine.clock)
    return machine.expected[-1]


def test_the_first_sweep_expects_nothing_and_each_later_one_what_has_passed(machine: Machine) -> None:
    assert sweep(machine) is None
    for seconds in (1.0, 1.25, 600.0):
        machine.pass_time(seconds)
        assert sweep(machine) == machine.redis_ms


@pytest.mark.parametrize(
    ("jump", "told"),
    [
        (3600.0, "Redis's clock jumped ahead by 3600 s, or Redis did not answer for so long"),
        (-300.0, "Redis's clock went back by 300 s"),
    ],
)
def test_a_jump_is_noticed_once_and_said(machine: Machine, jump: float, told: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    sweep(machine)
    machine.pass_time(1, jump)
    assert sweep(machine) == machine.redis_ms - round(jump * 1000)
    assert caplog.messages == [f"{told}; no lease counts as over for 15 s"]
    machine.pass_time(1)
    assert sweep(machine) == machine.redis_ms
    assert len(caplog.messages) == 1


def test_each_batch_of_a_long_sweep_has_an_expectation_of_its_own(machine: Machine) -> None:
    machine.seen = [5, 100, 100]
    sweep(machine)
    assert machine.expected == [None, machine.redis_ms, machine.redis_ms]


def test_a_sweep_without_a_clock_knows_nothing(machine: Machine) -> None:
    rescuer.run_once(machine.store)
    machine.pass_time(1)
    rescuer.run_once(machine.store)
    assert machine.expected == [None, None]


def test_a_clock_is_off_when_it_shows_something_else_than_it_should(machine: Machine) -> None:
    assert not machine.clock.is_off(0, timedelta(seconds=5)), "nothing is known yet"
    machine.clock.showed(machine.redis_ms)
    machine.pass_time(10)
    assert not machine.clock.is_off(machine.redis_ms + 5000, timedelta(seconds=5))
    assert machine.clock.is_off(machine.redis_ms + 5001, timedelta(seconds=5))
    assert machine.clock.is_off(machine.redis_ms - 5001, timedelta(seconds=5))
