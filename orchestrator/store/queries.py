"""Finding runs: by filter with a cursor, by what people type, ahead of time, and live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from orchestrator import clock
from orchestrator.exceptions import ObjectNotFound, OrchError
from orchestrator.keys import Keys, lengthen, shorten
from orchestrator.models import HistoryEntry, LogLine, Page, Run, RunFilter
from orchestrator.states import STATE_TYPES, TERMINAL, State
from orchestrator.store.client import Redis
from orchestrator.store.events import Events
from orchestrator.store.records import read_line
from orchestrator.store.runs import Runs

_BATCH = 200
_BLOCK = timedelta(seconds=5)
_SEARCHED = 5000


class Queries:
    """Reads over many runs of one namespace."""

    def __init__(self, client: Redis, blocking: Redis, names: Keys, runs: Runs, events: Events) -> None:
        self._client = client
        self._blocking = blocking
        self._keys = names
        self._runs = runs
        self._events = events

    def runs(self, wanted: RunFilter = RunFilter(), *, limit: int = 50, cursor: str | None = None) -> Page:  # noqa: B008 - frozen in effect
        """Runs that match, newest due time first, ``limit`` a page; go on with the page's cursor.

        Reads the smallest index that the filter names and looks at the rest run by run.
        """
        found: list[Run] = []
        for run, position in self._walk(wanted, cursor):
            found.append(run)
            if len(found) == limit:
                return Page(found, position)
        return Page(found, None)

    def every_run(self, wanted: RunFilter) -> Iterator[Run]:
        """All runs that match, newest first, read in batches."""
        return (run for run, _ in self._walk(wanted, None))

    def count(self, wanted: RunFilter = RunFilter()) -> int:  # noqa: B008
        """How many runs match."""
        if wanted == RunFilter(states=wanted.states):
            names = _state_names(wanted.states) or tuple(STATE_TYPES)
            return sum(int(self._client.zcard(self._keys.index("state", name))) for name in names)
        return sum(1 for _ in self._walk(wanted, None))

    def count_ended(self, *, before: datetime) -> int:
        """How many runs ended before a moment."""
        until = f"({clock.to_ms(before)}"
        ends = (name for name, kind in STATE_TYPES.items() if kind in TERMINAL)
        return sum(int(self._client.zcount(self._keys.index("state", name), "-inf", until)) for name in ends)

    def _walk(self, wanted: RunFilter, cursor: str | None) -> Iterator[tuple[Run, str]]:
        names = _state_names(wanted.states)
        if wanted.states and not names:
            return
        name, highest, skip = _read_cursor(cursor)
        index = self._keys.prefix + name if name else self._index(wanted, names)
        if highest == "+inf" and wanted.until:
            highest = str(clock.to_ms(wanted.until))
        lowest = str(clock.to_ms(wanted.since)) if wanted.since else "-inf"
        offset = 0
        while True:
            members = self._client.zrange(
                index, highest, lowest, desc=True, byscore=True, offset=offset, num=_BATCH, withscores=True
            )
            offset += len(members)
            runs = self._runs.get_many([lengthen(member) for member, _ in members]) if members else []
            for (member, score), run in zip(members, runs, strict=True):
                if skip and member.decode() >= skip and int(score) == int(highest):
                    continue
                if run is None:
                    self._client.zrem(index, member)
                    offset -= 1
                elif _matches(run, wanted, names):
                    yield run, _write_cursor(index.removeprefix(self._keys.prefix), score, member)
            if len(members) < _BATCH:
                return

    def _index(self, wanted: RunFilter, names: Sequence[str]) -> str:
        candidates = [self._keys.index("tag", tag) for tag in wanted.tags]
        if wanted.flow:
            candidates.append(self._keys.index("flow", wanted.flow))
        if wanted.deployment:
            candidates.append(self._keys.index("deployment", shorten(wanted.deployment)))
        if wanted.parent:
            candidates.append(self._keys.index("parent", shorten(wanted.parent)))
        if len(names) == 1 and not wanted.since and not wanted.until:
            candidates.append(self._keys.index("state", names[0]))
        elif wanted.quarantined and not wanted.until:
            # By the time of their end, which is behind their due time: a run that is due late enough is never left out.
            candidates.append(self._keys.index("state", "Crashed"))
        candidates = candidates or [self._keys.index("all")]
        if len(candidates) == 1:
            return candidates[0]
        return min(candidates, key=lambda key: int(self._client.zcard(key)))

    def find(self, text: str) -> Run:
        """The run that people mean: a whole id, the beginning of one (6 characters at least), or a name.

        Raises ObjectNotFound, or OrchError where several would do.
        """
        if len(text) == 36 and _is_hex(text):
            return self._runs.get(text.lower())
        found: list[Run] = []
        if len(text) >= 6 and _is_hex(text):
            found = [run for run in self._recent() if run.id.startswith(text.lower())]
        found = found or [run for run in self._recent() if run.name == text]
        if not found:
            raise ObjectNotFound(f"There is no flow run {text!r}.", hint="List runs with: orch flow-run ls")
        if len(found) > 1:
            raise OrchError(
                f"{text!r} stands for {len(found)} flow runs: {', '.join(run.id for run in found[:3])}",
                hint="Give more of the id.",
            )
        return found[0]

    def _recent(self) -> Iterable[Run]:
        members = self._client.zrange(self._keys.index("all"), 0, _SEARCHED - 1, desc=True)
        for start in range(0, len(members), _BATCH):
            batch = [lengthen(member) for member in members[start : start + _BATCH]]
            yield from (run for run in self._runs.get_many(batch) if run)

    def upcoming(
        self, *, pool: str | None = None, deployment: str | None = None, until: datetime | None = None, limit: int = 50
    ) -> list[Run]:
        """Runs that have not started, the next one first."""
        found: list[Run] = []
        highest = str(clock.to_ms(until)) if until else "+inf"
        for state in ("Late", "Scheduled"):
            members = self._client.zrange(
                self._keys.index("state", state), "-inf", highest, byscore=True, offset=0, num=_SEARCHED
            )
            for start in range(0, len(members), _BATCH):
                batch = self._runs.get_many([lengthen(member) for member in members[start : start + _BATCH]])
                found += [r for r in batch if r and pool in (None, r.pool) and deployment in (None, r.deployment)]
                if len(found) >= limit:
                    return found[:limit]
        return found

    def follow(self, run: str, after: str = "", since: datetime | None = None) -> Iterator[LogLine | State]:
        """A run's log lines and states as they come, until it has ended and its log is drained.

        The first thing is its present state. With ``since``, the states that it has entered after that time come instead, each
        in its place between the lines. None that follows is left out. Blocks between; nothing polls.

        Raises ObjectNotFound if the run is deleted.
        """
        log, events = self._keys.log(shorten(run)), self._keys.events
        places = {log: after or "0", events: self._events.last_id()}
        current = self._runs.get(run)
        states = [] if since is None else [state for state in _states(current) if state.timestamp > since]
        if since is None:
            yield current.state
        shown = current.history[-1]
        while True:
            while lines := self._runs.read_log(run, places[log] if places[log] != "0" else ""):
                places[log] = lines[-1].id
                yield from _in_order(states, lines)
            yield from states
            if current.is_terminal:
                return
            lines, states = [], []
            for stream, entries in self._blocking.xread(places, count=1000, block=int(_BLOCK.total_seconds() * 1000)) or []:
                if stream.decode() == events:
                    places[events] = entries[-1][0].decode()
                else:
                    lines = [read_line(entry, fields[b"l"]) for entry, fields in entries]
                    places[log] = entries[-1][0].decode()
            current = self._runs.get(run)
            states = _states(current)[_place_behind(shown, current.history) :]
            shown = current.history[-1]
            yield from _in_order(states, lines)


def _states(run: Run) -> list[State]:
    """The states that a run's history remembers, oldest first; the last is the present one."""
    past = [
        State(STATE_TYPES.get(entry.name, run.state.type), entry.name, entry.message, timestamp=entry.at)
        for entry in run.history[:-1]
    ]
    return [*past, run.state]


