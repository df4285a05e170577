"""F16: entries, runs and a schema that make no sense, among runs that do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress

from bench.chaos.fleet import POOL, orch
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.keys import GROUP, PRIORITIES, shorten

FIELDS = (
    *("state", "place", "msg", "attempt", "prio", "due", "starts", "crashes", "budget", "dep", "params", "calls", "flow"),
    *("expires", "history", "parent", "at"),
)


def run(trial: Trial) -> Outcome:
    """10,000 garbled entries and runs (quick: 400) under load; then a namespace of a future release."""
    count = 400 if trial.quick else 10_000
    with World(trial) as world:
        world.staff(workers=2, schedulers=1)
        world.submit(8.0)
        chance = trial.chance()
        garbled: list[str] = []
        for start in range(0, count, 100):
            _garble_entries(world, chance, 50)
            garbled += _garble_runs(world, chance, 50)
            trial.say(f"{start + 100:,} garbled, {world.store.letters.count():,} dead letters")
            world.pass_time(0.3)
        problems = _settle(world)
        letters = world.store.letters.latest(20_000)
        problems += [f"letter {letter.id} has no reason" for letter in letters if not letter.reason]
        world.store.runs.reconcile_all()
        _forget(world, garbled)
        problems += world.quiesce()
        problems += world.close_fleet()
        verdict = world.verdict(may_restart=trial.quick)
        problems += verdict.problems + _refused_in_future(world)
    if len(letters) < count // 2:
        problems.append(f"only {len(letters)} of {count} became dead letters")
    reasons = len({letter.reason for letter in letters})
    return Outcome(
        f"{count:,} entries and runs garbled: {len(letters):,} dead letters with {reasons} reasons, nothing pending, "
        f"no process died; {verdict.runs:,} runs beside them, {verdict.lost} lost, {verdict.doubled} double-completed",
        problems,
    )


def _garble_entries(world: World, chance: random.Random, count: int) -> None:
    pipeline = world.store.client.pipeline(transaction=False)
    for _ in range(count):
        fields = {chance.choice((b"r", b"v", b"x", _bytes(chance))): _bytes(chance) for _ in range(chance.randint(1, 3))}
        pipeline.xadd(chance.choice(_streams(world)), fields)
    pipeline.execute()


def _garble_runs(world: World, chance: random.Random, count: int) -> list[str]:
    """Runs under ids that nobody was given: their hash, or its type, is garbled before or while a worker claims it."""
    created = world.store.runs.create([world.new_run(milliseconds=1) for _ in range(count)])
    pipeline = world.store.client.pipeline(transaction=False)
    for one in created:
        key = world.store.keys.run(shorten(one.id))
        if chance.random() < 0.1:
            pipeline.delete(key)
            pipeline.rpush(key, "x")
        elif chance.random() < 0.2:
            pipeline.hdel(key, *chance.sample(FIELDS, 2))
        else:
            pipeline.hset(key, chance.choice(FIELDS), _bytes(chance))
    pipeline.execute(raise_on_error=False)
    return [one.id for one in created]


def _forget(world: World, runs: Sequence[str]) -> None:
    """Delete what is left of garbled runs, so that invariants speak of the others."""
    with suppress(TimeoutError):
        world.wait_until(lambda: "refused" not in world.store.runs.delete(runs), 60)
    world.store.runs.reconcile_all()


def _settle(world: World) -> list[str]:
    """Nothing is pending soon: everything was taken or set aside."""
    try:
        world.wait_until(lambda: sum(_pending(world)) == 0, 30 + world.lease.total_seconds(), "pending entries to go")
    except TimeoutError:
        return [f"{sum(_pending(world))} entries stay pending"]
    return []


def _pending(world: World) -> Sequence[int]:
    found = []
    for stream in _streams(world):
        groups = world.store.client.xinfo_groups(stream) if world.store.client.exists(stream) else []
        found += [int(group["pending"]) + int(group.get("lag") or 0) for group in groups if group["name"] == GROUP.encode()]
    return found


def _streams(world: World) -> list[str]:
    keys = world.store.keys
    return [keys.resumed(POOL), *(keys.queue(POOL, "default", priority) for priority in PRIORITIES)]


def _bytes(chance: random.Random) -> bytes:
    return chance.choice((b"", b"-1", b"9" * 30, b"nan", b"Running", b"leased", chance.randbytes(chance.randint(1, 40))))


def _refused_in_future(world: World) -> list[str]:
    """A worker of this release does not start on a namespace that a later one has written."""
    world.store.client.hset(world.store.keys.settings, "schema", 99)
    done = orch(world.home, world.server.url, "worker", "start", "--pool", POOL)
    refused = done.returncode == 6 and "newer" in done.stderr
    return [] if refused else [f"a worker starts on a future schema, or says {done.returncode}: {done.stderr}"]


SCENARIO = Scenario("F16", "malformed", "0 processes die; dead letters with a reason; nothing stays pending", run)
