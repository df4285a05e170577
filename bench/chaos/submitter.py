"""The submitter: gives in runs at a steady rate from a thread of its own, and remembers each id that it was given."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from orchestrator.exceptions import OrchError
from orchestrator.models import NewRun
from orchestrator.store import Store

_STEP_S = 0.05
_MOST_AT_ONCE = 200
_BATCH = 100
"""What the store creates in one step. More at once would count only if all steps did: after a fail-over, one of dozens whose
replica is late would have all of them done again, and more each time."""


class Submitter:
    """A thread that creates ``per_s`` runs a second until ``total`` were accepted or it is told to stop.

    ``new`` makes each of them from the seed's chance. ``submitted`` maps the ids that Redis has acknowledged to their tags;
    ``accepted`` has the moment of each. A refusal (no primary, no replica that confirms, no room) is counted, and the same runs
    are tried again under the ids that they have by then, so that one whose answer was lost is not created twice.
    """

    def __init__(
        self,
        store: Store,
        new: Callable[[random.Random], NewRun],
        chance: random.Random,
        *,
        per_s: float,
        total: int | None = None,
    ) -> None:
        self.submitted: dict[str, tuple[str, ...]] = {}
        self.accepted: dict[str, float] = {}
        self.refused = 0
        self.last_refusal = ""
        self._store = store
        self._new = new
        self._chance = chance
        self._per_s = per_s
        self._total = total
        self._stopped = threading.Event()
        self._began = 0.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="submitter", daemon=True)

    def start(self) -> Submitter:
        """Begin."""
        self._began = time.monotonic()
        self._thread.start()
        return self

    @property
    def is_done(self) -> bool:
        """``total`` were accepted. Raises what the thread died of, if it did."""
        if self._failure is not None:
            raise self._failure
        return not self._thread.is_alive()

    def stop(self) -> None:
        """No more runs; returns when the last answer has come."""
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            waiting: list[NewRun] = []
            made = 0
            while not self._stopped.is_set() and (self._total is None or len(self.submitted) < self._total):
                due = int((time.monotonic() - self._began) * self._per_s)
                due = due if self._total is None else min(due, self._total)
                fresh = min(due - made, _MOST_AT_ONCE)
                waiting += [self._new(self._chance) for _ in range(fresh)]
                made += max(0, fresh)
                while waiting and self._submit(waiting[:_BATCH]):
                    del waiting[:_BATCH]
                self._stopped.wait(_STEP_S)
        except BaseException as error:
            self._failure = error

    def _submit(self, new: list[NewRun]) -> bool:
        try:
            created = self._store.runs.create(new)
        except OrchError as error:
            self.refused += len(new)
            self.last_refusal = str(error)
            return False
        now = time.monotonic()
        for one, each in zip(created, new, strict=True):
            self.submitted[one.id] = each.tags
            self.accepted[one.id] = now
        return True
