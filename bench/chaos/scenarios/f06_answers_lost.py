"""F6: scripts are performed and their answers get lost; clients see a timeout, in workers, schedulers and the submitter."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

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


class LossyProxy:
    """Before a server: of the answers to scripts it keeps some to itself. The connection stays, and says nothing more."""

    def __init__(self, server: Server, share: float, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self.share = share
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection. Clients send a request and wait for its answer, so what comes back belongs to what went in last."""
        with client, suppress(OSError), socket.create_connection((self._server.host, self._server.port)) as server:
            is_doomed = threading.Event()
            threading.Thread(target=self._return, args=(client, server, is_doomed), daemon=True).start()
            while data := client.recv(65536):
                if b"EVALSHA" in data and self._draws():
                    is_doomed.set()
                server.sendall(data)

    def _return(self, client: socket.socket, server: socket.socket, is_doomed: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if not is_doomed.is_set():
                    client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)

    def _draws(self) -> bool:
        with self._lock:
            is_lost = self._chance.random() < self.share
            self.lost += is_lost
            return is_lost


def run(trial: Trial) -> Outcome:
    """2,000 runs (quick: 60) through a proxy that loses 5 % of the answers; then finishes by hand, half of them unanswered."""
    total, by_hand = (60, 20) if trial.quick else (2_000, 200)
    server = Server(trial.home / "redis").start()
    proxy = LossyProxy(server, SHARE, trial.seed)
    with World(trial, server=server, url=proxy.url) as world:
        variables = {"ORCH_REDIS_TIMEOUT_S": str(TIMEOUT_S)}
        world.fleet.scheduler(variables=variables)
        for _ in range(2):
            world.fleet.worker(8, variables=variables)
        world.wait_for_fleet(2, 1)
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
    proxy.close()
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
                [answer] = store.runs.finish([End(created.id, claimed.attempt, Completed())])
                break
        again += answer == "again"
        others |= {answer} - {"ok", "again"}
    return again, others


SCENARIO = Scenario("F6", "answer lost", "0 lost, 0 double; a repeated finish answers again", run)
