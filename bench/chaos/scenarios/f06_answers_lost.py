"""F6: scripts are performed and their answers get lost; clients see a timeout, in workers, schedulers and the submitter."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

from bench.chaos.proxy import Proxy
from bench.chaos.servers import Server
from bench.chaos.submitter import Submitter
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.exceptions import StoreUnavailable
from orchestrator.models import NewRun
from orchestrator.states import Completed
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End

SHARE = 0.05
TIMEOUT_S = 0.3


class LossyProxy(Proxy):
    """Of the answers to scripts it keeps some to itself. The connection stays, and says nothing more."""

    def __init__(self, server: Server, share: float, seed: int) -> None:
        super().__init__(server.host, server.port)
        self._chance = random.Random(seed)
        self.share = share
        self.lost = 0

    def keeps_answer(self, request: bytes) -> bool:
        """One script in so many."""
        is_lost = b"EVALSHA" in request and self._chance.random() < self.share
        self.lost += is_lost
        return is_lost


def run(trial: Trial) -> Outcome:
    """2,000 runs (quick: 60) through a proxy that loses 5 % of the answers; then finishes by hand, half of them unanswered."""
    total, by_hand = (60, 20) if trial.quick else (2_000, 200)
    server = Server(trial.home / "redis").start()
    with LossyProxy(server, SHARE, trial.seed) as proxy, World(trial, server=server, url=proxy.url) as world:
        variables = {"ORCH_REDIS_TIMEOUT_S": str(TIMEOUT_S)}
        world.staff(workers=2, schedulers=1, variables=variables)
        settings = world.settings_for(proxy.url, redis_timeout_s=TIMEOUT_S, redis_retry_s=0)
        with _persistent(lambda: open_store(settings)) as store:
            submitter = Submitter(
                store,
                lambda chance: world.new_run(milliseconds=chance.randint(50, 300)),
                trial.chance(),
                per_s=8.0 if trial.quick else 20.0,
                total=total,
            )
            world.submitters.append(submitter.start())
            world.wait_until(lambda: submitter.is_done, 60 + total / 4, "the submitter")
            problems = world.quiesce()
            problems += world.close_fleet()
            lost = proxy.lost
            verdict = world.verdict(may_restart=True)
            proxy.share = 0.5
            again, others = _finish_by_hand(world, store, by_hand)
    problems += verdict.problems
    if lost == 0 or again == 0:
        problems.append(f"{lost} answers were lost, {again} finishes were answered again")
    if others:
        problems.append(f"finishes were answered {others}")
    return Outcome(
        f"{verdict.runs:,} runs, {lost:,} answers lost, {verdict.lost} lost, {verdict.doubled} double-completed; "
        f"{by_hand} finishes repeated until answered, {again} of them again",
        problems,
    )


def _persistent(make: Callable[[], Store]) -> Store:
    """A store, however often its first questions remain unanswered."""
    while True:
        with suppress(StoreUnavailable):
            return make()


def _finish_by_hand(world: World, store: Store, count: int) -> tuple[int, set[str]]:
    """Finish runs over the lossy link until an answer comes: how many were answered ``again``, and answers that are wrong."""
    world.store.pools.create("hand")
    again = 0
    others: set[str] = set()
    for _ in range(count):
        [created] = world.store.runs.create([NewRun("f", pool="hand")])
        [claimed] = world.store.runs.claim("w", "hand", ["default"], 1).claimed
        while True:
            with suppress(StoreUnavailable):
                [answer] = store.runs.finish([End(created.id, claimed.attempt, Completed())], worker="w")
                break
        again += answer == "again"
        others |= {answer} - {"ok", "again"}
    return again, others


SCENARIO = Scenario("F6", "answer lost", "0 lost, 0 double; a repeated finish answers again", run)
