"""Submitted tasks on an RQ fleet: each attempt of a task is an RQ job; all else about the task run stays in the flow's process.

RQ carries one string to ``orch_workers.rq.run_task`` and hands nothing back: what the jobs have to tell comes over a stream of
Orch's own, in msgpack. Orch writes the form in which RQ stores jobs, pickle unless the fleet uses another, and never reads it.

Two threads: one listens to that stream, one does everything else, in turn. Who waits for jobs holds a lease in Redis; jobs
begin, and go on, only as long as it is there, so that none outlives its flow for long.
"""

from __future__ import annotations

import base64
import contextvars
import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import msgpack

from orchestrator import clock, futures, settings
from orchestrator.context import FlowRunContext
from orchestrator.engine import drive, protocol, remote
from orchestrator.engine.termination import Terminated
from orchestrator.exceptions import ConfigurationError, MissingContextError, OrchError, StoreUnavailable
from orchestrator.futures import Future
from orchestrator.keys import Keys, new_id
from orchestrator.logging.loggers import get_logger
from orchestrator.task_runners.base import TaskRunner, when_all_ended

if TYPE_CHECKING:
    from orchestrator.engine.link import Link, Word
    from orchestrator.engine.task_call import TaskCall
    from orchestrator.settings import Settings
    from orchestrator.tasks import Task

FUNCTION = "orch_workers.rq.run_task"

_LEASE_SECONDS = 60
_SWEEP_SECONDS = 1.0
_GATHER_SECONDS = 0.002
_BATCH = 500
_LOOKED_AT = 200
_GRACE_SECONDS = 60
_STOP_SECONDS = 5.0
_OVER = frozenset({None, b"finished", b"failed", b"stopped", b"canceled"})
_FORWARDED = frozenset({protocol.OPEN, protocol.START, protocol.END})

_log = get_logger("task_runners")


