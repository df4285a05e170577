"""Clocks that are moved while processes run: libfaketime, told through a file. Monotonic clocks are left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.chaos.servers import Server
from bench.chaos.trial import CannotRun

_PLACES = tuple(f"{folder}/faketime/libfaketime.so.1" for folder in ("/usr/lib/*", "/usr/lib", "/usr/local/lib"))


class Clock:
    """The wall clock of a process, or of several. Raises CannotRun where the library is missing."""

    def __init__(self, folder: Path, name: str = "clock") -> None:
        self._library = _find()
        self._file = folder / f"{name}.faketime"
        self.move(0)

    def move(self, seconds: float) -> None:
        """So far from the machine's own clock, from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+.0f}\n")
        fresh.replace(self._file)
        self.seconds = seconds

    @property
    def variables(self) -> Mapping[str, str]:
        """What a process has to be started with."""
        return {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


class FakedServer(Server):
    """A server whose wall clock can be moved."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder)
        self._clock = clock

    def start(self, *, wait: bool = True) -> FakedServer:
        """As ever, under the moved clock."""
        with _environment(self._clock.variables):
            super().start(wait=wait)
        return self


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _find() -> str:
    for pattern in _PLACES:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            return str(path)
    raise CannotRun("needs libfaketime: apt install libfaketime")
