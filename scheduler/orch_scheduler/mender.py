"""The mender: notices that Redis is another server than before, and puts right what it has forgotten.

Each sweep looks at the epoch. Of all schedulers, one is given the mending: it plans again what schedules had planned and Redis
has lost, and reconciles the namespace. That may take minutes where there are millions of runs, so it is done beside the other
duties. The same is done every hour, without planning, as a net.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime

from orch_scheduler import planner
from orchestrator import names, schedules
from orchestrator.exceptions import StoreUnavailable
from orchestrator.models import CATCH_UP, Deployment, Schedule
from orchestrator.store import Store
from orchestrator.store.answers import Planned
from orchestrator.store.failover import Epoch

log = logging.getLogger(__name__)


class Mender:
    """Looks at the epoch, and mends in a thread of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread: threading.Thread | None = None

    def run_once(self) -> None:
        """Look at the epoch, and begin to mend if that falls to us. Raises DataGone."""
        epoch = self._store.failover.check(mend=True)
        if epoch.mends:
            self._thread = threading.Thread(target=self._mend, args=(epoch,), name="orch-mend", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Until what was begun is done."""
        if self._thread is not None:
            self._thread.join()

    def _mend(self, epoch: Epoch) -> None:
        try:
            mend(self._store, epoch)
        except StoreUnavailable as error:
            log.warning("The namespace is not mended yet; it will be tried again in two minutes: %s", error)
        except Exception:
            log.exception("The namespace could not be mended")


def mend(store: Store, epoch: Epoch) -> int:
    """Put right what a fail-over broke, or look for what anything else broke. How much was mended."""
    if epoch.mends == "failover":
        # First: what is left of a lost run tells it from one that somebody deleted, and reconciling removes that.
        plan_again(store)
    return store.failover.mend(epoch, store.runs.reconcile_all)


def plan_again(store: Store) -> int:
    """Create the runs that schedules have planned, by their marks, and that are not there. How many.

    Ids are those of the first time, so a run that is there is left alone, and no fire becomes two runs. Runs of the future are
    created in any case; those of the last minutes only if an index still knows them: others may have been deleted.
    """
    created = 0
    for deployment in store.deployments.all():
        for schedule in deployment.schedules:
            if not deployment.paused and schedule.active:
                try:
                    created += _plan_until_told(store, deployment, schedule)
                except StoreUnavailable:
                    raise
                except Exception:
                    log.exception("Could not plan a schedule again", extra={"schedule": f"{deployment.slug}:{schedule.slug}"})
    if created:
        log.warning("Planned %d runs again that a fail-over had lost", created, extra={"action": "planned_again"})
    return created


def _plan_until_told(store: Store, deployment: Deployment, schedule: Schedule) -> int:
    """As long as planners move the schedule's mark meanwhile, from where they have moved it to. How many were created."""
    while schedule.mark is not None:
        planned = _plan_again(store, deployment, schedule, schedule.mark)
        if planned.answer != "stale":
            return planned.count
        same = (found for found in store.deployments.get(deployment.id).schedules if found.slug == schedule.slug)
        moved = next(same, None)
        if moved is None or moved.generation != schedule.generation:
            return 0  # it was changed, and what it had planned is of no interest any more
        schedule = moved
    return 0


def _plan_again(store: Store, deployment: Deployment, schedule: Schedule, mark: datetime) -> Planned:
    now = store.now()
    since = now - CATCH_UP
    fires = schedules.fires(schedule, since, until=mark) if mark > since else []
    ids = {fire: planner.run_id(deployment.id, schedule, fire) for fire in fires}
    gone = store.failover.unrecorded(deployment.id, list(ids.values()))
    lost = [(run, names.generate(), fire) for fire, run in ids.items() if run in gone and (fire > now or gone[run])]
    # Also where nothing is missing: the schedule may have fallen out of the list of those that are to be planned. The planner
    # looks at it next: with the mark, everything that was planned ahead may have been forgotten.
    return store.runs.plan(deployment, schedule, lost, mark=mark, next_plan=now)
