"""F16: entries, runs, limits and a schema that make no sense, among runs that do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bench.chaos.fleet import POOL, orch
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.keys import GROUP, PRIORITIES, shorten
from orchestrator.store.layout import FIELDS

OWN = ("run", "history", "params")  # fields of a run's hash

PUT = """
local array = cmsgpack.unpack(redis.call('HGET', KEYS[1], 'run'))
array[tonumber(ARGV[1])] = ARGV[2]
redis.call('HSET', KEYS[1], 'run', cmsgpack.pack(array))
"""
"""Have one of a run's fields hold something else, in one step: a worker may claim it just then."""


def run(trial: Trial) -> Outcome:
    """10,000 garbled entries and runs (quick: 400) under load, and 5 limits for each 100; then a future release's namespace."""
    count = 400 if trial.quick else 10_000
    with World(trial) as world:
        world.staff(workers=2, schedulers=1)
        world.submit(8.0)
        chance = trial.chance()
        garbled: list[str] = []
        behind: dict[str, str] = {}
        for start in range(0, count, 100):
            _garble_entries(world, chance, 50)
            garbled += _garble_runs(world, chance, 50)
            behind |= _garble_limits(world, chance, 5, start)
            trial.say(f"{start + 100:,} garbled, {world.store.letters.count():,} dead letters")
            world.pass_time(0.3)
        problems = _settle(world)
        closed = {gate for gate, setting in _settings(world).items() if "defect" in setting}
        problems += _passed(world, [run for run, gate in behind.items() if gate in closed])
        letters = world.store.letters.latest(20_000)
        problems += [f"letter {letter.id} has no reason" for letter in letters if not letter.reason]
        world.store.runs.reconcile_all()
        problems += [f"{gate} cannot be read after a repair" for gate, set_to in _settings(world).items() if "defect" in set_to]
        _forget(world, [*garbled, *behind])
        problems += world.quiesce()
        problems += world.close_fleet()
        verdict = world.verdict(may_restart=trial.quick)
        problems += verdict.problems + _refused_in_future(world)
    if len(letters) < count // 2:
        problems.append(f"only {len(letters)} of {count} became dead letters")
    reasons = len({letter.reason for letter in letters})
    return Outcome(
        f"{count:,} entries and runs garbled: {len(letters):,} dead letters with {reasons} reasons, nothing pending, "
        f"no process died; {len(closed)} of {len(behind)} garbled limits closed, and nobody passed them; "
        f"{verdict.runs:,} runs beside them, {verdict.lost} lost, {verdict.doubled} double-completed",
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
            pipeline.hdel(key, chance.choice(OWN))
        elif chance.random() < 0.2:
            pipeline.hset(key, chance.choice(OWN), _bytes(chance))
        else:
            pipeline.eval(PUT, 1, key, chance.randint(1, len(FIELDS)), _bytes(chance))
    pipeline.execute(raise_on_error=False)
    return [one.id for one in created]


def _garble_limits(world: World, chance: random.Random, count: int, first: int) -> dict[str, str]:
    """What limits of tags, rates and names of global limits are set to is garbled. A run behind each limit -> its gate."""
    keys, behind = world.store.keys, {}
    for number in range(first, first + count):
        gate = f"tag:garbled-{number}"
        world.store.client.hset(keys.limits, gate, _bytes(chance) if chance.random() < 0.3 else _damaged(chance))
        world.store.client.hset(keys.rates, gate, _bytes(chance))
        world.store.client.hset(keys.global_limits, f"garbled-{number}", _bytes(chance))
        [made] = world.store.runs.create([world.new_run(milliseconds=1, tags=[gate.removeprefix("tag:")])])
        behind[made.id] = gate
    return behind


def _damaged(chance: random.Random) -> bytes:
    """A setting, of which one byte is another, or that ends too soon."""
    text = bytearray(chance.choice((b'{"limit":5,"held":2}', b'{"paused":true}', b'{"limit":5,"decay":0.5,"name":"db"}')))
    if chance.random() < 0.3:
        return bytes(text[: chance.randrange(len(text))])
    text[chance.randrange(len(text))] = chance.randrange(256)
    return bytes(text)


def _settings(world: World) -> dict[str, dict[str, Any]]:
    return world.store.limits.settings()


def _passed(world: World, runs: Sequence[str]) -> list[str]:
    found = world.store.runs.get_many(runs)
    return [f"{run.id} was started behind a limit that cannot be read" for run in found if run and run.attempt]


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
