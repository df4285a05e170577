"""Which history of the server a namespace is on, and what a change of it did to runs.

Redis may forget what it has accepted: a replica that lagged is promoted, a server restarts without its last second, a backup
is restored. The namespace therefore remembers the server process and the replication history that it was last seen on, under a
number: its *epoch*. Whoever sees another server moves the epoch, one of all; one of all then mends the namespace. Workers hold
their ends and leases against the new epoch, and processes that created runs look for them.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from orchestrator import clock
from orchestrator.exceptions import DataGone, UnsuitableServer
from orchestrator.keys import Keys, lengthen, shorten
from orchestrator.store.client import Redis
from orchestrator.store.scripts import Scripts

log = logging.getLogger(__name__)

SCHEMA = 1
"""The form in which this release writes a namespace; the namespace's hash `settings` holds the form that it is in.

The rule. A release whose SCHEMA is N reads forms N and N-1, and leaves a namespace in form N-1 as it is: releases of N-1 may
still work beside it. Only when the last of them has gone may the stored number be raised; from then on they refuse the
namespace. A change that N-1 reads without harm (a new field, a new key) needs no new number.
"""

MEND_EVERY = timedelta(hours=1)
"""How often a namespace is mended that no fail-over has befallen: a net, whose finds are logged."""

_BATCH = 100
_REMEMBERED = 10_000
_REMEMBERED_S = 60.0


@dataclass(frozen=True, slots=True)
class Epoch:
    """A namespace's time on one history of one server.

    ``born`` tells the namespace from one that was begun anew under its name; ``number`` grows by one with each change.
    ``server`` and ``history`` are Redis's run_id and master_replid; ``before`` is the server before. ``how`` it began: started
    (the namespace is new), promoted (a replica of the server before took over) or replaced (it restarted, or is another one).
    ``mends``: whoever asked is to ``mend`` the namespace now, because of a ``failover``, or as it is done ``hourly``; else ''.
    """

    number: int
    born: str
    server: str
    history: str
    since: datetime
    before: str = ""
    how: str = "started"
    mends: str = ""

    @property
    def id(self) -> str:
        """Equal for two moments if, and only if, nothing can have been lost between them."""
        return f"{self.born}/{self.number}/{self.server}"


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of the last change of epoch. Of the ids at most 1,000 a kind are kept; the counts count all.

    ``mended`` None: nobody has mended the namespace yet. ``lost``: runs of which no record is left. ``twice``: runs that two
    workers started, of which one attempt counts. ``restored``: runs whose accepted end, claim or creation was lost and recorded
    anew.
    """

    epoch: Epoch
    mended: int | None
    lost: tuple[str, ...]
    lost_count: int
    twice: tuple[str, ...]
    twice_count: int
    restored: tuple[str, ...]
    restored_count: int


class AcceptedEnd(NamedTuple):
    """How an attempt ended, as the store had accepted it. ``state`` is a canonical name, ``label`` the state's own.

    ``ended_ms`` and, for a retry, ``retry_ms`` are moments in ms of wall-clock time. ``result`` is packed.
    """

    run: str
    attempt: int
    state: str
    label: str
    message: str
    result: bytes
    ended_ms: int
    retry_ms: int = 0


class Held(NamedTuple):
    """A run that a worker executes, under the attempt that it believes to hold."""

    run: str
    attempt: int
    has_started: bool


class Asserted(NamedTuple):
    """What became of an end or of a held run, see lua/reassert.lua: ok, restored, missing, twice, full, other."""

    answer: str
    detail: str


