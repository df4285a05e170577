"""F18: Redis's memory is full, and Redis's disk is."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from bench.chaos.servers import Server
from bench.chaos.trial import CannotRun, Outcome, Scenario, Trial
from bench.chaos.world import World
from orchestrator.exceptions import OrchError, StoreFull
from orchestrator.models import RunFilter


def run(trial: Trial) -> Outcome:
    """Memory first; then the disk, on a small tmpfs of its own. Both are full for 30 s (quick: 3 s)."""
    seconds = 3.0 if trial.quick else 30.0
    problems, line = _memory(trial, seconds)
    more, disk = _disk(trial, seconds)
    return Outcome(f"memory: {line}; disk: {disk}", problems + more)


def _memory(trial: Trial, seconds: float) -> tuple[list[str], str]:
    problems: list[str] = []
    with World(trial.part("memory")) as world:
        world.staff(workers=2, schedulers=1)
        submitter = world.submit(8.0)
        world.pass_time(3)
        used = int(world.store.client.info("memory")["used_memory"])
        world.store.client.config_set("maxmemory", int(used / 0.9))
        world.wait_until(lambda: submitter.refused > 0, 10, "a refusal")
        if "takes no new runs" not in submitter.last_refusal:
            problems.append(f"the refusal says: {submitter.last_refusal}")
        given = len(submitter.submitted)
        began = time.monotonic()
        world.wait_until(lambda: _ended(world) >= given, 60, "what runs to end at 90 %")
        trial.say(
            f"90 %: {submitter.refused} refused, {given} accepted before have ended after {time.monotonic() - began:.1f} s"
        )
        world.store.client.config_set("maxmemory", 0)
        world.wait_until(lambda: len(submitter.submitted) > given, 20, "submissions to go on")
        leased = _leased(world)
        world.store.client.config_set("maxmemory", 1)
        world.pass_time(max(seconds, 2 * world.lease.total_seconds()))
        stuck = [run for run in leased if not world.store.runs.get(run).is_terminal]
        if stuck:
            problems.append(f"{len(stuck)} of {len(leased)} runs that executed at 100 % have not ended")
        try:
            world.store.runs.create([world.new_run()])
            problems.append("a run was taken in at 100 %")
        except StoreFull:
            pass
        world.store.client.config_set("maxmemory", 0)
        problems += world.quiesce()
        problems += world.close_fleet()
        verdict = world.verdict(may_restart=trial.quick)
    problems += verdict.problems
    return problems, (
        f"{submitter.refused:,} submissions refused, {given:,} runs ended at 90 %, {len(leased)} at 100 %; "
        f"{verdict.runs:,} runs, {verdict.lost} lost, {verdict.doubled} double-completed, {verdict.restarted} restarted"
    )


def _disk(trial: Trial, seconds: float) -> tuple[list[str], str]:
    own = trial.part("disk")
    folder = own.home / "redis"
    folder.mkdir()
    _mount(folder)
    try:
        with World(own, server=Server(folder)) as world:
            world.staff(workers=1, schedulers=1)
            submitter = world.submit(8.0)
            world.pass_time(3)
            _fill(folder / "ballast")
            world.wait_until(lambda: submitter.refused > 0, 30, "a refusal")
            said = submitter.last_refusal
            world.pass_time(seconds)
            (folder / "ballast").unlink()
            given = len(submitter.submitted)
            world.wait_until(lambda: len(submitter.submitted) > given, 30, "submissions to go on")
            problems = [] if "disk" in said else [f"the refusal says: {said}"]
            problems += world.quiesce()
            problems += world.close_fleet()
            verdict = world.verdict(may_restart=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
    line = f"full for {seconds:g} s; {verdict.runs:,} runs, {verdict.lost} lost, {verdict.doubled} double-completed"
    return problems + verdict.problems, line


def _mount(folder: Path) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotRun(f"needs the right to mount a small tmpfs for a full disk: {done.stderr.strip()}")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(os.urandom(4096))


def _leased(world: World) -> list[str]:
    return [run.id for run in world.store.queries.runs(RunFilter(states=("Running",)), limit=50).runs]


def _ended(world: World) -> int:
    with suppress(OrchError):
        return world.store.queries.count(RunFilter(states=("COMPLETED",)))
    return 0


SCENARIO = Scenario(
    "F18", "Redis full, disk full", "submissions refused at 80 %; running runs renew, finish and free their slots", run,
    needs=("mount",),
)  # fmt: skip
