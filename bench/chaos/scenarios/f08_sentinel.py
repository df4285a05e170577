"""F8: the primary is killed again and again under load; Sentinels make a replica the primary."""

from __future__ import annotations

import time
from datetime import timedelta

from bench.chaos.primaries import EXPECTED, LIMIT, Harm, outcome
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.servers import SentinelServers


def run(trial: Trial) -> Outcome:
    """20 kills with durability default, and 20 with replicated (quick: one each), under 200 submits a second (68)."""
    times = 1 if trial.quick else 20
    # What docs/high-availability.md recommends; on a busy machine, Sentinels of less patience fail over by themselves.
    down_after_ms = 1000 if trial.quick else 5000
    return outcome(trial, lambda: SentinelServers(down_after_ms=down_after_ms), _kill, times, "3 servers and 3 Sentinels")


def _kill(servers: SentinelServers, _number: int) -> Harm:
    old = servers.primary()
    began = time.monotonic()
    old.kill()
    new = servers.wait_for_new_primary(old)
    over = time.monotonic()
    # As whoever looks after the machine would; Sentinel takes ten seconds longer to make a replica of one that comes back.
    old.start("--replicaof", new.address[0], str(new.port))
    return Harm("primary killed", began, over)


SCENARIO = Scenario(
    "F8",
    "Sentinel fails over",
    EXPECTED,
    run,
    limit=LIMIT,
    quick_limit=timedelta(seconds=180),
)
