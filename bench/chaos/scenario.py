"""The scenario: two schedulers, three workers, runs coming in at a steady rate, and a SIGKILL every two seconds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from bench.chaos import ledger
from bench.chaos.judge import Verdict, count_hits, judge
from bench.stage import ROOT, environment, tree, wait_until
from orchestrator.models import Deployment, NewRun, Run, RunFilter
from orchestrator.settings import Settings
from orchestrator.states import TERMINAL
from orchestrator.store import Store, embedded, open_store
from orchestrator.store.invariants import check

POOL = "chaos"
NARROW = "narrow"
_STEP_S = 0.05


@dataclass(frozen=True)
class Plan:
    """How hard to try. ``load`` lasts on until there were ``hits``, at most three times as long."""

    seed: int
    load: timedelta = timedelta(seconds=60)
    hits: int = 30
    kill_every: timedelta = timedelta(seconds=2)
    lease: timedelta = timedelta(seconds=15)
    runs_per_s: float = 24.0
    workers: int = 3
    schedulers: int = 2
    slots: int = 8
    pool_limit: int = 12
    narrow_limit: int = 3
    crash_budget: int = 50
    """So large that no run ends Crashed: the scenario wants every one Completed."""


@dataclass
class Fleet:
    """The workers, each started again when it is gone."""

    home: Path
    plan: Plan
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    processes: set[int] = field(default_factory=set)
    """Every process of a worker that was seen."""

    def keep(self) -> None:
        """Start what is missing."""
        for worker in list(self.workers):
            if worker.poll() is not None:
                self.workers.remove(worker)
                if worker.pid not in self.killed:
                    self.died.append(f"a worker ended by itself with {worker.returncode}")
        while len(self.workers) < self.plan.workers:
            self.workers.append(_orch(self.home, "worker", "start", "--pool", POOL, "--limit", str(self.plan.slots)))

    def stop(self) -> list[int]:
        """End the workers in order; the processes that outlived them."""
        for worker in self.workers:
            self.processes.update(tree(worker.pid))
        _stop(self.workers)
        left = [pid for pid in self.processes if _is_ours(pid, self.home)]
        with suppress(TimeoutError):
            wait_until(lambda: not any(_is_ours(pid, self.home) for pid in left), seconds=5)
        return [pid for pid in left if _is_ours(pid, self.home)]


def run(plan: Plan, home: Path) -> Verdict:
    """Play it in ``home``, an empty folder, and judge it."""
    settings = Settings(home=home)
    path = home / "ledger.sqlite"
    with ExitStack() as stack:
        store = stack.enter_context(open_store(settings))
        stack.callback(embedded.stop, home)
        store.write_settings(replace(store.settings, lease=plan.lease))
    with ExitStack() as stack:
        stack.callback(embedded.stop, home)
        store = stack.enter_context(open_store(settings))
        store.pools.create(POOL, concurrency_limit=plan.pool_limit)
        store.limits.set(f"tag:{NARROW}", plan.narrow_limit)
        deployment = store.deployments.save(
            Deployment("chaos", flow="work", entrypoint="bench.chaos.flows:work", path=str(ROOT), pool=POOL)
        )
        ledger.create(path)
        stack.enter_context(_schedulers(home, plan.schedulers))
        fleet = Fleet(home, plan)
        stack.callback(fleet.stop)
        fleet.keep()
        wait_until(lambda: store.pools.get(POOL).workers == plan.workers)
        submitted = _load(store, deployment, fleet, plan, path)
        broken = _quiesce(store, fleet, plan, len(submitted))
        left = fleet.stop()
        effects, kills = ledger.read(path)
        verdict = judge(submitted, _read_runs(store, list(submitted)), effects, kills)
    verdict.problems += [*broken, *fleet.died, *(f"process {pid} outlived its worker" for pid in left)]
    for gate, limit in (("", plan.pool_limit), (NARROW, plan.narrow_limit)):
        if verdict.most_at_once.get(gate, 0) > limit:
            verdict.problems.append(f"{verdict.most_at_once[gate]} runs at once where {gate or 'the pool'} allows {limit}")
    return verdict


def _load(store: Store, deployment: Deployment, fleet: Fleet, plan: Plan, path: Path) -> dict[str, tuple[str, ...]]:
    """Submit, kill, restart. The ids that were given out, each with the run's tags."""
    chance = random.Random(plan.seed)
    submitted: dict[str, tuple[str, ...]] = {}
    began = time.monotonic()
    next_kill = began + plan.kill_every.total_seconds()
    hits = 0
    while True:
        now = time.monotonic()
        elapsed = now - began
        if elapsed > plan.load.total_seconds() and (hits >= plan.hits or elapsed > 3 * plan.load.total_seconds()):
            return submitted
        wanted = int(elapsed * plan.runs_per_s) - len(submitted)
        new = [_new_run(deployment, plan, path, chance) for _ in range(wanted)]
        for created, each in zip(store.runs.create(new) if new else (), new, strict=True):
            submitted[created.id] = each.tags
        if now >= next_kill:
            next_kill += plan.kill_every.total_seconds()
            _kill_one(fleet, path, chance)
            hits = count_hits(*ledger.read(path))
            told = f"{elapsed:.0f} s: {len(submitted):,} runs, {hits} kills hit a lease (of {len(fleet.killed)})"
            print(told, file=sys.stderr, flush=True)
        fleet.keep()
        time.sleep(_STEP_S)


