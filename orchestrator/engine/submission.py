"""Calls of tasks in the background: each becomes a run of its own, which a worker of the task's pool executes.

A process submits through one store, opened at its first call with the settings of that moment, and closed never.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from orchestrator import clock
from orchestrator.context import TagsContext, recorded_run
from orchestrator.engine.arguments import PLAIN, travelling
from orchestrator.engine.inputs import resolve, resolve_call
from orchestrator.exceptions import (
    ObjectAlreadyExists,
    ObjectNotFound,
    ParameterBindError,
    ParameterTypeError,
    Refused,
)
from orchestrator.futures import DistributedFuture
from orchestrator.keys import PRIORITIES
from orchestrator.models import NewRun

if TYPE_CHECKING:
    from orchestrator.store import Store
    from orchestrator.store.ends import Ends
    from orchestrator.tasks import Task

POOL_TYPE = "thread"
"""The type of the work pool that is created for tasks."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Options:
    """How calls are submitted. ``due`` None = now; ``pool`` '' = that of the setting ``task_pool``."""

    due: datetime | None = None
    expires: datetime | None = None
    priority: str = "normal"
    queue: str = "default"
    pool: str = ""
    tags: tuple[str, ...] = ()
    run_name: str = ""


NOW = Options()
"""A call for now, with nothing particular about it."""


class Submitter:
    """What a process needs to submit calls and to wait for their ends: a store, and the pools that it has seen."""

    def __init__(self, store: Store, pool: str, patience: timedelta) -> None:
        self.store = store
        self.pool = pool
        self._patience = patience
        self._ends: Ends | None = None
        self._seen: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @property
    def ends(self) -> Ends:
        """Tells of runs that end."""
        from orchestrator.store.ends import Ends

        with self._lock:
            if self._ends is None:
                self._ends = Ends(self.store, self._patience)
            return self._ends

    def submit(
        self, task: Task[..., Any], calls: Sequence[Arguments], options: Options, keys: Sequence[str | None]
    ) -> list[DistributedFuture[Any]]:
        """Create a run for each call. ``keys``: the idempotency key of each.

        Raises what ``Task.apply_async`` raises.
        """
        pool = options.pool or self.pool
        if (pool, options.queue) not in self._seen:
            self._expect(pool, options.queue)
        runs = _new_runs(task, calls, pool, options, keys)
        try:
            created = self.store.runs.create(runs)
        except (OverflowError, UnicodeError) as problem:
            raise ParameterTypeError(
                f"Task '{task.name}' cannot be sent these arguments: {problem}.",
                hint="Numbers up to 64 bits travel, and text in Unicode.",
            ) from None
        futures: list[DistributedFuture[Any]] = []
        for run, answer in zip(runs, created, strict=True):
            if answer.answer == "conflict":
                raise Refused(
                    f"The idempotency key {run.idempotency_key!r} of task '{task.name}' stands for other arguments.",
                    hint=f"Use another key, or look at that run: orch flow-run inspect {answer.id}",
                )
            futures.append(DistributedFuture(answer.id, answer.name))
        return futures

    def _expect(self, pool: str, queue: str) -> None:
        """The pool and its queue are there; the default pool is created."""
        pools = self.store.pools
        if pool == self.pool:
            ensure_pool(self.store, pool)
        kind = pools.get(pool).type if pools.exists(pool) else ""
        if not kind:
            raise ObjectNotFound(
                f"There is no work pool {pool!r}.", hint=f"Create it with: orch work-pool create '{pool}' --type {POOL_TYPE}"
            )
        if kind != POOL_TYPE:
            raise Refused(
                f"The work pool {pool!r} is of type {kind}, whose workers run flows of deployments.",
                hint=f"Tasks run in pools of type {POOL_TYPE}: orch work-pool create NAME --type {POOL_TYPE}",
            )
        pools.get_queue(pool, queue)
        self._seen.add((pool, queue))


_submitter: Submitter | None = None
_lock = threading.Lock()


def _forget() -> None:
    """A forked child has neither its parent's connections nor its threads."""
    global _submitter, _lock
    _submitter, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def submitter() -> Submitter:
    """That of this process, made if need be. Raises what ``open_store`` raises."""
    global _submitter
    found = _submitter
    if found is not None:
        return found
    with _lock:
        if _submitter is None:
            from orchestrator import settings
            from orchestrator.store import open_store

            chosen = settings.load()
            _submitter = Submitter(open_store(chosen), chosen.task_pool, timedelta(seconds=chosen.redis_retry_s))
        return _submitter