class Failover:
    """The epoch of one namespace, as one process sees it. Thread-safe."""

    def __init__(self, client: Redis, scripts: Scripts, names: Keys, lease: timedelta, stored: Mapping[bytes, bytes]) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = names
        self._lease_ms = round(lease / timedelta(milliseconds=1))
        self._known = _read_epoch(stored)

    @property
    def known(self) -> Epoch | None:
        """The epoch as last seen, without asking; None if the namespace had none."""
        return self._known

    def check(self, *, mend: bool = False) -> Epoch:
        """The namespace's epoch now, moved if the server is another than before. One round trip of some 40 us.

        A namespace that has none is given its first one, and its schema. ``mend``: this process would mend the namespace if it
        is time; where the answer has ``mends``, it is to call ``mend``. Of all that ask, one gets that, and another one if it
        has not done so in two minutes.

        All who see a change get the same epoch. What a caller did under an epoch with another ``id`` may be lost.

        Raises DataGone when the namespace that this process has seen is there no more (FLUSHALL, an empty master, another
        server): nothing is written then, and nothing should be. StoreUnavailable, as everything does.
        """
        epoch = self._ask(begin=True, mend=mend)
        assert epoch is not None
        return epoch

    def look(self) -> Epoch | None:
        """As ``check``, for those who only read or submit: None where the namespace has no epoch yet."""
        return self._ask(begin=False, mend=False)

    def _ask(self, *, begin: bool, mend: bool) -> Epoch | None:
        known = self._known
        answer, *fields = self._scripts.call(
            "epoch",
            born=known.born if known else "",
            number=known.number if known else 0,
            begin=int(begin),
            mend=int(mend),
            chance=secrets.token_hex(4),
            schema=SCHEMA,
            lease_ms=self._lease_ms,
            every_ms=round(MEND_EVERY / timedelta(milliseconds=1)),
        )
        if answer == b"gone":
            raise DataGone(
                f"The namespace '{self._keys.namespace}' is not on this server any more: its data were deleted, or the server "
                "is another one, or an empty one.",
                hint="Bring the server's data back, then start this again. To begin with nothing: start this again as it is.",
            )
        if answer == b"none":
            return None
        epoch = _epoch_of([field.decode() for field in fields])
        self._known = epoch
        if fields[-2] == b"1" and epoch.number > 1:
            facts = {"action": "failover", **_facts(epoch)}
            log.warning("Redis is another server now (%s); epoch %d begins", epoch.how, epoch.number, extra=facts)
        return epoch

    def mend(self, epoch: Epoch, reconcile: Callable[[], Sequence[tuple[str, str]]]) -> int:
        """Reconcile the namespace, record that it was done and tell of it. How much was mended.

        For a new epoch the feed gets ``namespace.failover``; a net that found nothing says nothing.
        """
        mended = list(reconcile())
        answer = self._scripts.call("mended", number=epoch.number, count=len(mended))
        if mended or answer == b"first":
            level = logging.WARNING if mended else logging.INFO
            why = "after a fail-over" if answer == b"first" else "as every hour"
            log.log(level, "Mended %d things %s", len(mended), why, extra={"action": "mended", **_facts(epoch)})
        for what, subject in mended[:_BATCH]:
            log.info("Mended %s: %s", subject, what)
        return len(mended)

    def last(self) -> Report | None:
        """The present epoch and its damage; None for a namespace that no worker or scheduler has seen."""
        stored = self._client.hgetall(self._keys.epoch)
        epoch = _read_epoch(stored)
        if epoch is None:
            return None

        def ids(kind: bytes) -> tuple[str, ...]:
            return tuple(lengthen(short) for short in stored.get(kind, b"").split())

        return Report(
            epoch=epoch,
            mended=int(stored.get(b"mended", 0)) if stored.get(b"mended_in") == stored[b"number"] else None,
            lost=ids(b"lost"),
            lost_count=int(stored.get(b"lost_count", 0)),
            twice=ids(b"twice"),
            twice_count=int(stored.get(b"twice_count", 0)),
            restored=ids(b"restored"),
            restored_count=int(stored.get(b"restored_count", 0)),
        )

    def reassert(
        self, worker: str, ends: Sequence[AcceptedEnd] = (), held: Sequence[Held] = (), *, accepted: bool = True
    ) -> tuple[list[Asserted], list[Asserted]]:
        """Hold what a worker knows against a server that may have forgotten it. Per end and per run that it executes:

        ok; restored (the end is recorded anew, or the claim taken again); missing (no record is left: reported as lost); twice
        (a later attempt or another worker has it: reported with both); full (it waits again, a limit has no room: reported);
        other (the attempt has ended otherwise). Whoever executes a run that is not ok or restored has to stop it.

        Safe to repeat, and where nothing was lost: it changes nothing then. ``accepted`` False: of ends that were not told
        before, and that only a lost claim has made superseded.
        """
        of_ends: list[Asserted] = []
        of_held: list[Asserted] = []
        for start in range(0, max(len(ends), len(held)), _BATCH):
            some_ends, some_held = ends[start : start + _BATCH], held[start : start + _BATCH]
            answers = self._scripts.call(
                "reassert",
                worker=worker,
                lease_ms=self._lease_ms,
                ends=[[shorten(end.run), *end[1:], int(accepted)] for end in some_ends],
                held=[[shorten(run), attempt, int(has_started)] for run, attempt, has_started in some_held],
            )
            for found, into in zip(answers, (of_ends, of_held), strict=True):
                into += [Asserted(answer.decode(), detail.decode()) for answer, detail in found]
        subjects = [*((end.run, end.attempt, True) for end in ends), *((run.run, run.attempt, False) for run in held)]
        for (run, attempt, is_end), asserted in zip(subjects, (*of_ends, *of_held), strict=True):
            _tell(run, attempt, worker, asserted, is_end=is_end)
        return of_ends, of_held

    def unrecorded(self, deployment: str, runs: Sequence[str]) -> dict[str, bool]:
        """Those of a deployment's runs that are not there; True where its index still knows the run: it was not deleted."""
        pipeline = self._client.pipeline(transaction=False)
        index = self._keys.index("deployment", shorten(deployment))
        for run in runs:
            pipeline.exists(self._keys.run(shorten(run)))
            pipeline.zscore(index, shorten(run))
        answers = pipeline.execute() if runs else []
        found = zip(runs, answers[::2], answers[1::2], strict=True)
        return {run: score is not None for run, exists, score in found if not exists}

    def missing(self, runs: Sequence[str], by: str) -> list[str]:
        """Which of these runs have no record; each is reported as lost, ``by`` naming who was given its id or held it."""
        lost: list[str] = []
        for start in range(0, len(runs), _BATCH):
            batch = [shorten(run) for run in runs[start : start + _BATCH]]
            lost += [lengthen(short) for short in self._scripts.call("missing", runs=batch, worker=by)]
        for run in lost:
            log.error("Run %s was lost in a fail-over: no record of it is left", run, extra={"action": "run_lost", "run": run})
        return lost


