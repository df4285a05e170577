"""Turns the frames of running engines into few, batched store calls. The worker's supervisor and the sidecar both drive one.

It does no waiting and owns no socket: feed it frames as they come, call ``flush`` when ``deadline`` is over, send what that
returns. The end of a run is written at once, together with everything before it; states, logs and task runs wait for company,
50 ms at most. While Redis cannot be reached everything stays here: ends and starts for as long as it takes, log lines up to a
bound that is then said in the log.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from orchestrator import clock
from orchestrator.engine import protocol
from orchestrator.engine.protocol import Frame, Wanted
from orchestrator.exceptions import OrchError, StoreFull, StoreUnavailable
from orchestrator.models import LogLine, NewRun, TaskRun, as_json
from orchestrator.states import State, StateType
from orchestrator.store.answers import Acquire, Acquired, ClaimRequest, Claims, End, Lapsed, Start, Turn
from orchestrator.store.failover import Asserted, Held

if TYPE_CHECKING:
    from orchestrator.store import Store

INTERVAL = 0.05
"""Seconds that states, logs and task runs wait for company."""

LOG_LINES = 10_000
"""Log lines of one run that are kept while Redis cannot be reached."""

_LINES_A_CALL = 1000
_ROWS_A_CALL = 1000
_CALLS_A_TURN = 100
_NOW = timedelta(0)
_FIRST_RETRY = 0.25
_LAST_RETRY = 2.0

Child = Hashable
P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """A frame for one child."""

    child: Child
    frame: Frame


@dataclass(slots=True)
class _Log:
    """Lines of one run on their way to the store. The oldest go first when there are too many."""

    lines: deque[LogLine] = field(default_factory=deque)
    dropped: int = 0
    _told: int = 0

    def add(self, line: LogLine, limit: int) -> bool:
        """Whether another line had to go for it."""
        is_over = len(self.lines) >= limit
        if is_over:
            self.lines.popleft()
            self.dropped += 1
        self.lines.append(line)
        return is_over

    def take(self) -> list[LogLine]:
        if not self.lines:
            return []
        taken = [self.lines.popleft() for _ in range(min(len(self.lines), _LINES_A_CALL))]
        self._told, self.dropped = self.dropped, 0
        if self._told:
            told = f"{self._told} log lines before this one were dropped: Redis could not be reached, or was full."
            taken.insert(0, LogLine(taken[0].at, logging.WARNING, "orchestrator", told, taken[0].attempt))
        return taken

    def give_up(self, taken: Sequence[LogLine]) -> int:
        """These were taken, and there is no room for them: they are counted instead. How many they are."""
        given_up = len(taken) - bool(self._told)
        self.dropped += self._told + given_up
        self._told = 0
        return given_up

    def put_back(self, taken: Sequence[LogLine], limit: int) -> int:
        """How many lines had to go."""
        self.dropped += self._told
        waiting, self.lines = self.lines, deque()
        gone = sum(self.add(line, limit) for line in (*taken[bool(self._told) :], *waiting))
        self._told = 0
        return gone


@dataclass(slots=True)
class _Tracked:
    """One run that a child executes."""

    id: str
    child: Child
    attempt: int = 0
    started: bool = False
    begun: bool = False
    opening: NewRun | None = None  # to be created
    opened: NewRun | None = None  # as it was created
    starts: list[State] = field(default_factory=list)
    changed: dict[str, TaskRun] = field(default_factory=dict)
    open_tasks: dict[str, TaskRun] = field(default_factory=dict)
    end: End | None = None
    ended_at: float = 0.0
    death: str | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    child: Child
    request: int
    what: str
    arguments: Sequence[Any]


@dataclass(slots=True)
class _Call:
    """Slots that a run waits for or has; ``by_time``: time alone makes room, and nobody else sees to it."""

    child: Child
    run: str
    number: int
    wanted: Wanted
    is_known: bool = False  # to the store, as far as we can tell
    is_told: bool = False
    by_time: bool = False


class Relay:
    """Frames of many children on one side, one store on the other. Not thread-safe: one loop drives it.

    ``worker`` is the name that holds the leases of the runs that children open. ``prepare`` is called before anything is
    written, at first and whenever the server may be another one than before. ``confirm`` hears of ends and of what the store
    has answered to them, and may answer better. When one of the two raises StoreUnavailable, all is told again.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        *,
        interval: float = INTERVAL,
        log_lines: int = LOG_LINES,
        prepare: Callable[[], None] | None = None,
        confirm: Callable[[Sequence[End], Sequence[str]], Sequence[str]] | None = None,
    ) -> None:
        self._store = store
        self._prepare = prepare
        self._is_server_doubtful = True
        self._confirm = confirm
        self._worker = worker
        self._interval = interval
        self._log_lines = log_lines
        self._runs: dict[str, _Tracked] = {}
        self._unwritten: dict[str, _Tracked] = {}  # those of which something is to be written, besides their logs
        self._logs: dict[str, _Log] = {}
        self._is_full = False
        self.dropped_away = self.dropped_full = 0  # log lines in all, while Redis was away or full
        self._questions: deque[_Question] = deque()
        self._calls: dict[tuple[str, int], _Call] = {}
        self._granted: dict[tuple[str, int], _Call] = {}
        self._to_hold: list[tuple[str, int]] = []
        self._to_ask: dict[tuple[str, int], None] = {}
        self._to_release: list[tuple[str, int]] = []
        self._wake_at: float | None = None
        self._limited_tags: list[str] | None = None  # None: to be looked up
        self._told_tags: dict[Child, list[str] | None] = {}
        self._replies: list[Reply] = []
        self._claim: Callable[[list[str]], ClaimRequest | None] | None = None
        self.claims: Claims | None = None
        self._deadline: float | None = None
        self._retry_after: float | None = None
        self._wait = _FIRST_RETRY

    # What the loop needs to know

    @property
    def deadline(self) -> float | None:
        """When ``flush`` wants to be called, on the caller's monotonic clock; None while there is nothing to write."""
        moment = min((moment for moment in (self._deadline, self._wake_at) if moment is not None), default=None)
        if moment is None or self._retry_after is None:
            return moment
        return max(moment, self._retry_after)

    @property
    def is_idle(self) -> bool:
        """Nothing waits to be written."""
        return self._deadline is None

    @property
    def is_cut_off(self) -> bool:
        """The last ``flush`` could not reach Redis."""
        return self._retry_after is not None

    def leases(self, child: Child | None = None) -> list[tuple[str, int]]:
        """(run, attempt) of all runs, or of one child's, whose lease someone must keep renewing."""
        return [
            (tracked.id, tracked.attempt)
            for tracked in self._runs.values()
            if tracked.opening is None and (child is None or tracked.child == child)
        ]

    def child_of(self, run: str) -> Child | None:
        """Who executes this run; None if nobody here does (any more)."""
        tracked = self._runs.get(run)
        return None if tracked is None else tracked.child

    # What the loop tells

    def adopt(self, child: Child, run: str, attempt: int, *, started: bool = False) -> None:
        """A claimed run goes to this child; from now on the child may speak for it.

        ``started``: the claim has counted the first start of the body and entered Running already.
        """
        self._runs[run] = _Tracked(run, child, attempt, started=started, begun=started)

    def forget(self, run: str) -> None:
        """The run is no longer ours (handed back, lost): whatever its child still says about its state is not written."""
        self._runs.pop(run, None)
        self._unwritten.pop(run, None)
        self._drop_calls(run)

    def granted(self, run: str, call: int, now: float) -> None:
        """A control message says that a call has its slots. It does not say in which attempt, so the store is asked."""
        if (run, call) in self._calls:
            self._to_ask[run, call] = None
            self._due(now)

    def ask_again(self, now: float) -> None:
        """Ask for what is waited for, in case that a control message was lost: some of it, the longest unasked first.

        Which tags have limits is looked up again too, where any child wants to know.
        """
        if self._told_tags:
            self._limited_tags = None
            self._due(now)
        for key in list(self._calls)[:_CALLS_A_TURN]:
            self._calls[key] = self._calls.pop(key)
            self._to_ask[key] = None
            self._due(now)

    def doubt_server(self) -> None:
        """Its connection was lost, and another server may answer the next time."""
        self._is_server_doubtful = True

    def reassert(self, now: float) -> list[tuple[Held, Asserted]]:
        """Hold the runs that are executed here against another server, which may have forgotten them and their slots.

        Runs that children opened are created anew where they are missing, unless it is for want of their parent's claim: nobody
        else could. Slots are taken again with the next ``flush``, unless others have them by now. Raises StoreUnavailable.
        """
        claimed = [tracked for tracked in self._runs.values() if tracked.opening is None and tracked.opened is None]
        answers = self._assert_held(claimed)
        gone = {held.run for held, asserted in answers if asserted.answer in ("missing", "twice", "full")}
        opened = [tracked for tracked in self._runs.values() if tracked.opened is not None]
        for tracked in opened:  # parents come first
            assert tracked.opened is not None
            if tracked.opened.parent in gone:
                gone.add(tracked.id)
            else:
                self._store.runs.create_leased(tracked.opened, self._worker, again=True)
        answers += self._assert_held(opened)
        self._to_hold = list(self._granted)
        if self._to_hold:
            self._due(now)
        return answers

    def _assert_held(self, runs: Sequence[_Tracked]) -> list[tuple[Held, Asserted]]:
        held = [Held(tracked.id, tracked.attempt, tracked.begun and not tracked.starts) for tracked in runs]
        _, answers = self._store.failover.reassert(self._worker, (), held)
        return list(zip(held, answers, strict=True))

    def feed(self, child: Child, frame: Frame, now: float) -> None:
        """Take one frame. Frames that make no sense, or speak for another's run, are ignored with a warning."""
        try:
            self._take(child, frame, now)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as problem:
            log.warning("Ignored a malformed frame: %s", problem)

    def add_log(self, run: str, lines: Iterable[LogLine], now: float) -> None:
        """Lines that someone else collected, such as a child's stdout and stderr. Also for runs that have ended."""
        kept = self._logs.setdefault(run, _Log())
        for line in lines:
            self.dropped_away += kept.add(line, self._log_lines)
        self._due(now + self._interval)

    def gone(self, child: Child, reason: str, now: float) -> None:
        """The child is dead. Its runs without an end are reported so, with ``reason``; their open task runs have crashed."""
        self._questions = deque(question for question in self._questions if question.child != child)
        self._told_tags.pop(child, None)
        for key in [key for key, call in self._calls.items() if call.child == child]:
            self._drop_call(key)  # the store frees its slots with the attempt
        self._granted = {key: call for key, call in self._granted.items() if call.child != child}
        for tracked in self._runs.values():
            if tracked.child == child and tracked.end is None:
                tracked.death = reason
                self._unwritten[tracked.id] = tracked
                for task in tracked.open_tasks.values():
                    task.state = State(StateType.CRASHED, message=reason)
                    task.ended = clock.now()
                    tracked.changed[task.id] = task
                tracked.open_tasks = {}
                self._due(now)

    def flush(self, now: float, claim: Callable[[list[str]], ClaimRequest | None] | None = None) -> list[Reply]:
        """Write what there is, in order, and return what the children are to be told.

        ``claim`` is asked with the runs whose ends are about to be written, and may have the same round trip claim others:
        ``claims`` then holds what came of it.

        Beside the answers to questions these are ``trouble``, when Redis goes away and when it is back, and ``ended`` with
        what the store said: ok, again, superseded; for runs reported dead requeued, crashed, cancelled or superseded; refused
        when the store could not take it at all.

        Raises only what ``prepare`` and ``confirm`` do, StoreUnavailable apart.
        """
        self._deadline = None
        self._claim, self.claims = claim, None
        try:
            if self._is_server_doubtful and self._prepare is not None:
                self._prepare()
            self._is_server_doubtful = False
            self._open()
            self._exchange(now)
            self._bury()
            self._answer()
            self._release()
            self._tell_tags()
            self._acquire(now)
        except StoreUnavailable as problem:
            if self._retry_after is None:
                log.warning("Redis cannot be reached; states and logs are kept until it is back: %s", problem)
                self._replies += [Reply(child, [protocol.TROUBLE, str(problem)]) for child in self._children()]
            self._is_server_doubtful = True
            self._retry_after = now + self._wait
            self._wait = min(2 * self._wait, _LAST_RETRY)
            self._due(self._retry_after)
        else:
            if self._retry_after is not None:
                self._replies += [Reply(child, [protocol.TROUBLE, ""]) for child in self._children()]
            self._retry_after = None
            self._wait = _FIRST_RETRY
            if self._has_more():
                self._due(now)
        replies, self._replies = self._replies, []
        return replies

    # Below: taking frames

    def _due(self, moment: float) -> None:
        self._deadline = moment if self._deadline is None else min(self._deadline, moment)

    def _take(self, child: Child, frame: Frame, now: float) -> None:
        if frame[0] == protocol.END:
            tracked = self._owned(child, frame[1])
            tracked.end, tracked.ended_at = _end_of(frame), now
            self._unwritten[tracked.id] = tracked
            self._due(now)
            return
        match frame:
            case [protocol.START, str(run), str(name), int(at_ms)]:
                tracked = self._owned(child, run)
                if not tracked.started:
                    tracked.starts.append(State(StateType.RUNNING, name, timestamp=clock.from_ms(at_ms)))
                    self._unwritten[run] = tracked
                    self._due(now + self._interval)
                tracked.started, tracked.begun = False, True
            case [protocol.LOG, str(run), list(lines)]:
                attempt = self._owned(child, run).attempt
                self.add_log(run, [_log_line(line, attempt) for line in lines], now)
            case [protocol.TASKS, str(run), list(rows)]:
                self._take_tasks(self._owned(child, run), rows)
                self._due(now + self._interval)
            case [protocol.OPEN, int(), dict(fields)]:
                new = NewRun(**{**fields, "tags": tuple(fields.get("tags", ()))})
                tracked = self._runs.setdefault(new.id, _Tracked(new.id, child, opening=new))
                self._unwritten[new.id] = tracked
                self._due(now + self._interval)
            case [protocol.ASK, int(request), str(what), list(arguments)]:
                self._questions.append(_Question(child, request, what, arguments))
                self._due(now)
            case [protocol.ACQUIRE, int(number), str(run), *wanted]:
                self._take_call(_Call(child, run, number, Wanted(*wanted)), now)
            case [protocol.RELEASE, str(run), int(number)]:
                if self.child_of(run) == child:
                    self._granted.pop((run, number), None)
                    waited = self._drop_call((run, number))
                    if waited is None or waited.is_known:
                        self._to_release.append((run, number))
                        self._due(now)
            case _:
                raise ValueError(f"unknown frame {frame[0]!r}")

    def _owned(self, child: Child, run: str) -> _Tracked:
        tracked = self._runs.get(run)
        if tracked is None or tracked.child != child:
            raise ValueError(f"run {run} is not this child's")
        return tracked

    def _take_tasks(self, tracked: _Tracked, rows: list[list[Any]]) -> None:
        self._unwritten[tracked.id] = tracked
        for row in rows:
            task = protocol.task_of(row)
            tracked.changed[task.id] = task
            if task.state.is_final():
                tracked.open_tasks.pop(task.id, None)
            else:
                tracked.open_tasks[task.id] = task

    def _take_call(self, call: _Call, now: float) -> None:
        if self.child_of(call.run) == call.child:
            self._calls[call.run, call.number] = call
            self._to_ask[call.run, call.number] = None
            if call.wanted.of == "tag":
                self._told_tags.setdefault(call.child)
        else:  # it has ended, or is another's by now
            self._settle(call, ok=True, value=["superseded", ""])
        self._due(now)

    def _children(self) -> set[Child]:
        return {tracked.child for tracked in self._runs.values()}

    def _has_more(self) -> bool:
        return bool(self._logs or self._questions or self._to_ask or self._unwritten)

    # Below: writing, in this order

    def _open(self) -> None:
        for tracked in list(self._unwritten.values()):
            if tracked.opening is None:
                continue
            try:
                tracked.attempt = self._store.runs.create_leased(tracked.opening, self._worker).attempt
                tracked.opened, tracked.opening = tracked.opening, None
            except StoreUnavailable:
                raise
            except Exception as problem:
                log.warning("Run %s cannot be recorded: %s", tracked.id, problem)
                self._drop_calls(tracked.id)
                self._runs.pop(tracked.id)
                self._unwritten.pop(tracked.id)
                self._logs.pop(tracked.id, None)
                self._replies.append(Reply(tracked.child, [protocol.ENDED, tracked.id, "refused"]))

    def _exchange(self, now: float) -> None:
        """Starts, log lines, task runs, ends and the claim that follows them, in one round trip."""
        ending = []
        for tracked in self._unwritten.values():
            if tracked.end is not None and self._is_told_in_one_turn(tracked):
                tracked.end.attempt = tracked.attempt
                tracked.end.ago = timedelta(seconds=max(0.0, now - tracked.ended_at)) if now > tracked.ended_at else _NOW
                ending.append((tracked, tracked.end))
        moment = clock.now()
        turn = Turn(
            worker=self._worker,
            starts=[
                Start(tracked.id, tracked.attempt, state.name, moment - state.timestamp)
                for tracked in self._unwritten.values()
                for state in tracked.starts
            ],
            logs=self._take_logs(),
            tasks=[
                (tracked.id, tracked.attempt, list(tracked.changed.values())[:_ROWS_A_CALL])
                for tracked in self._unwritten.values()
                if tracked.changed
            ],
            ends=[end for _, end in ending],
            claim=self._claim([end.run for _, end in ending]) if self._claim else None,
        )
        if not (turn.starts or turn.logs or turn.tasks or turn.ends or turn.claim):
            self._forget_written()
            return
        try:
            turned = self._store.runs.exchange(turn)
        except StoreUnavailable:
            for run, lines in turn.logs.items():
                self.dropped_away += self._logs[run].put_back(lines, self._log_lines)
            raise
        self._note_room(turn, is_full=any(isinstance(refusal, StoreFull) for refusal in turned.refused))
        self._note_written(turn)
        for refusal in turned.refused:
            if isinstance(refusal, StoreFull):
                continue
            log.error("The store refused a part of what runs have to say: %s", refusal)
        if isinstance(turned.claims, Exception):
            log.error("The store refused a claim: %s", turned.claims)
        else:
            self.claims = turned.claims
        answers = turned.ends
        if isinstance(answers, StoreUnavailable):
            raise answers  # written, but on no replica yet (durability): asked for again until it is
        if isinstance(answers, Exception):
            log.error("Several ends could not be written together; writing them one by one: %s", answers)
            answers = [self._guarded(self._finish, end) or "refused" for _, end in ending]
        if self._confirm is not None and ending:
            answers = list(self._confirm([end for _, end in ending], answers))
        for (tracked, _), answer in zip(ending, answers, strict=True):
            self._finished(tracked, answer)

    def _finish(self, end: End) -> str:
        return self._store.runs.finish([end], worker=self._worker)[0]

    def _is_told_in_one_turn(self, tracked: _Tracked) -> bool:
        """What does not fit goes first: after the end nobody may write task runs, and readers of the log stop at it."""
        kept = self._logs.get(tracked.id)
        return len(tracked.changed) <= _ROWS_A_CALL and (kept is None or len(kept.lines) <= _LINES_A_CALL)

    def _note_room(self, turn: Turn, *, is_full: bool) -> None:
        """On a full server everything that runs report is written but their logs, which would fill it further."""
        if is_full:
            if not self._is_full:
                log.warning("Redis is full: what runs log is dropped and counted until there is room")
            for run, lines in turn.logs.items():
                self.dropped_full += self._logs[run].give_up(lines)
        elif turn.logs and self._is_full:
            log.warning("Redis has room for logs again")
        self._is_full = is_full or (self._is_full and not turn.logs)

    def _note_written(self, turn: Turn) -> None:
        self._logs = {run: kept for run, kept in self._logs.items() if kept.lines or (kept.dropped and run in self._runs)}
        for run, _, tasks in turn.tasks:
            for task in tasks:
                del self._runs[run].changed[task.id]
        for tracked in self._unwritten.values():
            if tracked.starts:
                tracked.starts.clear()
        self._forget_written()

    def _forget_written(self) -> None:
        self._unwritten = {
            run: tracked
            for run, tracked in self._unwritten.items()
            if tracked.end is not None or tracked.changed or tracked.death is not None
        }

    def _take_logs(self) -> dict[str, list[LogLine]]:
        taken = {run: lines for run, kept in self._logs.items() if (lines := kept.take())}
        for run, lines in taken.items():
            attempt = self._runs[run].attempt if run in self._runs else 0
            for line in lines:
                # A subflow's first lines come before the store has told us its attempt.
                line.attempt = line.attempt or attempt
        return taken

    def _bury(self) -> None:
        if all(tracked.death is None for tracked in self._unwritten.values()):
            return
        # Subflows before the run that called them: children were opened later.
        for tracked in reversed(list(self._runs.values())):
            if tracked.death is not None and not tracked.changed:
                report = self._store.runs.report_death
                lapsed = self._guarded(report, tracked.id, tracked.attempt, tracked.death, worker=self._worker)
                self._finished(tracked, _death_answer(lapsed))

    def _finished(self, tracked: _Tracked, answer: str) -> None:
        del self._runs[tracked.id]
        self._unwritten.pop(tracked.id, None)
        if self._calls or self._granted:
            self._drop_calls(tracked.id)
        if self._told_tags and tracked.opened is None:
            self._told_tags.pop(tracked.child, None)
        self._replies.append(Reply(tracked.child, [protocol.ENDED, tracked.id, answer]))

    def _answer(self) -> None:
        while self._questions:
            question = self._questions[0]
            try:
                ok, value = True, self._fetch(question)
            except StoreUnavailable:
                raise
            except Exception as problem:
                ok, value = False, _told(problem)
            self._questions.popleft()
            self._replies.append(Reply(question.child, [protocol.ANSWER, question.request, ok, value]))

    def _fetch(self, question: _Question) -> Any:
        documents = self._store.documents
        questions: Mapping[str, Callable[..., Any]] = {
            "get_variable": documents.get_variable,
            "set_variable": lambda name, value, tags, overwrite: documents.set_variable(
                name, value, tags=tuple(tags), overwrite=overwrite
            ),
            "unset_variable": documents.unset_variable,
        }
        if question.what not in questions:
            raise OrchError(
                f"This worker cannot answer {question.what!r}.", hint="Worker and flow should use the same Orch version."
            )
        return as_json(questions[question.what](*question.arguments))

    def _release(self) -> None:
        # What runs that have ended had was freed with their ends.
        self._to_release = [(run, number) for run, number in self._to_release if run in self._runs]
        while some := self._to_release[:_CALLS_A_TURN]:
            calls = [(run, self._runs[run].attempt, number) for run, number in some]
            self._guarded(self._store.limits.release, calls, worker=self._worker)
            del self._to_release[: len(some)]

    def _tell_tags(self) -> None:
        if self._told_tags and self._limited_tags is None:
            self._limited_tags = self._guarded(self._store.limits.tags) or []
        for child, told in self._told_tags.items():
            if told != self._limited_tags:
                self._told_tags[child] = self._limited_tags
                self._replies.append(Reply(child, [protocol.LIMITED, self._limited_tags]))

    def _acquire(self, now: float) -> None:
        if self._wake_at is not None and now >= self._wake_at:
            self._guarded(self._store.runs.wake)
            self._wake_at = None
            self._ask_first_by_time()
        for key in list(self._to_ask)[:_CALLS_A_TURN]:
            call = self._calls[key]
            try:
                acquired = self._ask_for(call)
            except StoreUnavailable:
                raise
            except Exception as problem:
                log.warning("The store refused a call for slots: %s", problem)
                self._settle(call, ok=False, value=_told(problem))
            else:
                self._take_answer(call, acquired, now)
            self._to_ask.pop(key, None)

        while self._to_hold:
            self._hold(self._to_hold[-1])
            self._to_hold.pop()

    def _hold(self, key: tuple[str, int]) -> None:
        call = self._granted.get(key)
        acquired = self._guarded(self._ask_for, call) if call and call.run in self._runs else None
        if acquired is not None and acquired.answer == "waiting":
            log.warning(
                "Run %s goes on without slots that a fail-over has lost, and that others have now: %s",
                key[0],
                acquired.detail,
            )

    def _ask_for(self, call: _Call) -> Acquired:
        tracked = self._runs[call.run]
        call.is_known = True
        of, names, occupy, rate, strict, _ = call.wanted
        asked = Acquire(call.run, tracked.attempt, self._worker, call.number, names, of, occupy, rate, strict)
        return self._store.limits.acquire(asked)

    def _take_answer(self, call: _Call, acquired: Acquired, now: float) -> None:
        without = acquired.detail.split("\n") if acquired.detail else []
        # Where no name has a limit nothing is held, and nobody will give anything back.
        if acquired.answer == "granted" and not call.wanted.rate and len(without) < len(call.wanted.names):
            self._granted[call.run, call.number] = call
        if acquired.answer != "waiting":
            self._settle(call, ok=True, value=[acquired.answer, acquired.detail])
            if call.by_time:
                self._ask_first_by_time()
        elif not call.wanted.patient:
            self._settle(call, ok=True, value=["full", acquired.detail])
            self._to_release.append((call.run, call.number))
            self._due(now)
        else:
            call.by_time = acquired.retry_ms is not None
            if acquired.retry_ms is not None:
                wake_at = now + acquired.retry_ms / 1000
                self._wake_at = wake_at if self._wake_at is None else min(self._wake_at, wake_at)
            if not call.is_told:
                call.is_told = True
                self._replies.append(Reply(call.child, [protocol.WAITS, call.number, acquired.detail]))

    def _ask_first_by_time(self) -> None:
        """One that waits at each rate limit is asked for: its answer says when the next slot is back."""
        by_time = {tuple(call.wanted.names): key for key, call in reversed(self._calls.items()) if call.by_time}
        self._to_ask |= dict.fromkeys(by_time.values())

    def _settle(self, call: _Call, *, ok: bool, value: Any) -> None:
        self._drop_call((call.run, call.number))
        self._replies.append(Reply(call.child, [protocol.ANSWER, call.number, ok, value]))

    def _drop_call(self, key: tuple[str, int]) -> _Call | None:
        self._to_ask.pop(key, None)
        return self._calls.pop(key, None)

    def _drop_calls(self, run: str) -> None:
        """What is left of the run's process hears that it gets no slots any more."""
        self._granted = {key: call for key, call in self._granted.items() if call.run != run}
        for call in [call for call in self._calls.values() if call.run == run]:
            self._settle(call, ok=True, value=["superseded", ""])
            self._due(0.0)

    def _guarded(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Call the store. What it refuses is said and dropped: one run's trouble must not keep the others' frames back."""
        try:
            return call(*arguments, **named)
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("The store refused to %s", call.__name__)
            return None


def _told(problem: Exception) -> dict[str, Any]:
    return {"type": type(problem).__name__, "message": str(problem), "hint": getattr(problem, "hint", None)}


def _death_answer(lapsed: Lapsed | None) -> str:
    if lapsed is None:
        return "refused"
    return next((answer for answer in ("requeued", "crashed", "cancelled") if getattr(lapsed, answer)), "superseded")


def _log_line(line: list[Any], attempt: int) -> LogLine:
    at_ms, level, logger, message, task_run = line
    return LogLine(clock.from_ms(at_ms), int(level), str(logger), str(message), attempt, task_run)


def _end_of(frame: Frame) -> End:
    """The end that a frame tells of; attempt and age are not known yet. Raises ValueError for one that ends nothing."""
    _, run, kind, name, message, result, retry_in_ms = frame
    state = State(StateType(kind), name, message)
    if not state.is_final() and name != "AwaitingRetry":
        raise ValueError(f"{name} ends nothing")
    retry_in = None if retry_in_ms is None else timedelta(milliseconds=retry_in_ms)
    return End(run, 0, state, bytes(result), retry_in)
