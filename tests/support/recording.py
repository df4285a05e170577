"""A recorder for tests: keeps every frame that the engine sends, and answers what the engine waits for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from harness import eventually
from orchestrator.engine import protocol
from orchestrator.engine.link import Link
from orchestrator.engine.protocol import Frame, Wanted
from orchestrator.models import TaskRun


class Recording:
    """The other end of a link. ``answers`` makes the value of a question's answer; None leaves it open.

    Calls for slots are granted while ``is_granting``; ``calls`` are those that were not, or not yet: number -> what is wanted.
    """

    def __init__(self, **options: Any) -> None:
        ours, its = socket.socketpair()
        self.link = Link(ours, interval=0.001, **options)
        self.frames: list[Frame] = []
        self.acknowledges = True
        self.is_granting = True
        self.calls: dict[int, Wanted] = {}
        self.answers: Callable[[str, list[Any]], Any] = lambda what, arguments: None
        self._socket = its
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, *frame: Any) -> None:
        """A frame from the recorder to the engine."""
        self._socket.sendall(protocol.pack(list(frame)))

    def grant(self, call: int) -> None:
        """Answer a call for slots that was left open."""
        del self.calls[call]
        self.send(protocol.ANSWER, call, True, ["granted", ""])

    def hang_up(self) -> None:
        """The recorder dies."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def end(self) -> None:
        """Close both ends."""
        self.link.close()
        self._reader.join(10)
        self._socket.close()

    def of(self, kind: str) -> list[Frame]:
        """All frames of a kind, in order, after those that the link still holds back have come."""
        self.link.flush()
        self.link.send(["marker", len(self.frames)])
        marker = self.frames
        eventually(lambda: any(frame[0] == "marker" for frame in marker))
        self.frames = [frame for frame in self.frames if frame[0] != "marker"]
        return [frame for frame in self.frames if frame[0] == kind]

    @property
    def opened(self) -> list[dict[str, Any]]:
        """The runs that began, in order."""
        return [frame[2] for frame in self.of(protocol.OPEN)]

    @property
    def starts(self) -> list[tuple[str, str]]:
        """(run, state name) of every start that was told."""
        return [(frame[1], frame[2]) for frame in self.of(protocol.START)]

    @property
    def ends(self) -> list[tuple[str, str]]:
        """(state name, message) of every run that ended, in order."""
        return [(frame[3], frame[4]) for frame in self.of(protocol.END)]

    @property
    def log(self) -> list[str]:
        """Every log line's text, in order."""
        return [line[3] for frame in self.of(protocol.LOG) for line in frame[2]]

    @property
    def tasks(self) -> dict[str, TaskRun]:
        """Task runs by name, as they were told last, in the order in which they were first told."""
        rows = [row for frame in self.of(protocol.TASKS) for row in frame[2]]
        latest: dict[str, TaskRun] = {}
        for task in map(protocol.task_of, rows):
            latest[task.name] = task
        return latest

    def _read(self) -> None:
        frames = protocol.Frames()
        while True:
            try:
                received = self._socket.recv(65536)
            except OSError:
                return
            if not received:
                return
            for frame in frames.feed(received):
                self.frames.append(frame)
                self._answer(frame)

    def _answer(self, frame: Frame) -> None:
        if frame[0] == protocol.END and self.acknowledges:
            self.send(protocol.ENDED, frame[1], "ok")
        elif frame[0] == protocol.ASK:
            value = self.answers(frame[2], frame[3])
            if value is not None:
                self.send(protocol.ANSWER, frame[1], *value)
        elif frame[0] == protocol.ACQUIRE:
            self.calls[frame[1]] = Wanted(*frame[3:])
            if self.is_granting:
                self.grant(frame[1])
        elif frame[0] == protocol.RELEASE:
            self.calls.pop(frame[2], None)
