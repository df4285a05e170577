"""What must hold at any moment, checked by reading. Tests call ``check`` at their end, ``orch doctor`` whenever somebody asks.

The run's hash is the truth. ``_places`` says in which sorted sets a run has to stand. First each run is looked for in its sets
and streams; then those that hold another number than was looked for are read member by member. Everything is read in batches,
so a namespace of any size may be checked while it is in use; what a first look finds is looked at again, because a run may
have moved in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgpack

from orchestrator.keys import PERMANENT, PRIORITIES, is_short, lengthen
from orchestrator.models import Call
from orchestrator.states import TRANSITIONS
from orchestrator.store import streams
from orchestrator.store.client import Redis, is_of_another_type
from orchestrator.store.records import Unreadable, read_calls, read_fields, read_rate, read_setting, text_of
from orchestrator.store.scripts import SHARE

if TYPE_CHECKING:
    from orchestrator.store import Store

T = TypeVar("T")

_BATCH = 200
_PERMANENT = tuple(pattern.removesuffix("*") for pattern in PERMANENT if pattern.endswith("*"))


class Violation(NamedTuple):
    """One broken invariant: what is wrong, and with which run (its id) or key."""

    what: str
    subject: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"


@dataclass(slots=True)
class _Run:
    """A run's fields, as text; an absent one is ''."""

    short: str
    fields: dict[str, str]
    history: bytes
    calls: tuple[Call, ...]

    def __getitem__(self, field: str) -> str:
        return self.fields[field]

    @property
    def attempt(self) -> int:
        return int(self["attempt"] or 0)

    @property
    def gates(self) -> list[str]:
        return self["gates"].split("\n") if self["gates"] else []

    @property
    def slot_attempt(self) -> int:
        """The attempt under which its slots are taken: the next one, where they are reserved."""
        return self.attempt + 1 if self["reserved"] else self.attempt


def check(store: Store) -> list[Violation]:
    """Every broken invariant of the namespace; an empty list is good news. Changes nothing."""
    found = set(_look(store))
    return sorted(found & set(_look(store))) if found else []


def _look(store: Store) -> Iterator[Violation]:
    expected: Counter[str] = Counter()
    for names in _batches(_names(store)):
        owners = _owners(store, names)
        runs = _read_runs(store, list(owners.values()))
        yield from _check_lifetimes(store, names, {name: runs[short] for name, short in owners.items()})
        yield from _check_runs(
            store, [run for run in (runs[owners[n]] for n in names if n.startswith("run:")) if run], expected
        )
    for names in _batches(_names(store)):
        yield from _check_gates(store, [name for name in names if name.startswith(("slots:", "parked:"))])
        for name in names:
            if name.startswith(_STREAMS):
                yield from _check_pending(store, name)
        for name in _surprising(store, names, expected):
            check_members = next(check for kind, check in _MEMBERS.items() if name.startswith(kind))
            yield from check_members(store, name)
    yield from _check_settings(store)
    yield from _check_schedules(store)


def _names(store: Store) -> Iterator[str]:
    """The names of the namespace's keys, below its prefix."""
    prefix = store.keys.prefix
    for key in _client(store).scan_iter(match=prefix + "*", count=1000):
        yield key.decode(errors="replace").removeprefix(prefix)


def _client(store: Store) -> Redis:
    return store.client


# --- a run -----------------------------------------------------------------------------------------------------------------


def _check_runs(store: Store, runs: Sequence[_Run], expected: Counter[str]) -> Iterator[Violation]:
    """Each run is where its hash says. Counts in ``expected`` what it looked for, by set or stream."""
    prefix = store.keys.prefix
    pipeline = _client(store).pipeline(transaction=False)
    for run in runs:
        for key in _places(run):
            pipeline.zscore(prefix + key, run.short)
        for key, member in _held(run):
            pipeline.zscore(prefix + key, member)
        message, stream = _message(run)
        pipeline.xrange(prefix + stream, message, message) if message else pipeline.echo("")
        pipeline.get(prefix + "idempotency:" + run["idem"]) if run["idem"] else pipeline.echo("")
        expected.update([*_places(run), *(key for key, _ in _held(run)), *([stream] if message else [])])
    answers = iter(pipeline.execute())
    for run in runs:
        problems = [f"does not stand in {key}" for key in _places(run) if next(answers) is None]
        problems += [f"does not stand in {key} as {member}" for key, member in _held(run) if next(answers) is None]
        entry, holder = next(answers), next(answers)
        problems += _message_problems(run, entry)
        if run["idem"] and holder != run.short.encode():
            problems.append("its idempotency key does not stand for it")
        problems += [*_state_problems(run), *_slot_problems(run), *_history_problems(run)]
        yield from (Violation(problem, lengthen(run.short)) for problem in problems)


