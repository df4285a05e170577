"""The supervisor of a worker: claims runs, has an executor execute them, renews their leases, relays what they say, drains.

One thread, one loop, no user code. It waits for sockets, signals and the next of a few moments, never for anything else;
two threads beside it make the blocking reads (``engine.waiting``). All calls to Redis are made here, batched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import random
import selectors
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from orch_workers.base import Executor, Host, Job, WorkerOptions
from orch_workers.journal import Entry, Journal
from orch_workers.recollection import Recollection, accepted
from orch_workers.watchdog import LoopWatchdog
from orchestrator import clock, keys
from orchestrator._version import __version__
from orchestrator.engine import processes, protocol
from orchestrator.engine.relay import Relay, Reply
from orchestrator.engine.waiting import Waiter
from orchestrator.exceptions import ConfigurationError, ObjectNotFound, Refused, StoreFull, StoreUnavailable
from orchestrator.models import Deployment, LogLine, Worker
from orchestrator.settings import child_environment, load
from orchestrator.states import StateType
from orchestrator.store.answers import ClaimRequest
from orchestrator.store.failover import Asserted, Held

if TYPE_CHECKING:
    from orch_workers.metrics import WorkerMetrics
    from orchestrator.settings import Settings
    from orchestrator.store import Store
    from orchestrator.store.answers import ClaimedRun, Claims, Delivery, End
    from orchestrator.store.failover import Epoch
    from orchestrator.store.pools import Control

T = TypeVar("T")

BLOCK = timedelta(seconds=5)
QUEUES_S = 60.0
TICK_S = 1.0
IDLE_TICK_S = 5.0
FULL_S = 1.0
"""Seconds between claims while Redis takes nothing new."""
LONGEST_TURN_S = 30.0
"""A loop that has not turned for two leases, or for so long, is stuck: the worker ends."""

BACKLOG_BYTES = 16 * 1024 * 1024
"""While more than this waits for Redis, runs are not listened to: they wait when their socket or pipe is full."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_STDERR_LEVEL = logging.ERROR

log = logging.getLogger(__name__)


def run_worker(options: WorkerOptions) -> int:
    """Work until told to stop; returns the exit status: 0 after an orderly end.

    Call it from a process's main thread, with no other threads: it takes over SIGTERM, SIGINT, SIGHUP and SIGCHLD.

    Raises ObjectNotFound for a missing pool or queue, ConfigurationError for a pool of another type, InvalidName for the name,
    Refused where a worker of that name lives.
    """
    from orchestrator.store import open_store

    settings = options.settings or load()
    name = keys.check_name("worker", options.name) if options.name else _unique_name()
    say = options.announce or log.info
    # The loop must not sit in a call while Redis is away: it makes its own pauses, and its runs are looked after meanwhile.
    with open_store(replace(settings, redis_retry_s=0), announce=say) as store:
        told = replace(options, name=name, announce=say, settings=settings)
        supervisor = Supervisor(store, told, metrics=_make_metrics(store, options, settings))
        return supervisor.run()


def _make_metrics(store: Store, options: WorkerOptions, settings: Settings) -> WorkerMetrics | None:
    """With the name that was given, not one that was made: that would be a series for each start."""
    if options.metrics_port is None:
        return None
    from orch_workers.metrics import WorkerMetrics

    metrics = WorkerMetrics(options.pool, options.name, options.limit, settings.metrics_max_series)
    store.scripts.observe = metrics.metrics.asked
    return metrics


def make_executor(options: WorkerOptions, host: Host) -> Executor:
    """The executor of a type of worker. Raises ConfigurationError for a type that there is not."""
    if options.type == "process":
        from orch_workers.process import ProcessExecutor

        return ProcessExecutor(host, options.limit, child_environment(options.settings))
    if options.type == "thread":
        from orch_workers.thread import ThreadExecutor

        return ThreadExecutor(host, options.limit, options.processes, child_environment(options.settings))
    raise ConfigurationError(f"There is no worker type {options.type!r}.", hint="Types: process, thread")


