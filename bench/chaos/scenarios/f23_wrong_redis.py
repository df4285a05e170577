"""F23: servers that would lose runs, or are too old, are refused by everything that starts."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.chaos.fleet import orch
from bench.chaos.servers import Server
from bench.chaos.trial import Outcome, Scenario, Trial

COMMANDS = (
    ("worker", "start", "--pool", "p"),
    ("scheduler", "start"),
    ("flow-run", "ls"),
    ("deployment", "run", "f/d"),
)
OVERRIDE = "ORCH_ALLOW_UNSAFE_REDIS=1"


@dataclass(frozen=True)
class Case:
    """A server, and what the refusal has to name."""

    what: str
    flags: tuple[str, ...]
    setting: str


CASES = (
    Case("evicts", ("--maxmemory-policy", "allkeys-lru"), "CONFIG SET maxmemory-policy noeviction"),
    Case("keeps nothing", ("--appendonly", "no"), "CONFIG SET appendonly yes"),
)


def run(trial: Trial) -> Outcome:
    """Three servers, four commands; quick: the first and the third command only."""
    commands = COMMANDS[::2] if trial.quick else COMMANDS
    problems: list[str] = []
    refused = 0
    for number, case in enumerate(CASES):
        server = Server(trial.home / f"redis-{number}", *case.flags).start()
        try:
            for command in commands:
                refused += 1
                problems += _expect_refusal(trial, server.url, command, case.setting, OVERRIDE)
            status, said = _orch(trial, server.url, ("flow-run", "ls"), ORCH_ALLOW_UNSAFE_REDIS="1")
            if status != 0:
                problems.append(f"{case.what}: the override does not help: {said}")
        finally:
            server.kill()
    with _old_server() as url:
        for command in commands:
            refused += 1
            problems += _expect_refusal(trial, url, command, "is too old: Orch needs Redis 7.0", "Upgrade the server")
    line = f"{refused} starts on {len(CASES) + 1} unfit servers refused, each naming the setting and what helps"
    return Outcome(line, problems)


def _expect_refusal(trial: Trial, url: str, command: tuple[str, ...], *named: str) -> list[str]:
    status, said = _orch(trial, url, command)
    what = f"orch {' '.join(command)}"
    problems = [f"{what}: exit status {status} instead of 6"] if status != 6 else []
    return problems + [f"{what}: does not name {name!r}: {said}" for name in named if name not in said]


def _orch(trial: Trial, url: str, command: tuple[str, ...], **variables: str) -> tuple[int, str]:
    done = orch(trial.home, url, *command, variables=variables)
    return done.returncode, done.stdout + done.stderr


@contextmanager
def _old_server() -> Iterator[str]:
    """Something that answers as Redis 6.2 does, as far as a client asks before it gives up."""
    facts = "redis_version:6.2.14\r\nredis_mode:standalone\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\n"

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                words = [self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:]))]
                self.wfile.write(_answer(words[0].upper(), facts))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        finally:
            server.shutdown()


def _answer(command: bytes, facts: str) -> bytes:
    if command == b"INFO":
        return f"${len(facts)}\r\n{facts}\r\n".encode()
    return b"*0\r\n" if command == b"CONFIG" else b"+OK\r\n"


SCENARIO = Scenario("F23", "wrong Redis", "refuses to start, names the setting and the override", run)
