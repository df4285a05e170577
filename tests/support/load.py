"""Runs that are created, claimed and ended without a pause, by whatever means it takes, while a test harms the servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import TracebackType

from harness import eventually
from orchestrator.exceptions import StoreUnavailable
from orchestrator.keys import new_id
from orchestrator.models import NewRun
from orchestrator.settings import Settings
from orchestrator.states import State, StateType
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End
from orchestrator.store.invariants import check

_LEASE = timedelta(seconds=1)


class Load:
    """Two threads, one that creates runs and one that works on them, each with a store of its own.

    Both try again whatever was not answered, as submitters and workers do.
    """

    def __init__(self, settings: Settings, *, durability: str = "default") -> None:
        self._settings = replace(settings, redis_timeout_s=1.0)
        with open_store(self._settings) as store:
            store.write_settings(replace(store.settings, lease=_LEASE, durability=durability))
            store.pools.create("p")
        self.given: set[str] = set()
        self.finished: dict[tuple[str, int], str] = {}
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._create, self._work)]
        self._problems: list[BaseException] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def go_on(self, runs: int = 20) -> None:
        """Wait until so many more runs were given out, and so many more ended."""
        given, finished = len(self.given) + runs, len(self.finished) + runs

        def has_gone_on() -> bool:
            assert not self._problems, self._problems
            return len(self.given) >= given and len(self.finished) >= finished

        eventually(has_gone_on, 60, "runs to be created and ended")

    def expect_all(self, store: Store) -> None:
        """End what is left; then every run that was given out has ended, once, and every invariant holds."""
        self.__exit__(None, None, None)
        assert not self._problems, self._problems

        def is_drained() -> bool:
            store.runs.lapse()
            store.runs.redeliver("p", ["default"], idle=timedelta(0))
            self._turn(store)
            return all(run and run.is_terminal for run in store.runs.get_many(sorted(self.given)))

        eventually(is_drained, 60, "all runs to end")
        for run in store.runs.get_many(sorted(self.given)):
            assert run is not None
            assert [entry.name for entry in run.history].count("Completed") == 1
        assert not check(store)

    def _guarded(self, work: Callable[[Store], None]) -> None:
        try:
            with open_store(self._settings) as store:
                while not self._over.is_set():
                    work(store)
        except BaseException as problem:
            self._problems.append(problem)

    def _create(self, store: Store) -> None:
        run = NewRun("f", id=new_id(), pool="p", crash_budget=1000)
        while not self._over.is_set():
            try:
                store.runs.create([run])
            except StoreUnavailable as error:
                self._failed(error)
            else:
                self.given.add(run.id)
                return

    def _work(self, store: Store) -> None:
        try:
            self._turn(store)
        except StoreUnavailable as error:
            self._failed(error)

    def _turn(self, store: Store) -> None:
        claimed = store.runs.claim("w", "p", ["default"], 5).claimed
        ends = [End(run.id, run.attempt, State(StateType.COMPLETED)) for run in claimed]
        while ends:
            try:
                answers = store.runs.finish(ends, worker="w")
            except StoreUnavailable as error:
                self._failed(error)
                if self._over.is_set():
                    return
            else:
                self.finished.update({(end.run, end.attempt): answer for end, answer in zip(ends, answers, strict=True)})
                return

    def _failed(self, error: Exception) -> None:
        self.failures.append(str(error))
        self._over.wait(0.02)
