"""All operations at random, by several workers under a clock that jumps, against what must be true of each run."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from floor import named
from harness import RedisServer
from orchestrator import clock
from orchestrator.clock import FrozenClock
from orchestrator.keys import GROUP, lengthen, shorten
from orchestrator.models import Deployment, NewRun, Run, Schedule
from orchestrator.settings import Settings
from orchestrator.states import TRANSITIONS
from orchestrator.store import open_store
from orchestrator.store.answers import Acquire, Delivery, End
from orchestrator.store.invariants import check
from orchestrator.store.limits import deployment_gate

QUEUES = ("default", "side")
WORKERS = ("w1", "w2", "w3")
ENDS = ("Completed", "Failed", "Crashed", "Cancelled")
LEASED = ("Pending", "Running", "Cancelling")

anyone = st.integers(0, 1_000)
workers = st.sampled_from(WORKERS)
queues = st.permutations(QUEUES).flatmap(lambda order: st.sampled_from([order, order[:1]]))
gates = st.sampled_from(["pool:p", "queue:p:default", "queue:p:side", "tag:a", "tag:b", "deployment"])
global_names = st.sampled_from(["g", "h"])
is_old = st.sampled_from([False, False, False, True])
callers = st.sampled_from(["holder", "holder", "holder", "holder", "older", "other"])


def some(*places: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule for when some run is in one of these places; at other times it would do nothing."""
    return precondition(lambda self: any(run.place in places for run in self.view.values()))  # type: ignore[return-value]


