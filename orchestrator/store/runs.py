"""Runs: one method per atomic operation, and the reading of single runs, their logs and their task runs.

Every answer that the scripts give is a value here too; exceptions mean that Redis could not be reached or that no such run
exists where one must. See the header of ``lua/<operation>.lua`` for what each does in Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any, TypeVar

from orchestrator import clock, keys, names
from orchestrator.exceptions import ObjectNotFound, StoreUnavailable
from orchestrator.keys import Keys, lengthen, shorten
from orchestrator.models import CATCH_UP, Created, Deployment, LogLine, NewRun, Run, Schedule, TaskRun
from orchestrator.states import State, StateType, canonical_name
from orchestrator.store import streams
from orchestrator.store.answers import (
    Change,
    ClaimedRun,
    Claims,
    Delivery,
    End,
    Lapsed,
    Planned,
    Released,
    Start,
    Turn,
    Turned,
)
from orchestrator.store.client import Redis, is_of_another_type
from orchestrator.store.connection import explain
from orchestrator.store.failover import Submitted
from orchestrator.store.layout import ABSENT, PLACES
from orchestrator.store.records import (
    Unreadable,
    moment_of,
    pack,
    pack_line,
    pack_task,
    read_fields,
    read_line,
    read_run,
    read_task,
    tags_of,
    text_of,
    unpack,
    unpack_fields,
)
from orchestrator.store.room import Room
from orchestrator.store.scripts import Scripts

T = TypeVar("T")

MESSAGE_LIMIT = 2000
"""Characters of a state's message that are kept."""

LOG_LINES_KEPT = 100_000
_LATE_AFTER_MS = 15_000
_MISFIRE_MS = round(CATCH_UP / timedelta(milliseconds=1))
_SETS_OF_RUNS = (
    *("due", "leases", "paused", "expires", "reservations", "planning"),
    *("slots:", "parked:", "index:", "planned:"),
)
_DEFAULT_PAUSE = timedelta(hours=1)


def _tags(tags: Iterable[str]) -> list[str]:
    """Each once: a run takes one slot of a tag, however often it bears it."""
    return list(dict.fromkeys(tags))


def _parameters(run: NewRun) -> bytes:
    return pack(dict(run.parameters)) if run.parameters else b""


def _message(text: str) -> str:
    """What a state says, cut to a length that a run may carry about; the whole story belongs into its log."""
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