class Supervisor:
    """One worker. Its methods run on one thread, those of ``Host`` when an executor calls them from there."""

    def __init__(
        self,
        store: Store,
        options: WorkerOptions,
        make: Callable[[WorkerOptions, Host], Executor] = make_executor,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._store = store
        self._options = options
        self._say = options.announce or log.info
        self._name = options.name
        self._pool = options.pool
        self._started = clock.now()
        self._queues = self._read_queues()
        self._relay = Relay(store, self._name, confirm=self._confirm)
        self._frames: dict[Job, protocol.Frames] = {}
        self._jobs: dict[str, Job] = {}
        self._to_hand_back: dict[str, Job] = {}
        self._deployments: dict[str, Deployment] = {}
        self._delivered: list[Delivery] = []
        self._asked_for = 0
        self._starts = False
        self._unwritten = 0  # bytes that runs have said since all that they said was written
        self._is_held = False
        self._may_have_more = True
        self._is_handed = False  # pending deliveries of a broken connection may wait for us
        self._control_after = "0"
        self._away_until: float | None = None
        self._full_until: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._stage = 0  # how often we were told to stop
        self._drain_until: float | None = None
        self._was_told_to_drain = False
        self._duties = 0
        self._workers = 1
        self._redis_ahead_ms = 0
        agreed = store.settings
        self._renew_s = agreed.renew.total_seconds()
        self._trust_s = agreed.self_kill.total_seconds()
        self._heartbeat_s = agreed.silence.total_seconds() / 3
        self._timers: dict[Callable[[], None], float] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        for descriptor in (self._wake_reader, self._wake_writer):
            os.set_blocking(descriptor, False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, (self._woken, None))
        self._runs_waiter = Waiter("orch-wait-runs", self._wait_for_runs, self._wake)
        self._control_waiter = Waiter("orch-wait-control", self._wait_for_control, self._wake)
        self._executor = make(options, self)
        self._epoch = store.failover.check()
        self._is_epoch_doubtful = False
        home = (options.settings or load()).home
        self._journal = Journal(home, store.namespace, self._name, self._epoch, self._say)
        self._recollection = Recollection(store)
        self._metrics = metrics
        self._redis_clock = clock.RemoteClock()
        timeout_s = options.settings.redis_timeout_s if options.settings else 0.0
        # A turn may meet a Redis that does not answer a few times over, before it stops asking.
        patience_s = max(min(2 * agreed.lease.total_seconds(), LONGEST_TURN_S), 4 * timeout_s)
        self._watchdog = LoopWatchdog(timedelta(seconds=patience_s), f"Worker '{self._name}'")
        self._longest_read = BLOCK + timedelta(seconds=2 * timeout_s + LONGEST_TURN_S)

    def run(self) -> int:
        """Work until told to stop."""
        self._join()
        self._take_signals()
        if self._metrics is not None:
            self._metrics.jobs = self._jobs
            url = self._metrics.metrics.serve(self._options.metrics_port or 0, self._options.metrics_address)
            self._say(f"Metrics at {url}")
        try:
            self._remember(self._journal.start())
            self._begin()
            self._watchdog.start()
            while not self._is_over():
                self._turn()
                self._watchdog.turned()
            self._watchdog.stop()
        finally:
            self._executor.close()
            self._recollection.stop()
        try:
            self._end()
        finally:
            self._journal.close()
        return 0

    def _join(self) -> None:
        """Take the worker's name. Raises Refused where another that lives has it."""
        own = self._as_worker()
        rival = self._store.pools.join(own)
        # One that was killed here a moment ago has not been silent for long, but it is gone.
        if rival and rival.host == own.host and (rival.pid == own.pid or not processes.is_alive(rival.pid)):
            rival = self._store.pools.join(own, instead_of=rival)
        if rival:
            silence = self._store.settings.silence.total_seconds()
            raise Refused(
                f"There is a worker '{self._name}' already: process {rival.pid} on {rival.host}.",
                hint=f"Choose another --name, or stop that one. If it is gone, wait until it was silent for {silence:g} s.",
            )

    def _begin(self) -> None:
        # Asked before the worker says that it polls: from then on Redis may go away and come back.
        is_paused = self._store.pools.get(self._pool).status == "PAUSED"
        deployments = self._store.deployments.all(pool=self._pool)
        what = f"Worker '{self._name}' polls work pool '{self._pool}'"
        which = f", work queues {', '.join(self._queues)}" if self._options.queues else ""
        self._say(f"{what}{which}; up to {self._options.limit} runs at a time. Stop it with Ctrl-C.")
        if is_paused:
            self._say(f"Work pool '{self._pool}' is paused. Resume it with: orch work-pool resume '{self._pool}'")
        now = clock.monotonic()
        self._timers = {
            self._heartbeat: now,
            self._watch_data: now,
            self._renew: now + self._renew_s,
            self._refresh_queues: now + QUEUES_S,
            self._tick: now + TICK_S,
        }
        for deployment in deployments:
            self._deployments[deployment.id] = deployment
        newest = sorted(deployments, key=lambda found: found.updated or self._started, reverse=True)
        if not self._options.burst:
            self._executor.prewarm(newest[: self._options.limit])

    def _turn(self) -> None:
        """Wait for something, deal with all of it, write what came of it, claim for the slots that are free."""
        watched = self._selector.get_map()
        for key, mask in self._selector.select(self._seconds_to_next()):
            # What one of them does may close another's descriptor, or give its number to a new one: then its turn is over.
            readable, writable = key.data
            if mask & selectors.EVENT_READ and watched.get(key.fd) is key:
                readable()
            if mask & selectors.EVENT_WRITE and watched.get(key.fd) is key and writable is not None:
                writable()
        self._take_control()
        self._run_timers()
        if self._is_epoch_doubtful:
            self._look_at_epoch()
        self._executor.flush()
        # Between all that may take as long as Redis takes to answer: no lease is lost for want of a turn.
        self._renew_if_due()
        self._write()
        self._renew_if_due()
        self._claim()
        self._executor.flush()

    def _is_over(self) -> bool:
        if self._jobs or self._to_hand_back:
            return False
        if self._is_draining:
            return self._relay.is_idle or self._stage > 1
        return self._options.burst and not self._may_have_more and self._relay.is_idle

    def _end(self) -> None:
        """Leave nothing behind in Redis. Where it cannot be reached, others find out by themselves."""
        try:
            self._relay.flush(clock.monotonic())
            # A read that still blocks would take the next run along, and with no scheduler it took seconds until that was seen.
            self._store.stop_waiting()
            self._store.runs.redeliver(self._pool, self._queues, worker=self._name, idle=timedelta(0))
            self._store.pools.leave(self._as_worker(), self._pool, self._queues)
        except StoreUnavailable as error:
            log.warning("Left without a word: %s", error)
        self._say(f"Worker '{self._name}' has stopped.")

    # -- waiting

    def _seconds_to_next(self) -> float:
        now = clock.monotonic()
        moments = [*self._timers.values()]
        if self._relay.deadline is not None:
            moments.append(self._relay.deadline)
        if self._away_until is not None:
            moments = [max(moment, self._away_until) for moment in moments]
        if self._drain_until is not None:
            moments.append(self._drain_until)
        moments += [job.kill_at for job in self._jobs.values() if job.kill_at is not None]
        if self._wants_claim():
            moments.append(self._away_until or now)
        if self._to_hand_back:
            moments.append(self._away_until or now)
        if self._full_until is not None:
            moments.append(max(self._full_until, now + 0.01))
        return max(0.0, min(moments) - now)

    def _run_timers(self) -> None:
        now = clock.monotonic()
        if self._drain_until is not None and now >= self._drain_until:
            self._drain_until = None
            self._stop_now(f"The grace of {self._options.grace.total_seconds():g} s is over")
        for job in list(self._jobs.values()):
            if job.kill_at is not None and now >= job.kill_at:
                job.kill_at = None
                self._executor.kill(job)
        for timer in [timer for timer, moment in self._timers.items() if now >= moment]:
            self._renew_if_due()
            if timer != self._renew:
                timer()

    def _wait_for_runs(self) -> list[Delivery]:
        recover, self._is_handed = self._is_handed, False
        try:
            return self._store.pools.wait_for_runs(self._pool, self._name, self._queues, BLOCK, recover=recover)
        except Exception:
            self._is_handed = True
            raise

    def _wait_for_control(self) -> list[Control]:
        return self._store.pools.wait_for_control(self._name, self._control_after, BLOCK)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # enough of them are there already
            os.write(self._wake_writer, b"\0")

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)

    def _woken(self) -> None:
        numbers = os.read(self._wake_reader, 4096)
        if signal.SIGCHLD in numbers:
            self._executor.children_ended()
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._stop()

    # -- talking to Redis

    def _ask(self, call: Callable[[], T]) -> T | None:
        """What the store answers; None while it cannot be reached. Then nothing is asked again for a moment."""
        if self._away_until is not None and clock.monotonic() < self._away_until:
            return None
        try:
            answer = call()
        except StoreFull:
            raise
        except StoreUnavailable as error:
            self._lost_touch(error)
            return None
        if self._away_until is not None:
            self._away_until = None
            self._pause_s = _FIRST_PAUSE_S
            self._say("Redis is back.")
        return answer

    def _lost_touch(self, error: Exception) -> None:
        if self._away_until is None:
            self._say(f"Redis cannot be reached; runs go on, and so does this worker when it is back. {error}")
        if self._store.revive():
            self._say("The private Redis had died and was started again.")
        self._is_epoch_doubtful = True
        self._away_until = clock.monotonic() + self._pause_s * random.uniform(0.75, 1.25)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _write(self) -> None:
        """Write what runs have said, if it is time, and deal with the answers. Then give runs back."""
        now = clock.monotonic()
        is_due = self._relay.deadline is not None and now >= self._relay.deadline
        if is_due and self._relay.is_cut_off:
            self._look_at_epoch()
        if is_due and not self._is_epoch_doubtful:
            for reply in self._relay.flush(now, self._next_claim):
                self._take_reply(reply)
            if self._relay.claims is not None:
                self._take_claims(self._relay.claims, now)
            if self._relay.is_idle:
                self._unwritten = 0
        is_held = self._unwritten > BACKLOG_BYTES
        if is_held != self._is_held:
            self._is_held = is_held
            self._executor.hold(is_held)
        for job in list(self._to_hand_back.values()):
            if self._ask(partial(self._store.runs.hand_back, job.run.id, job.run.attempt, worker=self._name)) is None:
                break
            del self._to_hand_back[job.run.id]
            self._release(job)
            if clock.monotonic() >= self._timers[self._renew]:
                break  # the other runs' leases come first

    def _take_reply(self, reply: Reply) -> None:
        job = reply.child
        assert isinstance(job, Job)
        frame = reply.frame
        if self._metrics is not None:
            self._metrics.reply(job, frame)
        if frame[0] == protocol.ENDED and frame[1] == job.run.id:
            job.has_ended = True
            self._release(job)
            self._executor.ended(job)
        else:
            self._executor.send(job, protocol.pack(frame))

    def _release(self, job: Job) -> None:
        """The job's slot is free."""
        if self._jobs.get(job.run.id) is job:
            del self._jobs[job.run.id]
            self._may_have_more = True

    # -- another server

    def _look_at_epoch(self) -> None:
        """The connection was lost: if it is another server that answers now, first see to what it may have forgotten.

        Raises DataGone.
        """
        self._is_epoch_doubtful = True
        epoch = self._ask(self._store.failover.check)
        if epoch is not None and (epoch.id == self._epoch.id or self._reassert(epoch)):
            self._is_epoch_doubtful = False

    def _has_another_epoch(self) -> bool:
        """Whether a fail-over explains what the store has just said: then it is seen to at once."""
        known = self._epoch.id
        self._look_at_epoch()
        return self._is_epoch_doubtful or self._epoch.id != known

    def _reassert(self, epoch: Epoch) -> bool:
        """Hold what is executed here, and then the journal, against a server of another epoch. Whether that could be done."""
        asked = clock.monotonic()
        answers = self._ask(lambda: self._relay.reassert(asked))
        if answers is None:
            return False
        stopped = sum(self._take_asserted(run, asserted, asked) for run, asserted in answers)
        kept = f"{_runs(len(answers) - stopped)} of this worker go on" + (f", {stopped} stopped" if stopped else "")
        self._say(f"Redis is another server than before ({epoch.how}); epoch {epoch.number} begins: {kept}.")
        entries = self._journal.recent()
        self._journal.move(epoch)
        self._epoch = epoch
        self._remember(entries)
        return True

    def _take_asserted(self, run: Held, asserted: Asserted, asked: float) -> bool:
        """Go on with a run that is ours, stop one that is not: nobody could be told how it ends. Whether it was stopped."""
        job = self._relay.child_of(run.run)
        if not isinstance(job, Job) or asserted.answer == "other":
            return False  # `renew` sees to it
        is_root = run.run == job.run.id
        if asserted.answer in ("ok", "restored"):
            if is_root:
                job.trusted_until = asked + self._trust_s
                self._executor.trust([job])
        elif not is_root:
            self._relay.forget(run.run)
        elif not job.has_reported_end:
            self._lose(job, asserted.answer)
            return True
        return False

    def _remember(self, entries: Sequence[Entry]) -> None:
        """Hold ends that were accepted in other epochs against this one."""
        self._recollection.begin([entry for entry in entries if entry.epoch != self._epoch.id])

    def _confirm(self, ends: Sequence[End], answers: Sequence[str]) -> Sequence[str]:
        """Write down what was accepted. An end that is superseded because the claim was lost in a fail-over is told again."""
        self._journal.note([accepted(end) for end, answer in zip(ends, answers, strict=True) if answer in ("ok", "again")])
        superseded = [end for end, answer in zip(ends, answers, strict=True) if answer == "superseded"]
        if not superseded or self._store.failover.check().id == self._epoch.id:
            return answers
        self._is_epoch_doubtful = True
        told = self._store.failover.reassert(self._name, [accepted(end) for end in superseded], accepted=False)[0]
        better = {end.run for end, asserted in zip(superseded, told, strict=True) if asserted.answer in ("ok", "restored")}
        return ["ok" if end.run in better else answer for end, answer in zip(ends, answers, strict=True)]

    # -- claiming

    @property
    def _is_full(self) -> bool:
        return self._full_until is not None and clock.monotonic() < self._full_until

    def _wants_claim(self) -> bool:
        free = self._options.limit - len(self._jobs)
        # What was delivered without a slot being free is claimed too: the script passes it on to other workers at once.
        wants = bool(self._delivered) or (free > 0 and self._may_have_more and not self._runs_waiter.is_armed)
        return wants and not self._is_draining and not self._is_full

    def _next_claim(self, ending: Sequence[str]) -> ClaimRequest | None:
        """The claim that may follow these ends in the same round trip, their slots being free by then."""
        if self._is_draining or self._is_full or (self._runs_waiter.is_armed and not self._delivered):
            return None
        self._asked_for = self._options.limit - len(self._jobs) + sum(run in self._jobs for run in ending)
        if self._asked_for <= 0 and not self._delivered:
            return None
        # Where nothing has to be loaded first, Pending would be over before anybody saw it: runs enter Running at once.
        self._starts = self._executor.is_ready
        return ClaimRequest(self._name, self._pool, self._queues, self._asked_for, self._delivered, self._starts)

    def _take_claims(self, claims: Claims, asked: float) -> None:
        self._delivered = []
        self._may_have_more = claims.more or len(claims.claimed) >= self._asked_for
        for run in claims.claimed:
            job = self._jobs.get(run.id)
            if job is not None and job.run.attempt == run.attempt and not job.is_lost and not job.is_given_up:
                continue  # a fail-over had forgotten that we have it, and it came back to us
            self._begin_run(run, asked)

    def _claim(self) -> None:
        """Fill the free slots. Only when the queues have been found empty does a blocked read wait for more."""
        self._take_deliveries()
        while self._wants_claim() and not self._is_epoch_doubtful:
            self._renew_if_due()
            request = self._next_claim(())
            if request is None:
                break
            asked = clock.monotonic()
            try:
                claims = self._ask(partial(self._store.runs.claim, *request[:-1], start=request.start))
            except StoreFull as error:
                if self._full_until is None:
                    self._say(f"No runs are claimed until there is room; those that run go on. {error}")
                self._full_until = clock.monotonic() + FULL_S
                return
            if self._full_until is not None and claims is not None:
                self._full_until = None
                self._say("Redis has room again.")
            if claims is None:
                return
            self._take_claims(claims, asked)
        if (
            not self._is_draining
            and len(self._jobs) < self._options.limit
            and self._away_until is None
            and not self._options.burst
        ):
            self._runs_waiter.arm()

    def _take_deliveries(self) -> None:
        result = self._runs_waiter.take()
        if isinstance(result, Exception):
            self._lost_touch(result)
            self._may_have_more = True
        elif result:
            self._delivered += result

    def _begin_run(self, run: ClaimedRun, asked: float) -> None:
        log.info("Claimed run %s of '%s'", run.id, run.flow, extra={"action": "run_claimed", "run": run.id})
        deployment = self._deployment_of(run)
        job = Job(run, deployment or Deployment(name="", flow=run.flow, entrypoint=""), asked + self._trust_s)
        job.lease_ms = round(self._store.settings.lease.total_seconds() * 1000)
        job.has_started = self._starts
        self._jobs[run.id] = job
        self._relay.adopt(job, run.id, run.attempt, started=self._starts)
        if self._metrics is not None:
            self._metrics.claimed(job, started=self._starts)
        if deployment is None:
            self.failed(job, _why_homeless(run), "")
        elif run.kind == "task" and self._options.type != "thread":
            why = f"A task run needs a worker of type thread; work pool '{self._pool}' is of type {self._options.type}."
            self.failed(job, f"{why} Submit tasks to another pool: ORCH_TASK_POOL", "")
        else:
            self._executor.start(job)

    def _deployment_of(self, run: ClaimedRun) -> Deployment | None:
        if run.deployment is None:
            return None if run.entrypoint is None else Deployment(name="", flow=run.flow, entrypoint=run.entrypoint)
        known = self._deployments.get(run.deployment)
        if known is None or known.revision != run.revision:
            try:
                known = self._store.deployments.get(run.deployment)
            except ObjectNotFound:
                return None
            except StoreUnavailable as error:
                # What was known is at worst one revision old; where nothing was, the run cannot be started here.
                self._lost_touch(error)
                return known
            self._deployments[run.deployment] = known
        return known

    # -- what executors tell (Host)

    def watch(self, file: int, readable: Callable[[], object], writable: Callable[[], object] | None = None) -> None:
        """See Host."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        if file in self._selector.get_map():
            self._selector.modify(file, events, (readable, writable))
        else:
            self._selector.register(file, events, (readable, writable))

    def unwatch(self, file: int) -> None:
        """See Host."""
        if file in self._selector.get_map():
            self._selector.unregister(file)

    def say(self, sentence: str) -> None:
        """See Host."""
        self._say(sentence)

    def frames(self, job: Job, data: bytes) -> None:
        """See Host."""
        self._unwritten += len(data)
        frames = self._frames.get(job)
        if frames is None:
            frames = self._frames[job] = protocol.Frames()
        try:
            for frame in frames.feed(data):
                self.frame(job, frame)
        except (ValueError, KeyError) as error:
            log.warning("Stopped run %s: it sent what is no frame (%s)", job.run.id, error)
            self._executor.kill(job)

    def received(self, size: int) -> None:
        """See Host."""
        self._unwritten += size

    def frame(self, job: Job, frame: list[Any]) -> None:
        """See Host."""
        if frame[0] == protocol.END and frame[1] == job.run.id:
            # What was printed before the end belongs before it in the log.
            self._executor.read_output(job)
            job.has_reported_end = True
        if self._metrics is not None:
            self._metrics.frame(job, frame)
        self._relay.feed(job, frame, clock.monotonic())

    def output(self, job: Job, stream: str, lines: Sequence[str]) -> None:
        """See Host."""
        level = logging.INFO if stream == "stdout" else _STDERR_LEVEL
        at = clock.now()
        self._unwritten += sum(map(len, lines))
        self._log(job, [LogLine(at, level, stream, line, job.run.attempt) for line in lines])

    def failed(self, job: Job, message: str, traceback: str) -> None:
        """See Host."""
        self._log(job, [_line(job, traceback or message)])
        end = [protocol.END, job.run.id, StateType.FAILED.value, "Failed", message, b"", None]
        if self._metrics is not None:
            self._metrics.frame(job, end)
        self._relay.feed(job, end, clock.monotonic())
        job.has_reported_end = True

    def died(self, job: Job, reason: str, *, untrusted: bool) -> None:
        """See Host."""
        self._frames.pop(job, None)
        job.kill_at = None
        if job.has_ended:
            return
        now = clock.monotonic()
        run = job.run.id
        if job.is_lost:
            self._release(job)
        elif not job.has_reported_end and (job.is_given_up or untrusted):
            # Not the run's fault: no crash is charged, unless somebody has seen its lease lapse before we can say so.
            self._relay.forget(run)
            self._to_hand_back[run] = job
        if not job.has_reported_end:
            self._log(job, [_line(job, _last_words(job, reason))])
        self._relay.gone(job, reason, now)

    def _log(self, job: Job, lines: Sequence[LogLine]) -> None:
        if self._metrics is not None:
            for line in lines:
                self._metrics.line(line.level)
        self._relay.add_log(job.run.id, lines, clock.monotonic())

    # -- leases and cancellation

    def _renew_if_due(self) -> None:
        if clock.monotonic() >= self._timers[self._renew]:
            self._renew()

    def _renew(self) -> None:
        now = clock.monotonic()
        self._timers[self._renew] = now + self._renew_s
        leases = self._relay.leases()
        if not leases:
            return
        answers = self._ask(lambda: self._store.runs.renew(leases, worker=self._name))
        if answers is None:
            self._timers[self._renew] = now  # as soon as Redis is asked anything again
            return
        if "lost" in answers and self._has_another_epoch():
            return  # what was lost is taken again first, if it can be
        renewed = []
        for (run, _), answer in zip(leases, answers, strict=True):
            job = self._relay.child_of(run)
            if not isinstance(job, Job):
                continue
            is_root = run == job.run.id
            if answer in ("ok", "cancel"):
                if is_root:
                    job.trusted_until = now + self._trust_s
                    renewed.append(job)
                if answer == "cancel":
                    self._cancel(job, run)
            elif not is_root:
                self._relay.forget(run)
            elif not job.has_reported_end:
                self._lose(job, answer)
        self._executor.trust(renewed)
        self._relay.ask_again(now)

    def _lose(self, job: Job, answer: str) -> None:
        """Somebody else may have the run now: stop it at once and say nothing."""
        log.warning("Stopped run %s: its lease was %s", job.run.id, answer, extra={"action": "lease_lost", "run": job.run.id})
        self._relay.forget(job.run.id)
        job.is_lost = True
        self._executor.kill(job)

    def _take_control(self) -> None:
        result = self._control_waiter.take()
        if isinstance(result, Exception):
            self._lost_touch(result)
        for control in result if isinstance(result, list) else ():
            self._control_after = control.id
            job = self._relay.child_of(control.run)
            if control.what == "cancel" and isinstance(job, Job):
                self._cancel(job, control.run)
            elif control.what == "granted":
                self._relay.granted(control.run, control.call, clock.monotonic())
            elif control.what == "drain" and control.started_ms == clock.to_ms(self._started):
                self._drain()
        if self._away_until is None:
            self._control_waiter.arm()

    def _cancel(self, job: Job, run: str) -> None:
        """SIGTERM now, SIGKILL when the grace is over. Whatever is left then is reported dead, which ends it Cancelled."""
        if run in job.cancelled or job.has_reported_end:
            return
        job.cancelled.add(run)
        job.kill_at = clock.monotonic() + self._options.cancel_grace.total_seconds()
        self._executor.send(job, protocol.pack([protocol.CANCEL, run, "Cancelled on request."]))
        self._executor.terminate(job)

    # -- stopping

    @property
    def _is_draining(self) -> bool:
        """No new runs are claimed, and when the last has ended, so does the worker."""
        return self._was_told_to_drain or self._stage > 0

    def _drain(self) -> None:
        """Someone has asked for it from afar. A signal that comes later begins its grace as ever."""
        if not self._is_draining:
            self._was_told_to_drain = True
            left = f", and {_runs(len(self._jobs))} may end" if self._jobs else ""
            self._say(f"Draining on request: no new runs are claimed{left}.")
            self._heartbeat()

    def _stop(self) -> None:
        self._stage += 1
        if self._stage == 1:
            grace = self._options.grace
            self._drain_until = clock.monotonic() + grace.total_seconds()
            left = len(self._jobs)
            waits = f" {_runs(left)} may take up to {grace.total_seconds():g} s to end; Ctrl-C stops them now." if left else ""
            self._say(f"Stopping: no new runs are claimed.{waits}")
            self._heartbeat()
        elif self._stage == 2:
            self._stop_now("Stopping now")
        else:
            self._say("Stopping without a word to Redis: what ran here starts elsewhere when its lease is over.")
            self._executor.close()
            os._exit(1)

    def _stop_now(self, why: str) -> None:
        jobs = [job for job in self._jobs.values() if not job.has_reported_end and not job.is_lost]
        if jobs:
            self._say(f"{why}: {_runs(len(jobs))} stopped and handed back.")
        for job in jobs:
            job.is_given_up = True
            self._executor.kill(job)

    # -- what is done from time to time

    def _watch_data(self) -> None:
        """Stop where the namespace is gone that this worker has worked on: an empty one looks healthy. Raises DataGone."""
        self._timers[self._watch_data] = clock.monotonic() + self._renew_s
        self._look_at_epoch()

    def _heartbeat(self) -> None:
        now = clock.monotonic()
        self._timers[self._heartbeat] = now + self._heartbeat_s
        answer = self._ask(lambda: self._store.pools.heartbeat(self._as_worker()))
        if self._metrics is not None:
            self._metrics.beat(is_up=answer is not None)
            self._metrics.dropped(away=self._relay.dropped_away, full=self._relay.dropped_full)
        if answer is None:
            self._timers[self._heartbeat] = now
            return
        if self._stand_in in self._timers and self._redis_clock.is_off(answer.now_ms, self._store.settings.renew):
            self._lapse()
        self._redis_clock.showed(answer.now_ms)
        self._is_epoch_doubtful |= answer.epoch != self._epoch.number
        self._redis_ahead_ms = answer.now_ms - clock.now_ms()
        if self._metrics is not None:
            self._metrics.redis_ahead_s = self._redis_ahead_ms / 1000
        self._workers = max(1, answer.workers)
        if answer.scheduler_alive or self._options.burst:
            self._timers.pop(self._stand_in, None)
        else:
            self._timers.setdefault(self._stand_in, now + self._workers * random.random())

    def _as_worker(self) -> Worker:
        now = clock.now()
        return Worker(
            name=self._name,
            pool=self._pool,
            type=self._options.type,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            python=platform.python_version(),
            limit=self._options.limit,
            running=len(self._jobs),
            queues=self._options.queues,
            started=self._started,
            heartbeat=now,
            status="DRAINING" if self._is_draining else "ONLINE",
            clock_skew=timedelta(0),
        )

    def _stand_in(self) -> None:
        """No scheduler lives: do one of its most urgent duties. All workers together make about one such call a second."""
        now = clock.monotonic()
        runs = self._store.runs
        self._timers[self._stand_in] = now + self._workers * random.uniform(0.75, 1.25)
        turn = self._duties = (self._duties + 1) % 6
        if turn % 2:
            released = self._ask(runs.release_due)
            if released is not None and released.next_due is not None:
                wait_s = (clock.to_ms(released.next_due) - clock.now_ms() - self._redis_ahead_ms) / 1000
                self._timers[self._stand_in] = min(self._timers[self._stand_in], now + max(0.0, wait_s))
                self._duties -= wait_s <= self._workers  # the same duty again when that run is due
        elif turn == 0:
            self._tend()
            self._lapse()
        elif turn == 2:
            self._ask(lambda: runs.redeliver(self._pool, self._queues))
        else:
            self._ask(runs.wake)

    def _tend(self) -> None:
        """See whether the server is another, and mend the namespace if it falls to us."""
        epoch = self._ask(partial(self._store.failover.check, mend=True))
        if epoch is None:
            return
        self._is_epoch_doubtful |= epoch.id != self._epoch.id
        if epoch.mends:
            self._recollection.mend(epoch)

    def _lapse(self) -> None:
        lapsed = self._ask(lambda: self._store.runs.lapse(expected_ms=self._redis_clock.expected_ms()))
        if lapsed is None:
            return
        self._redis_clock.showed(lapsed.now_ms)
        if self._metrics is not None:
            self._metrics.lapsed(lapsed)
        if lapsed.jump_ms:
            lease_s = self._store.settings.lease.total_seconds()
            self._say(f"{lapsed.jump}; no lease counts as over for {lease_s:g} s.")

    def _refresh_queues(self) -> None:
        now = clock.monotonic()
        self._timers[self._refresh_queues] = now + QUEUES_S
        # One round trip, for no lease is renewed meanwhile: all about the pool took nine, and with 2 s each the runs were lost.
        queues = self._ask(lambda: self._store.pools.queue_names(self._pool))
        if queues:
            self._queues = [queue for queue in queues if not self._options.queues or queue in self._options.queues]

    def _tick(self) -> None:
        self._timers[self._tick] = clock.monotonic() + (TICK_S if self._jobs else IDLE_TICK_S)
        self._executor.tick()
        self._look_after_readers()

    def _look_after_readers(self) -> None:
        """A thread that reads for ever brings nothing: let go of it, and of the connection that it hangs on."""
        overdue = [waiter for waiter in (self._runs_waiter, self._control_waiter) if waiter.is_overdue(self._longest_read)]
        if overdue:
            self._say("A read from Redis does not end; it is given up, and the next one uses a new connection.")
            self._store.stop_waiting()
        for waiter in overdue:
            waiter.replace()
            self._is_handed = True
            self._may_have_more = True

    def _read_queues(self) -> list[str]:
        """The queues to read, in the order of their priority. Raises ObjectNotFound, ConfigurationError for another type."""
        pool = self._store.pools.get(self._pool)
        if pool.type != self._options.type:
            raise ConfigurationError(
                f"Work pool '{pool.name}' is of type {pool.type}, and this worker of type {self._options.type}.",
                hint=f"Start the worker with: orch worker start --pool '{pool.name}' --type {pool.type}",
            )
        names = [queue.name for queue in pool.queues]
        for queue in self._options.queues:
            if queue not in names:
                raise ObjectNotFound(
                    f"Work pool '{pool.name}' has no work queue '{queue}'.",
                    hint=f"Create it with: orch work-queue create '{queue}' --pool '{pool.name}'",
                )
        return [name for name in names if not self._options.queues or name in self._options.queues]


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _why_homeless(run: ClaimedRun) -> str:
    if run.kind == "task":
        return "The task run names no entry point, so nothing says where its code is."
    return "The run's deployment is gone, so nothing says where its code is."


def _line(job: Job, message: str) -> LogLine:
    return LogLine(clock.now(), logging.ERROR, "orchestrator.worker", message, job.run.attempt)


def _last_words(job: Job, reason: str) -> str:
    if job.is_lost:
        return f"Stopped here: the run is no longer this worker's; {reason}."
    if job.is_given_up:
        return "Stopped and handed back: its worker shuts down."
    return f"The run's process is gone: {reason}."


def _unique_name() -> str:
    host = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in socket.gethostname())
    return keys.check_name("worker", f"{host}-{os.getpid()}-{os.urandom(2).hex()}")
