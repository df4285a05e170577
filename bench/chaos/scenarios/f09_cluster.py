"""F9: a Cluster, in turn: the namespace's shard loses its primary, its slot moves as a whole, and key by key."""

from __future__ import annotations

import time
from datetime import timedelta

from redis.crc import key_slot

from bench.chaos.primaries import EXPECTED, LIMIT, Harm, outcome
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.servers import ClusterServers
from orchestrator.keys import Keys
from orchestrator.settings import Settings

_SLOT = key_slot(Keys(Settings().namespace).prefix.encode())


def run(trial: Trial) -> Outcome:
    """18 harms with durability default, and 18 with replicated (quick: 3 with replicated), under 200 submits a second (68)."""

    def make() -> ClusterServers:
        return ClusterServers(node_timeout_ms=1000 if trial.quick else 5000)

    durabilities = ("replicated",) if trial.quick else ("default", "replicated")
    return outcome(trial, make, _harm, 3 if trial.quick else 18, "3 shards of 2 servers", durabilities)


def _harm(servers: ClusterServers, number: int) -> Harm:
    return (_kill, _move_at_once, _move_slowly)[number % 3](servers)


def _kill(servers: ClusterServers) -> Harm:
    old = servers.owner(_SLOT)
    began = time.monotonic()
    old.kill()
    servers.wait_for_new_owner(_SLOT, old)
    over = time.monotonic()
    old.start()
    return Harm("primary killed", began, over)


def _move_at_once(servers: ClusterServers) -> Harm:
    source = servers.owner(_SLOT)
    target = next(server for server in servers.primaries() if server is not source)
    began = time.monotonic()
    servers.move_at_once(_SLOT, target)
    return Harm("slot moved as a whole", began, time.monotonic())


def _move_slowly(servers: ClusterServers) -> Harm:
    source = servers.owner(_SLOT)
    target = next(server for server in servers.primaries() if server is not source)
    began = time.monotonic()
    servers.begin_slow_move(_SLOT, target)
    servers.move_keys(_SLOT, source, target)
    servers.end_slow_move(_SLOT, source, target)
    return Harm("slot moved key by key", began, time.monotonic())


SCENARIO = Scenario(
    "F9",
    "Cluster fails over and moves slots",
    EXPECTED,
    run,
    limit=LIMIT,
    quick_limit=timedelta(seconds=180),
)