def _held(run: _Run) -> list[tuple[str, str]]:
    """The members of slots and waiters that stand for the run and its code: (key below the prefix, member)."""
    held = [(f"slots:{gate}", _slot(run)) for gate in run.gates]
    if run["share"]:
        priority = PRIORITIES[int(run["prio"] or 1)]
        share = f"{run['pool']}:{run['queue']}:{priority}:{run['dep']}"
        held.append((f"slots:share:{share}", f"{run.short}:{run.attempt + 1}:0:0"))
    for call in run.calls:
        name = f"{run.short}:{run.attempt}:{call.number}"
        if call.waits:
            held.append((f"parked:{call.waits}", name))
            continue
        held += [(f"slots:{gate}", f"{name}:{i}") for gate in call.gates for i in range(call.slots)]
    return held


def _places(run: _Run) -> list[str]:
    """The sorted sets, below the prefix, in which a run has to stand, and in no others of their kind."""
    keys = ["index:all", f"index:flow:{run['flow']}", f"index:state:{run['state']}"]
    keys += [f"index:{of}:{run[field]}" for of, field in (("deployment", "dep"), ("parent", "parent")) if run[field]]
    keys += [f"index:tag:{tag}" for tag in run["tags"].split("\n") if tag]
    place = {"due": "due", "leased": "leases", "paused": "paused", "parked": f"parked:{run['gate']}"}.get(run["place"])
    keys += [place] if place else []
    keys += ["reservations"] if run["reserved"] else []
    return keys + (["expires"] if _may_expire(run) else [])


def _may_expire(run: _Run) -> bool:
    """A run expires while it waits for its first start."""
    return bool(run["expires"]) and run.attempt == 0 and run["place"] != "ended"


def _state_problems(run: _Run) -> Iterator[str]:
    if bool(run["gate"]) != (run["place"] == "parked"):
        yield f"is {run['place']} and waits at the gate {run['gate']!r}"
    if run["place"] == "leased" and not run["worker"]:
        yield "is leased to nobody"


def _message(run: _Run) -> tuple[str, str]:
    """The id of the run's message, and its stream."""
    message, _, stream = run["msg"].partition(" ")
    return message, stream


def _message_problems(run: _Run, entry: Any) -> Iterator[str]:
    if (run["place"] == "queued") != bool(run["msg"]):
        yield f"is {run['place']} and has the message {run['msg']!r}"
    elif run["msg"] and (not entry or entry[0][1].get(b"r") != run.short.encode()):
        yield f"its message {run['msg']} is not in the stream"


def _slot_problems(run: _Run) -> Iterator[str]:
    if len(set(run.gates)) < len(run.gates):
        yield f"names a gate twice: {run.gates}"
    if run["reserved"] and run["place"] != "queued":
        yield f"is {run['place']} and has slots reserved"
    if run.gates and run["place"] != "leased" and not run["reserved"]:
        yield f"is {run['place']} and holds slots of {', '.join(run.gates)}"
    if run["share"] and run["place"] != "queued":
        yield f"is {run['place']}, and has a share of its queue"
    if run.calls and run["place"] != "leased":
        yield f"is {run['place']}, and its code holds slots"
    if run["reserved"] and not run.gates:
        yield "has a reservation of nothing"


def _history_problems(run: _Run) -> Iterator[str]:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(run.history)
    try:
        entries = [(str(name), int(attempt)) for name, _, attempt, _ in unpacker]
    except (ValueError, TypeError):
        yield "its history cannot be read"
        return
    if not entries or entries[-1][0] != (run["label"] or run["state"]):
        yield f"is {run['label'] or run['state']}, and its history ends with {entries[-1:]}"
    for (before, old), (after, new) in pairwise(entries):
        if before in TRANSITIONS and after in TRANSITIONS and after not in TRANSITIONS[before]:
            yield f"went from {before} to {after}"
        if new < old:
            yield f"its attempt went from {old} back to {new}"
    if entries and entries[-1][1] > run.attempt:
        yield f"its history knows attempt {entries[-1][1]}, its fence is {run.attempt}"


# --- members of sets and streams -------------------------------------------------------------------------------------------


def _surprising(store: Store, names: Sequence[str], expected: Counter[str]) -> Iterator[str]:
    """Sets and streams that hold another number of members than the runs led to expect; of plans, nothing is expected."""
    chosen = [name for name in names if name.startswith(tuple(_MEMBERS))]
    pipeline = _client(store).pipeline(transaction=False)
    for name in chosen:
        (pipeline.xlen if name.startswith(_STREAMS) else pipeline.zcard)(store.keys.prefix + name)
    for name, size in zip(chosen, pipeline.execute(), strict=True):
        if size != expected[name]:
            yield name