class Submitted:
    """The runs that this process was given the ids of, for as long as a fail-over might still take them: 10,000, a minute.

    Costs a create no round trip. When connections have been replaced since, and the epoch or the server is another, the runs
    are looked for before the next create returns; each that is missing is reported. Thread-safe.
    """

    def __init__(self, failover: Failover, connections: Callable[[], int]) -> None:
        self._failover = failover
        self._connections = connections
        self._given: deque[tuple[float, str]] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()
        self._seen = 0
        self._epoch = ""

    def add(self, runs: Iterable[str]) -> None:
        """These ids were given out just now."""
        if not self._given:
            self._note(self._connections(), self._failover.known)
        now = clock.monotonic()
        with self._lock:
            self._given.extend([(now, run) for run in runs])

    def forget(self, runs: Iterable[str]) -> None:
        """These runs were deleted here: that they are missing is no loss."""
        gone = set(runs)
        with self._lock:
            self._given = deque([entry for entry in self._given if entry[1] not in gone], maxlen=_REMEMBERED)

    def verify(self) -> list[str]:
        """Look for them if connections were replaced and the server is another. The ids of those that were lost.

        Raises DataGone, StoreUnavailable; then they are looked for the next time.
        """
        if not self._given or self._connections() == self._seen:
            return []
        connections, epoch = self._connections(), self._failover.look()
        lost: list[str] = []
        if epoch is None or epoch.id != self._epoch:
            since = clock.monotonic() - _REMEMBERED_S
            with self._lock:
                given = [run for at, run in self._given if at >= since]
            lost = self._failover.missing(given, "its submitter")
            self.forget(lost)
        self._note(connections, epoch)
        return lost

    def _note(self, connections: int, epoch: Epoch | None) -> None:
        self._seen, self._epoch = connections, epoch.id if epoch else ""


def count_connections(client: Redis) -> Callable[[], int]:
    """How many connections the client, which has made none yet, has made by then: more may mean that they were replaced."""
    made = itertools.count(1)
    options = client.connection_pool.connection_kwargs
    seen = 0

    def connected(connection: Any) -> None:
        nonlocal seen
        connection.on_connect()
        seen = next(made)

    options["redis_connect_func"] = connected
    return lambda: seen


def check_schema(namespace: str, schema: int) -> None:
    """Raises UnsuitableServer for a namespace that a newer release has written."""
    if schema > SCHEMA:
        raise UnsuitableServer(
            f"The namespace '{namespace}' was written by a newer Orch: its schema is {schema}, this release knows {SCHEMA}.",
            hint="Upgrade Orch on this machine: pip install --upgrade orch. See docs/upgrading.md",
        )


def _tell(run: str, attempt: int, worker: str, asserted: Asserted, *, is_end: bool) -> None:
    """What a fail-over did to a run, in the log; nothing where it did nothing."""
    answer, detail = asserted
    what = f"the end of attempt {attempt}" if is_end else f"attempt {attempt}, which executes"
    told = {
        "restored": (logging.WARNING, f"a fail-over had lost {what} at {worker}; it is recorded anew"),
        "missing": (
            logging.ERROR,
            f"was lost in a fail-over: no record of it is left, and {what} at {worker} counts for nothing",
        ),
        "twice": (logging.ERROR, f"runs twice: a fail-over had lost {what} at {worker}, and {detail} has started it again"),
        "full": (logging.ERROR, f"runs twice: a fail-over had lost {what} at {worker}, and {detail} has no room for it now"),
        "other": (logging.WARNING, f"a fail-over had lost {what} at {worker}; it is {detail} now, and stays so"),
    }
    if answer in told:
        level, text = told[answer]
        extra = {"action": f"failover_{answer}", "run": run, "attempt": attempt, "worker": worker}
        log.log(level, "Run %s: %s", run, text, extra=extra)


def _read_epoch(stored: Mapping[bytes, bytes]) -> Epoch | None:
    if b"born" not in stored:
        return None
    names = (b"number", b"born", b"server", b"history", b"since", b"before", b"how")
    return _epoch_of([*(stored.get(name, b"").decode() for name in names), "0", ""])


def _epoch_of(fields: Sequence[str]) -> Epoch:
    number, born, server, history, since, before, how, _, mends = fields
    return Epoch(int(number), born, server, history, clock.from_ms(int(since)), before, how, mends)


def _facts(epoch: Epoch) -> dict[str, Any]:
    return {"epoch": epoch.number, "server": epoch.server, "before": epoch.before}
