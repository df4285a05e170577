"""The store alone: how many runs a second one client creates, claims and finishes, and what a run takes in Redis."""

from __future__ import annotations

import time

from bench.measure import Measure
from bench.stage import POOL, Stage
from orchestrator.states import State, StateType
from orchestrator.store.answers import End

PARAMETERS = {"region": "eu", "days": 3}


def measure(quick: bool) -> list[Measure]:
    """One client, one connection, calls one after another."""
    single, many = (500, 3_000) if quick else (2_000, 20_000)
    with Stage("storage") as stage:
        deployment = stage.deploy("noop")
        new = [stage.new_run(deployment, **PARAMETERS) for _ in range(200 + single + many)]
        store, warm = stage.store, new[:200]
        store.runs.create(warm)
        _drain(stage, 100)
        empty = stage.used_bytes()

        start = time.perf_counter()
        for run in new[200 : 200 + single]:
            store.runs.create([run])
        one_by_one = single / (time.perf_counter() - start)
        few = stage.used_bytes()
        start = time.perf_counter()
        store.runs.create(new[200 + single :])
        by_hundred = many / (time.perf_counter() - start)
        queued_bytes = (stage.used_bytes() - few) / many

        start = time.perf_counter()
        assert _drain(stage, 100, many) == many
        drained = many / (time.perf_counter() - start)
        start = time.perf_counter()
        assert _drain(stage, 1) == single
        drained_singly = single / (time.perf_counter() - start)
        ended_bytes = (stage.used_bytes() - empty) / (single + many)
    return [
        Measure("create, one at a time", one_by_one, "/s", single, "one client, one call and round trip per run"),
        Measure("create, by 100", by_hundred, "/s", many, "one client, a hundred runs per call"),
        Measure("claim + finish, one at a time", drained_singly, "/s", single, "two round trips per run, no body"),
        Measure("claim + finish, by 100", drained, "/s", many, "a hundred runs per call, no body"),
        Measure(
            "queued run", queued_bytes, "bytes", many, "Redis memory with two small parameters, indexes, event and stream entry"
        ),
        Measure(
            "ended run",
            ended_bytes,
            "bytes",
            single + many,
            "Redis memory with history, indexes and its events; no log, no tasks",
        ),
    ]


def _drain(stage: Stage, batch: int, wanted: int | None = None) -> int:
    """Claim and finish runs; how many."""
    runs, done = stage.store.runs, 0
    while wanted is None or done < wanted:
        claims = runs.claim("bench", POOL, ["default"], batch, start=True)
        if not claims.claimed:
            break
        answers = runs.finish([End(run.id, run.attempt, State(StateType.COMPLETED)) for run in claims.claimed], worker="bench")
        assert set(answers) == {"ok"}, answers
        done += len(claims.claimed)
    return done