class Operations(RuleBasedStateMachine):
    """Operations on one namespace. After each: every invariant, and no run has changed in a way that it may not change."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.frozen = FrozenClock(1_800_000_000_000)
        self.store = open_store(Settings(redis_url=url, namespace=f"sm-{uuid.uuid4().hex[:12]}"), frozen=self.frozen)
        self.store.pools.create("p")
        self.store.pools.create_queue("p", "side")
        self.ids: list[str] = []
        self.view: dict[str, Run] = {}
        self.attempts: dict[str, int] = {}
        self.outcomes: dict[str, tuple[int, str]] = {}
        self.accepted: set[tuple[str, int]] = set()
        self.delivered: dict[str, list[Delivery]] = {worker: [] for worker in WORKERS}
        self.deployment = self.store.deployments.save(
            Deployment("d", "f", "f.py:f", pool="p", schedules=[Schedule("s", cron="* * * * *")])
        )
        self.calls: list[tuple[str, int, int]] = []
        self.woken: set[str] = set()
        self.are_lost = False
        self.made = 0

    def teardown(self) -> None:
        try:
            self.everything_ends_once_nothing_holds_it_back()
        finally:
            for key in self.store.client.scan_iter(f"{self.store.keys.prefix}*", count=1000):
                self.store.client.unlink(key)
            self.store.close()

    @initialize(
        pool=st.sampled_from([3, 2, None]),
        tag=st.sampled_from([1, 2, None]),
        other=st.sampled_from([1, None]),
        tags=st.lists(st.sampled_from(["a", "ab", "b", ""]), min_size=4, max_size=12),
        free=st.integers(1, 4),
        budget=st.integers(1, 3),
    )
    def begin(self, pool: int | None, tag: int | None, other: int | None, tags: list[str], free: int, budget: int) -> None:
        """A namespace in full swing: some gates have limits, some runs are queued, some are executing."""
        for gate, limit in (("pool:p", pool), ("tag:a", tag), ("tag:b", other)):
            self.store.limits.set(gate, limit)
        self.store.limits.create_global("g", 2)
        self.ids = [self.fresh_id() for _ in tags]
        runs = zip(self.ids, tags, strict=True)
        self.store.runs.create([NewRun("f", id=run, pool="p", tags=tuple(of), crash_budget=budget) for run, of in runs])
        self.look()
        self.claim_some("w1", free, QUEUES, [], starts=False)

    # --- birth ---

    @rule(
        tags=st.sampled_from(["a", "ab", "b", ""]),
        priority=st.sampled_from(["high", "normal", "low"]),
        queue=st.sampled_from(QUEUES),
        due=st.sampled_from([None, None, None, 5, 60]),
        expires=st.sampled_from([None, None, None, 3, 30]),
        key=st.sampled_from([None, None, None, "k1", "k2"]),
        budget=st.integers(1, 3),
        deployed=st.booleans(),
        copies=st.sampled_from([2, 3, 1, 5]),
    )
    def create(
        self,
        tags: str,
        priority: str,
        queue: str,
        due: int | None,
        expires: int | None,
        key: str | None,
        budget: int,
        deployed: bool,
        copies: int,
    ) -> None:
        new = [
            NewRun(
                "f",
                id=self.fresh_id(),
                pool="p",
                queue=queue,
                priority=priority,
                tags=tuple(tags),
                due=None if due is None else self.after(due),
                expires=None if expires is None else self.after(expires),
                idempotency_key=key,
                crash_budget=budget,
                deployment=self.deployment.id if deployed else None,
            )
            for _ in range(copies)
        ]
        self.ids += [run.id for run in new]
        with self.step() as step:
            answers = self.store.runs.create(new)
            step.may_appear = {answer.id for answer in answers if answer.answer == "created"}
        holders = {answer.id for answer in answers} if key else set()
        assert len(holders) <= 1
        assert [a.answer for a in answers] == ["created"] * copies if not key else answers[0].answer in ("created", "existing")
        assert all(self.store.runs.create([run])[0].answer == "existing" for run in new)

    @rule(worker=workers, tags=st.sets(st.sampled_from("ab")), pool=st.sampled_from(["", "p"]))
    def create_leased(self, worker: str, tags: set[str], pool: str) -> None:
        run = NewRun("f", id=self.fresh_id(), pool=pool, tags=tuple(sorted(tags)))
        self.ids.append(run.id)
        with self.step() as step:
            self.attempts[run.id] = self.store.runs.create_leased(run, worker).attempt
            step.may_appear = {run.id}

    @rule(seconds=st.lists(st.sampled_from([5, 30, 60]), unique=True), is_stale=is_old)
    def plan(self, seconds: list[int], is_stale: bool) -> None:
        deployment = self.store.deployments.get("f/d")
        [schedule] = deployment.schedules
        if is_stale:
            schedule.generation -= 1
        fires = [
            (str(uuid.uuid5(uuid.NAMESPACE_OID, f"{schedule.generation} {self.after(s)}")), f"r{s}", self.after(s))
            for s in seconds
        ]
        self.ids += [run for run, _, _ in fires if run not in self.ids]
        assert schedule.mark is not None
        mark = max([schedule.mark, *(at for _, _, at in fires)])
        with self.step() as step:
            answer = self.store.runs.plan(deployment, schedule, fires, mark=mark, next_plan=mark)
            step.may_appear = {run for run, _, _ in fires}
        assert answer.answer == ("stale" if is_stale else "created")
        assert self.store.deployments.get("f/d").schedules[0].mark == (schedule.mark if is_stale else mark)

    @rule(pauses=st.booleans())
    def reschedule(self, pauses: bool) -> None:
        before = self.store.deployments.get("f/d").schedules[0]
        with self.step() as step:
            step.may_vanish = {run_id for run_id, run in self.view.items() if run.schedule == "s" and run.place == "due"}
            (self.store.deployments.pause if pauses else self.store.deployments.resume)("f/d")
        after = self.store.deployments.get("f/d").schedules[0]
        assert after.generation > before.generation
        assert after.mark == self.now()

    # --- what workers do ---

    @some("due")
    @rule(limit=st.sampled_from([1, 2, 100]))
    def release_due(self, limit: int) -> None:
        with self.step():
            released = self.store.runs.release_due(limit)
        waiting = [run for run in self.view.values() if run.place == "due" and run.due <= self.now()]
        assert released.count <= limit
        assert not waiting or released.count == limit

    @some("queued")
    @rule(worker=workers, order=queues)
    def deliver(self, worker: str, order: Sequence[str]) -> None:
        streams = dict.fromkeys((self.store.keys.prefix + name for name in self.store.runs.streams("p", order)), ">")
        prefix = self.store.keys.prefix
        for stream, entries in self.store.client.xreadgroup(GROUP, worker, streams, count=1) or []:
            name = stream.decode().removeprefix(prefix)
            self.delivered[worker] += [Delivery(name, entry.decode(), lengthen(fields[b"r"])) for entry, fields in entries]

    @precondition(lambda self: any(self.delivered.values()))
    @rule(worker=workers)
    def die_between_delivery_and_claim(self, worker: str) -> None:
        self.are_lost = self.are_lost or bool(self.delivered[worker])
        self.delivered[worker] = []

    @precondition(lambda self: any(self.delivered.values()) or self.are_lost)
    @rule(order=queues, worker=st.sampled_from([*WORKERS, ""]))
    def redeliver(self, order: Sequence[str], worker: str) -> None:
        with self.step():
            self.store.runs.redeliver("p", order, worker=worker, idle=timedelta(0))
        self.are_lost = bool(worker)

    @some("queued")
    @rule(worker=workers, free=st.integers(0, 4), order=queues, starts=st.booleans())
    def claim(self, worker: str, free: int, order: Sequence[str], starts: bool) -> None:
        delivered, self.delivered[worker] = self.delivered[worker], []
        self.claim_some(worker, free, order, delivered, starts)

    def claim_some(self, worker: str, free: int, order: Sequence[str], delivered: Sequence[Delivery], starts: bool) -> None:
        unread = self.unread(order)
        with self.step() as step:
            claims = self.store.runs.claim(worker, "p", order, free, delivered, start=starts)
            step.claimed = {run.id: run.attempt for run in claims.claimed}
        assert len(claims.claimed) <= free
        for claimed in claims.claimed:
            self.attempts[claimed.id] = claimed.attempt
            run = self.view[claimed.id]
            assert (run.place, run.worker) == ("leased", worker)
            assert run.state.name in ("Running" if starts else "Pending", "Cancelling")
        if len(claims.claimed) < free and not claims.more:
            left = {run for run in unread if self.view[run].place == "queued"}
            assert not left & self.unread(order) - {d.run for d in delivered} - self.woken, (
                "left in the queue while slots were free"
            )

    @some("leased")
    @rule(worker=workers, free=st.integers(1, 3), state=st.sampled_from([*ENDS, "AwaitingRetry"]))
    def finish_all_and_claim(self, worker: str, free: int, state: str) -> None:
        """What a busy worker does all the time."""
        held = [run for run in self.view.values() if run.place == "leased" and run.worker == worker]
        self.accepted |= {(run.id, run.attempt) for run in held}
        with self.step():
            ends = [End(run.id, run.attempt, named(state), retry_in=timedelta(seconds=5)) for run in held]
            assert self.store.runs.finish(ends, worker=worker) == ["ok"] * len(held)
        self.claim_some(worker, free, QUEUES, [], starts=False)

    @some("leased")
    @rule(who=st.lists(anyone, max_size=4), is_old=is_old, worker=workers)
    def renew(self, who: list[int], is_old: bool, worker: str) -> None:
        leases = [self.lease(number, "older" if is_old else "holder")[:2] for number in who]
        with self.step():
            answers = self.store.runs.renew(leases, worker=worker)
        for (run_id, attempt), answer in zip(leases, answers, strict=True):
            run = self.view.get(run_id)
            if run is None or (run.attempt, run.worker) != (attempt, worker) or run.place not in ("leased", "ended"):
                assert answer == "lost"
            elif run.place == "ended":
                assert answer == "ended"
            else:
                assert answer == ("cancel" if run.state.name == "Cancelling" else "ok")

    @some("leased")
    @rule(who=anyone, caller=callers)
    def start_body(self, who: int, caller: str) -> None:
        run_id, attempt, worker = self.lease(who, caller)
        run = self.view.get(run_id)
        with self.step():
            answer = self.store.runs.set_state(run_id, named("Running"), attempt=attempt, worker=worker).answer
        assert answer == self.fenced(run, attempt, worker, "Running")
        if answer == "ok" and run is not None:
            assert self.view[run_id].run_count == run.run_count + 1

    @some("leased")
    @rule(who=anyone, state=st.sampled_from([*ENDS, "AwaitingRetry"]), caller=callers, delay=st.sampled_from([0, 20]))
    def finish(self, who: int, state: str, caller: str, delay: int) -> None:
        run_id, attempt, worker = self.lease(who, caller)
        run = self.view.get(run_id)
        expected = "superseded"
        if self.is_held(run, attempt, worker):
            expected = "ok"
            assert (run_id, attempt) not in self.accepted
            self.accepted.add((run_id, attempt))
        elif run is not None and self.outcomes.get(run_id) == (attempt, self.end_of(run, state)):
            is_anothers = run.attempt == attempt and run.worker != worker
            expected = "superseded" if is_anothers else "again"
        with self.step():
            end = End(run_id, attempt, named(state), retry_in=timedelta(seconds=delay))
            assert self.store.runs.finish([end], worker=worker) == [expected]
        if expected == "ok" and run is not None:
            assert self.view[run_id].state.name in (self.end_of(run, state), "Scheduled")

    @some("leased")
    @rule(seconds=st.sampled_from([0, 16]), is_off_by=st.sampled_from([None, None, 0, 60, -60]))
    def lapse(self, seconds: int, is_off_by: int | None) -> None:
        self.frozen.advance(timedelta(seconds=seconds))
        leased = {run_id for run_id, run in self.view.items() if run.place == "leased"}
        expected_ms = None if is_off_by is None else self.frozen.ms + 1000 * is_off_by
        with self.step() as step:
            lapsed = self.store.runs.lapse(expected_ms=expected_ms)
            step.may_crash = set() if lapsed.is_braked else leased
        gone = {run_id for run_id in leased if self.view[run_id].place != "leased"}
        assert lapsed.requeued + lapsed.crashed + lapsed.cancelled == len(gone)
        assert not (lapsed.is_braked and gone), "a lease counted as over although the clock had jumped"
        assert lapsed.is_braked or not is_off_by

    @some("leased")
    @rule(who=anyone, caller=callers)
    def report_death(self, who: int, caller: str) -> None:
        run_id, attempt, worker = self.lease(who, caller)
        run = self.view.get(run_id)
        with self.step() as step:
            step.may_crash = {run_id}
            lapsed = self.store.runs.report_death(run_id, attempt, "SIGKILL", worker=worker)
        is_current = self.is_held(run, attempt, worker)
        assert lapsed.requeued + lapsed.crashed + lapsed.cancelled == int(is_current)

    @some("leased")
    @rule(who=anyone, caller=callers)
    def hand_back(self, who: int, caller: str) -> None:
        run_id, attempt, worker = self.lease(who, caller)
        is_current = self.is_held(self.view.get(run_id), attempt, worker)
        with self.step():
            assert self.store.runs.hand_back(run_id, attempt, worker=worker) == ("ok" if is_current else "superseded")

    @precondition(lambda self: any(run.state.name == "Running" for run in self.view.values()))
    @rule(who=anyone, caller=callers, suspends=st.booleans())
    def pause(self, who: int, caller: str, suspends: bool) -> None:
        run_id, attempt, worker = self.lease(who, caller, "Running")
        expected = self.fenced(self.view.get(run_id), attempt, worker, "Suspended" if suspends else "Paused")
        with self.step():
            paused = self.store.runs.pause(run_id, attempt, worker=worker, suspend=suspends, timeout=timedelta(seconds=30))
        assert paused.answer == expected

    # --- what running code does ---

    @some("leased")
    @rule(
        who=anyone,
        caller=callers,
        number=st.integers(1, 4),
        asked=st.sampled_from([("global", "g"), ("global", "gh"), ("global", "h"), ("tag", "a"), ("tag", "ab")]),
        occupy=st.sampled_from([1, 1, 2]),
        rate=st.booleans(),
        strict=is_old,
    )
    def acquire(
        self, who: int, caller: str, number: int, asked: tuple[str, str], occupy: int, rate: bool, strict: bool
    ) -> None:
        run_id, attempt, worker = self.lease(who, caller)
        of, names = asked
        before = self.view.get(run_id)
        known = {call.number: call for call in before.calls} if before is not None else {}
        with self.step():
            is_global = of == "global"
            slots = occupy if is_global else 1
            wanted = Acquire(run_id, attempt, worker, number, list(names), of, slots, rate and is_global, strict)
            answer = self.store.limits.acquire(wanted).answer
        is_current = self.is_held(before, attempt, worker)
        assert (answer == "superseded") == (not is_current)
        if is_current and number in known:
            assert answer == ("waiting" if known[number].waits else "granted")
        if answer in ("granted", "waiting"):
            self.calls.append((run_id, attempt, number))
            held = {call.number: call for call in self.view[run_id].calls}
            assert number not in held or (held[number].waits is not None) == (answer == "waiting")

    @precondition(lambda self: self.calls)
    @rule(who=st.lists(anyone, min_size=1, max_size=3), worker=workers)
    def release(self, who: list[int], worker: str) -> None:
        before = dict(self.view)
        chosen = [self.calls[number % len(self.calls)] for number in who]
        with self.step():
            self.store.limits.release(chosen, worker=worker)
        for run_id, attempt, number in chosen:
            run = self.view.get(run_id)
            if run is not None and self.is_held(run, attempt, worker):
                assert number not in [call.number for call in run.calls]
            elif run is not None:
                assert [call.number for call in run.calls] == [call.number for call in before[run_id].calls]

    @rule(
        name=global_names,
        limit=st.sampled_from([0, 1, 2, 3]),
        decay=st.sampled_from([0.0, 0.0, 0.2, 2.0]),
        active=st.sampled_from([True, True, False]),
        becomes=st.sampled_from(["g", "h", "i"]),
    )
    def change_global_limit(self, name: str, limit: int, decay: float, active: bool, becomes: str) -> None:
        with self.step():
            if self.store.limits.create_global(name, limit, decay=decay, active=active):
                return
            taken = becomes != name and self.store.limits.get_global(becomes) is not None
            answer = self.store.limits.update_global(name, limit=limit, decay=decay, active=active, new_name=becomes)
        assert answer == ("exists" if taken else "ok")

    @rule(name=global_names)
    def delete_global_limit(self, name: str) -> None:
        with self.step():
            is_there = self.store.limits.get_global(name) is not None
            assert self.store.limits.delete_global(name) == is_there

    # --- what people do ---

    @some("due", "queued", "parked", "leased", "paused")
    @rule(who=anyone)
    def cancel(self, who: int) -> None:
        run_id, run = self.pick(who)
        with self.step():
            answer = self.store.runs.cancel(run_id).answer
        assert answer == ("missing" if run is None else "refused" if run.place == "ended" else "ok")
        if answer == "ok":
            assert self.view[run_id].state.name in ("Cancelled", "Cancelling")

    @some("paused")
    @rule(who=anyone)
    def resume(self, who: int) -> None:
        run_id, run = self.pick(who, "paused")
        with self.step():
            answer = self.store.runs.resume(run_id).answer
        may = run is not None and run.place == "paused" and run.pool
        assert answer == ("missing" if run is None else "ok" if may else "refused")

    @precondition(lambda self: self.ids)
    @rule(who=anyone, state=st.sampled_from(sorted(TRANSITIONS)), due=st.sampled_from([None, 0, 40]))
    def set_state(self, who: int, state: str, due: int | None) -> None:
        run_id, run = self.pick(who)
        with self.step():
            answer = self.store.runs.set_state(run_id, named(state), due=None if due is None else self.after(due)).answer
        if run is None:
            assert answer == "missing"
        elif (
            run.place == "ended"
            or state not in TRANSITIONS[run.state.name]
            or state in ("Running", "Pending", "Late", "Cancelling")
        ):
            assert answer == "refused"

    @some("ended")
    @rule(who=anyone)
    def retry(self, who: int) -> None:
        run_id, run = self.pick(who, "ended")
        with self.step() as step:
            step.may_reopen = {run_id}
            answer = self.store.runs.retry(run_id).answer
        may = run is not None and run.place == "ended" and run.pool
        assert answer == ("missing" if run is None else "ok" if may else "refused")

    @precondition(lambda self: self.ids)
    @rule(who=st.lists(anyone, max_size=3))
    def delete(self, who: list[int]) -> None:
        chosen = list(dict.fromkeys(self.pick(number)[0] for number in who))
        before = self.view
        with self.step() as step:
            step.may_vanish = set(chosen)
            answers = self.store.runs.delete(chosen)
        for run_id, answer in zip(chosen, answers, strict=True):
            assert answer == ("missing" if run_id not in before else "refused" if before[run_id].place == "leased" else "ok")
            assert (run_id in self.view) == (answer == "refused")

    @rule(
        gate=gates,
        limit=st.sampled_from([None, 0, 1, 1, 2, 3]),
        strategy=st.sampled_from(["ENQUEUE", "ENQUEUE", "CANCEL_NEW", "CANCEL_RUNNING"]),
    )
    def set_limit(self, gate: str, limit: int | None, strategy: str) -> None:
        with self.step():
            self.store.limits.set(self.gate(gate), limit, strategy=strategy)

    @rule(gate=gates, enables=st.booleans())
    def enable_or_disable_limit(self, gate: str, enables: bool) -> None:
        with self.step():
            (self.store.limits.enable if enables else self.store.limits.disable)(self.gate(gate))

    @rule(gate=gates, resumes=st.booleans())
    def pause_or_resume_gate(self, gate: str, resumes: bool) -> None:
        with self.step():
            (self.store.limits.resume if resumes else self.store.limits.pause)(self.gate(gate))

    # --- duties ---

    @some("parked")
    @rule(gate=st.one_of(st.just(""), gates))
    def wake(self, gate: str) -> None:
        with self.step():
            self.store.runs.wake(self.gate(gate) if gate else "")
        over = self.store.client.zcount(self.store.keys.reservations, "-inf", self.frozen.ms)
        assert over == 0, "a reservation that is over was not given back"

    @some("due", "queued", "parked", "paused")
    @rule()
    def sweep(self) -> None:
        with self.step():
            self.store.runs.expire()
            self.store.runs.mark_late()
            self.store.runs.time_out_paused()
        expired = [
            r for r in self.view.values() if r.expires and r.expires <= self.now() and r.attempt == 0 and not r.is_terminal
        ]
        assert expired == []

    @some("ended")
    @rule(age=st.sampled_from([0, 60]))
    def prune(self, age: int) -> None:
        before = self.after(-age)
        with self.step() as step:
            step.may_vanish = {run_id for run_id, run in self.view.items() if run.ended and run.ended < before}
            self.store.runs.prune(before)
        assert not any(run.ended and run.ended < before for run in self.view.values())

    @rule(seconds=st.sampled_from([1, 6, 6, 16, 100, -10]))
    def the_clock_moves(self, seconds: int) -> None:
        self.frozen.advance(timedelta(seconds=seconds))

    @rule()
    def reconcile_finds_nothing_to_mend(self) -> None:
        with self.step():
            assert self.store.runs.reconcile_all() == []

    @invariant()
    def every_invariant_holds(self) -> None:
        broken = check(self.store)
        assert not broken, "\n".join(map(str, broken))

    @invariant()
    def a_leased_run_holds_a_slot_of_each_limited_gate(self) -> None:
        for gate, setting in self.store.limits.settings().items():
            if setting.get("limit") is None or setting.get("disabled"):
                continue
            holders = set(self.store.limits.get(gate).holders)
            for run_id, run in self.view.items():
                if run.place == "leased" and gate in self.gates_of(run) and run.created_by != "leased":
                    assert run_id in holders or run.history[0].name == "Running", f"{run_id} runs behind {gate} without a slot"

    # --- the end ---

    def everything_ends_once_nothing_holds_it_back(self) -> None:
        """No run is lost: whatever has happened, ordinary duties and one worker bring every run to an end."""
        for limited in self.store.limits.global_limits():
            self.store.limits.update_global(limited.title, limit=max(1, limited.limit or 0))
        for gate, setting in self.store.limits.settings().items():
            if gate.startswith("global:"):
                continue
            self.store.limits.set(gate, max(1, int(setting["limit"])) if "limit" in setting else None, strategy="ENQUEUE")
            self.store.limits.resume(gate)
        for _ in range(60):
            self.frozen.advance(timedelta(seconds=30))
            self.store.runs.lapse()
            self.store.runs.release_due()
            self.store.runs.wake()
            self.store.runs.redeliver("p", QUEUES, idle=timedelta(0))
            self.look()
            for run_id, run in self.view.items():
                if run.place == "paused":
                    self.store.runs.resume(run_id)
            claimed = self.store.runs.claim("last", "p", QUEUES, 10).claimed
            ends = [End(run.id, run.attempt, named("Completed")) for run in claimed]
            assert self.store.runs.finish(ends, worker="last") == ["ok"] * len(claimed)
            if all(run.is_terminal for run in self.view.values()):
                break
        self.look()
        lost = [f"{run.id} {run.place} {run.gate} {run.state} {run.tags}" for run in self.view.values() if not run.is_terminal]
        assert lost == [], f"{lost} behind {self.store.limits.settings()}"
        assert check(self.store) == []
        assert self.store.client.zcard(self.store.keys.leases) == 0

    # --- helpers ---

    def fresh_id(self) -> str:
        """Ids decide the order of equals, so that they must be the same when an example is tried again."""
        self.made += 1
        return str(uuid.UUID(int=0x0190 << 112 | 7 << 76 | self.made))

    def now(self) -> datetime:
        return clock.from_ms(self.frozen.ms)

    def after(self, seconds: int) -> datetime:
        return self.now() + timedelta(seconds=seconds)

    def gate(self, name: str) -> str:
        return deployment_gate(shorten(self.deployment.id)) if name == "deployment" else name

    def gates_of(self, run: Run) -> list[str]:
        deployment = [deployment_gate(shorten(run.deployment))] if run.deployment else []
        return [f"pool:{run.pool}", f"queue:{run.pool}:{run.queue}", *deployment, *(f"tag:{tag}" for tag in run.tags)]

    def pick(self, number: int, *places: str) -> tuple[str, Run | None]:
        """Any run, also one that has ended or is gone; three times of four one in these places, or at least a live one."""
        places = places or ("due", "queued", "parked", "leased", "paused")
        fitting = [run_id for run_id in self.ids if run_id in self.view and self.view[run_id].place in places]
        known = fitting if fitting and number % 4 != 3 else self.ids
        run_id = known[number % len(known)]
        return run_id, self.view.get(run_id)

    def lease(self, number: int, caller: str, *states: str) -> tuple[str, int, str]:
        """A run that was leased once, rather one that is leased now, in these states; an attempt, and a worker.

        These are of the last lease, or the attempt is an ``older`` one, or the worker an``other``.
        """
        known = sorted(self.attempts)
        leased = [run_id for run_id in known if run_id in self.view and self.view[run_id].place == "leased"]
        fitting = [run_id for run_id in leased if not states or self.view[run_id].state.name in states]
        known = fitting if fitting and number % 8 != 7 else known
        run_id = known[number % len(known)]
        holder = (run_id in self.view and self.view[run_id].worker) or WORKERS[0]
        worker = next(other for other in WORKERS if other != holder) if caller == "other" else holder
        return run_id, self.attempts[run_id] - int(caller == "older"), worker

    def is_held(self, run: Run | None, attempt: int, worker: str) -> bool:
        """Whether this worker holds the run under this attempt."""
        return run is not None and run.place == "leased" and (run.attempt, run.worker) == (attempt, worker)

    def fenced(self, run: Run | None, attempt: int, worker: str, state: str) -> str:
        """What a worker is answered that asks for a state under its attempt."""
        if run is None:
            return "missing"
        if attempt <= 0 and state == "Running":
            return "refused"
        if not self.is_held(run, attempt, worker):
            return "superseded"
        may = state in TRANSITIONS[run.state.name] and (run.pool or state == "Running")
        return "ok" if may else "refused"

    def end_of(self, run: Run, state: str) -> str:
        """The state in which an attempt ends that asks for ``state``."""
        if state != "AwaitingRetry":
            return state
        return "Cancelled" if run.state.name in ("Cancelling", "Cancelled") else "AwaitingRetry" if run.pool else "Failed"

    def unread(self, order: Sequence[str]) -> set[str]:
        """Runs whose messages nobody has read yet."""
        found: set[str] = set()
        for name in self.store.runs.streams("p", order):
            key = self.store.keys.prefix + name
            for group in self.store.client.xinfo_groups(key):
                entries = self.store.client.xrange(key, min=f"({group['last-delivered-id'].decode()}")
                found |= {lengthen(fields[b"r"]) for _, fields in entries}
        return found

    def look(self) -> None:
        found = zip(self.ids, self.store.runs.get_many(self.ids), strict=True) if self.ids else ()
        self.view = {run_id: run for run_id, run in found if run is not None}

    def step(self) -> Step:
        return Step(self)


class Step:
    """One operation: what it may change, beside what every operation may."""

    def __init__(self, machine: Operations) -> None:
        self.machine = machine
        self.may_appear: set[str] = set()
        self.may_vanish: set[str] = set()
        self.may_reopen: set[str] = set()
        self.may_crash: set[str] = set()
        self.claimed: dict[str, int] = {}

    def __enter__(self) -> Step:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            return
        before = self.machine.view
        self.machine.look()
        after = self.machine.view
        assert after.keys() - before.keys() <= self.may_appear
        assert before.keys() - after.keys() <= self.may_vanish
        self.machine.woken = {
            run_id
            for run_id, run in after.items()
            if run.place == "queued" and run_id in before and before[run_id].place == "parked"
        }
        for run_id in before.keys() & after.keys():
            self.compare(run_id, before[run_id], after[run_id])

    def compare(self, run_id: str, before: Run, after: Run) -> None:
        assert after.history[: len(before.history)] == before.history, "the past has changed"
        assert after.attempt == self.claimed.get(run_id, before.attempt), "the fence moves with a claim, and only then"
        assert run_id not in self.claimed or after.attempt == before.attempt + 1
        if before.is_terminal and run_id not in self.may_reopen:
            assert after == before, "an ended run has changed"
        if run_id not in self.may_reopen:
            assert 0 <= after.crash_count - before.crash_count <= int(run_id in self.may_crash)
        assert after.crash_count < after.crash_budget or after.is_terminal or not after.pool
        entered = after.history[len(before.history) :]
        if before.place == "leased" and (after.place != "leased" or after.attempt != before.attempt):
            self.machine.outcomes[run_id] = (before.attempt, entered[0].name)


def explore(server: RedisServer, examples: int, steps: int, phases: Sequence[Phase]) -> None:
    make: Callable[[], Operations] = lambda: Operations(server.url)  # noqa: E731
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        make,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            phases=phases,
        ),
    )


@pytest.mark.timeout(400)  # over TLS it takes 35 s with a core of its own, and with a third of one more than the usual 120 s
def test_whatever_happens_every_invariant_holds_and_no_run_is_lost(server: RedisServer) -> None:
    # Shrinking takes longer than a test may; the long one does it.
    explore(server, examples=40, steps=50, phases=(Phase.explicit, Phase.reuse, Phase.generate))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_same_for_long(server: RedisServer) -> None:
    explore(server, examples=200, steps=70, phases=tuple(Phase))