class RQTaskRunner(TaskRunner):
    """Runs submitted tasks as jobs of an RQ queue, wherever its workers are. They need Orch and the flow's code.

    queue: the RQ queue. connection: the URL of the Redis that RQ uses; the namespace's own unless given.
    job_timeout: seconds that an attempt may take; unless given, as long as the task's ``timeout_seconds`` says.
    result_ttl: seconds for which RQ keeps the record of a job that has ended, also of one that failed.
    serializer: how the fleet stores jobs, as ``rq worker --serializer`` has it: ``"json"``, or the path of a class; pickle
    unless given. lost_after: seconds without a sign of life after which a running job counts as lost with its worker.

    Raises ValueError for a number that makes no sense.
    """

    def __init__(
        self,
        queue: str = "default",
        connection: str | None = None,
        *,
        job_timeout: float | None = None,
        result_ttl: int = 500,
        serializer: str | None = None,
        lost_after: float = 60.0,
    ) -> None:
        if not isinstance(queue, str) or not queue:
            raise ValueError(f"queue is {queue!r}; it must be the name of an RQ queue.")
        if connection is not None and not isinstance(connection, str):
            raise TypeError(f"connection is a {type(connection).__name__}; it must be a URL such as redis://HOST:PORT/DB.")
        if job_timeout is not None and job_timeout <= 0:
            raise ValueError(f"job_timeout is {job_timeout:g}; it must be more than 0 seconds.")
        if result_ttl < 0:
            raise ValueError(f"result_ttl is {result_ttl}; it must be at least 0 seconds.")
        if lost_after <= 0:
            raise ValueError(f"lost_after is {lost_after:g}; it must be more than 0 seconds.")
        self.queue = queue
        self.connection = connection
        self.job_timeout = job_timeout
        self.result_ttl = result_ttl
        self.serializer = serializer
        self.lost_after = lost_after
        self._lock = threading.Lock()
        self._all_done = threading.Condition(self._lock)
        self._unfinished: set[_Item] = set()
        self._steps: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._fleet: _Fleet | None = None
        self._thread: threading.Thread | None = None
        self._outbox: list[tuple[_Item, bytes]] = []
        self._jobs: dict[str, _Item] = {}
        self._unstarted: deque[str] = deque()
        self._later: list[tuple[float, int, _Item]] = []
        self._numbers = itertools.count()
        self._is_cancelled = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RQTaskRunner) and other._settings == self._settings

    __hash__ = None  # type: ignore[assignment]

    @property
    def _settings(self) -> dict[str, Any]:
        names = ("queue", "connection", "job_timeout", "result_ttl", "serializer", "lost_after")
        return {name: getattr(self, name) for name in names}

    def duplicate(self) -> RQTaskRunner:
        """A fresh runner with the same settings."""
        return RQTaskRunner(**self._settings)

    def submit(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: Iterable[Any] | None = None
    ) -> Future[Any]:
        """Enqueue one task run as soon as what it needs is there.

        Raises InvalidDefinition for a task that RQ workers could not find, StoreUnavailable where RQ's Redis does not answer.
        """
        from orchestrator.engine.inputs import pending_futures

        flow = FlowRunContext.get()
        if flow is None:
            raise MissingContextError(f"Task '{task.name}' was submitted outside of a flow.")
        where = remote.place_of(task)
        self._start()
        needed = None if wait_for is None else list(wait_for)
        call = task.submitted_call(args, kwargs, needed)
        item = _Item(call, Future(call.task_run), flow, where, contextvars.copy_context())
        with self._lock:
            self._unfinished.add(item)
        then = partial(self._steps.put, partial(self._in_context, item, self._open))
        upstream = pending_futures((*args, *kwargs.values(), *(needed or ())))
        if upstream:
            when_all_ended(upstream, then)
        else:
            then()
        return item.future

    def finish(self, *, cancel: bool = False) -> None:
        """Wait for all that was submitted; with ``cancel`` take queued jobs out of the queue and have running ones stopped."""
        if self._thread is None:
            return
        if cancel:
            self._there.give_up()
            self._steps.put(self._cancel)
        with futures.giving_way.get()(), self._lock:
            self._all_done.wait_for(lambda: not self._unfinished, _STOP_SECONDS if cancel else None)
        self._steps.put(None)
        self._thread.join(_STOP_SECONDS if cancel else None)

    # Below: all in the one thread, except where it says so

    def _start(self) -> None:
        """In the thread that submits."""
        with self._lock:
            if self._thread is None:
                self._fleet = _Fleet(self, self._hear)
                self._thread = threading.Thread(target=self._serve, name="orch-rq", daemon=True)
                self._thread.start()

    @property
    def _there(self) -> _Fleet:
        assert self._fleet is not None, "It is there before the first step."
        return self._fleet

    def _serve(self) -> None:
        is_done = False
        while not is_done:
            try:
                self._serve_on()
                is_done = True
            except Exception as problem:
                _log.exception("The task runner ends the task runs that it has, for this reason")
                self._end_all(problem)
        self._there.close()

    def _end_all(self, problem: Exception) -> None:
        """Nobody may wait for ever for what this thread could not do."""
        with self._lock:
            left = list(self._unfinished)
        self._jobs.clear()
        self._outbox.clear()
        for item in left:
            item.call.break_off(problem)
            self._end(item)

    def _serve_on(self) -> None:
        sweep_at = clock.monotonic() + _SWEEP_SECONDS
        while True:
            retry_at = self._later[0][0] if self._later else sweep_at
            # What is mapped arrives one by one: the jobs of a burst go out together.
            wait = _GATHER_SECONDS if self._outbox else max(0.0, min(sweep_at, retry_at) - clock.monotonic())
            is_quiet = False
            try:
                step = self._steps.get(timeout=wait)
            except Empty:
                is_quiet = True
            else:
                if step is None:
                    return
                step()
            now = clock.monotonic()
            if is_quiet or len(self._outbox) >= _BATCH or now >= sweep_at:
                self._enqueue()
            while self._later and self._later[0][0] <= now:
                item = heapq.heappop(self._later)[2]
                self._in_context(item, self._line_up)
            if now >= sweep_at:
                sweep_at = now + _SWEEP_SECONDS
                self._sweep()

    def _in_context(self, item: _Item, step: Callable[..., object], *arguments: Any) -> None:
        """Do a step of a task run where its own code may be called; what that raises, ends it."""
        if item.is_over:
            return
        try:
            item.context.run(step, item, *arguments)
        except BaseException as problem:
            item.call.break_off(problem)
        if item.call.has_ended:
            self._end(item)

    def _open(self, item: _Item) -> None:
        item.call.open()
        if not item.call.has_ended:
            self._line_up(item)

    def _line_up(self, item: _Item) -> None:
        """Take the slots of its tags, if these are limited, and join the batch. They are held until the attempt has ended."""
        slots = item.call.slots
        if slots is None or slots.is_held:
            self._pack(item)
            return

        def hear(word: Word) -> None:  # by whatever thread hears it
            self._steps.put(partial(self._in_context, item, self._hear_of_slots, word))

        slots.ask(hear)

    def _hear_of_slots(self, item: _Item, word: Word) -> None:
        if item.call.slots is not None and item.call.slots.hear(word):
            self._pack(item)

    def _pack(self, item: _Item) -> None:
        limits = [limit for limit in (item.call.timeout, self.job_timeout) if limit is not None]
        item.limit = min(limits) if limits else None
        item.attempt += 1
        item.job = f"{item.call.task_run.id}-{item.attempt}"
        call = remote.pack_call(item.call.task, item.call.context, item.flow.flow_run, item.where, item.limit)
        item.call.timeout = item.limit
        self._outbox.append((item, call))

    def _enqueue(self) -> None:
        batch, self._outbox = [(item, call) for item, call in self._outbox if not item.is_over], []
        for start in range(0, len(batch), _BATCH):
            part = batch[start : start + _BATCH]
            for item, _ in part:
                item.is_started, item.seems_over, item.worker = False, False, ""
                self._jobs[item.job] = item
                self._unstarted.append(item.job)
            try:
                self._there.enqueue(part)
            except Exception as problem:
                for item, _ in part:
                    self._in_context(item, _break_off, problem)

    def _hear(self, job: str, message: list[Any]) -> None:
        """A job has something to tell. Called by the thread that listens."""
        self._steps.put(partial(self._take, job, message))

    def _take(self, job: str, message: list[Any]) -> None:
        item = self._jobs.get(job)
        if item is None:
            return  # it counts as lost, or was stopped
        item.heard_at = clock.monotonic()
        if message[0] == "started":
            item.worker = f"{message[1]}"
            self._in_context(item, self._begin)
        elif message[0] == "frames":
            _forward(item, message[1:])
        elif message[0] != "alive":
            self._in_context(item, self._answer, message)

    def _begin(self, item: _Item) -> None:
        if not item.is_started:
            item.is_started = True
            item.heard_at = clock.monotonic()
            _inside(item, item.call.begin)

    def _answer(self, item: _Item, message: list[Any]) -> None:
        self._jobs.pop(item.job, None)
        self._begin(item)
        try:
            _inside(item, partial(remote.tell, item.call, message))
        except ValueError as problem:
            _inside(item, partial(item.call.lost, str(problem)))
        self._go_on(item)

    def _lose(self, item: _Item, message: str) -> None:
        self._jobs.pop(item.job, None)
        self._there.stop([item])
        self._begin(item)
        _inside(item, partial(item.call.lost, message))
        self._go_on(item)

    def _go_on(self, item: _Item) -> None:
        if item.call.has_ended or self._is_cancelled:
            return
        if item.call.delay:
            heapq.heappush(self._later, (clock.monotonic() + item.call.delay, next(self._numbers), item))
        else:
            self._line_up(item)

    def _sweep(self) -> None:
        """Keep the lease; find the jobs that will not answer: RQ says that they are over, or their worker is silent."""
        try:
            self._there.renew()
            started = [item for item in self._jobs.values() if item.is_started]
            looked_at = [*started, *self._some_unstarted()]
            statuses = self._there.statuses(looked_at)
        except Exception as problem:
            _log.warning("The RQ jobs of this flow run cannot be watched now: %s", problem)
            for item in self._jobs.values():
                item.heard_at = clock.monotonic()  # nobody could be heard
            return
        for item, status in zip(looked_at, statuses, strict=True):
            if status in _OVER and item.seems_over:
                self._in_context(item, self._lose, _sentence_of(item, status))
            elif item.is_started and clock.monotonic() - item.heard_at > self.lost_after:
                silence = f"RQ worker '{item.worker}' has given no sign of life for {self.lost_after:g} seconds."
                self._in_context(item, self._lose, silence)
            # Its last words may be on their way to the thread that listens: it has until the next time.
            item.seems_over = status in _OVER

    def _some_unstarted(self) -> list[_Item]:
        """The next few of those that wait: in a long queue nobody looks at all of them each time."""
        found = []
        for _ in range(min(_LOOKED_AT, len(self._unstarted))):
            job = self._unstarted.popleft()
            item = self._jobs.get(job)
            if item is not None and not item.is_started:
                found.append(item)
                self._unstarted.append(job)
        return found

    def _cancel(self) -> None:
        self._is_cancelled = True
        items = [item for item in self._jobs.values() if not item.is_over]
        with suppress(OrchError):  # without the lease they stop all the same
            self._there.drop([item for item in items if not item.is_started])
            self._there.stop([item for item in items if item.is_started])
        self._jobs.clear()
        self._outbox.clear()
        with self._lock:
            left = list(self._unfinished)
        for item in left:
            item.context.run(_stop, item)
            self._end(item)

    def _end(self, item: _Item) -> None:
        if item.is_over:
            return
        item.is_over = True
        if item.call.due_hooks:
            item.context.run(drive.fire_hooks, item.call)
        item.future.set_ended()
        with self._lock:
            self._unfinished.discard(item)
            if not self._unfinished:
                self._all_done.notify_all()


