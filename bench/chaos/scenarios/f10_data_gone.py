"""F10: the data are gone while everything works: FLUSHALL, and an empty server in place of the old one."""

from __future__ import annotations

import shutil
import subprocess
import time

from bench.chaos.fleet import Member
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World, spread

SAID = "is not on this server any more"
EXIT_STATUS = 6


def run(trial: Trial) -> Outcome:
    """Twice a fleet with a watcher; all of it has to stop by itself within a renewal, five seconds of mercy added."""
    problems: list[str] = []
    took: list[float] = []
    for number, what in enumerate(("FLUSHALL", "an empty server")):
        with World(trial.part(str(number))) as world:
            [created] = world.store.runs.create([world.new_run(milliseconds=600_000)])
            world.staff(workers=1, schedulers=1)
            world.wait_until(lambda: world.effects(), 30, "the run to start")
            world.fleet.start("flow-run", "watch", created.id)
            log = world.home / "log"
            world.wait_until(lambda: created.name in log.read_text(errors="replace"), 60, "the watcher to watch")  # noqa: B023
            members = list(world.fleet.members)
            for member in members:
                member.is_wanted = False
            began = time.monotonic()
            _lose_data(world, what)
            limit = world.lease.total_seconds() / 3 + 5 + (10 if trial.quick else 0)
            for member in members:
                problems += [f"{what}: {problem}" for problem in _expect_end(member, began + limit)]
            took.append(time.monotonic() - began)
            said = log.read_text(errors="replace").count(SAID)
            if said < len(members):
                problems.append(f"{what}: {said} of {len(members)} processes said that the data are gone")
            world.fleet.members.clear()
            trial.say(f"{what}: all have stopped after {took[-1]:.1f} s")
    line = f"worker, scheduler and watcher stopped with exit status 6 and the reason, the last after {spread(took)}"
    return Outcome(line, problems)


def _lose_data(world: World, what: str) -> None:
    if what == "FLUSHALL":
        world.store.client.flushall()
        return
    world.server.kill()
    for part in world.server.folder.iterdir():
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    world.server.start()


def _expect_end(member: Member, until: float) -> list[str]:
    try:
        status = member.process.wait(max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        member.process.kill()
        member.process.wait()
        return [f"{member.name} went on as if nothing had happened"]
    return [] if status == EXIT_STATUS else [f"{member.name} ended with {status} instead of {EXIT_STATUS}"]


SCENARIO = Scenario("F10", "data gone", "processes stop with a clear error; never empty and healthy", run)
