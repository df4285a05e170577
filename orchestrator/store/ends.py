"""Who waits for runs to end is told by the feed of events: one thread a process, and only while somebody waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from orchestrator import clock
from orchestrator.exceptions import ObjectNotFound, OrchError, StoreUnavailable
from orchestrator.keys import lengthen, shorten
from orchestrator.states import STATE_TYPES, TERMINAL, State
from orchestrator.store.connection import LONGEST_BLOCK
from orchestrator.store.records import read_fields, text_of

if TYPE_CHECKING:
    from orchestrator.store import Store

Told = Callable[[Exception | None], object]
"""Called once, in another thread perhaps: the run has ended; or why nobody will know."""

_GONE = "It was deleted, by somebody or when its retention was over; or it is in another namespace."
_AT_ONCE = 1000
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_NEWS = frozenset(f"run.{name}".encode() for name in (*(n for n, kind in STATE_TYPES.items() if kind in TERMINAL), "deleted"))


class Ends:
    """The ends of runs of one namespace, as they come. Thread-safe.

    Redis is asked once about each run that is waited for; then one blocking read of the feed serves all. Where the feed was
    trimmed before it was read, or Redis was away, the runs that are still waited for are asked about again.
    """

    def __init__(self, store: Store, patience: timedelta) -> None:
        self._store: Any = store
        self._patience = patience
        self._waiting: dict[bytes, list[Told]] = {}
        self._changed = threading.Condition()
        self._place = ""
        self._is_reading = False
        self._thread: threading.Thread | None = None

    def tell(self, waits: Iterable[tuple[str, Told]]) -> None:
        """Call each ``Told`` when its run has ended, at once if it has; with ObjectNotFound if there is no such run.

        Raises StoreUnavailable; then none is waited for.
        """
        every = [(shorten(run).encode(), told) for run, told in waits]
        with self._changed:
            if not self._is_reading:
                # What ends after this moment is in the feed; what has ended before is seen below.
                self._place = self._store.events.last_id()
                self._is_reading = True
            for short, told in every:
                self._waiting.setdefault(short, []).append(told)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="orch-ends", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            self._look(list(dict.fromkeys(short for short, _ in every)))
        except OrchError:
            for short, told in every:
                self._forget(short, told)
            raise

    def stop_telling(self, run: str, told: Told) -> None:
        """Nobody waits for it any more."""
        self._forget(shorten(run).encode(), told)

    def outcome(self, run: str) -> tuple[State, bytes]:
        """A run's present state and, once it has ended, its packed result. One round trip.

        Raises ObjectNotFound, Unreadable.
        """
        packed, result = self._store.client.hmget(self._store.keys.run(shorten(run)), ("run", "result"))
        if packed is None:
            raise ObjectNotFound(f"There is no run {run}.", hint=_GONE)
        fields = read_fields(packed)
        name = fields["state"]
        label, message = text_of(fields["label"]) or name, text_of(fields["message"])
        return State(STATE_TYPES[name], label, message, timestamp=clock.from_ms(fields["at"])), result or b""

    def _forget(self, short: bytes, told: Told) -> None:
        with self._changed:
            left = [other for other in self._waiting.pop(short, ()) if other != told]
            if left:
                self._waiting[short] = left

    def _look(self, shorts: Sequence[bytes]) -> None:
        """Ask Redis which of these have ended."""
        for start in range(0, len(shorts), _AT_ONCE):
            some = shorts[start : start + _AT_ONCE]
            pipeline = self._store.client.pipeline(transaction=False)
            for short in some:
                pipeline.hget(self._store.keys.run(short.decode()), "run")
            for short, packed in zip(some, pipeline.execute(), strict=True):
                if packed is None:
                    self._end(short, ObjectNotFound(f"There is no run {lengthen(short)}.", hint=_GONE))
                elif STATE_TYPES[read_fields(packed)["state"]] in TERMINAL:
                    self._end(short, None)

    def _end(self, short: bytes, problem: Exception | None) -> None:
        with self._changed:
            told = self._waiting.pop(short, ())
        for tell in told:
            tell(problem)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._is_reading = False
                    self._changed.wait()
            try:
                self._read()
            except Exception as problem:
                self._recover(problem)

    def _read(self) -> None:
        """One blocking read of the feed."""
        events = self._store.keys.events
        block_ms = round(LONGEST_BLOCK / timedelta(milliseconds=1))
        for _, entries in self._store.blocking.xread({events: self._place}, count=_AT_ONCE, block=block_ms) or ():
            before, self._place = self._place, entries[-1][0].decode()
            for _, fields in entries:
                if fields[b"e"] in _NEWS and fields.get(b"r") in self._waiting:
                    self._end(fields[b"r"], _deleted(fields))
            if len(entries) == _AT_ONCE and self._has_lost(before):
                self._look(list(self._waiting))

    def _has_lost(self, place: str) -> bool:
        """The feed was trimmed beyond the place up to which it had been read."""
        oldest = self._store.client.xrange(self._store.keys.events, count=1)
        return bool(oldest) and _number(oldest[0][0].decode()) > _number(place)

    def _recover(self, problem: Exception) -> None:
        """Redis went away: begin anew when it is back; who waits longer than patience allows is told what is wrong."""
        deadline = clock.monotonic() + self._patience.total_seconds()
        pause = _FIRST_PAUSE_S
        while isinstance(problem, StoreUnavailable) and clock.monotonic() < deadline:
            threading.Event().wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            try:
                self._place = self._store.events.last_id()
                self._look(list(self._waiting))
                return
            except Exception as again:
                problem = again
        for short in list(self._waiting):
            self._end(short, problem)


def _deleted(fields: dict[bytes, bytes]) -> Exception | None:
    if fields[b"e"] != b"run.deleted":
        return None
    return ObjectNotFound(f"Run {lengthen(fields[b'r'])} was deleted.", hint="Nobody will know how it would have ended.")


def _number(place: str) -> tuple[int, int]:
    ms, _, number = place.partition("-")
    return int(ms), int(number or 0)
