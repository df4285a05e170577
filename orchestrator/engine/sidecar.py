"""The recorder of a process that runs flows without a worker: ``python -m orchestrator.engine.sidecar FD``.

It reads frames from its one child, the process that started it, and holds the leases of that process's runs. It never runs user
code. It goes when that process closes the socket or dies; runs without an end are then recorded as crashed, at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import NoReturn

from orchestrator import clock, settings
from orchestrator.engine import protocol
from orchestrator.engine.relay import Relay
from orchestrator.engine.waiting import Waiter
from orchestrator.exceptions import DataGone, OrchError, StoreUnavailable
from orchestrator.store import Store, open_store
from orchestrator.store.answers import End
from orchestrator.store.pools import Control

_RECEIVE_BYTES = 256 * 1024
_CHILD = "flow"
_OPEN_AGAIN = 1.0
_BLOCK = timedelta(seconds=5)


class Sidecar:
    """One socket, one store, one relay, one loop."""

    def __init__(self, sock: socket.socket, chosen: settings.Settings) -> None:
        self._socket = sock
        self._settings = chosen
        self._name = f"{socket.gethostname()}-{os.getppid()}-flow"
        self._frames = protocol.Frames()
        self._early: list[tuple[float, protocol.Frame]] = []  # with their arrival
        self._store: Store | None = None
        self._relay: Relay | None = None
        self._next_open = 0.0
        self._next_renewal = 0.0
        self._control: Waiter[list[Control]] | None = None
        self._control_after = "0"
        self._cancelled: set[str] = set()
        self._epoch = ""
        self._wake_reader, self._wake_writer = os.pipe()
        self._has_told = False
        self._is_alone_since: float | None = None

    def serve(self) -> None:
        """Work until the process is gone and all it said is written, or cannot be for ``redis_retry_s``."""
        while not self._is_over():
            now = clock.monotonic()
            if self._relay is None and now >= self._next_open:
                self._open(now)
            if self._relay is not None:
                self._work(self._relay, now)
            self._wait()
        if self._store is not None:
            self._store.close()  # which ends the wait for control messages

    def _is_over(self) -> bool:
        if self._is_alone_since is None:
            return False
        idle = self._relay.is_idle if self._relay is not None else not self._early
        return idle or clock.monotonic() - self._is_alone_since > self._settings.redis_retry_s

    def _open(self, now: float) -> None:
        try:
            # The relay tries again by itself; a store that does would keep us from reading the socket meanwhile.
            self._store = open_store(replace(self._settings, redis_retry_s=0), start_embedded=False)
        except StoreUnavailable as problem:
            self._tell(str(problem))
            self._early = [(arrived, frame) for arrived, frame in self._early if not self._let_pass(frame)]
            self._next_open = now + _OPEN_AGAIN
            return
        except OrchError as problem:
            # This server, or this configuration, will not do tomorrow either.
            self._give_up(problem)
        if self._has_told:
            self._send([protocol.TROUBLE, ""])
        self._relay = Relay(self._store, self._name, prepare=self._look_at_epoch, confirm=self._confirm)
        self._control = Waiter("orch-wait-control", partial(self._wait_for_control, self._store), self._wake)
        for arrived, frame in self._early:
            self._relay.feed(_CHILD, frame, arrived)
        self._early = []
        if self._is_alone_since is not None:
            self._bury(now)

    def _wait_for_control(self, store: Store) -> list[Control]:
        return store.pools.wait_for_control(self._name, self._control_after, _BLOCK)

    def _wake(self) -> None:
        os.write(self._wake_writer, b"\0")

    def _work(self, relay: Relay, now: float) -> None:
        self._take_control(relay, now)
        if relay.deadline is not None and now >= relay.deadline:
            try:
                replies = relay.flush(now)
            except DataGone as problem:
                self._give_up(problem)
            for reply in replies:
                self._send(reply.frame)
            if relay.is_cut_off and self._store is not None:
                self._store.revive()
        if now >= self._next_renewal:
            self._renew(relay, now)

    def _take_control(self, relay: Relay, now: float) -> None:
        """What a worker is told: to stop a run, or that slots are there. After an error, the next event has it read again."""
        assert self._control is not None
        result = self._control.take()
        for control in result if isinstance(result, list) else ():
            self._control_after = control.id
            if control.what == "cancel" and relay.child_of(control.run) is not None:
                self._cancel(control.run, "It was cancelled on request.")
            elif control.what == "granted":
                relay.granted(control.run, control.call, now)
        if isinstance(result, Exception):
            relay.doubt_server()
        elif self._is_alone_since is None:
            self._control.arm()

    def _look_at_epoch(self) -> None:
        """If it is another server than before, first see to what it may have forgotten. Raises DataGone, StoreUnavailable."""
        assert self._store is not None
        assert self._relay is not None
        epoch = self._store.failover.check().id
        if self._epoch not in ("", epoch):
            self._relay.reassert(clock.monotonic())
        self._epoch = epoch

    def _confirm(self, ends: Sequence[End], answers: Sequence[str]) -> Sequence[str]:
        """An end that is superseded because the run was lost in a fail-over is told again."""
        assert self._store is not None
        known = self._epoch
        if "superseded" in answers:
            self._look_at_epoch()
        return answers if self._epoch == known else self._store.runs.finish(ends, worker=self._name)

    def _renew(self, relay: Relay, now: float) -> None:
        assert self._store is not None
        self._next_renewal = now + self._store.settings.renew / timedelta(seconds=1)
        leases = relay.leases()
        try:
            self._look_at_epoch()
            answers = self._store.runs.renew(leases, worker=self._name)
        except DataGone as problem:
            self._give_up(problem)
        except StoreUnavailable:
            self._store.revive()
            self._next_renewal = now + 1.0
            return
        for (run, _), answer in zip(leases, answers, strict=True):
            if answer == "cancel":
                self._cancel(run, "It was cancelled on request.")
            elif answer == "ended":
                self._cancel(run, "It was ended from outside.")
        relay.ask_again(now)

    def _cancel(self, run: str, message: str) -> None:
        """Once a run: a second time would break off what it does to end in good order."""
        if run not in self._cancelled:
            self._cancelled.add(run)
            self._send([protocol.CANCEL, run, message])

    def _wait(self) -> None:
        """Until a frame comes or something is due."""
        due = [self._next_open if self._relay is None else self._next_renewal]
        if self._relay is not None and self._relay.deadline is not None:
            due.append(self._relay.deadline)
        seconds = max(0.0, min(due) - clock.monotonic())
        if self._is_alone_since is not None:
            select.select([], [], [], min(seconds, 1.0))
            return
        files = self._socket.fileno(), self._wake_reader
        ready = select.select(files, [], [], seconds)[0]
        if self._wake_reader in ready:
            os.read(self._wake_reader, 4096)
        if self._socket.fileno() in ready:
            self._receive()

    def _receive(self) -> None:
        now = clock.monotonic()
        try:
            received = self._socket.recv(_RECEIVE_BYTES)
            frames = list(self._frames.feed(received))
        except (OSError, ValueError):
            received, frames = b"", []
        for frame in frames:
            if self._relay is not None:
                self._relay.feed(_CHILD, frame, now)
            elif not self._has_told or not self._let_pass(frame):
                self._early.append((now, frame))
        if not received:
            self._is_alone_since = now
            if self._relay is not None:
                self._bury(now)

    def _let_pass(self, frame: protocol.Frame) -> bool:
        """Redis was never reached, so nobody knows any limits: tasks do not wait for it, as nothing else of the run does."""
        match frame:
            case [protocol.ACQUIRE, int(request), str(), "tag", list(tags), *_]:
                self._send([protocol.ANSWER, request, True, ["granted", "\n".join(tags)]])
                return True
        return False

    def _give_up(self, problem: OrchError) -> NoReturn:
        self._send([protocol.UNFIT, f"{problem} {problem.hint or ''}".strip()])
        # Read until the other end has closed: one that writes into a closed socket would not read our last frame.
        with contextlib.suppress(OSError):
            while self._socket.recv(_RECEIVE_BYTES):
                pass
        sys.exit(1)

    def _bury(self, now: float) -> None:
        assert self._relay is not None
        self._relay.gone(_CHILD, "its process ended without saying how the run ended", now)

    def _tell(self, message: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._send([protocol.TROUBLE, message])

    def _send(self, frame: protocol.Frame) -> None:
        try:
            self._socket.sendall(protocol.pack(frame))
        except OSError:
            return  # it is gone; the next read says so too


def main(arguments: list[str]) -> int:
    """The command line of the module: the descriptor of the socket."""
    for stop in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # it goes with its process, having written what that process said
    logging.getLogger("orchestrator").addHandler(logging.NullHandler())
    Sidecar(socket.socket(fileno=int(arguments[0])), settings.load()).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
