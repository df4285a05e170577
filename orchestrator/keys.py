"""The only module that spells a Redis key, and the two spellings of a run's id.

A namespace's keys all begin with ``orch:{<namespace>}:``. The braces make it one Cluster slot, so a script may touch any of
them. ``Keys`` is that prefix with a method per key; the Lua scripts receive the prefix and build the same keys beneath it.

Ids are UUIDv7. People and Python see the usual text of 36 characters. Redis stores 22: base64 of the sixteen bytes in an
alphabet whose order is that of ASCII, so that stored ids sort by age too.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable

from orchestrator import clock
from orchestrator.exceptions import InvalidName

_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SORTED = b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_SHORTEN = bytes.maketrans(_STANDARD, _SORTED)
_LENGTHEN = bytes.maketrans(_SORTED, _STANDARD)

_SHORT = 22
_ALPHABET = frozenset(_SORTED.decode())

_FORBIDDEN = frozenset("/%&<>{}:*")
_NAME_BYTES = 200

GROUP = "workers"
"""The consumer group of every run stream."""

PRIORITIES = ("high", "normal", "low")
"""A work queue's streams, in the order in which they are read."""


_chances: list[bytes] = []
os.register_at_fork(after_in_child=_chances.clear)


def new_id() -> str:
    """A fresh UUIDv7 as text: 48 bits of milliseconds, then chance."""
    try:
        chance = _chances.pop()
    except IndexError:
        # One system call for many ids: a task run needs an id, and should cost microseconds.
        drawn = os.urandom(10 * 256)
        _chances.extend(drawn[start : start + 10] for start in range(10, len(drawn), 10))
        chance = drawn[:10]
    return make_id(clock.now_ms(), chance)


def make_id(ms: int, chance: bytes) -> str:
    """The UUIDv7 of a time in milliseconds and ten bytes, as text; six of their bits give way to version and variant."""
    value = ms << 80 | int.from_bytes(chance, "big")
    h = f"{value & ~(0xF << 76) & ~(0x3 << 62) | 7 << 76 | 2 << 62:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def shorten(run_id: str) -> str:
    """An id's text of 36 characters as the 22 that Redis stores."""
    raw = bytes.fromhex(run_id.replace("-", ""))
    return base64.b64encode(raw)[:22].translate(_SHORTEN).decode()


def is_short(text: str) -> bool:
    """Whether this is an id as Redis stores it."""
    return len(text) == _SHORT and _ALPHABET.issuperset(text)