class Runs:
    """Operations on runs of one namespace."""

    def __init__(self, client: Redis, scripts: Scripts, own_keys: Keys, lease: timedelta, submitted: Submitted) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = own_keys
        self._submitted = submitted
        self.room = Room(scripts, client.address)
        self._lease_ms = round(lease / timedelta(milliseconds=1))

    # --- birth -------------------------------------------------------------------------------------------------------

    def create(self, runs: Sequence[NewRun]) -> list[Created]:
        """Create runs, each if it does not exist yet by id or idempotency key. Due ones are queued at once.

        After a fail-over, the runs that this process created in the last minute are looked for too; what was lost is
        reported in the log and as ``run.lost``.

        Raises PayloadTooLarge and StoreFull before anything is written, DataGone.
        """
        self.room.demand()
        self._submitted.verify()
        items = [self._new_item(run) for run in runs]
        answers: list[Created] = []
        for start in range(0, len(items), 100):
            for answer, short, name in self._scripts.call("create", items=items[start : start + 100]):
                answers.append(Created(lengthen(short), _text(answer), _text(name)))
        # Not batch by batch: who gets an error was given no ids, and tries all of them again.
        self._submitted.add(created.id for created in answers)
        # Again, since it may be this call whose connection was a new one. What was created stays so if Redis is away by now.
        with suppress(StoreUnavailable):
            self._submitted.verify()
        return answers

    def _new_item(self, run: NewRun) -> list[Any]:
        run.id = run.id or keys.new_id()
        run.name = run.name or names.generate()
        idempotency = ""
        if run.idempotency_key is not None:
            scope = shorten(run.deployment) if run.deployment else run.flow
            idempotency = self._keys.idempotency(scope, run.idempotency_key).removeprefix(self._keys.idempotency_prefix)
        due = clock.to_ms(run.due) if run.due else None
        expires = clock.to_ms(run.expires) if run.expires else None
        return [shorten(run.id), due, idempotency, expires, _tags(run.tags), self._first_fields(run), _parameters(run)]

    def _first_fields(self, run: NewRun) -> list[Any]:
        known = {
            "kind": run.kind,
            "name": run.name,
            "flow": run.flow,
            "pool": run.pool,
            "queue": run.queue,
            "prio": keys.PRIORITIES.index(run.priority),
            "budget": run.crash_budget,
            "dep": shorten(run.deployment) if run.deployment else "",
            "parent": shorten(run.parent) if run.parent else "",
            "by": run.created_by,
            "entry": run.entrypoint or "",
        }
        fields: list[Any] = list(ABSENT)
        for name, value in known.items():
            fields[PLACES[name]] = value
        return fields

    def create_leased(self, run: NewRun, worker: str, *, again: bool = False) -> ClaimedRun:
        """Create a run that ``worker`` is executing already: born Running under attempt 1, its lease begun.

        For flows called in a plain process and for subflows. Idempotent by id. ``again``: it was created before, and is
        reported as restored if it is not there.
        """
        run.id = run.id or keys.new_id()
        _, attempt = self._scripts.call(
            "create_leased",
            id=shorten(run.id),
            fields=self._first_fields(run),
            params=_parameters(run),
            tags=_tags(run.tags),
            worker=worker,
            lease_ms=self._lease_ms,
            again=int(again),
        )
        return ClaimedRun(
            id=run.id,
            attempt=int(attempt),
            run_count=0,
            crash_count=0,
            kind=run.kind,
            flow=run.flow,
            name=run.name,
            deployment=run.deployment,
            deployment_name=None,
            revision=0,
            parameters=dict(run.parameters),
            tags=run.tags,
            pool=run.pool,
            queue=run.queue,
            due=run.due or clock.now(),
            parent=run.parent,
            schedule=None,
            created_by=run.created_by,
            entrypoint=run.entrypoint,
        )

    def plan(
        self,
        deployment: Deployment,
        schedule: Schedule,
        fires: Sequence[tuple[str, str, datetime]],
        *,
        mark: datetime,
        next_plan: datetime | None,
        overdue: Sequence[tuple[str, bool]] = (),
    ) -> Planned:
        """Turn a schedule's next fires (run id, run name, moment) into runs and move its mark, unless somebody was first.

        ``overdue``: runs that it planned before an outage and that are let go now (True) or count as missed (False).
        """
        template = NewRun(
            flow=deployment.flow,
            deployment=deployment.id,
            pool=deployment.pool,
            queue=deployment.queue,
            parameters={**deployment.parameters, **schedule.parameters},
            crash_budget=deployment.crash_budget,
            created_by=f"schedule {schedule.slug}",
        )
        answer, count = self._scripts.call(
            "plan",
            deployment=shorten(deployment.id),
            slug=schedule.slug,
            generation=schedule.generation,
            old_mark=clock.to_ms(schedule.mark) if schedule.mark else "",
            new_mark=clock.to_ms(mark),
            next_plan=clock.to_ms(next_plan) if next_plan else "",
            fields=self._first_fields(template),
            params=_parameters(template),
            tags=_tags(deployment.tags),
            items=[[shorten(run), clock.to_ms(at), name] for run, name, at in fires],
            overdue=[[shorten(run), int(is_kept)] for run, is_kept in overdue],
        )
        return Planned(_text(answer), int(count))

    # --- work --------------------------------------------------------------------------------------------------------

    def release_due(self, limit: int = 100) -> Released:
        """Queue runs whose time has come, at most ``limit``."""
        count, next_due = self._scripts.call("release_due", limit=limit, misfire_ms=_MISFIRE_MS)
        return Released(int(count), moment_of(next_due))

    def claim(
        self,
        worker: str,
        pool: str,
        queues: Sequence[str],
        free: int,
        delivered: Sequence[Delivery] = (),
        *,
        start: bool = False,
    ) -> Claims:
        """Hand queued runs to a worker, at most ``free``, with leases and all their slots; park those that must wait.

        ``queues`` in the order of priority; ``delivered`` what the worker's blocked read brought. With ``start`` the runs
        enter Running at once. At most one caller gets a run per attempt; a lost race is an answer, not an exception.
        """
        answer = self._scripts.call("claim", **self._claim_arguments(worker, pool, queues, free, delivered, start))
        return self._read_claims(pool, start, answer)

    def exchange(self, turn: Turn) -> Turned:
        """What a supervisor has to say and to ask in one turn of its loop, in one round trip and in the order of the fields.

        A part that the store refuses is an exception in its place; the others are done all the same.
        """
        parts: list[tuple[str, dict[str, Any]]] = [
            ("set_state", self._start_arguments(start, turn.worker)) for start in turn.starts
        ]
        if turn.logs:
            parts.append(("append_log", _log_arguments(turn.logs)))
        for run, attempt, tasks in turn.tasks:
            parts.append(("record_tasks", _task_arguments(run, attempt, turn.worker, tasks)))
        if turn.ends:
            parts.append(("finish", self._end_arguments(turn.ends, turn.worker)))
        if turn.claim is not None:
            parts.append(("claim", self._claim_arguments(*turn.claim)))
        answers = self._scripts.try_many(parts) if parts else []
        claims = answers.pop() if turn.claim is not None else None
        ends = answers.pop() if turn.ends else []
        if turn.claim is not None and not isinstance(claims, Exception):
            claims = self._read_claims(turn.claim.pool, turn.claim.start, claims)
        return Turned(
            refused=[explain(answer, self._client.address) or answer for answer in answers if isinstance(answer, Exception)],
            ends=ends if isinstance(ends, Exception) else [_text(answer[0]) for answer in ends],
            claims=claims,
        )

    def streams(self, pool: str, queues: Sequence[str]) -> list[str]:
        """The streams, below the prefix, that a worker of these queues reads, in order."""
        return [name.removeprefix(self._keys.prefix) for name in self._keys.streams(pool, queues)]

    def _claim_arguments(
        self, worker: str, pool: str, queues: Sequence[str], free: int, delivered: Sequence[Delivery], start: bool
    ) -> dict[str, Any]:
        return {
            "worker": worker,
            "free": free,
            "lease_ms": self._lease_ms,
            "start": int(start),
            "streams": self.streams(pool, queues),
            "delivered": [[d.stream, d.message, shorten(d.run) if d.run else ""] for d in delivered],
        }

    def _read_claims(self, pool: str, is_started: bool, answer: Any) -> Claims:
        claimed, parked, gone, more = answer
        readable = []
        for flat in claimed:
            try:
                readable.append(_read_claimed(pool, is_started, *flat))
            except Exception as error:
                # The scripts look at what they need; what else is garbled shows here.
                self._scripts.call("bury", run=_text(flat[0]), why=f"its fields cannot be read: {type(error).__name__}")
        return Claims(
            readable,
            [(lengthen(run), _text(gate)) for run, gate in parked],
            int(gone),
            bool(more),
        )

    def renew(self, leases: Sequence[tuple[str, int]], *, worker: str) -> list[str]:
        """Extend a worker's leases (run, attempt). Per run: ok, cancel (extended, but it is to be stopped), ended, lost.

        ``worker`` is part of the fence, here and in every other method that takes an attempt: where a fail-over has forgotten a
        claim, another worker may hold the run under the same attempt.
        """
        if not leases:
            return []
        items = [[shorten(run), attempt] for run, attempt in leases]
        return [_text(answer) for answer in self._scripts.call("renew", worker=worker, lease_ms=self._lease_ms, items=items)]

    def finish(self, ends: Sequence[End], *, worker: str) -> list[str]:
        """End attempts. Per end: ok, again (this attempt's end is recorded already), superseded (the fence has moved on)."""
        if not ends:
            return []
        answers = self._scripts.call("finish", **self._end_arguments(ends, worker))
        return [_text(answer[0]) for answer in answers]

    def _end_arguments(self, ends: Sequence[End], worker: str) -> dict[str, Any]:
        return {"worker": worker, "items": [self._end_item(end) for end in ends]}

    def _end_item(self, end: End) -> list[Any]:
        name = canonical_name(end.state.type, end.state.name)
        if not end.state.is_final() and name != "AwaitingRetry":
            raise ValueError(f"{end.state.name} does not end an attempt")
        retry_ms = round(end.retry_in / timedelta(milliseconds=1)) if end.retry_in is not None else 0
        ago_ms = max(0, round(end.ago / timedelta(milliseconds=1)))
        return [shorten(end.run), end.attempt, name, end.state.name, _message(end.state.message), end.result, retry_ms, ago_ms]

    def lapse(self, limit: int = 100, *, expected_ms: int | None = None) -> Lapsed:
        """Charge a crash to runs whose lease is over; start them again, or end them Crashed when their budget is spent.

        ``expected_ms`` is what Redis's clock should show (``clock.RemoteClock``). Where it shows something else, no lease
        counts as over until workers have had a lease's time to renew theirs. The same holds for a server that has just come
        back.
        """
        # Under a frozen clock the age of the real server means nothing.
        grace_ms = 0 if self._scripts.is_frozen else self._lease_ms
        return self._lapse("", 0, "", "its worker did not renew the lease", limit, grace_ms, expected_ms)

    def report_death(self, run: str, attempt: int, reason: str, *, worker: str) -> Lapsed:
        """The process that executed this attempt is dead: as ``lapse``, at once. ``seen`` is 1 whatever the fence said."""
        return self._lapse(shorten(run), attempt, worker, _message(reason), 1, 0, None)

    def _lapse(
        self, run: str, attempt: int, worker: str, reason: str, limit: int, grace_ms: int, expected_ms: int | None
    ) -> Lapsed:
        requeued, crashed, cancelled, seen, is_braked, jump_ms, now_ms = self._scripts.call(
            "lapse",
            run=run,
            attempt=attempt,
            worker=worker,
            reason=reason,
            limit=limit,
            grace_ms=grace_ms,
            lease_ms=self._lease_ms,
            expected_ms="" if expected_ms is None else expected_ms,
        )
        return Lapsed(int(requeued), int(crashed), int(cancelled), int(seen), bool(is_braked), int(jump_ms), int(now_ms))

    def hand_back(self, run: str, attempt: int, *, worker: str) -> str:
        """Give a run back unharmed; it goes to the front. ok or superseded."""
        return _text(self._scripts.call("hand_back", run=shorten(run), attempt=attempt, worker=worker))

    def redeliver(self, pool: str, queues: Sequence[str], *, worker: str = "", idle: timedelta = timedelta(seconds=2)) -> int:
        """New messages for those that were handed out ``idle`` ago and not claimed (by ``worker``, or by anybody)."""
        idle_ms = round(idle / timedelta(milliseconds=1))
        streams = self.streams(pool, queues)
        return int(self._scripts.call("redeliver", streams=streams, idle_ms=idle_ms, worker=worker, limit=100))

    def wake(self, gate: str = "") -> int:
        """Let waiters of a gate go on where there is room; with no gate, those of all gates that have some left over."""
        return int(self._scripts.call("wake", gate=gate))

    def expire(self) -> int:
        """Cancel runs that waited past their expiry."""
        return int(self._scripts.call("expire", limit=100))

    def mark_late(self) -> int:
        """Mark runs Late that are 15 s overdue in a queue, at most 50."""
        return int(self._scripts.call("mark_late", after_ms=_LATE_AFTER_MS, limit=50))

    def time_out_paused(self) -> int:
        """Fail paused runs that nobody resumed in time."""
        return int(self._scripts.call("resume", run="", message="")[1])

    # --- changes that someone asks for ---------------------------------------------------------------------------------

    def cancel(self, run: str, message: str = "Cancelled on request.") -> Change:
        """Stop a run: at once where it waits; where it executes it becomes Cancelling and its worker is told."""
        return self._change("cancel", run=shorten(run), message=_message(message))

    def pause(
        self,
        run: str,
        attempt: int,
        *,
        worker: str,
        timeout: timedelta = _DEFAULT_PAUSE,
        suspend: bool = True,
        message: str = "",
    ) -> Change:
        """A running run waits for a person, its attempt over and its slots free. Nobody in ``timeout``: it fails."""
        return self._change(
            "pause",
            run=shorten(run),
            attempt=attempt,
            worker=worker,
            state="Suspended" if suspend else "Paused",
            message=_message(message),
            timeout_ms=round(timeout / timedelta(milliseconds=1)),
        )

    def resume(self, run: str, message: str = "Resumed on request.") -> Change:
        """Let a paused run go on, at the front of its pool."""
        return self._change("resume", run=shorten(run), message=_message(message))

    def set_state(self, run: str, state: State, *, attempt: int = 0, worker: str = "", due: datetime | None = None) -> Change:
        """Enter a state if the table allows it: under a fence (attempt and worker), or as an operator (attempt 0)."""
        return self._change("set_state", **self._set_state_arguments(run, state, attempt, worker, due))

    def _start_arguments(self, start: Start, worker: str) -> dict[str, Any]:
        state = State(StateType.RUNNING, start.name)
        ago_ms = max(0, round(start.ago / timedelta(milliseconds=1)))
        return {**self._set_state_arguments(start.run, state, start.attempt, worker, None), "ago_ms": ago_ms}

    def _set_state_arguments(self, run: str, state: State, attempt: int, worker: str, due: datetime | None) -> dict[str, Any]:
        return {
            "run": shorten(run),
            "attempt": attempt,
            "worker": worker,
            "state": canonical_name(state.type, state.name),
            "label": state.name,
            "message": _message(state.message),
            "due": clock.to_ms(due) if due else "",
            "wait_ms": round(_DEFAULT_PAUSE / timedelta(milliseconds=1)),
            "ago_ms": 0,
        }

    def retry(self, run: str, message: str = "Retried on request.", parameters: Mapping[str, Any] | None = None) -> Change:
        """Open an ended run again, with a fresh crash budget and, where given, other parameters."""
        params = pack(dict(parameters)) if parameters is not None else ""
        return self._change("retry", run=shorten(run), message=_message(message), params=params)

    def delete(self, runs: Iterable[str]) -> list[str]:
        """Remove runs for good. Per run: ok, refused (a worker holds it: cancel it first), missing."""
        shorts = [shorten(run) for run in runs]
        answers: list[str] = []
        for start in range(0, len(shorts), 100):
            answers += map(_text, self._scripts.call("delete", runs=shorts[start : start + 100]))
        self._submitted.forget(map(lengthen, shorts))
        return answers

    def prune(self, before: datetime, limit: int = 100) -> int:
        """Delete runs that ended before a moment, at most ``limit`` per end state."""
        states = ("Completed", "Failed", "Crashed", "Cancelled")
        calls = [("prune", {"state": state, "before_ms": clock.to_ms(before), "limit": limit}) for state in states]
        return sum(int(count) for count in self._scripts.call_many(calls))

    def _change(self, script: str, **arguments: Any) -> Change:
        answer, state = self._scripts.call(script, **arguments)
        return Change(_text(answer), _text(state) if isinstance(state, bytes) else str(state))

    # --- what a run leaves behind --------------------------------------------------------------------------------------

    def append_log(self, batches: Mapping[str, Sequence[LogLine]]) -> int:
        """Append lines to runs' logs; lines of runs that do not exist are dropped. The number written."""
        return int(self._scripts.call("append_log", **_log_arguments(batches))) if any(batches.values()) else 0

    def read_log(self, run: str, after: str = "", limit: int = 1000) -> list[LogLine]:
        """Lines of a run's log, oldest first, behind the line whose id is ``after``."""
        entries = self._client.xrange(self._keys.log(shorten(run)), min=f"({after}" if after else "-", count=limit)
        return [read_line(entry, fields[b"l"]) for entry, fields in entries]

    def record_tasks(self, run: str, attempt: int, tasks: Sequence[TaskRun], *, worker: str) -> str:
        """Record task runs of a flow run under its fence: ok or superseded."""
        return _text(self._scripts.call("record_tasks", **_task_arguments(run, attempt, worker, tasks)))

    def tasks(self, run: str) -> list[TaskRun]:
        """The task runs of a flow run, in the order of their start."""
        stored = self._client.hgetall(self._keys.tasks(shorten(run)))
        tasks = [read_task(lengthen(short), packed) for short, packed in stored.items()]
        return sorted(tasks, key=lambda task: (task.started or task.state.timestamp, task.id))

    # --- reading -------------------------------------------------------------------------------------------------------

    def get(self, run: str) -> Run:
        """One run. Raises ObjectNotFound."""
        found = self.get_many([run])[0]
        if found is None:
            raise ObjectNotFound(f"There is no flow run {run}.", hint="List runs with: orch flow-run ls")
        return found

    def get_many(self, runs: Sequence[str]) -> list[Run | None]:
        """Runs in the order asked for, None for those that do not exist or cannot be read. Two round trips."""
        pipeline = self._client.pipeline(transaction=False)
        for run in runs:
            pipeline.hgetall(self._keys.run(shorten(run)))
        answers = pipeline.execute(raise_on_error=False)
        stored = [{} if is_of_another_type(answer, self._client.address) else answer for answer in answers]
        fields = [_fields_or_none(answer) for answer in stored]
        deployments = {known["dep"] for known in fields if known and known["dep"]}
        for short in deployments:
            pipeline.hget(self._keys.deployment(short), "name")
        names = dict(zip(deployments, pipeline.execute(), strict=True)) if deployments else {}
        return [
            _run_or_none(run, known, answer, names) if known else None
            for run, known, answer in zip(runs, fields, stored, strict=True)
        ]

    def result(self, run: str) -> bytes:
        """The packed result of an ended run, empty where none is kept."""
        return self._client.hget(self._keys.run(shorten(run)), "result") or b""

    # --- mending -------------------------------------------------------------------------------------------------------

    def reconcile(self, runs: Iterable[str]) -> list[tuple[str, str]]:
        """Mend some runs after a lost write or a restored backup: (what was mended, run id)."""
        mended: list[tuple[str, str]] = []
        for batch in _batches(map(shorten, runs), 100):
            mended += [(_text(what), lengthen(run)) for what, run in self._scripts.call("reconcile", runs=batch)]
        return mended

    def reconcile_all(self) -> list[tuple[str, str]]:
        """Mend every limit, run, slot, waiter, message and index of the namespace: (what was mended, run id, key or gate).

        For the time after a crash of Redis or a restored backup. Bounded scripts, so that everybody else goes on meanwhile.
        """
        run = self._keys.run("")
        stored = self._client.scan_iter(match=f"{run}*", count=1000)
        found = (key.decode(errors="replace").removeprefix(run) for key in stored)
        mended = self._reconcile_gates()
        mended += self.reconcile(lengthen(short) for short in found if keys.is_short(short))
        return mended + self._reconcile_members()

    def _reconcile_gates(self) -> list[tuple[str, str]]:
        mended: list[tuple[str, str]] = []
        for name in ("limits", "rates", "global_limits"):
            for batch in _batches(self._client.hkeys(self._keys.prefix + name), 100):
                answer = self._scripts.call("reconcile_gates", fields=[[name, field] for field in batch])
                mended += [(_text(what), _text(subject)) for what, subject in answer]
        return mended

    def _reconcile_members(self) -> list[tuple[str, str]]:
        prefix = self._keys.prefix
        mended: list[tuple[str, str]] = []
        for key in self._client.scan_iter(match=prefix + "*", count=1000):
            name = key.decode(errors="replace").removeprefix(prefix)
            for batch in _batches(self._members(name), 100):
                answer = self._scripts.call("reconcile_members", members=[[name, member] for member in batch])
                mended += [(_text(what), _text(where)) for what, where in answer]
        return mended

    def _members(self, name: str) -> Iterable[bytes | str]:
        """What ``reconcile_members`` looks at in the key of that name."""
        key = self._keys.prefix + name
        if name.startswith(_SETS_OF_RUNS):
            return (member for member, _ in self._client.zscan_iter(key, count=1000))
        if name.startswith(("queue:", "resumed:")):
            entries = (entry for entry, _ in streams.entries(self._client, key))
            return chain(entries, streams.pending(self._client, key))
        if name.startswith("run:"):
            return [] if keys.is_short(name.removeprefix("run:")) else [""]
        return [""] if name.startswith(("log:", "tasks:", "idempotency:")) else []


