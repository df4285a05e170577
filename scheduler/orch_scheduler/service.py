"""The scheduler process: its duties, its heartbeat, its signals.

Schedulers are active-active. Run as many as you like; what they do is idempotent, so there is no leader to lose.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING

from orch_scheduler import planner, pruner, rescuer, stager
from orch_scheduler.loop import Duty, Loop
from orch_scheduler.mender import Mender
from orch_scheduler.watchdog import Watchdog
from orchestrator.clock import RemoteClock
from orchestrator.keys import new_id
from orchestrator.metrics import ADDRESS
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store

if TYPE_CHECKING:
    from orch_scheduler.metrics import SchedulerMetrics
    from orchestrator.metrics import Metrics
    from orchestrator.store.answers import Lapsed

log = logging.getLogger(__name__)

_SWEEP = timedelta(seconds=1)
_PRUNE = timedelta(seconds=60)
_WATCH = timedelta(seconds=10)


@dataclass(frozen=True)
class SchedulerOptions:
    """How a scheduler runs. ``name`` '' = made from the host; ``handle_signals`` False where somebody else handles them.

    ``metrics_port`` None = no metrics are served; 0 picks a port.
    """

    settings: Settings
    name: str = ""
    handle_signals: bool = True
    metrics_port: int | None = None
    metrics_address: str = ADDRESS


class Scheduler:
    """One scheduler over one store. ``run`` works until ``stop``; ``run_once`` does every duty once, for tests and `deploy`."""

    def __init__(self, store: Store, name: str = "") -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{new_id()[-4:]}"
        self._store = store
        self._next_due: datetime | None = None
        self._signal = "$"
        redis_clock = RemoteClock()
        watchdog = Watchdog(store)
        self._mender = Mender(store)
        duties = [
            # First of all, and raises DataGone: an empty namespace looks like a healthy one.
            Duty("mender", _SWEEP, self._mender.run_once),
            Duty("heartbeat", store.settings.renew, lambda: store.pools.scheduler_heartbeat(self.name)),
            Duty("planner", _SWEEP, lambda: planner.run_once(store)),
            Duty("stager", timedelta(0), self._stage),
            Duty("rescuer", _SWEEP, lambda: rescuer.run_once(store, redis_clock, self._tell_lapsed)),
            Duty("pruner", _PRUNE, lambda: pruner.run_once(store)),
            Duty("watchdog", _WATCH, watchdog.run_once),
        ]
        self._duties = duties
        self._metrics: SchedulerMetrics | None = None
        self._loop = Loop(duties, self._sleep, store.revive)

    def count_into(self, settings: Settings) -> Metrics:
        """Count for Prometheus from now on. Reads the namespace with connections of its own, set up by ``settings``."""
        from orch_scheduler.metrics import SchedulerMetrics

        self._metrics = SchedulerMetrics(settings, self._duties)
        self._store.scripts.observe = self._metrics.metrics.asked
        return self._metrics.metrics

    def run(self) -> None:
        """Work until ``stop``, then say goodbye."""
        log.info("Scheduler started", extra={"scheduler": self.name, "redis": self._store.address})
        try:
            self._loop.run()
        finally:
            self._leave()
        log.info("Scheduler stopped", extra={"scheduler": self.name})

    def run_once(self) -> None:
        """Every duty once."""
        for duty in self._duties:
            duty.run_once()
        self._mender.wait()

    def stop(self) -> None:
        """Finish the duty in hand and return from ``run``."""
        self._loop.stop()

    def _tell_lapsed(self, lapsed: Lapsed) -> None:
        if self._metrics is not None:
            self._metrics.lapsed(lapsed)

    def _stage(self) -> None:
        _, self._next_due = stager.run_once(self._store)

    def _sleep(self, _seconds: float) -> None:
        """Until the next run is due, somebody signals an earlier one, or the next sweep, whichever is first."""
        until = _SWEEP
        if self._next_due is not None:
            until = min(until, self._next_due - self._store.now())
        if until > timedelta(0):
            self._signal = self._store.pools.wait_for_signal(self._signal, until)

    def _leave(self) -> None:
        try:
            self._store.pools.scheduler_leaves(self.name)
        except Exception:
            log.warning("Could not sign off; the heartbeat will run out", exc_info=True)


def run_scheduler(options: SchedulerOptions, announce: Callable[[str], None] | None = None) -> int:
    """Run one scheduler in the foreground until SIGTERM or SIGINT; a second signal ends it at once. The exit status."""
    with open_store(options.settings, announce=announce) as store:
        scheduler = Scheduler(store, options.name)
        if options.handle_signals and threading.current_thread() is threading.main_thread():
            _stop_on_signals(scheduler)
        say = announce or log.info
        if options.metrics_port is not None:
            url = scheduler.count_into(options.settings).serve(options.metrics_port, options.metrics_address)
            say(f"Metrics at {url}")
        say(f"Scheduler '{scheduler.name}' works on {store.address}. Stop it with Ctrl-C.")
        scheduler.run()
        say(f"Scheduler '{scheduler.name}' has stopped.")
    return 0


def _stop_on_signals(scheduler: Scheduler) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        log.info("Stopping the scheduler; once more stops it at once", extra={"signal": signal.Signals(number).name})
        scheduler.stop()
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