@dataclass(slots=True, eq=False)
class _Item:
    """One submitted task run. ``job`` is the RQ job of its present attempt; ``worker`` who runs that."""

    call: TaskCall
    future: Future[Any]
    flow: FlowRunContext
    where: tuple[str, str]
    context: contextvars.Context
    attempt: int = 0
    job: str = ""
    worker: str = ""
    limit: float | None = None
    is_started: bool = False
    is_over: bool = False
    seems_over: bool = False
    heard_at: float = field(default_factory=clock.monotonic)


class _Fleet:
    """What goes to RQ and comes from its jobs. Raises StoreUnavailable where their Redis stays away."""

    def __init__(self, runner: RQTaskRunner, hear: Callable[[str, list[Any]], None]) -> None:
        chosen = settings.load()
        self._runner = runner
        self._hear = hear
        self._client, self._blocking = _clients(runner.connection, chosen)
        self._patience = timedelta(seconds=chosen.redis_retry_s)
        keys = Keys(chosen.namespace)
        own = new_id()
        self._answers = keys.rq_answers(own)
        self._lease = keys.rq_lease(own)
        self._queue = _queue(runner, self._client)
        self._ttl = max(_LEASE_SECONDS, runner.result_ttl)
        self._renewed_at = float("-inf")
        self._closing = threading.Event()
        self._done(self.renew)
        self._listener = threading.Thread(target=self._listen, name="orch-rq-listen", daemon=True)
        self._listener.start()

    def enqueue(self, batch: list[tuple[_Item, bytes]]) -> None:
        """Put jobs into the queue, all in one pipeline."""
        datas = [
            self._queue.prepare_data(
                FUNCTION,
                args=(self._envelope(item, call),),
                timeout=-1 if item.limit is None else round(item.limit + _GRACE_SECONDS),
                result_ttl=self._runner.result_ttl,
                failure_ttl=self._runner.result_ttl,
                description=f"Orch task run {item.call.task_run.name} of flow run {item.flow.flow_run.name}",
                job_id=item.job,
            )
            for item, call in batch
        ]

        tries = itertools.count()

        def send() -> None:
            pipeline = self._client.pipeline()
            if next(tries):  # the answer may be what was lost: they must not stand there twice
                for item, _ in batch:
                    self._queue.remove(item.job, pipeline=pipeline)
            self._queue.enqueue_many(datas, pipeline=pipeline)
            pipeline.execute()

        self._done(send)

    def statuses(self, items: list[_Item]) -> list[bytes | None]:
        """What RQ says about jobs; None for those that it does not have."""
        pipeline = self._client.pipeline(transaction=False)
        for item in items:
            pipeline.hget(_job_key(item), "status")
        answers: list[bytes | None] = pipeline.execute() if items else []
        return answers

    def drop(self, items: list[_Item]) -> None:
        """Take queued jobs out of the queue; what has been taken from it just now finds no lease and does not begin."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.delete(self._lease)
        for item in items:
            self._queue.remove(item.job, pipeline=pipeline)
            pipeline.delete(_job_key(item))
        pipeline.execute()

    def stop(self, items: list[_Item]) -> None:
        """Have workers stop jobs, as ``rq``'s own command does.

        Only those that run as far as RQ knows: a worker that is told to stop a job whose process has died may kill itself, its
        group and all (rq 3.0, ``kill_horse`` without a horse).
        """
        from rq.command import send_command

        with suppress(StoreUnavailable):
            for item, status in zip(items, self.statuses(items), strict=True):
                if item.worker and status == b"started":
                    send_command(self._client, item.worker, "stop-job", job_id=item.job)

    def renew(self) -> None:
        """Keep the lease and what jobs have told, if it is time for that."""
        if clock.monotonic() - self._renewed_at < _LEASE_SECONDS / 4:
            return
        pipeline = self._client.pipeline(transaction=False)
        pipeline.set(self._lease, "1", ex=_LEASE_SECONDS)
        pipeline.expire(self._answers, self._ttl)
        pipeline.execute()
        self._renewed_at = clock.monotonic()

    def give_up(self) -> None:
        """Wait no longer for a Redis that is away, and hear nothing more."""
        self._closing.set()

    def close(self) -> None:
        """Nobody waits any more."""
        self._closing.set()
        with suppress(OrchError):
            self._client.delete(self._lease)
            self._client.xadd(self._answers, {"m": b""})  # the thread that listens wakes up, and ends
            self._listener.join(_STOP_SECONDS)
            self._client.delete(self._answers)
        self._client.connection_pool.disconnect()
        self._blocking.connection_pool.disconnect()

    def _listen(self) -> None:
        last = b"0"
        while not self._closing.is_set():
            try:
                answer: Any = self._blocking.xread({self._answers: last}, count=_BATCH, block=5000)
                if answer:
                    entries = answer[0][1]
                    for _, entry in entries:
                        self._read(entry.get(b"m", b""))
                    last = entries[-1][0]
                    self._client.xdel(self._answers, *(name for name, _ in entries))
            except Exception:  # whatever Redis has: without this thread nobody would hear that it is well again
                self._closing.wait(_SWEEP_SECONDS)

    def _read(self, packed: bytes) -> None:
        try:
            message = msgpack.unpackb(packed, strict_map_key=False)
        except (ValueError, TypeError):
            return
        match message:
            case [str(job), str(), *_]:
                self._hear(job, message[1:])

    def _envelope(self, item: _Item, call: bytes) -> str:
        told = {
            "answers": self._answers,
            "lease": self._lease,
            "ttl": self._ttl,
            "beat": self._runner.lost_after / 4,
            "task_run": item.call.task_run.id,
            "call": call,
        }
        return base64.b64encode(msgpack.packb(told)).decode()

    def _done(self, call: Callable[[], None]) -> None:
        from orchestrator.store.connection import retrying

        retrying(call, address=self._client.address, patience=self._patience, stop=self._closing)


class _WriteOnly:
    """The serializer of the fleet, of which Orch uses one half: what it would read could be anybody's pickle."""

    def __init__(self, dumps: Callable[[Any], bytes]) -> None:
        self._dumps = dumps

    def dumps(self, value: Any) -> bytes:
        """As the fleet does."""
        return self._dumps(value)

    def loads(self, data: bytes) -> Any:
        """Never."""
        raise ConfigurationError("Orch does not read what RQ's serializer wrote.")


