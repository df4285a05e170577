"""The floor on which store tests play: a pool, workers without processes, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from orchestrator import clock
from orchestrator.clock import FrozenClock
from orchestrator.keys import new_id, shorten
from orchestrator.models import NewRun, Run
from orchestrator.states import STATE_TYPES, State
from orchestrator.store import Store
from orchestrator.store.answers import ClaimedRun, Delivery, End


def named(name: str, message: str = "") -> State:
    """The state of a canonical name, or one of a type's own name: ``named("FAILED:TimedOut")``."""
    kind, _, label = name.partition(":")
    return State(STATE_TYPES[name], name, message) if name in STATE_TYPES else State(kind, label, message)  # type: ignore[arg-type]


@dataclass
class Floor:
    """One pool, ``p``, its queue ``default``, and as many workers as are named."""

    store: Store
    clock: FrozenClock

    def now(self) -> datetime:
        return clock.from_ms(self.clock.ms)

    def after(self, seconds: float) -> datetime:
        """A moment so many seconds from now."""
        return self.now() + timedelta(seconds=seconds)

    def wait(self, seconds: float) -> None:
        """The clock moves on."""
        self.clock.advance(timedelta(seconds=seconds))

    def submit(self, **fields: Any) -> str:
        """A new run of the flow ``f`` in the pool, a millisecond younger than what was before it; its id."""
        self.clock.advance(timedelta(milliseconds=1))
        return self.store.runs.create([NewRun(**{"flow": "f", "pool": "p", **fields})])[0].id

    def claim(self, free: int = 10, worker: str = "w", queues: Sequence[str] = ("default",), **more: Any) -> list[ClaimedRun]:
        """What a worker gets that asks for runs."""
        return self.store.runs.claim(worker, "p", queues, free, **more).claimed

    def pending(self, **fields: Any) -> str:
        """A run that a worker has just claimed, and nobody else wanted; its id."""
        run = self.submit(**fields)
        assert [claimed.id for claimed in self.claim(1)] == [run]
        return run

    def running(self, **fields: Any) -> str:
        """A run whose body runs; its id."""
        run = self.pending(**fields)
        assert self.store.runs.set_state(run, named("Running"), attempt=1, worker="w").answer == "ok"
        return run

    def ended(self, state: str = "Completed", **fields: Any) -> str:
        """A run that ended so at its first attempt; its id."""
        run = self.running(**fields)
        assert self.finish(run, state) == "ok"
        return run

    def finish(self, run: str, state: str = "Completed", *, attempt: int | None = None, **more: Any) -> str:
        """The answer to the run's worker that ends its attempt, by default the present one."""
        found = self.get(run)
        end = End(run, found.attempt if attempt is None else attempt, named(state), **more)
        return self.store.runs.finish([end], worker=found.worker or "w")[0]

    def deliver(self, worker: str = "w", queues: Sequence[str] = ("default",)) -> list[Delivery]:
        """What a worker's blocked read hands to it: one message of each stream. It is not claimed by that."""
        return self.store.pools.wait_for_runs("p", worker, queues, timedelta(milliseconds=1))

    def get(self, run: str) -> Run:
        return self.store.runs.get(run)

    def states(self, run: str) -> list[str]:
        """The names of all states that a run has been in."""
        return [entry.name for entry in self.get(run).history]

    def place(self, run: str) -> tuple[str, str]:
        """Where a run is, and its state."""
        found = self.get(run)
        return found.place, found.state.name

    def snapshot(self, run: str) -> Any:
        """Everything Redis keeps of a run, to compare."""
        return self.store.client.hgetall(self.key("run", run))

    def key(self, kind: str, run: str) -> str:
        """The name of a key that belongs to a run."""
        return f"{self.store.keys.prefix}{kind}:{shorten(run)}"


def missing_run() -> str:
    """The id of a run that does not exist."""
    return new_id()
