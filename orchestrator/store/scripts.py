"""Loads lua/*.lua and calls them. The only module that knows that Lua exists.

A script's header is its contract, and this loader enforces it: the names under ARGV become the Lua locals and the only
keywords that a call accepts, in that order; USES names the shared parts (lua/lib) that are put in front; FLAGS become the
shebang. What a name may hold: ``str`` (text or bytes), ``int``, ``packed`` (msgpack of lists, numbers, text and bytes).

Every script gets KEYS[1], the namespace's prefix; ``now``, Redis's time in milliseconds, or the time that a test has frozen;
and the tables ``TRANSITIONS`` and ``PLACE_STATES`` from states.py.

Scripts are addressed by the hash of their text, so two releases share one server. A server that has lost its script cache
answers NOSCRIPT; the script is then sent again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

import msgpack
from redis.exceptions import NoScriptError

from orchestrator import clock as clocks
from orchestrator.clock import FrozenClock
from orchestrator.exceptions import NotReplicated, StoreUnavailable
from orchestrator.states import PLACE_STATES, TRANSITIONS
from orchestrator.store import layout
from orchestrator.store.client import Redis
from orchestrator.store.durability import Confirmation

CONFIRMED = frozenset(
    {
        "create",
        "retry",
        "cancel",
        "resume",
        "set_state",
        "reschedule",
        "delete",
        "finish",
        "deploy",
        "delete_pool",
        "create_pool",
    }
)
"""The scripts whose success is told to somebody who relies on it: these wait for a replica where the namespace wants that."""

RETENTION_MS = 30 * 86_400_000
EVENTS_KEPT = 100_000

SHARE = 100
"""A long queue takes so many runs of each deployment beyond its first so many: see lua/lib/places.lua."""

_ARGUMENT = re.compile(r"^-- (?:ARGV|    ) +(\w+) +(str|int|packed) +\S")


class Observe(Protocol):
    """Hears of every round trip: which script it ran (``several`` for different ones), what it took, whether it failed."""

    def __call__(self, operation: str, seconds: float, *, failed: bool) -> None:
        """From the thread that asked."""
        ...


@dataclass(frozen=True)
class Script:
    """One operation: its name, the arguments its header names (name, type), its full text and that text's hash."""

    name: str
    arguments: tuple[tuple[str, str], ...]
    text: str
    sha: str


def _lua_table(name: str, table: Mapping[str, Iterable[str]]) -> str:
    # Strings, not tables: every call of a script builds this anew, and 13 tables would cost it a quarter of its time.
    rows = (f"{key} = ' {' '.join(sorted(values))} '" for key, values in table.items())
    return f"local {name} = {{{', '.join(rows)}}}\n"


def _parse(name: str, source: str, library: Callable[[str], str]) -> Script:
    header = [line for line in source.split("\n") if line.startswith("--")]
    uses = next((line.removeprefix("-- USES ").split() for line in header if line.startswith("-- USES ")), [])
    flags = next((line.removeprefix("-- FLAGS ").split() for line in header if line.startswith("-- FLAGS ")), [])
    arguments = tuple((found[1], found[2]) for line in header if (found := _ARGUMENT.match(line)))
    parts = [f"#!lua flags={','.join(flags)}\n"] if flags else []
    parts += ["local prefix, now = KEYS[1], tonumber(ARGV[1])\n"]
    parts += ["if not now then local t = redis.call('TIME'); now = t[1] * 1000 + math.floor(t[2] / 1000) end\n"]
    parts += [f"local RETENTION_MS, EVENTS_KEPT, SHARE = {RETENTION_MS}, {EVENTS_KEPT}, {SHARE}\n"]
    parts += [_lua_table("TRANSITIONS", TRANSITIONS), _lua_table("PLACE_STATES", PLACE_STATES)]
    # Each part stands in a function of its own. A local of the enclosing function is captured at once; for one of the same
    # function Lua walks along all that were captured before: with seven parts in a row, half of a call's fixed cost.
    for part in uses:
        parts += [layout.as_lua() if part == "runs" else "", library(part), "return (function()\n"]
    read = {"str": "ARGV[{}]", "int": "tonumber(ARGV[{}])", "packed": "cmsgpack.unpack(ARGV[{}])"}
    parts += [f"local {argument} = {read[kind].format(i)}\n" for i, (argument, kind) in enumerate(arguments, 2)]
    parts += ["local function body()\n", source, "\nend\nlocal answer = body()\ncommit()\nreturn answer\n"]
    parts += ["end)()\n" * len(uses)]
    text = "".join(parts)
    return Script(name, arguments, text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - Redis's own address of a script


@cache
def load_scripts() -> dict[str, Script]:
    """All scripts by name, read from the package once per process."""
    folder = resources.files("orchestrator.store") / "lua"

    @cache
    def library(part: str) -> str:
        return (folder / "lib" / f"{part}.lua").read_text()

    files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".lua"))
    return {name[:-4]: _parse(name[:-4], (folder / name).read_text(), library) for name in files}


