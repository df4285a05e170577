"""The recorder of a plain process, in a thread of the test. The server forgets, and no connection breaks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from forgetting import Past
from orchestrator.engine import protocol
from orchestrator.engine.sidecar import Sidecar
from orchestrator.keys import new_id
from orchestrator.settings import Settings
from orchestrator.states import Failed
from orchestrator.store import Store


@dataclass
class Process:
    """What a process says that calls a flow, and what its recorder answers."""

    socket: socket.socket
    run: str = field(default_factory=new_id)
    frames: protocol.Frames = field(default_factory=protocol.Frames)
    heard: list[protocol.Frame] = field(default_factory=list)

    def say(self, *frame: object) -> None:
        self.socket.sendall(protocol.pack(list(frame)))

    def hear(self) -> protocol.Frame:
        """The next frame that the recorder sends."""
        while not self.heard:
            self.heard += self.frames.feed(self.socket.recv(4096))
        return self.heard.pop(0)


@pytest.fixture
def process(settings: Settings, store: Store) -> Iterator[Process]:
    ours, its = socket.socketpair()
    ours.settimeout(20)
    recorder = threading.Thread(target=Sidecar(its, settings).serve)
    recorder.start()
    yield Process(ours)
    ours.close()
    recorder.join(20)
    its.close()
    assert not recorder.is_alive()


def test_a_run_that_the_server_has_forgotten_is_created_anew_with_its_slots_and_its_end_counts(
    store: Store, process: Process
) -> None:
    """Its end was superseded: nobody but the recorder knew of the run."""
    store.limits.create_global("db", 1)
    past = Past(store)
    process.say(protocol.OPEN, 0, {"flow": "f", "id": process.run})
    process.say(protocol.ACQUIRE, 1, process.run, "global", ["db"], 1, False, True, True)
    assert process.hear() == [protocol.ANSWER, 1, True, ["granted", ""]]
    past.return_to()
    process.say(protocol.END, process.run, "COMPLETED", "Completed", "", b"", None)
    assert process.hear() == [protocol.ENDED, process.run, "ok"]
    ended = store.runs.get(process.run)
    assert (ended.state.name, ended.attempt, ended.run_count) == ("Completed", 1, 1)
    assert ended.history[0].message == "Recorded anew: a fail-over had lost it."
    report = store.failover.last()
    assert report is not None
    assert (report.restored, report.lost, report.twice) == ((process.run,), (), ())


def test_an_end_that_somebody_was_before_with_is_not_told_again(store: Store, process: Process) -> None:
    process.say(protocol.OPEN, 0, {"flow": "f", "id": process.run})
    process.say(protocol.ASK, 1, "get_variable", ["none"])
    assert process.hear()[:3] == [protocol.ANSWER, 1, False]
    store.runs.set_state(process.run, Failed("by hand"))
    process.say(protocol.END, process.run, "COMPLETED", "Completed", "", b"", None)
    # The recorder may have seen, and said, before that the run is not the process's any more; over TLS it has not.
    told = next(frame for frame in iter(process.hear, None) if frame[0] == protocol.ENDED)
    assert told == [protocol.ENDED, process.run, "superseded"]
    assert store.runs.get(process.run).state.name == "Failed"
