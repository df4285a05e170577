"""Watching a run: its log on stdout, its states on stderr, its outcome as the exit code."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from shlex import quote
from typing import TYPE_CHECKING

from orch_cli import connection, output
from orchestrator import clock
from orchestrator.exceptions import ObjectNotFound, StoreUnavailable
from orchestrator.models import LogLine, Run, as_json
from orchestrator.states import State, StateType

if TYPE_CHECKING:
    from orchestrator.store import Store

TIMED_OUT = 124
_SHARE = 10
_PAUSE_S = 0.5
_EVER = datetime.min.replace(tzinfo=UTC)
_EXIT_CODES = {StateType.COMPLETED: 0, StateType.FAILED: 1, StateType.CRASHED: 1, StateType.CANCELLED: 7}


class TimeIsOver(Exception):
    """The time given with ``--timeout`` is over."""


class RunLog:
    """Writes the lines of one run's log, each with the name of the task run that it is about."""

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._names: dict[str, str] = {}
        self._read_again_at = 0.0

    def write(self, line: LogLine) -> None:
        """One line, for people."""
        output.write_log_line(line.at, line.level, line.logger, line.message, self._name(line.task_run))

    def _name(self, task_run: str | None) -> str:
        """Names are read together. A flow may begin thousands of task runs meanwhile, so reading gets a tenth of the time."""
        if task_run is None:
            return ""
        now = clock.monotonic()
        if task_run not in self._names and now >= self._read_again_at:
            self._names = {task.id: task.name for task in self._store.runs.tasks(self._run)}
            self._read_again_at = clock.monotonic() + _SHARE * (clock.monotonic() - now)
        return self._names.get(task_run, "")


def outcome(state: State) -> int:
    """The exit code that an ended run stands for."""
    return _EXIT_CODES[state.type]


def watch_run(store: Store, run: Run, timeout: timedelta | None, out: output.Printer[Run]) -> int:
    """Show the run's log and states until it ends; answer its outcome, or 124 when the time is over."""
    explain_waiting(store, run)
    last = ""
    log = RunLog(store, run.id)
    try:
        for item in follow(store, run.id, timeout, since=_EVER):
            if out.format == "jsonl":
                output.write_json_line({"state" if isinstance(item, State) else "log": as_json(item)})
            elif not out.is_for_people:
                continue
            elif isinstance(item, LogLine):
                log.write(item)
            elif item.name != last:
                output.say_state(run.name, item)
                last = item.name
    except TimeIsOver:
        output.say(f"Stopped watching after {output.duration_text(timeout or timedelta())}. The run goes on.")
        output.say_hint(f"Watch it again with: orch flow-run watch {run.id}")
        return TIMED_OUT
    except KeyboardInterrupt:
        output.say("\nStopped watching. The run goes on.")
        output.say_hint(f"Watch it again with: orch flow-run watch {run.id}, or stop it with: orch flow-run cancel {run.id}")
        raise
    ended = store.runs.get(run.id)
    if ended.state.name != last and out.is_for_people:
        output.say_state(run.name, ended.state)
    if not out.is_for_people and out.format != "jsonl":
        out.one(ended)
    return outcome(ended.state)


def follow(
    store: Store, run: str, timeout: timedelta | None, after: str = "", since: datetime | None = None
) -> Iterator[LogLine | State]:
    """A run's log lines (behind the one of the id ``after``) and states as they come, to its end. Raises TimeIsOver.

    States begin with the present one, or with those entered after ``since``.
    """
    over = threading.Event()
    if timeout is None:
        yield from _items(store, run, over, after, since)
        return
    items: queue.Queue[LogLine | State | BaseException | None] = queue.Queue()

    def read() -> None:
        try:
            for item in _items(store, run, over, after, since):
                items.put(item)
            items.put(None)
        except BaseException as error:
            items.put(error)

    threading.Thread(target=read, daemon=True).start()
    end = clock.monotonic() + timeout.total_seconds()
    try:
        while True:
            item = items.get(timeout=max(0.0, end - clock.monotonic()))
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    except queue.Empty:
        raise TimeIsOver from None
    finally:
        over.set()


def _items(store: Store, run: str, over: threading.Event, after: str, since: datetime | None) -> Iterator[LogLine | State]:
    """As ``queries.follow``, going on where it was when the server has been away for a while; until nobody listens any more."""
    lost_at = None
    while True:
        try:
            for item in store.queries.follow(run, after, since):
                lost_at = None
                if isinstance(item, LogLine):
                    after = item.id
                elif since is not None:
                    since = item.timestamp
                yield item
            return
        except ObjectNotFound:
            # With everything else, perhaps: then DataGone is the better answer.
            store.failover.check()
            raise
        except StoreUnavailable:
            if over.is_set():
                return
            now = clock.monotonic()
            if lost_at is None:
                lost_at = now
                output.say("The server does not answer. Waiting for it...")
            if now - lost_at > connection.settings().redis_retry_s:
                raise
            over.wait(_PAUSE_S)


def explain_waiting(store: Store, run: Run) -> None:
    """Say what a run that has not started waits for, where a person has to do something about it."""
    if run.is_terminal or run.place == "leased" or not run.pool:
        return
    pool = store.pools.get(run.pool)
    if pool.paused:
        output.warn(
            f"Work pool '{pool.name}' is paused; the run will wait.",
            hint=f"Resume it with: orch work-pool resume {quote(pool.name)}",
        )
    elif any(queue.paused for queue in pool.queues if queue.name == run.queue):
        output.warn(
            f"Work queue '{run.queue}' of '{pool.name}' is paused; the run will wait.",
            hint=f"Resume it with: orch work-queue resume {quote(run.queue)} --pool {quote(pool.name)}",
        )
    elif pool.workers == 0:
        output.warn(
            f"No worker polls work pool '{pool.name}'; the run will wait.",
            hint=f"Start one in another terminal with: orch worker start --pool {quote(pool.name)}",
        )
