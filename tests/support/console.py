"""``orch`` typed by a test in its own process, and what a worker does, in a word each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from orchestrator import clock
from orchestrator._version import __version__
from orchestrator.models import LogLine, Worker
from orchestrator.states import State
from orchestrator.store import Store
from orchestrator.store.answers import End, Start, Turn


@dataclass
class Answer:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Orch = Callable[..., Answer]


def beat(store: Store, version: str = __version__) -> None:
    """A worker of the pool ``etl`` says that it lives."""
    now = clock.now()
    store.pools.heartbeat(
        Worker("w1", "etl", "process", "host1", 42, version, "3.11", 4, 0, ("default",), now, now, "ONLINE", timedelta())
    )


def claim(store: Store, pool: str = "etl") -> tuple[str, int]:
    """Start the next run of the pool, as a worker would."""
    delivered = store.pools.wait_for_runs(pool, "w1", ["default"], timedelta(seconds=5))
    [claimed] = store.runs.claim("w1", pool, ["default"], 1, delivered).claimed
    store.runs.exchange(Turn("w1", starts=[Start(claimed.id, claimed.attempt)]))
    return claimed.id, claimed.attempt


def finish(store: Store, run: tuple[str, int], state: State, *messages: str) -> None:
    """Write a log and end a run, as a worker would."""
    store.runs.append_log({run[0]: [LogLine(clock.now(), 20, "prefect", message, run[1]) for message in messages]})
    assert store.runs.finish([End(*run, state)], worker="w1") == ["ok"]
