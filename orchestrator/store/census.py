"""How much of everything there is, for metrics: read in five round trips, bounded however much that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.keys import PRIORITIES
from orchestrator.states import STATE_TYPES, TERMINAL
from orchestrator.store import layout
from orchestrator.store.records import read_rate, read_setting

if TYPE_CHECKING:
    from orchestrator.store.facade import Store

APART = 100
"""Of each state so many runs are told apart by pool and queue: Redis does nothing else meanwhile."""

_POOL_AT, _QUEUE_AT = (layout.PLACES[field] + 1 for field in ("pool", "queue"))
_LIVE = [name for name, kind in STATE_TYPES.items() if kind not in TERMINAL]

Place = tuple[str, str, str]
"""State, work pool and queue; the latter two are '' where nobody has looked."""


@dataclass
class Census:
    """One count. ``oldest``: seconds since a run was due or entered its state. ``streams``: by kind, work pool and queue.

    ``limits``: slots used and in all, by a name for people. ``overdue_s``: of the oldest run that should have been queued by
    now. ``memory``: used and at most, in bytes; 0 = no bound. ``events`` is None where the server does not count them.
    """

    runs: dict[Place, int] = field(default_factory=dict)
    oldest: dict[Place, float] = field(default_factory=dict)
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    streams: dict[Place, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    overdue_s: float = 0.0
    memory: tuple[int, int] = (0, 0)
    evicts: bool = False
    events: int | None = None


def take(store: Store) -> Census:
    """Count once. Raises StoreUnavailable."""
    census = Census()
    [now_ms], *states = store.scripts.call("census", states=_LIVE, apart=APART, pool_at=_POOL_AT, queue_at=_QUEUE_AT)
    for state, (total, *places) in zip(_LIVE, states, strict=True):
        _count_state(census, _label(state), total, places, now_ms)

    keys, client = store.keys, store.client
    pipeline = client.pipeline(transaction=False)
    pipeline.zrange(keys.pools, 0, -1)
    pipeline.hgetall(keys.limits)
    pipeline.zrange(keys.due, 0, 0, withscores=True)
    pipeline.zcard(keys.index("all"))
    pipeline.dbsize()
    pipeline.info("memory")
    pipeline.xlen(keys.events)
    pipeline.xlen(keys.malformed)
    pipeline.xinfo_stream(keys.events)
    pools, settings, due, runs, size, memory, events, malformed, feed = pipeline.execute(raise_on_error=False)

    census.overdue_s = max(0.0, (now_ms - due[0][1]) / 1000) if due else 0.0
    census.keys = {"run": int(runs), "other": max(0, int(size) - int(runs))}
    if isinstance(memory, dict):  # some providers forbid INFO
        census.memory = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
        census.evicts = memory.get("maxmemory_policy", "noeviction") != "noeviction"
    if isinstance(feed, dict) and "entries-added" in feed:
        census.events = int(feed["entries-added"])
    census.streams = {("events", "", ""): int(events), ("malformed", "", ""): int(malformed)}
    _count_streams(store, census, [pool.decode() for pool in pools])
    _count_limits(store, census, {gate.decode(errors="replace"): text for gate, text in settings.items()}, now_ms)
    return census


def _label(state: str) -> str:
    """The state as metrics call it."""
    names = {"AwaitingRetry": "awaiting_retry", "AwaitingConcurrencySlot": "awaiting_concurrency_slot", "Suspended": "paused"}
    return names.get(state, state.lower())


def _count_state(census: Census, state: str, total: int, places: Sequence[Any], now_ms: int) -> None:
    rest = int(total)
    census.runs.setdefault((state, "", ""), 0)
    for pool, queue, count, since_ms in zip(*[iter(places)] * 4, strict=True):
        place = (state, pool.decode(), queue.decode())
        rest -= int(count)
        census.runs[place] = census.runs.get(place, 0) + int(count)
        age_s = max(0.0, (now_ms - int(since_ms)) / 1000)
        census.oldest[place] = max(age_s, census.oldest.get(place, 0.0))
    census.runs[state, "", ""] += max(0, rest)


def _count_streams(store: Store, census: Census, pools: Sequence[str]) -> None:
    pipeline = store.client.pipeline(transaction=False)
    for pool in pools:
        pipeline.hkeys(store.keys.queues(pool))
    found = [(pool, name.decode()) for pool, names in zip(pools, pipeline.execute(), strict=True) for name in names]
    pipeline = store.client.pipeline(transaction=False)
    for pool in pools:
        pipeline.xlen(store.keys.resumed(pool))
    for pool, queue in found:
        for priority in PRIORITIES:
            pipeline.xlen(store.keys.queue(pool, queue, priority))
    lengths: Iterator[int] = iter(pipeline.execute())
    for pool in pools:
        census.streams["resumed", pool, ""] = next(lengths)
    for pool, queue in found:
        census.streams["queue", pool, queue] = sum(next(lengths) for _ in PRIORITIES)


def _count_limits(store: Store, census: Census, settings: Mapping[str, bytes], now_ms: int) -> None:
    limits = {gate: setting for gate, text in settings.items() if "limit" in (setting := read_setting(gate, text))}
    pipeline = store.client.pipeline(transaction=False)
    for gate in limits:
        kind, _, name = gate.partition(":")
        pipeline.zcard(store.keys.slots(gate))
        pipeline.hget(store.keys.rates, gate)
        pipeline.hget(store.keys.deployment(name if kind == "deployment" else ""), "name")
    answers = iter(pipeline.execute())
    for gate, setting in limits.items():
        used, rate, deployment = next(answers), next(answers), next(answers)
        if setting.get("decay"):
            back_at_ms = read_rate(rate or b"0") or 0.0
            used = -(-max(0.0, back_at_ms - now_ms) * setting["decay"] // 1000)
        kind, _, name = gate.partition(":")
        if kind in ("global", "deployment"):  # these are called by an id
            name = setting.get("name", "") if kind == "global" else (deployment or b"").decode()
        if name:
            census.limits[f"{kind}:{name}"] = int(used), int(setting["limit"])
