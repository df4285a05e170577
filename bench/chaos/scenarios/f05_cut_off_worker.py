"""F5: a worker's link to Redis goes down for longer than its leases: it lives in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.chaos.scenarios.f04_paused_worker import begin_load, conclude, executing_under
from bench.chaos.servers import Server
from bench.chaos.trial import CannotRun, Outcome, Scenario, Trial
from bench.chaos.world import World


def run(trial: Trial) -> Outcome:
    """Five cuts of 60 s (quick: one of 3 s)."""
    cuts, seconds = (1, 3.0) if trial.quick else (5, 60.0)
    with _link() as (namespace, link, address), World(trial, server=Server(trial.home / "redis", host=address)) as world:
        world.fleet.scheduler()
        world.fleet.worker()
        far = world.fleet.worker(prefix=("ip", "netns", "exec", namespace))
        world.wait_for_fleet(2, 1)
        load = begin_load(world)
        harmed = []
        for _ in range(cuts):
            world.wait_until(lambda: executing_under(world, far.pid), 30, "a run to disturb")
            world.note_kill("cut", [far.pid])
            _ip("link", "set", link, "down")
            harmed.append(executing_under(world, far.pid))
            trial.say(f"cut off with {len(harmed[-1])} runs; {len(load.submitted):,} runs in all")
            world.pass_time(seconds)
            _ip("link", "set", link, "up")
            world.pass_time(world.lease.total_seconds())
        return conclude(world, harmed, f"{cuts} cuts of {seconds:g} s")


@contextmanager
def _link() -> Iterator[tuple[str, str, str]]:
    """A network namespace, the near end of its only link, and the address at which it sees us. Raises CannotRun."""
    number = os.getpid()
    namespace, near, far = f"orch-{number}", f"orch-n{number}", f"orch-f{number}"
    net = f"10.{200 + number % 50}.{number // 50 % 250}"
    try:
        _ip("netns", "add", namespace)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise CannotRun(f"needs network namespaces (ip netns add, as root): {said.strip()}") from None
    try:
        try:
            _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", namespace)
            _ip("addr", "add", f"{net}.1/24", "dev", near)
            _ip("link", "set", near, "up")
            _ip("-n", namespace, "addr", "add", f"{net}.2/24", "dev", far)
            _ip("-n", namespace, "link", "set", far, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            raise CannotRun(f"needs pairs of virtual network devices (ip link add type veth): {error.stderr.strip()}") from None
        yield namespace, near, f"{net}.1"
    finally:
        subprocess.run(["ip", "link", "del", near], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True, text=True)


SCENARIO = Scenario(
    "F5",
    "cut-off worker",
    "late renewals and late ends are refused every time; its runs are dead before their successors start",
    run,
    needs=("ip",),
)