def _check_members(store: Store, key: str) -> Iterator[Violation]:
    """A member of a set of runs is a run that has to stand there."""
    for batch in _batches(_members(store, key)):
        calls = [member for member in batch if ":" in member]
        callers = _read_runs(store, [member.split(":")[0] for member in calls])
        for member in calls:
            caller = callers[member.split(":")[0]]
            if caller is None or (key, member) not in _held(caller):
                yield Violation(f"{member} waits there, and is no call that does", key)
        for short, run in _read_runs(store, [member for member in batch if ":" not in member]).items():
            if run is None:
                yield Violation(f"{short} stands there and is no run", key)
            elif key.startswith("planned:"):
                if run["place"] != "due" or key != f"planned:{run['dep']}:{run['sched']}":
                    yield Violation("is planned, and not a due run of that schedule", lengthen(short))
            elif key not in _places(run):
                yield Violation(f"stands in {key}, but is {run['place']} and {run['state']}", lengthen(short))


def _check_stream(store: Store, key: str) -> Iterator[Violation]:
    """An entry of a stream is the one message of a queued run."""
    for batch in _batches(streams.entries(_client(store), store.keys.prefix + key)):
        runs = _read_runs(store, [short for _, short in batch])
        for entry, short in batch:
            run = runs[short]
            if run is None or run["place"] != "queued" or run["msg"] != f"{entry} {key}":
                yield Violation(f"its entry {entry} is not the message of the run {short}", key)


def _check_pending(store: Store, key: str) -> Iterator[Violation]:
    """A delivery that waits to be claimed is of an entry that is there."""
    for batch in _batches(streams.pending(_client(store), store.keys.prefix + key)):
        pipeline = _client(store).pipeline(transaction=False)
        for message in batch:
            pipeline.xrange(store.keys.prefix + key, message, message)
        for message, found in zip(batch, pipeline.execute(), strict=True):
            if not found:
                yield Violation(f"the pending entry {message} is gone", key)


def _check_slots(store: Store, key: str) -> Iterator[Violation]:
    """A slot belongs to the present attempt of a leased run, or is reserved for the next one of a queued run."""
    gate = key.removeprefix("slots:")
    for batch in _batches(_members(store, key)):
        runs = _read_runs(store, [member.split(":")[0] for member in batch])
        for member in batch:
            run = runs[member.split(":")[0]]
            if run is None or (f"slots:{gate}", member) not in _held(run):
                yield Violation(f"the slot {member} is held by nobody", key)


def _slot(run: _Run) -> str:
    return f"{run.short}:{run.slot_attempt}:0:0"


def _members(store: Store, key: str) -> Iterator[str]:
    members = _client(store).zscan_iter(store.keys.prefix + key, count=1000)
    return (member.decode(errors="replace") for member, _ in members)


# --- gates, schedules, lifetimes -------------------------------------------------------------------------------------------


def _check_gates(store: Store, names: Sequence[str]) -> Iterator[Violation]:
    """No gate lets more through than its limit, or than it had let through when the limit came; none has room and waiters."""
    gates = list(dict.fromkeys(name.split(":", 1)[1] for name in names))
    pipeline = _client(store).pipeline(transaction=False)
    for gate in gates:
        pipeline.hget(store.keys.limits, gate)
        pipeline.zcard(store.keys.slots(gate))
        pipeline.zcard(store.keys.parked(gate))
        pipeline.zscore(store.keys.wake_due, gate)
    answers = iter(pipeline.execute())
    for gate in gates:
        setting, used, waiting, wake_due = (next(answers) for _ in range(4))
        setting = read_setting(gate, setting) if setting is not None else {}
        if "defect" in setting:
            continue
        limit = None if setting.get("disabled") else setting.get("limit")
        limit = SHARE if gate.startswith("share:") else limit
        decays = "decay" in setting
        if limit is not None and not decays and used > max(limit, setting.get("held", 0)):
            yield Violation(f"{used} hold a slot, the limit is {limit}", f"slots:{gate}")
        wanted = _first_wants(store, gate) if waiting else 0
        has_room = limit is None or wanted + (0 if decays else used) <= limit
        if waiting and has_room and not setting.get("paused") and wake_due is None:
            yield Violation(f"{waiting} wait at a gate that has room or will have, and nobody wakes them", f"parked:{gate}")