def use(chosen: Submitter | None) -> None:
    """Submit through this one from now on; None: through one of the settings of the next call."""
    global _submitter
    _submitter = chosen


def ensure_pool(store: Store, name: str) -> None:
    """The work pool is there; one of type thread is created where it is not."""
    if not store.pools.exists(name):
        try:
            store.pools.create(name, POOL_TYPE, description="Tasks that run in the background")
        except ObjectAlreadyExists:
            return


def wait_for(futures: Iterable[Any] | None) -> None:
    """Wait until these futures and states have completed. Raises UpstreamFailed for one that did not."""
    if futures is not None:
        resolve(list(futures), [], None)


def arguments_of(call: Any) -> Arguments:
    """One of the calls that ``delay_many`` is given: a tuple of arguments, a dict of named ones, or the only argument."""
    if type(call) is tuple:
        return call, {}
    return ((), call) if type(call) is dict else ((call,), {})


def options_of(
    eta: datetime | None = None,
    countdown: float | timedelta | None = None,
    expires: datetime | float | timedelta | None = None,
    **others: Any,
) -> Options:
    """Options as ``Task.apply_async`` takes them. Raises ParameterTypeError."""
    if eta is not None and countdown is not None:
        raise ParameterTypeError("eta and countdown exclude each other.", hint="Give one of them.")
    priority = others.get("priority", "normal")
    if priority not in PRIORITIES:
        raise ParameterTypeError(f"There is no priority {priority!r}.", hint=f"The priorities are: {', '.join(PRIORITIES)}")
    tags = others.pop("tags", ())
    if isinstance(tags, str):
        raise ParameterTypeError(f"tags is one text, {tags!r}, not several.", hint="Write tags=[...]")
    now = clock.now()
    due = _moment(eta, "eta", now) if countdown is None else _moment(countdown, "countdown", now)
    others = {name: value for name, value in others.items() if value is not None}
    return Options(due, _moment(expires, "expires", now), tags=tuple(tags), **others)


def _moment(value: datetime | float | timedelta | None, name: str, now: datetime) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ParameterTypeError(
                f"{name} is {value.isoformat()}, without a time zone.", hint="Write datetime.now(UTC) + ..., or use countdown."
            )
        return value.astimezone(UTC)
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)) or name == "eta":
        wanted = "a datetime" if name == "eta" else "a number of seconds, a timedelta" + ", a datetime" * (name == "expires")
        raise ParameterTypeError(f"{name} is a {type(value).__name__}.", hint=f"It is {wanted}.")
    return now + (value if isinstance(value, timedelta) else timedelta(seconds=value))


def _new_runs(
    task: Task[..., Any], calls: Sequence[Arguments], pool: str, options: Options, keys: Sequence[str | None]
) -> list[NewRun]:
    entrypoint = task.entrypoint
    recorded = recorded_run()
    parent = None if recorded is None else recorded[1]
    known = TagsContext.get().current_tags | task.tags
    tags = tuple(dict.fromkeys((*sorted(known), *options.tags))) if known or options.tags else ()
    runs = []
    if len(calls) != len(keys):
        raise ParameterBindError(
            f"{len(calls)} calls of task '{task.name}' have {len(keys)} idempotency keys.", hint="Give one for each."
        )
    for (args, kwargs), key in zip(calls, keys, strict=True):
        is_plain = PLAIN.issuperset(map(type, args)) and not (kwargs and not PLAIN.issuperset(map(type, kwargs.values())))
        if not is_plain:
            args, kwargs = resolve_call(args, kwargs, [], None)
        task.signature.check(args, kwargs)
        name = options.run_name or (task.name_of_call(args, kwargs) if task.task_run_name is not None else "")
        if not is_plain:
            args, kwargs = travelling(task, args, kwargs)
        runs.append(
            NewRun(
                flow=task.name,
                kind="task",
                entrypoint=entrypoint,
                name=name,
                pool=pool,
                queue=options.queue,
                priority=options.priority,
                parameters={"args": args, "kwargs": kwargs},
                tags=tags,
                due=options.due,
                expires=options.expires,
                idempotency_key=key,
                parent=parent,
            )
        )
    return runs