class Scripts:
    """The scripts, bound to a connection, a namespace's prefix and a clock (None = Redis's own)."""

    def __init__(self, client: Redis, prefix: str, clock: FrozenClock | None = None) -> None:
        self._client = client
        self._prefix = prefix
        self._clock = clock
        self._scripts = load_scripts()
        self.confirmation: Confirmation | None = None
        self.observe: Observe | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether a test's clock stands in for Redis's."""
        return self._clock is not None

    def now_ms(self) -> int:
        """The time as the scripts see it: Redis's, or the frozen clock's where a test has one."""
        if self._clock is not None:
            return self._clock.ms
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Run one script. Its keywords are those of its header, all of them.

        Raises NotReplicated where the namespace wants a replica to confirm this and none does.
        """
        if self.confirmation is not None and _is_confirmed(name, arguments):
            self.confirmation.expect_replica()
            [answer] = self.call_many([(name, arguments)])
            return answer
        command = self._command(name, arguments)
        if self.observe is None:
            return self._evaluate(command)
        with _observed(self.observe, name):
            return self._evaluate(command)

    def call_many(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Run several scripts in one round trip, in order; each is atomic, the sequence is not.

        Raises the first error after all have been tried.
        """
        answers = self.try_many(calls)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def try_many(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """As ``call_many``, with a script's error in place of its answer. Raises only where Redis cannot be reached.

        What no replica has confirmed, where the namespace wants that, is NotReplicated in its place: it is done, and does not
        count.
        """
        if self.observe is None:
            return self._try_many(calls)
        names = {name for name, _ in calls}
        with _observed(self.observe, names.pop() if len(names) == 1 else "several"):
            return self._try_many(calls)

    def _try_many(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        commands = [self._command(name, arguments) for name, arguments in calls]
        confirmed = [] if self.confirmation is None else [i for i, call in enumerate(calls) if _is_confirmed(*call)]
        answers, problem = self._evaluate_many(commands, confirm=bool(confirmed))
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            self._send_scripts()
            again, problem = self._evaluate_many([commands[i] for i in unknown], confirm=bool(confirmed))
            if any(isinstance(answer, NoScriptError) for answer in again):
                raise self._replaced()
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        if problem is not None:
            for i in confirmed:
                answers[i] = answers[i] if isinstance(answers[i], Exception) else problem
        return answers

    def _command(self, name: str, given: dict[str, Any]) -> tuple[Script, list[Any]]:
        script = self._scripts[name]
        if given.keys() != {argument for argument, _ in script.arguments}:
            raise TypeError(f"{name} takes {[argument for argument, _ in script.arguments]}, got {sorted(given)}")
        values: list[Any] = [self._prefix, "" if self._clock is None else self._clock.ms]
        for argument, kind in script.arguments:
            value = given[argument]
            values.append(msgpack.packb(value, use_bin_type=False) if kind == "packed" else value)
        return script, values

    def _evaluate(self, command: tuple[Script, list[Any]]) -> Any:
        script, arguments = command
        try:
            return self._client.execute_command("EVALSHA", script.sha, 1, *arguments)
        except NoScriptError:
            self._send_scripts()
        try:
            return self._client.execute_command("EVALSHA", script.sha, 1, *arguments)
        except NoScriptError as error:
            raise self._replaced() from error

    def _replaced(self) -> StoreUnavailable:
        """Somebody who was just given the scripts does not know them: it is another server by now, or it has restarted."""
        return StoreUnavailable(
            f"Redis at {self._client.address} was replaced or has restarted while it was asked.", hint="Do it again."
        )

    def _evaluate_many(
        self, commands: Sequence[tuple[Script, list[Any]]], *, confirm: bool
    ) -> tuple[list[Any], NotReplicated | None]:
        """The answers, and with ``confirm`` what is to be told if no replica has them."""
        pipeline = self._client.pipeline(transaction=False)
        for script, arguments in commands:
            pipeline.execute_command("EVALSHA", script.sha, 1, *arguments)
        if not confirm or self.confirmation is None:
            return list(pipeline.execute(raise_on_error=False)), None
        self.confirmation.append(pipeline)
        *answers, _, replicas = pipeline.execute(raise_on_error=False)
        return answers, self.confirmation.unmet(replicas)

    def _send_scripts(self) -> None:
        """Give the server all scripts at once, in a transaction: it knows all of this release's, or none.

        When it knew some, a pipeline after a restart ran those first, and an end could overtake the start before it.
        """
        pipeline = self._client.pipeline(transaction=True)
        for script in self._scripts.values():
            pipeline.execute_command("SCRIPT LOAD", script.text)
        pipeline.execute()


@contextmanager
def _observed(observe: Observe, operation: str) -> Iterator[None]:
    began = clocks.monotonic()
    try:
        yield
    except Exception:
        observe(operation, clocks.monotonic() - began, failed=True)
        raise
    observe(operation, clocks.monotonic() - began, failed=False)


def _is_confirmed(name: str, arguments: dict[str, Any]) -> bool:
    """A start that a worker reports is told to nobody; the same script as an operator's decision is."""
    return name in CONFIRMED and not (name == "set_state" and arguments["attempt"] > 0)