def _fields_or_none(stored: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    try:
        return read_fields(stored.get(b"run"))
    except Unreadable:
        return None


def _run_or_none(
    run: str, fields: Mapping[str, Any], stored: Mapping[bytes, bytes], names: Mapping[str, bytes | None]
) -> Run | None:
    try:
        return read_run(run, fields, stored, names)
    except Unreadable:
        return None


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _log_arguments(batches: Mapping[str, Sequence[LogLine]]) -> dict[str, Any]:
    items = [[shorten(run), [pack_line(line) for line in lines]] for run, lines in batches.items() if lines]
    return {"items": items, "kept": LOG_LINES_KEPT}


def _task_arguments(run: str, attempt: int, worker: str, tasks: Sequence[TaskRun]) -> dict[str, Any]:
    items: list[Any] = []
    for task in tasks:
        items += [shorten(task.id), pack_task(task)]
    return {"run": shorten(run), "attempt": attempt, "worker": worker, "items": items}


def _read_claimed(
    pool: str, is_started: bool, run: bytes, packed: bytes, parameters: bytes, revision: bytes, deployment_name: bytes
) -> ClaimedRun:
    fields = unpack_fields(packed)
    return ClaimedRun(
        id=lengthen(run),
        attempt=fields["attempt"],
        run_count=fields["starts"] - is_started,
        crash_count=fields["crashes"],
        kind=fields["kind"],
        flow=text_of(fields["flow"]),
        name=text_of(fields["name"]),
        deployment=lengthen(fields["dep"]) if fields["dep"] else None,
        deployment_name=_text(deployment_name) or None,
        revision=int(revision or 0),
        parameters=unpack(parameters) if parameters else {},
        tags=tags_of(fields),
        pool=pool,
        queue=text_of(fields["queue"]),
        due=clock.from_ms(fields["due"]),
        parent=lengthen(fields["parent"]) if fields["parent"] else None,
        schedule=text_of(fields["sched"]) or None,
        created_by=text_of(fields["by"]),
        entrypoint=text_of(fields["entry"]) or None,
    )
