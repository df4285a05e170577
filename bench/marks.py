"""A file to which a flow's body appends the moment when it began, as eight bytes.

O_APPEND makes that atomic across forked processes; it costs about two microseconds and no call to Redis.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from pathlib import Path


def mark(path: str) -> None:
    """Append the present moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, struct.pack("d", time.time()))
    os.close(descriptor)


class Marks:
    """The reader's side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)

    def __len__(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.path.stat().st_size // 8
        return 0

    def at(self, index: int) -> float:
        """Mark number ``index``, in seconds since 1970."""
        with self.path.open("rb") as file:
            file.seek(8 * index)
            return float(struct.unpack("d", file.read(8))[0])

    def all(self) -> list[float]:
        """All marks in the order in which they were written."""
        return [moment for (moment,) in struct.iter_unpack("d", self.path.read_bytes())]

    def wait_for(self, count: int, seconds: float, pause_s: float = 0.0003) -> None:
        """Until there are so many; asks every ``pause_s``. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while len(self) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self)} of {count} bodies began in {seconds:g} s")
            time.sleep(pause_s)
