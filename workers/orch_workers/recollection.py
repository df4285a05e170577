"""What a worker does with its memory when Redis is another server: it holds its journal against it, beside its other work."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orch_workers.journal import RESULT_LIMIT, Entry
from orchestrator import clock
from orchestrator.exceptions import StoreUnavailable
from orchestrator.states import canonical_name
from orchestrator.store.failover import AcceptedEnd

if TYPE_CHECKING:
    from orchestrator.store import Store
    from orchestrator.store.answers import End
    from orchestrator.store.failover import Epoch

_TRY_AGAIN_S = 1.0
_MESSAGE_LIMIT = 2000
_FIRST_S = 0.5

log = logging.getLogger(__name__)


def accepted(end: End) -> AcceptedEnd:
    """An end as the journal keeps it: moments instead of spans, no large result."""
    now_ms = clock.now_ms()
    return AcceptedEnd(
        end.run,
        end.attempt,
        canonical_name(end.state.type, end.state.name),
        end.state.name,
        end.state.message[:_MESSAGE_LIMIT],
        end.result if len(end.result) <= RESULT_LIMIT else b"",
        now_ms - round(end.ago.total_seconds() * 1000),
        now_ms + round(end.retry_in.total_seconds() * 1000) if end.retry_in is not None else 0,
    )


class Recollection:
    """Holds ends against a server that may have forgotten them, in a thread: thousands may be asked for, and runs go on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stopping = threading.Event()

    def begin(self, entries: Sequence[Entry]) -> None:
        """Ask for these, newest first. Returns when that is done, or goes on beside: what was lost is seldom old."""
        if entries:
            thread = threading.Thread(target=self._ask, args=(list(entries),), name="orch-recollection", daemon=True)
            thread.start()
            thread.join(_FIRST_S)

    def mend(self, epoch: Epoch) -> None:
        """Reconcile the namespace beside, as ``Epoch.mends`` asks for."""
        threading.Thread(target=self._mend, args=(epoch,), name="orch-mend", daemon=True).start()

    def stop(self) -> None:
        """Whatever is not done yet is not done by this process."""
        self._stopping.set()

    def _ask(self, entries: list[Entry]) -> None:
        try:
            found: Counter[str] = Counter()
            for worker, ends in _by_worker(entries):
                found += self._reassert(worker, ends)
            counts = ", ".join(f"{count} {answer}" for answer, count in sorted(found.items()))
            log.info("Held the ends of the last ten minutes against the server: %s", counts, extra={"action": "reasserted"})
        except Exception:
            log.exception("The journal could not be held against the server")

    def _reassert(self, worker: str, ends: list[AcceptedEnd]) -> Counter[str]:
        while not self._stopping.is_set():
            try:
                return Counter(asserted.answer for asserted in self._store.failover.reassert(worker, ends)[0])
            except StoreUnavailable:
                self._stopping.wait(_TRY_AGAIN_S)
        return Counter({"unasked": len(ends)})

    def _mend(self, epoch: Epoch) -> None:
        try:
            self._store.failover.mend(epoch, self._store.runs.reconcile_all)
        except StoreUnavailable as error:
            log.warning("The namespace is not mended yet; another process will do it: %s", error)
        except Exception:
            log.exception("The namespace could not be mended")


def _by_worker(entries: Sequence[Entry]) -> list[tuple[str, list[AcceptedEnd]]]:
    found: dict[str, list[AcceptedEnd]] = {}
    for entry in entries:
        found.setdefault(entry.worker, []).append(entry.end)
    return list(found.items())
