"""A world for one trial: a server, a namespace with its lease, a pool, a deployment, a ledger, a fleet and a submitter."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from bench.chaos import ledger
from bench.chaos.fleet import POOL, Fleet, Member
from bench.chaos.judge import Verdict, judge
from bench.chaos.ledger import Effect, Kill
from bench.chaos.servers import Server
from bench.chaos.submitter import Submitter
from bench.chaos.trial import Trial
from bench.measure import percentile
from bench.stage import ROOT, tree
from orchestrator.exceptions import OrchError
from orchestrator.models import Deployment, NewRun, Run, RunFilter
from orchestrator.settings import Settings
from orchestrator.states import TERMINAL
from orchestrator.store import Store, open_store
from orchestrator.store.invariants import check

_STEP_S = 0.05


class World:
    """Everything in ``trial.home``, gone when the block ends. ``server`` stands in for the default one; it is started
    if it does not run.

    ``lease`` is the trial's unless told otherwise; ``url`` is what the fleet uses, if not the server's (a proxy).
    """

    def __init__(
        self,
        trial: Trial,
        *,
        server: Server | None = None,
        lease: timedelta | None = None,
        url: str = "",
        pool_limit: int | None = None,
    ) -> None:
        self.trial = trial
        self.home = trial.home
        self.chance = trial.chance()
        self.server = server or Server(trial.home / "redis")
        self.lease = lease or trial.lease
        self.ledger = trial.home / "ledger.sqlite"
        self.submitters: list[Submitter] = []
        self._url = url
        self._pool_limit = pool_limit
        self._created: dict[str, tuple[str, ...]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> World:
        with ExitStack() as stack:
            stack.callback(self.server.kill)
            if not self.server.answers():
                self.server.start()
            self.settings = self.settings_for(self.server.url)
            with open_store(self.settings) as store:
                store.write_settings(replace(store.settings, lease=self.lease))
            self.store = stack.enter_context(open_store(self.settings))
            self.store.pools.create(POOL, concurrency_limit=self._pool_limit)
            self.deployment = self.deploy("work")
            ledger.create(self.ledger)
            self.fleet = Fleet(self.home, self._url or self.server.url)
            stack.callback(self.fleet.stop)
            stack.callback(self._stop_submitters)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def settings_for(self, url: str, **others: Any) -> Settings:
        """Settings of a client of this world."""
        return Settings(home=self.home, redis_url=url, **others)

    def open(self, **others: Any) -> Store:
        """A store of the caller's own, for another thread; closed with the world. ``others`` are settings."""
        return self._stack.enter_context(open_store(self.settings_for(self.settings.redis_url or "", **others)))

    # -- what runs

    def deploy(
        self, function: str, *, module: str = "flows", name: str = "chaos", pool: str = POOL, **fields: Any
    ) -> Deployment:
        """A deployment of one of ``bench.chaos.flows``, or of another module beside it."""
        entrypoint = f"bench.chaos.{module}:{function}"
        return self.store.deployments.save(
            Deployment(name, flow=function, entrypoint=entrypoint, path=str(ROOT), pool=pool, **fields)
        )

    def new_run(
        self, *, milliseconds: int = 0, tags: Sequence[str] = (), deployment: Deployment | None = None, **fields: Any
    ) -> NewRun:
        """A run of ``flows.work``, or of another flow that takes its two parameters; ``parameters`` are added to them.

        The crash budget is so large that no run ends Crashed, unless ``fields`` say otherwise: scenarios want all Completed.
        """
        deployment = deployment or self.deployment
        parameters = {"ledger": str(self.ledger), "milliseconds": milliseconds, **fields.pop("parameters", {})}
        fields = {"crash_budget": 50, **fields}
        return NewRun(
            deployment.flow, deployment=deployment.id, pool=deployment.pool, parameters=parameters, tags=tuple(tags), **fields
        )

    def submit(
        self, per_s: float, new: Callable[[random.Random], NewRun] | None = None, *, total: int | None = None
    ) -> Submitter:
        """Begin to give in runs; by default bodies of 50 to 500 ms without tags."""
        make = new or (lambda chance: self.new_run(milliseconds=chance.randint(50, 500)))
        submitter = Submitter(
            self.open(redis_retry_s=0), make, random.Random(self.trial.seed + len(self.submitters)), per_s=per_s, total=total
        )
        self.submitters.append(submitter)
        return submitter.start()

    def create(self, new: Sequence[NewRun]) -> set[str]:
        """Give in these runs now, by the side of the submitters; their ids."""
        created = {one.id: each.tags for one, each in zip(self.store.runs.create(new), new, strict=True)}
        self._created.update(created)
        return set(created)

    @property
    def submitted(self) -> dict[str, tuple[str, ...]]:
        """The ids of all runs that were acknowledged, with their tags."""
        given = {run: tags for submitter in self.submitters for run, tags in dict(submitter.submitted).items()}
        return {**self._created, **given}

    def staff(
        self, workers: int = 3, schedulers: int = 2, *, slots: int = 8, variables: Mapping[str, str] | None = None
    ) -> list[Member]:
        """Start so many workers and schedulers, and wait until all of them have said that they live."""
        members = [self.fleet.scheduler(variables=variables) for _ in range(schedulers)]
        members += [self.fleet.worker(slots, variables=variables) for _ in range(workers)]
        self.wait_for_fleet(workers, schedulers)
        return members

    def wait_for_fleet(self, workers: int, schedulers: int) -> None:
        """Until so many live, at least."""

        def are_there() -> bool:
            return self.store.pools.get(POOL).workers >= workers and len(self.store.pools.schedulers()) >= schedulers

        self.wait_until(are_there, seconds=60, what="the fleet")

    # -- time

    def wait_until(self, condition: Callable[[], object], seconds: float, what: str = "") -> None:
        """Until it holds, starting members of the fleet again that are gone meanwhile. Raises TimeoutError.

        While Redis cannot be reached, a condition that asks it does not hold.
        """
        end = time.monotonic() + seconds
        while not self._holds(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:g} s in vain for {what or condition}")
            self.fleet.keep()
            time.sleep(_STEP_S)

    def pass_time(self, seconds: float) -> None:
        """Let the load go on, and start members of the fleet again that are gone."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.fleet.keep()
            time.sleep(min(_STEP_S, left))

    @staticmethod
    def _holds(condition: Callable[[], object]) -> bool:
        try:
            return bool(condition())
        except OrchError:
            return False

    # -- faults

    def kill_one(self, kinds: Sequence[str] = ("supervisor", "template", "child", "group")) -> Kill | None:
        """SIGKILL one of the processes of a body that executes, if one does; a group is a supervisor with all below it."""
        kind = self.chance.choice(kinds)
        # A body whose worker has just died may have written down init as its supervisor.
        supervisors = {member.pid for member in self.fleet.workers}
        candidates = [
            effect
            for effect in ledger.executing(self.ledger)
            if effect.supervisor in supervisors and not self.fleet.killed.intersection(effect.processes)
        ]
        if not candidates:
            return None
        effect = self.chance.choice(candidates)
        pid = {"template": effect.template, "child": effect.child}.get(kind, effect.supervisor)
        below = tree(effect.supervisor)
        self.fleet.seen.update(below)
        kill = Kill(time.monotonic(), kind, pid)
        hit = self.fleet.kill(below if kind == "group" else [pid])
        for each in hit:
            ledger.write_kill(self.ledger, kill._replace(pid=each))
        return kill if hit else None

    def note_kill(self, kind: str, pids: Iterable[int]) -> None:
        """Write into the ledger what explains that runs of these processes start again: SIGSTOP, a cut link."""
        now = time.monotonic()
        for pid in pids:
            ledger.write_kill(self.ledger, Kill(now, kind, pid))

    # -- the end

    def quiesce(self, *, seconds: float | None = None, gates: Sequence[str] = ()) -> list[str]:
        """No more load: wait until every submitted run has ended, and say what is wrong then.

        ``seconds``: how long none may end before that is too long, by default four leases and a minute. ``gates`` must be
        without slots and waiters within lease + 2 s of the last end.
        """
        self.trial.say("no more load; waiting for the rest ...")
        self._stop_submitters()
        wanted = len(self.submitted)
        states = tuple(state.value for state in TERMINAL)
        limit = 4 * self.lease.total_seconds() + 60 if seconds is None else seconds
        problems = []
        ended = -1
        while (now := self.store.queries.count(RunFilter(states=states))) < wanted:
            if now == ended:
                problems.append(f"{wanted - ended} of {wanted} runs have not ended, and none did for {limit:g} s")
                break
            ended = now
            with suppress(TimeoutError):
                self.wait_until(partial(self._has_more, states, ended), limit)
        return problems + self.leaks(gates) + self.broken()

    def _has_more(self, states: tuple[str, ...], ended: int) -> bool:
        return self.store.queries.count(RunFilter(states=states)) > ended

    def leaks(self, gates: Sequence[str]) -> list[str]:
        """Gates with slots or waiters, though nothing runs, lease + 2 s later."""
        if not gates:
            return []
        try:
            self.wait_until(
                lambda: not any(gate.used or gate.waiting for gate in self.store.limits.get_many(gates)),
                self.lease.total_seconds() + 2,
            )
        except TimeoutError:
            found = [gate for gate in self.store.limits.get_many(gates) if gate.used or gate.waiting]
            return [f"{gate.name} has {gate.used} leaked slots and {gate.waiting} waiters" for gate in found]
        return []

    def broken(self) -> list[str]:
        """Invariants that do not hold."""
        return [f"invariant broken: {violation}" for violation in check(self.store)]

    def close_fleet(self) -> list[str]:
        """End the fleet; complaints about it, processes that outlived it among them."""
        left = self.fleet.stop()
        return [*self.fleet.died, *(f"process {pid} outlived its worker" for pid in left)]

    def verdict(self, submitted: Iterable[str] | None = None, **how: Any) -> Verdict:
        """What the ledger says about the submitted runs, or about these of them. ``how``: as ``judge``."""
        all_of_them = self.submitted
        chosen = {run: all_of_them[run] for run in (all_of_them if submitted is None else submitted)}
        effects, kills = ledger.read(self.ledger)
        return judge(chosen, self.read_runs(chosen), effects, kills, **how)

    def effects(self) -> list[Effect]:
        """The ledger's effects in the order of their moments."""
        return ledger.read(self.ledger)[0]

    def moments(self, phase: str) -> dict[tuple[str, int], float]:
        """When attempts first wrote an effect whose phase begins so, as seconds since 1970: (run, attempt) -> moment."""
        ahead = time.time() - time.monotonic()
        found: dict[tuple[str, int], float] = {}
        for effect in self.effects():
            if effect.phase.startswith(phase):
                found.setdefault((effect.run, effect.attempt), effect.at + ahead)
        return found

    def read_runs(self, ids: Iterable[str]) -> dict[str, Run]:
        """What Redis says of these runs, with their histories."""
        wanted = list(ids)
        found: dict[str, Run] = {}
        for start in range(0, len(wanted), 500):
            found.update({run.id: run for run in self.store.runs.get_many(wanted[start : start + 500]) if run})
        return found

    def _stop_submitters(self) -> None:
        for submitter in self.submitters:
            submitter.stop()


def spread(values: Sequence[float], unit: str = "s") -> str:
    """Figures of many values on a line: how many, the middle, p99 and the largest."""
    if not values:
        return "none"
    middle, high = percentile(values, 0.5), percentile(values, 0.99)
    return f"n {len(values):,}, p50 {middle:.3g}, p99 {high:.3g}, max {max(values):.3g} {unit}"