def _check_settings(store: Store) -> Iterator[Violation]:
    """What gates are set to can be read, and so can the rates of rate limits; each global limit has its name."""
    client, keys = _client(store), store.keys
    settings, called = store.limits.settings(), store.limits.global_names()
    for gate, setting in settings.items():
        subject = f"global limit '{called[gate]}'" if gate in called else f"the limit {gate}"
        if "defect" in setting:
            yield Violation(f"what it is set to cannot be read ({setting['defect']}): it lets nobody through", subject)
        elif gate in called and client.hget(keys.global_limits, called[gate]) != gate[7:].encode():
            yield Violation("its name does not lead to it", subject)
    for gate, text in client.hgetall(keys.rates).items():
        name = gate.decode(errors="replace")
        if "decay" not in settings.get(name, {}):
            yield Violation("has a rate, and is no rate limit", f"the limit {name}")
        elif read_rate(text) is None:
            yield Violation("its rate cannot be read", f"the limit {name}")
    for stored in client.hkeys(keys.global_limits):
        if stored.decode(errors="replace") not in called.values():
            yield Violation("is the name of no global limit", f"global_limits {stored.decode(errors='replace')!r}")


def _first_wants(store: Store, gate: str) -> int:
    """How many slots the first waiter of a gate asks for."""
    first = [member.decode(errors="replace") for member in _client(store).zrange(store.keys.parked(gate), 0, 0)]
    run, _, call = (first or [""])[0].partition(":")
    caller = _read_runs(store, [run])[run] if call else None
    number = int(call.partition(":")[2] or 0)
    return next((asked.slots for asked in caller.calls if asked.number == number), 1) if caller else 1


def _check_schedules(store: Store) -> Iterator[Violation]:
    """What is to be planned is a schedule of a deployment."""
    for member, _ in _client(store).zscan_iter(store.keys.planning, count=1000):
        deployment, _, slug = member.decode().partition(":")
        if not _client(store).hexists(store.keys.schedules(deployment), slug):
            yield Violation(f"plans {member.decode()}, which is no schedule", "planning")


def _check_lifetimes(store: Store, names: Sequence[str], owned: Mapping[str, _Run | None]) -> Iterator[Violation]:
    """Nothing that lives has a TTL; everything that has ended has one, and so has all that is not permanent."""
    pipeline = _client(store).pipeline(transaction=False)
    for name in names:
        pipeline.pttl(store.keys.prefix + name)
    for name, ttl_ms in zip(names, pipeline.execute(), strict=True):
        has_ttl = ttl_ms >= 0
        if ttl_ms == -2:
            continue  # it is gone since
        if name in owned:
            run = owned[name]
            # What has become a dead letter lives on for a while.
            if run is None and not has_ttl:
                yield Violation("belongs to no run that can be read", name)
            elif run is not None and has_ttl != (run["place"] == "ended"):
                yield Violation(f"{'has a' if has_ttl else 'has no'} TTL, and its run is {run['place']}", name)
        elif has_ttl == (name in PERMANENT or name.startswith(_PERMANENT)):
            yield Violation("is permanent and has a TTL" if has_ttl else "is not permanent and has no TTL", name)


def _owners(store: Store, names: Sequence[str]) -> dict[str, str]:
    """The run to which each key belongs that lives as long as a run."""
    keys = [name for name in names if name.startswith("idempotency:")]
    held = _client(store).mget([store.keys.prefix + key for key in keys]) if keys else []
    owners = {name: name.split(":", 1)[1] for name in names if name.startswith(("run:", "log:", "tasks:"))}
    return owners | {key: run.decode() for key, run in zip(keys, held, strict=True) if run}


_STREAMS = ("queue:", "resumed:")
_MEMBERS: Mapping[str, Callable[[Store, str], Iterator[Violation]]] = {
    **dict.fromkeys(("due", "leases", "paused", "expires", "reservations", "index:", "parked:", "planned:"), _check_members),
    **dict.fromkeys(_STREAMS, _check_stream),
    "slots:": _check_slots,
}
"""How the members of a set or a stream are checked, by how its name begins."""


# --- reading ---------------------------------------------------------------------------------------------------------------


def _read_runs(store: Store, shorts: Sequence[str]) -> dict[str, _Run | None]:
    pipeline = _client(store).pipeline(transaction=False)
    unique = list(dict.fromkeys(shorts))
    for short in unique:
        pipeline.hmget(store.keys.run(short), "run", "history")
    answers = zip(unique, pipeline.execute(raise_on_error=False), strict=True)
    return {short: None if is_of_another_type(values, store.address) else _to_run(short, values) for short, values in answers}


def _to_run(short: str, values: Sequence[bytes | None]) -> _Run | None:
    """A run that can be read. One that cannot counts as none."""
    packed, history = values
    try:
        fields = read_fields(packed)
    except Unreadable:
        return None
    shown = {name: text_of(value) if isinstance(value, str) else str(value) for name, value in fields.items()}
    return _Run(short, shown, history or b"", read_calls(fields["calls"])) if is_short(short) else None


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