def _queue(runner: RQTaskRunner, client: Any) -> Any:
    from rq import Queue
    from rq.serializers import resolve_serializer

    try:
        serializer = resolve_serializer(runner.serializer)
    except (ImportError, AttributeError, ValueError, NotImplementedError) as problem:
        raise ConfigurationError(
            f"{runner.serializer!r} is no serializer of RQ: {problem}",
            hint='Write what the workers are started with: serializer="json" for: rq worker --serializer json',
        ) from None
    return Queue(runner.queue, connection=client, serializer=_WriteOnly(serializer.dumps))


def _clients(url: str | None, chosen: Settings) -> tuple[Any, Any]:
    """A client for RQ's Redis, and one for blocking reads."""
    from orchestrator.settings import shown_url
    from orchestrator.store.client import Client
    from orchestrator.store.connection import connect

    if url is None:
        from orchestrator.store import open_store

        store = open_store(chosen)
        if chosen.redis_url is None or "+cluster" not in chosen.redis_url.partition("://")[0]:
            return store.client, store.blocking
    elif "+cluster" not in url.partition("://")[0]:
        client = connect(url, chosen)
        address = shown_url(url)
        return Client(client, address), Client(connect(url, chosen, blocking=True, beside=client), address)
    raise ConfigurationError(
        "RQ does not run on a Redis Cluster.", hint='Name another server: RQTaskRunner(connection="redis://HOST:PORT/DB")'
    )