def _place_behind(entry: HistoryEntry, history: Sequence[HistoryEntry]) -> int:
    """Where the entries behind this one begin; all of them are where it has been forgotten."""
    return max((place for place, known in enumerate(history, 1) if known == entry), default=0)


def _in_order(states: list[State], lines: Iterable[LogLine]) -> Iterator[LogLine | State]:
    """Lines, each behind the states entered before it, which are taken out of ``states``; a final state stays there."""
    for line in lines:
        while states and states[0].timestamp <= line.at and not states[0].is_final():
            yield states.pop(0)
        yield line


def _state_names(states: Iterable[str]) -> tuple[str, ...]:
    """Canonical names for state names and types as people write them, in any case."""
    asked = {state.casefold() for state in states}
    return tuple(name for name, kind in STATE_TYPES.items() if name.casefold() in asked or kind.value.casefold() in asked)


def _matches(run: Run, wanted: RunFilter, names: Sequence[str]) -> bool:
    return (
        (not names or _stored_name(run) in names)
        and wanted.flow in (None, run.flow)
        and wanted.deployment in (None, run.deployment)
        and wanted.pool in (None, run.pool)
        and wanted.parent in (None, run.parent)
        and set(wanted.tags) <= set(run.tags)
        and (wanted.name is None or wanted.name.casefold() in run.name.casefold())
        and (wanted.since is None or run.due >= wanted.since)
        and (wanted.until is None or run.due <= wanted.until)
        and (not wanted.quarantined or run.is_quarantined)
    )


def _stored_name(run: Run) -> str:
    return (
        run.state.name
        if run.state.name in STATE_TYPES
        else next(n for n, kind in STATE_TYPES.items() if kind is run.state.type)
    )


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdefABCDEF-" for character in text)


def _write_cursor(index: str, score: float, member: bytes) -> str:
    """A cursor goes on in the index that it began in: the smallest one may be another by then, in another order."""
    return f"{index}@{int(score)}.{member.decode()}"


def _read_cursor(cursor: str | None) -> tuple[str, str, str]:
    """The index (below the prefix) that the cursor belongs to, the score and the member that were last."""
    if not cursor:
        return "", "+inf", ""
    index, _, place = cursor.rpartition("@")
    score, _, member = place.partition(".")
    if not index.startswith("index:") or not member or not score.isdigit():
        raise OrchError(f"{cursor!r} is no cursor.", hint="Use the cursor that the page before gave, as it is.")
    return index, score, member