def _new_run(deployment: Deployment, plan: Plan, path: Path, chance: random.Random) -> NewRun:
    return NewRun(
        "work",
        deployment=deployment.id,
        pool=POOL,
        parameters={"ledger": str(path), "milliseconds": chance.randint(50, 500)},
        tags=(NARROW,) if chance.random() < 0.125 else (),
        crash_budget=plan.crash_budget,
    )


def _kill_one(fleet: Fleet, path: Path, chance: random.Random) -> None:
    """SIGKILL one of the processes of a body that executes, if one does."""
    kind = chance.choice(("supervisor", "template", "child"))
    candidates = ledger.executing(path, fleet.killed)
    if not candidates:
        return
    effect = chance.choice(candidates)
    pid = {"supervisor": effect.supervisor, "template": effect.template, "child": effect.child}[kind]
    if not _is_ours(pid, fleet.home):
        return
    fleet.processes.update(tree(effect.supervisor))
    at = time.monotonic()
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    fleet.killed.append(pid)
    ledger.write_kill(path, ledger.Kill(at, kind, pid))


def _quiesce(store: Store, fleet: Fleet, plan: Plan, count: int) -> list[str]:
    """No more kills: wait until every run has ended, and say what is broken then."""
    print("no more load; waiting for the rest ...", file=sys.stderr, flush=True)
    states = tuple(state.value for state in TERMINAL)
    with suppress(TimeoutError):

        def is_quiet() -> bool:
            fleet.keep()
            return store.queries.count(RunFilter(states=states)) >= count

        wait_until(is_quiet, seconds=4 * plan.lease.total_seconds() + 60)
    broken = [f"invariant broken: {violation}" for violation in check(store)]
    for gate in (f"pool:{POOL}", f"tag:{NARROW}"):
        found = store.limits.get(gate)
        if found.used or found.waiters:
            broken.append(f"{gate} has {found.used} leaked slots and {len(found.waiters)} waiters")
    return broken


def _read_runs(store: Store, ids: list[str]) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for start in range(0, len(ids), 500):
        found.update({run.id: run for run in store.runs.get_many(ids[start : start + 500]) if run})
    return found


@contextmanager
def _schedulers(home: Path, count: int) -> Iterator[None]:
    schedulers = [_orch(home, "scheduler", "start") for _ in range(count)]
    try:
        yield
    finally:
        _stop(schedulers)


def _orch(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (home / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "orch_cli", *arguments],
            cwd=home,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ours(pid: int, home: Path) -> bool:
    """The process lives, and it was started for this home: numbers are given out again."""
    try:
        return f"ORCH_HOME={home}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
