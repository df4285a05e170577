"""The submitter of `make chaos` lives through what it is told while servers stand in for each other."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.chaos.submitter import Submitter
from harness import eventually
from orchestrator.exceptions import NotReplicated, StoreUnavailable
from orchestrator.keys import new_id
from orchestrator.models import Created, NewRun
from orchestrator.store import Store


class LateReplica:
    """A store's runs; of the steps of a hundred runs that ``create`` takes, every other one is confirmed too late."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.is_away = threading.Event()
        self._steps = 0

    def create(self, new: Sequence[NewRun]) -> list[Created]:
        if self.is_away.is_set():
            raise StoreUnavailable("There is no primary.")
        for run in new:
            run.id = run.id or new_id()
            self.there.add(run.id)
        before = self._steps
        self._steps += -(-len(new) // 100)
        if self._steps // 2 > before // 2:
            raise NotReplicated("No replica has confirmed it.")
        return [Created(run.id or "", "created", "name") for run in new]


@pytest.mark.parametrize("total", [50, 1000])
def test_refusals_are_counted_and_everything_is_given_in_all_the_same_once(total: int) -> None:
    """All that waited was created at once, in as many steps: with a dozen of them, one was refused each time, for ever."""
    runs = LateReplica()
    runs.is_away.set()
    submitter = Submitter(
        cast(Store, SimpleNamespace(runs=cast(Any, runs))), lambda _: NewRun("f"), Random(1), per_s=1e6, total=total
    ).start()
    eventually(lambda: submitter.refused >= total, what="all to be refused")
    runs.is_away.clear()
    eventually(lambda: submitter.is_done, what="all to be accepted")
    assert submitter.last_refusal == ("There is no primary." if total == 50 else "No replica has confirmed it.")
    assert submitter.submitted.keys() == runs.there
    assert len(runs.there) == total