def lengthen(short: str | bytes) -> str:
    """The 22 stored characters of an id as the usual text."""
    data = short.encode() if isinstance(short, str) else short
    h = base64.b64decode(data.translate(_LENGTHEN) + b"==").hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if a ``kind`` may be called so, else raise InvalidName saying why.

    Printable Unicode without ``/ % & < > { } : *``, at most 200 bytes of UTF-8, no space at either end.
    """
    if not name:
        raise InvalidName(f"A {kind} needs a name.")
    for character in name:
        category = unicodedata.category(character)
        if character in _FORBIDDEN or (category[0] in "CZ" and character != " "):
            shown = character if character.isprintable() else f"U+{ord(character):04X}"
            raise InvalidName(
                f"The {kind} name {name[:60]!a} holds the character {shown!r}.",
                hint="Names are printable text without / % & < > { } : * and control characters.",
            )
    if len(name.encode()) > _NAME_BYTES:
        raise InvalidName(
            f"The {kind} name {name[:20]!r}... is {len(name.encode())} bytes long.",
            hint=f"Names are at most {_NAME_BYTES} bytes of UTF-8.",
        )
    if name != name.strip():
        raise InvalidName(f"The {kind} name {name!r} begins or ends with a space.", hint="Remove it.")
    return name


class Keys:
    """The keys of one namespace. ``str(keys)`` is their common prefix."""

    def __init__(self, namespace: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", namespace):
            raise InvalidName(
                f"The namespace {namespace!a} cannot be used.", hint="Use letters, digits, '_', '.', '-'; at most 64."
            )
        self.namespace = namespace
        self.prefix = f"orch:{{{namespace}}}:"
        self.idempotency_prefix = self.prefix + "idempotency:"
        # zsets: where runs are
        self.due = self.prefix + "due"
        self.leases = self.prefix + "leases"
        self.paused = self.prefix + "paused"
        self.expires = self.prefix + "expires"
        self.reservations = self.prefix + "reservations"
        self.wake_due = self.prefix + "wake_due"
        # string with a TTL: until when no lease counts as over
        self.brake = self.prefix + "brake"
        # string with a TTL: when the last of the runs starts that were lost twice
        self.apart = self.prefix + "apart"
        self.confirmed = self.prefix + "confirmed"
        # catalogues
        self.settings = self.prefix + "settings"
        self.epoch = self.prefix + "epoch"
        self.limits = self.prefix + "limits"
        self.global_limits = self.prefix + "global_limits"
        self.rates = self.prefix + "rates"
        self.pools = self.prefix + "pools"
        self.workers = self.prefix + "workers"
        self.schedulers = self.prefix + "schedulers"
        self.flows = self.prefix + "flows"
        self.deployments = self.prefix + "deployments"
        self.planning = self.prefix + "planning"
        self.variables = self.prefix + "variables"
        # streams
        self.events = self.prefix + "events"
        self.signals = self.prefix + "signals"
        self.malformed = self.prefix + "malformed"

    def __str__(self) -> str:
        return self.prefix

    def run(self, short: str) -> str:
        """hash: one run, the truth about it."""
        return f"{self.prefix}run:{short}"

    def tasks(self, short: str) -> str:
        """hash: task run id -> msgpack, the task runs of one flow run."""
        return f"{self.prefix}tasks:{short}"

    def log(self, short: str) -> str:
        """stream: the log of one run."""
        return f"{self.prefix}log:{short}"

    def queue(self, pool: str, queue: str, priority: str) -> str:
        """stream: run messages of one work queue at one priority."""
        return f"{self.prefix}queue:{pool}:{queue}:{priority}"

    def resumed(self, pool: str) -> str:
        """stream: run messages of one pool that are read before all others."""
        return f"{self.prefix}resumed:{pool}"

    def streams(self, pool: str, queues: Iterable[str]) -> list[str]:
        """The streams that a worker of these work queues reads, in order."""
        return [self.resumed(pool), *(self.queue(pool, queue, priority) for queue in queues for priority in PRIORITIES)]

    def control(self, worker: str) -> str:
        """stream: what one worker is told while it works (cancel these runs)."""
        return f"{self.prefix}control:{worker}"

    def parked(self, gate: str) -> str:
        """zset: runs, and calls of their code (``<run>:<attempt>:<call>``), that wait at a gate, by priority and due time."""
        return f"{self.prefix}parked:{gate}"

    def slots(self, gate: str) -> str:
        """zset: who holds a gate's slots; members ``<run>:<attempt>:<call>:<i>``."""
        return f"{self.prefix}slots:{gate}"

    def idempotency(self, scope: str, key: str) -> str:
        """string: the run that an idempotency key stands for. The key is the user's free text, so its digest stands here."""
        return f"{self.idempotency_prefix}{scope}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"

    def pool(self, pool: str) -> str:
        """hash: one work pool."""
        return f"{self.prefix}pool:{pool}"

    def queues(self, pool: str) -> str:
        """hash: work queue -> msgpack, the work queues of one pool."""
        return f"{self.prefix}queues:{pool}"

    def worker(self, worker: str) -> str:
        """hash: one worker's last heartbeat."""
        return f"{self.prefix}worker:{worker}"

    def scheduler(self, scheduler: str) -> str:
        """hash: one scheduler's last heartbeat."""
        return f"{self.prefix}scheduler:{scheduler}"

    def deployment(self, short: str) -> str:
        """hash: one deployment."""
        return f"{self.prefix}deployment:{short}"

    def schedules(self, short: str) -> str:
        """hash: slug -> msgpack, the schedules of one deployment."""
        return f"{self.prefix}schedules:{short}"

    def planned(self, short: str, slug: str) -> str:
        """zset: one schedule's runs that are not due yet, by fire time."""
        return f"{self.prefix}planned:{short}:{slug}"

    def rq_answers(self, runner: str) -> str:
        """Stream with a TTL: what the RQ jobs of one task runner tell it."""
        return f"{self.prefix}rq:{runner}:answers"

    def rq_lease(self, runner: str) -> str:
        """String with a TTL: there as long as somebody waits for the RQ jobs of one task runner."""
        return f"{self.prefix}rq:{runner}:lease"

    def index(self, of: str, value: str = "") -> str:
        """zset: runs by one property (``all``, ``state``, ``flow``, ``deployment``, ``tag``, ``pool``, ``parent``)."""
        return f"{self.prefix}index:{of}:{value}" if value else f"{self.prefix}index:{of}"


PERMANENT = (
    *("due", "leases", "paused", "expires", "reservations", "wake_due", "settings", "limits", "global_limits", "rates"),
    *("pools", "workers", "schedulers", "flows", "deployments", "planning", "variables", "events", "signals", "epoch"),
    "malformed",
    *(
        "queue:*",
        "resumed:*",
        "parked:*",
        "slots:*",
        "pool:*",
        "queues:*",
        "deployment:*",
        "schedules:*",
        "planned:*",
        "index:*",
    ),
)
"""Patterns of keys that may live without a TTL. Beside them, only keys of runs that have not ended may."""