def _inside(item: _Item, step: Callable[[], object]) -> None:
    """A step of the call, with the hooks that it makes due, inside the task run."""
    with item.call.context:
        step()
        if item.call.due_hooks:
            drive.fire_hooks(item.call)


def _break_off(item: _Item, problem: BaseException) -> None:
    item.call.break_off(problem)


def _stop(item: _Item) -> None:
    if item.is_started:
        item.call.break_off(Terminated())
    elif not item.call.has_ended:
        item.call.drop("Its flow run was stopped before it began.")


def _forward(item: _Item, told: list[Any]) -> None:
    """Pass on what a task run told about its log and about the runs in it, as if it had happened here."""
    link = item.flow.link
    if link is None or not told or not isinstance(told[0], list):
        return
    for frame in told[0]:
        with suppress(TypeError, ValueError):
            _forward_one(link, item.flow.flow_run.id, frame)


def _forward_one(link: Link, run: str, frame: list[Any]) -> None:
    match frame:
        case [protocol.LOG, str(of), list(lines)]:
            for at_ms, level, logger, message, task_run in lines:
                link.log(of, int(at_ms), int(level), str(logger), str(message), task_run)
        case [protocol.TASKS, str(of), list(rows)]:
            for row in rows:
                if task_run := remote.read_task_run(row):
                    link.task(of, task_run)
        case [str(kind), about, *_] if kind in _FORWARDED and about != run:
            link.send(frame)  # of flows inside the task; of the flow run itself its own process tells alone


def _job_key(item: _Item) -> Any:
    from rq.job import Job

    return Job.key_for(item.job)


def _sentence_of(item: _Item, status: bytes | None) -> str:
    shown = "is gone" if status is None else f"is {status.decode()}"
    if not item.is_started:
        return (
            f"RQ job {item.job} {shown} and has never begun. The RQ worker's log says why: it needs Orch, and the serializer "
            "that the task runner writes."
        )
    return f"RQ job {item.job} on worker '{item.worker}' {shown} and has given no answer: its process died."
