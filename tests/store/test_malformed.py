"""What makes no sense becomes a dead letter, and nobody's duty stops at it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from floor import Floor, named
from harness import RedisServer
from orchestrator.clock import FrozenClock
from orchestrator.exceptions import ObjectNotFound
from orchestrator.keys import GROUP, is_short, shorten
from orchestrator.models import LogLine
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from orchestrator.store.answers import Acquire
from orchestrator.store.invariants import check
from orchestrator.store.layout import FIELDS
from orchestrator.store.records import Unreadable, read_fields, read_setting
from tampering import tamper

STREAM = "queue:p:default:normal"


def put(floor: Floor, **fields: Any) -> str:
    """A foreign entry in the stream of the queue; its id."""
    entry = floor.store.client.xadd(floor.store.keys.prefix + STREAM, fields)
    return str(entry.decode())


def pending(floor: Floor) -> int:
    return int(floor.store.client.xpending(floor.store.keys.prefix + STREAM, GROUP)["pending"])


def every_duty(store: Store, run: str) -> None:
    """All that schedulers and workers do by themselves, and what people ask about one run."""
    runs = store.runs
    runs.release_due()
    runs.lapse()
    runs.wake()
    runs.expire()
    runs.mark_late()
    runs.time_out_paused()
    runs.redeliver("p", ["default"], idle=timedelta(0))
    runs.renew([(run, 1)], worker="w")
    runs.set_state(run, named("Running"), attempt=1, worker="w")
    runs.append_log({run: [LogLine(store.now(), 20, "x", "hello")]})
    runs.record_tasks(run, 1, [], worker="w")
    runs.hand_back(run, 7, worker="w")
    runs.report_death(run, 7, "killed", worker="w")
    runs.get_many([run])
    store.queries.runs()
    store.queries.upcoming()
    runs.prune(store.now() - timedelta(days=1))
    check(store)


def test_an_entry_without_a_run_is_taken_out_of_its_stream_and_told_of(floor: Floor) -> None:
    entry = put(floor, x="some\nthing")
    run = floor.submit()
    assert [claimed.id for claimed in floor.claim()] == [run]
    [letter] = floor.store.letters.latest()
    assert (letter.stream, letter.message, letter.run) == (STREAM, entry, None)
    assert letter.reason == "it has a field that this release does not know"
    assert letter.content == "x some\nthing"
    assert pending(floor) == 0
    assert floor.finish(run) == "ok"


def test_an_entry_that_a_blocked_read_was_handed_is_no_exception(floor: Floor) -> None:
    put(floor, r=b"\xff" * 9)
    [delivery] = floor.deliver()
    assert delivery.run == ""
    assert floor.claim(delivered=[delivery]) == []
    [letter] = floor.store.letters.latest()
    assert (letter.reason, letter.content) == ("it names no run", "r " + "\\xff" * 9)
    assert pending(floor) == 0


def test_an_entry_that_nobody_claimed_is_told_of_by_the_rescuer(floor: Floor) -> None:
    put(floor, r="nobody")
    floor.deliver()
    floor.wait(5)
    assert floor.store.runs.redeliver("p", ["default"], idle=timedelta(0)) == 0
    assert floor.store.letters.count() == 1
    assert pending(floor) == 0


def test_a_run_whose_message_cannot_be_read_is_not_lost_with_it(floor: Floor) -> None:
    run = floor.submit()
    [(old, _)] = floor.store.client.xrange(floor.store.keys.prefix + STREAM)
    floor.store.client.xdel(floor.store.keys.prefix + STREAM, old)
    new = put(floor, r=shorten(run), v="2")
    tamper(floor.store, run, msg=f"{new} {STREAM}")
    floor.claim(1)
    assert [letter.reason for letter in floor.store.letters.latest()] == ["it has a field that this release does not know"]
    if floor.get(run).place == "queued":
        floor.claim(1)
    assert floor.place(run) == ("leased", "Pending")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"state": "Dreaming"}, "its state is unknown"),
        ({"place": "elsewhere"}, "its place is unknown"),
        ({"state": "Running"}, "it cannot be in that state there"),
        ({"attempt": "many"}, "its attempt is no number"),
        ({"budget": float("nan")}, "its budget is no number"),
        ({"expires": "soon"}, "its expires is no moment"),
        ({"due": -1}, "its due is no number"),
        ({"worker": None}, "its worker is no text"),
        ({"tags": ["a"]}, "its tags is no text"),
        ({"run": b"\xc1"}, "its fields cannot be read"),
        ({"run": b"\x80"}, "its state is no text"),
        ({"run": b"\x01"}, "its fields cannot be read"),
        ({"run": None}, "it has no fields"),
        ({"prio": 9}, "its prio is unknown"),
        ({"dep": "x"}, "it names what is no id"),
        ({"calls": b"\xc1"}, "its calls cannot be read"),
        ({"flow": ""}, "it has no flow"),
    ],
)
def test_a_run_that_makes_no_sense_is_a_dead_letter_and_the_next_one_starts(
    floor: Floor, fields: dict[str, Any], reason: str
) -> None:
    broken, good = floor.submit(), floor.submit()
    [(message, _), _] = floor.store.client.xrange(floor.store.keys.prefix + STREAM)
    tamper(floor.store, broken, **fields)
    assert [claimed.id for claimed in floor.claim()] == [good]
    [letter] = floor.store.letters.latest()
    assert (letter.run, letter.stream, letter.message, letter.reason) == (broken, STREAM, message.decode(), reason)
    [(field, value)] = fields.items()
    assert f"{field}=" in letter.content or field == "run" or not value
    assert pending(floor) == 0
    assert floor.store.client.pttl(floor.key("run", broken)) > 0
    floor.store.runs.reconcile_all()


def test_a_key_that_is_no_hash_is_a_dead_letter_too(floor: Floor) -> None:
    broken, good = floor.submit(), floor.submit()
    floor.store.client.delete(floor.key("run", broken))
    floor.store.client.rpush(floor.key("run", broken), "a")
    assert [claimed.id for claimed in floor.claim()] == [good]
    assert [(letter.run, letter.reason) for letter in floor.store.letters.latest()] == [(broken, "its key is no hash")]
    with pytest.raises(ObjectNotFound):
        floor.get(broken)
    floor.store.runs.reconcile_all()


def test_what_the_scripts_do_not_look_at_is_seen_by_the_worker_that_claims_it(floor: Floor) -> None:
    broken, good = floor.submit(), floor.submit()
    tamper(floor.store, broken, params=b"\xc1\xff")
    assert [claimed.id for claimed in floor.claim()] == [good]
    [letter] = floor.store.letters.latest()
    assert letter.run == broken
    assert letter.reason.startswith("its fields cannot be read")
    every_duty(floor.store, broken)
    assert [run.id for run in floor.store.queries.runs().runs] == [good]


@pytest.mark.parametrize("field", ["name", "by", "message", "queue"])
def test_text_that_is_none_harms_nobody(floor: Floor, field: str) -> None:
    run = floor.submit()
    tamper(floor.store, run, **{field: b"\xc1\xff"})
    assert [claimed.id for claimed in floor.claim()] == [run]
    assert floor.finish(run) == "ok"
    assert floor.store.letters.count() == 0


def test_a_run_is_told_of_once_however_many_meet_it(floor: Floor) -> None:
    broken = floor.running()
    tamper(floor.store, broken, state="?")
    for _ in range(3):
        every_duty(floor.store, broken)
    assert floor.store.letters.count() == 1
    floor.store.runs.reconcile_all()


def test_a_dropped_letter_takes_what_is_left_of_its_run_along(floor: Floor) -> None:
    broken, mended = floor.submit(), floor.submit()
    for run in (broken, mended):
        tamper(floor.store, run, place="?")
    floor.claim()
    tamper(floor.store, mended, place="queued")
    letters = floor.store.letters
    assert letters.drop([letter.id for letter in letters.latest()]) == 2
    assert letters.count() == 0
    assert floor.store.client.exists(floor.key("run", broken)) == 0
    assert floor.store.client.exists(floor.key("run", mended)) == 1
    assert letters.drop(["1-1"]) == 0
    floor.store.runs.reconcile_all()


def test_repair_finds_what_nobody_has_met_yet(floor: Floor) -> None:
    broken = floor.running()
    tamper(floor.store, broken, starts="x")
    floor.store.client.hset(f"{floor.store.keys.prefix}run:junk", "a", "b")
    assert check(floor.store)
    mended = floor.store.runs.reconcile_all()
    assert ("could not be read: its starts is no number", broken) in mended
    assert floor.store.letters.count() == 1
    assert check(floor.store) == []


# --- limits ----------------------------------------------------------------------------------------------------------


def garble_limit(floor: Floor, gate: str, text: str | bytes) -> None:
    floor.store.client.hset(floor.store.keys.limits, gate, text)


def ask(floor: Floor, run: str, name: str, *, rate: bool = False) -> str:
    """The code of a run asks for a slot of a global limit."""
    return floor.store.limits.acquire(Acquire(run, 1, "w", 1, [name], rate=rate)).answer


UNREADABLE = [
    *("", "{", "[]", "5", '{"limit": -1}', '{"limit": "many"}', '{"limit": 1.5}', '{"limit": nan}', '{"limit": 1e300}', "{}"),
    *('{"limit": 5, "held": "x"}', '{"limit": 5, "paused": 1}', '{"limit": 5, "strategy": "NONE"}', '{"limit": 5, "decay": 0}'),
    *('{"limit": 5, "name": 7}', '{"paused": false}', b"\xff\x00", "[" * 2000),
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_limit_that_cannot_be_read_lets_nobody_through_and_all_others_go_on(floor: Floor, text: str | bytes) -> None:
    """It was an error in every claim of its pool."""
    floor.store.limits.set("tag:t", 5)
    garble_limit(floor, "tag:t", text)
    closed, free = floor.submit(tags=("t",)), floor.submit()
    assert [claimed.id for claimed in floor.claim()] == [free]
    assert floor.place(closed) == ("parked", "AwaitingConcurrencySlot")
    every_duty(floor.store, closed)
    assert floor.finish(free) == "ok"
    [violation] = check(floor.store)
    assert "lets nobody through" in str(violation)
    floor.store.limits.set("tag:t", 1)
    assert [claimed.id for claimed in floor.claim()] == [closed]
    assert floor.finish(closed) == "ok"


def test_repair_writes_down_that_a_limit_which_cannot_be_read_is_closed_and_keeps_what_stood_there(floor: Floor) -> None:
    limits = floor.store.limits
    limits.create_global("db", 5)
    holder = floor.running()
    assert ask(floor, holder, "db") == "granted"
    [gate] = limits.global_limits()
    garble_limit(floor, gate.name, "?")
    assert [violation.subject for violation in check(floor.store)] == ["global limit 'db'"]
    [(what, subject)] = floor.store.runs.reconcile_all()
    assert (subject, "until it is set anew" in what) == (gate.name, True)
    [letter] = floor.store.letters.latest()
    assert (letter.stream, letter.message, letter.content) == ("limits", gate.name, "?")
    mended = limits.get_global("db")
    assert mended is not None
    assert (mended.limit, mended.used, mended.defect) == (0, 1, "")
    assert check(floor.store) == []
    assert limits.update_global("db", limit=5) == "ok"
    assert floor.store.runs.reconcile_all() == []


def test_code_waits_at_a_global_limit_that_cannot_be_read_and_goes_on_when_it_is_set_anew(floor: Floor) -> None:
    limits = floor.store.limits
    limits.create_global("api", 5, decay=1.0)
    run = floor.running()
    [gate] = limits.global_limits()
    garble_limit(floor, gate.name, '{"limit": null}')
    assert ask(floor, run, "api", rate=True) == "waiting"
    found = limits.get_global("api")
    assert found is not None
    assert (found.title, found.limit, found.waiting, bool(found.defect)) == ("api", 0, 1, True)
    assert limits.update_global("api", limit=5, decay=1.0) == "ok"
    assert limits.get(gate.name).waiting == 0


@pytest.mark.parametrize("rate", ["soon", "nan", "inf", "-1", ""])
def test_a_rate_that_cannot_be_read_counts_as_all_slots_taken_just_now(floor: Floor, rate: str) -> None:
    limits = floor.store.limits
    limits.create_global("api", 2, decay=1.0)
    [gate] = limits.global_limits()
    floor.store.client.hset(floor.store.keys.rates, gate.name, rate)
    assert [violation.what for violation in check(floor.store)] == ["its rate cannot be read"]
    assert limits.get(gate.name).used == 2
    run = floor.running()
    assert ask(floor, run, "api") == "waiting"
    floor.wait(1)
    floor.store.runs.wake()
    assert limits.get(gate.name).waiting == 0


@pytest.mark.parametrize("pointer", [b"", b"\xff\xfe", b"nothing", "another"])
def test_a_name_that_leads_nowhere_is_put_right_by_the_limit_that_has_it(floor: Floor, pointer: str | bytes) -> None:
    limits = floor.store.limits
    limits.create_global("db", 0)
    limits.create_global("other", 5)
    gates = {gate.title: gate.name for gate in limits.global_limits()}
    wrong = gates["other"].removeprefix("global:") if pointer == "another" else pointer
    floor.store.client.hset(floor.store.keys.global_limits, "db", wrong)
    assert check(floor.store)
    run = floor.running()
    assert ask(floor, run, "db") == "waiting"
    assert limits.get(gates["db"]).waiting == 1
    assert check(floor.store) == []
    floor.store.client.hset(floor.store.keys.global_limits, mapping={"db": wrong, "gone": "x"})
    assert len(floor.store.runs.reconcile_all()) == 2
    assert check(floor.store) == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.binary(max_size=20)
    | st.dictionaries(
        st.sampled_from(["limit", "held", "disabled", "paused", "strategy", "decay", "name", "x"]),
        st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(["", "ENQUEUE", "x"]) | st.just([]),
    ).map(lambda values: json.dumps(values).encode())
)
def test_lua_and_python_agree_on_what_a_limit_is_set_to(ground: Ground, text: bytes) -> None:
    floor = ground.floor()
    garble_limit(floor, "tag:x", text)
    said = read_setting("tag:x", text)
    run = floor.submit(tags=("x",))
    is_closed = said.get("paused") or (said.get("limit") == 0 and not said.get("disabled"))
    assert (floor.claim() == []) == bool(is_closed)
    mended = [what for what, subject in floor.store.runs.reconcile_all() if "could not be read" in what]
    assert len(mended) == ("defect" in said)
    floor.store.runs.delete([run])


# --- at random -------------------------------------------------------------------------------------------------------


@dataclass
class Ground:
    """A namespace that each example gets afresh."""

    store: Store
    clock: FrozenClock

    def floor(self) -> Floor:
        for key in self.store.client.scan_iter(f"{self.store.keys}*", count=1000):
            self.store.client.delete(key)
        self.store.pools.create("p")
        self.store.limits.set("tag:t", 1)
        return Floor(self.store, self.clock)


@pytest.fixture(scope="module")
def ground(server: RedisServer) -> Iterator[Ground]:
    clock = FrozenClock(1_800_000_000_000)
    chosen = Settings(redis_url=server.url, namespace=f"t-{uuid.uuid4().hex[:12]}")
    with open_store(chosen, frozen=clock) as store:
        ground = Ground(store, clock)
        yield ground
        ground.floor().store.client.flushdb()


def parked(floor: Floor) -> str:
    floor.running(tags=("t",))
    run = floor.submit(tags=("t",))
    floor.claim()
    return run


def suspended(floor: Floor) -> str:
    run = floor.running()
    floor.store.runs.pause(run, 1, worker="w")
    return run


PLACES: dict[str, Callable[[Floor], str]] = {
    "due": lambda floor: floor.submit(due=floor.after(1), expires=floor.after(50)),
    "queued": lambda floor: floor.submit(expires=floor.after(50)),
    "parked": parked,
    "leased": lambda floor: floor.running(tags=("t",)),
    "paused": suspended,
    "ended": lambda floor: floor.ended(),
}
OWN = ("run", "history", "params", "result")  # fields of the hash
SMALL = (
    *(b"", b"0", b"-1", b"3", b"1e3", b"0x10", b"nan", b"inf", b"9" * 40, b"due", b"queued", b"leased", b"Running"),
    *(b"\x91\x96\x01", b"1-1 x", b"9-9 queue:a"),
)
VALUES = st.one_of(st.sampled_from(SMALL), st.binary(max_size=40))
ANYTHING = st.one_of(
    *(VALUES, st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.sampled_from([0, 1, 2, 3])),
    *(st.lists(st.integers(0, 1), max_size=2), st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 1), max_size=2)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    place=st.sampled_from(sorted(PLACES)),
    fields=st.dictionaries(st.sampled_from(tuple(FIELDS)), ANYTHING, max_size=3),
    own=st.dictionaries(st.sampled_from(OWN), st.none() | VALUES, max_size=1),
    seconds=st.sampled_from([0, 2, 20, 4000]),
)
def test_whatever_stands_in_a_run_every_duty_goes_on_and_other_runs_run(
    ground: Ground, place: str, fields: dict[str, Any], own: dict[str, bytes | None], seconds: int
) -> None:
    floor = ground.floor()
    store = floor.store
    broken = PLACES[place](floor)
    tamper(store, broken, **fields)
    for field, value in own.items():
        if value is None:
            store.client.hdel(floor.key("run", broken), field)
        else:
            store.client.hset(floor.key("run", broken), field, value)
    assert_lua_and_python_agree(floor, broken)
    floor.wait(seconds)
    every_duty(store, broken)
    good = floor.submit()
    for _ in range(3):
        if good in [claimed.id for claimed in floor.claim(20)]:
            break
    assert floor.finish(good) == "ok"
    store.runs.redeliver("p", ["default"], idle=timedelta(0))
    store.runs.reconcile_all()
    assert pending(floor) == 0
    store.runs.delete([broken])
    store.queries.runs()
    if letters := store.letters.latest():
        assert all(letter.reason for letter in letters)
        assert store.letters.drop([letter.id for letter in letters]) == len(letters)


def assert_lua_and_python_agree(floor: Floor, run: str) -> None:
    """Both say of the same hash that it can be worked with, or that it cannot."""
    try:
        read_fields(floor.store.client.hget(floor.key("run", run), "run"))
        is_fine = True
    except Unreadable:
        is_fine = False
    answer, _ = floor.store.scripts.call(
        "set_state", run=shorten(run), attempt=0, worker="", state="Pending", label="", message="", due="", wait_ms=1, ago_ms=0
    )
    assert (answer == b"refused") == is_fine


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    entries=st.lists(
        st.dictionaries(st.sampled_from([b"r", b"v", b"x", b""]), VALUES, min_size=1, max_size=3), min_size=1, max_size=20
    ),
    handed=st.integers(0, 20),
)
def test_whatever_stands_in_a_stream_nothing_stays_pending(
    ground: Ground, entries: list[dict[bytes, bytes]], handed: int
) -> None:
    floor = ground.floor()
    for fields in entries:
        floor.store.client.xadd(floor.store.keys.prefix + STREAM, fields)
    good = floor.submit()
    delivered = [delivery for _ in range(handed) for delivery in floor.deliver()]
    claimed = floor.claim(20, delivered=delivered)
    assert [run.id for run in claimed] == [good]
    assert pending(floor) == 0
    readable = [fields for fields in entries if set(fields) == {b"r"} and is_short(fields[b"r"].decode(errors="replace"))]
    assert floor.store.letters.count() == len(entries) - len(readable)
    assert check(floor.store) == []
