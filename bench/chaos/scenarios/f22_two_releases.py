"""F22: this release and the one before it share a Redis, both with workers and schedulers, under F1's load and kills."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from datetime import timedelta
from pathlib import Path

from bench.chaos.scenarios import f01_workers_killed as f01
from bench.chaos.trial import CannotRun, Outcome, Scenario, Trial
from bench.chaos.world import World
from bench.stage import ROOT

PREVIOUS = "6d251125ce"
"""The commit that stands for the release before this one. Move it when a release is made."""

_FOLDERS = ("orchestrator", "workers", "scheduler", "cli")


def run(trial: Trial) -> Outcome:
    """As F1; half of the workers and of the schedulers are of the previous release, whose code knows no ``concurrency()``."""
    old = _previous(trial.home)
    paths = [str(old), *(str(old / name) for name in _FOLDERS[1:])]
    variables = {"PYTHONPATH": os.pathsep.join(paths)}

    def staff(world: World) -> None:
        each = 1 if trial.quick else 2
        for _ in range(each):
            world.fleet.worker(8)
            world.fleet.worker(8, variables=variables)
        world.fleet.scheduler()
        world.fleet.scheduler(variables=variables)
        world.wait_for_fleet(2 * each, 2)

    return f01.play(trial, staff, share_in_code=0.0)


def _previous(home: Path) -> Path:
    """The previous release, unpacked. Raises CannotRun where there is no history to take it from."""
    try:
        packed = subprocess.run(
            ["git", "-C", str(ROOT), "archive", PREVIOUS, *_FOLDERS], capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode().strip() or str(error)
        raise CannotRun(f"needs the history of this checkout, with commit {PREVIOUS}: {said}") from None
    folder = home / "previous"
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


SCENARIO = Scenario(
    "F22",
    "releases N and N-1 together",
    f"as F1, with half of the fleet from commit {PREVIOUS}, which stands for release N-1: {f01.EXPECTED}",
    run,
    limit=timedelta(minutes=40),
)
