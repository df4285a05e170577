"""F17: parameters, results and log lines that are too big, given in on every way there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.chaos.fleet import POOL, orch
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.exceptions import PayloadTooLarge

LIMIT = 256 * 1024
MIB = 1024 * 1024
REACHES = 4 * MIB
"""Bytes that all of it may send to Redis: the cut lines, and what fits."""


def run(trial: Trial) -> Outcome:
    """256 KiB + 1 and 64 MiB of parameters by API, command line and orch.yaml; a result; 100 MB lines (quick: 2, 8 MB)."""
    large, line_mb = (2 * MIB, 8) if trial.quick else (64 * MIB, 100)
    problems: list[str] = []
    with World(trial) as world:
        shout, carry = (world.deploy(function, module="loud", name="loud") for function in ("shout", "carry"))
        before = _received(world)
        for size in (LIMIT + 1, large):
            problems += _refused_by_the_api(world, size)
            problems += _refused_by_the_command_line(world, size)
            problems += _refused_by_deploy(world, size)
        refused = _received(world) - before
        if refused > MIB:
            problems.append(f"{refused:,} bytes of what was refused reached Redis")
        world.staff(workers=1, schedulers=0)
        before = _received(world)
        loud = world.new_run(deployment=shout, parameters={"megabytes": line_mb})
        heavy = world.new_run(deployment=carry, parameters={"kibibytes": 257})
        ids = world.create([loud, heavy])
        world.wait_until(lambda: all(run.is_terminal for run in world.read_runs(ids).values()), 120, "both runs to end")
        runs = world.read_runs(ids)
        lines = [line for line in world.store.runs.read_log(loud.id) if len(line.message) > 1000]
        cut = [line for line in lines if len(line.message) <= LIMIT + 200 and " more " in line.message[-100:]]
        if len(lines) != 2 or len(cut) != 2:
            problems.append(f"{len(lines)} long lines, {len(cut)} cut: {[(len(x.message), x.message[-60:]) for x in lines]}")
        if not runs[loud.id].state.is_completed():
            problems.append(f"the run with long lines is {runs[loud.id].state}")
        if len(world.store.runs.result(heavy.id)) > LIMIT:
            problems.append("a result beyond the limit stands in Redis")
        sent = _received(world) - before
        if sent > REACHES:
            problems.append(f"{sent:,} bytes of a line and a result reached Redis")
        how = runs[heavy.id].state
        problems += world.close_fleet() + world.broken()
    return Outcome(
        f"6 submissions refused with the limit and a hint ({refused:,} bytes reached Redis); lines of {line_mb} MB cut at the "
        f"client ({sent:,} bytes reached Redis); a result of 257 KiB: {how.name}",
        problems,
    )


def _received(world: World) -> int:
    return int(world.store.client.info("stats")["total_net_input_bytes"])


def _refused_by_the_api(world: World, size: int) -> list[str]:
    try:
        world.store.runs.create([world.new_run(parameters={"text": "x" * size})])
    except PayloadTooLarge as error:
        return [] if "262,144" in str(error) and error.hint else [f"the API says: {error}"]
    return [f"the API took {size:,} bytes"]


def _refused_by_the_command_line(world: World, size: int) -> list[str]:
    given = json.dumps({"ledger": "x" * size, "milliseconds": 1})
    return _expect_refusal(world, "deployment", "run", world.deployment.slug, "--params", "-", given=given)


def _refused_by_deploy(world: World, size: int) -> list[str]:
    folder = world.home / "project"
    folder.mkdir(exist_ok=True)
    (folder / "flows.py").write_text("from orchestrator import flow\n\n@flow\ndef f(text: str = ''):\n    pass\n")
    entry: dict[str, Any] = {"name": "big", "entrypoint": "flows.py:f", "work_pool": {"name": POOL}}
    entry["parameters"] = {"text": "x" * size}
    (folder / "orch.yaml").write_text(json.dumps({"deployments": [entry]}))
    return _expect_refusal(world, "deploy", "--all", folder=folder)


def _expect_refusal(world: World, *arguments: str, folder: Path | None = None, given: str = "") -> list[str]:
    done = orch(world.home, world.server.url, *arguments, folder=folder, given=given, seconds=120)
    said = done.stdout + done.stderr
    is_clear = "hint:" in said and "Traceback" not in said and ("may carry" in said or "larger than" in said)
    if done.returncode == 0 or not is_clear:
        return [f"orch {' '.join(arguments)[:60]}: exit status {done.returncode}: {said[-300:]}"]
    return []


SCENARIO = Scenario("F17", "too big", "refused or cut at the client with a clear error; never reaches Redis", run)
