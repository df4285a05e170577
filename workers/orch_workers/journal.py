"""A worker's journal: the ends that Redis has accepted from it, on its own disk, in case that a fail-over forgets them.

    ORCH_HOME/journal/<namespace>/<worker>.journal      records, the newest last
                                  <worker>.journal.1    older ones, up to .7
                                  <worker>.lock         locked while the worker lives

A record is its length and checksum, each four bytes, and msgpack: ``h`` opens a file (the namespace's birth, host, worker),
``e`` says in which epoch the following ends were accepted, ``x`` is an end. Reading stops at the first that is not whole.

Ends are noted by the worker's loop, which never waits for the disk: a thread writes and fsyncs what has gathered, 25 times a
second at most. What is older than ten minutes is dropped, and what is beyond 32 MB. The journal of a worker that has died is
taken over by the next that starts on its host.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgpack

from orchestrator import clock
from orchestrator.exceptions import ConfigurationError
from orchestrator.settings import private_folder
from orchestrator.store.failover import AcceptedEnd, Epoch

KEPT = timedelta(minutes=10)
"""How old an end may be that a fail-over is still expected to take: a primary that was cut off may have gone on for minutes."""

RESULT_LIMIT = 4 * 1024
"""Bytes of a packed result that are kept; of a larger one an end that is recorded anew has none."""

_SEGMENT_BYTES = 4 * 1024 * 1024
_SEGMENTS = 8
_GATHER_S = 0.04
_TRY_AGAIN_S = 30.0
_TRY_LOCK_S = 1.0
_WAITING = 10_000
_FRAME = struct.Struct(">II")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted end: whose, and in which epoch (``Epoch.id``) it was accepted."""

    worker: str
    epoch: str
    end: AcceptedEnd


class Journal:
    """The journal of one worker. ``note`` and ``move`` cost the caller a microsecond; a thread does the rest.

    ``say`` hears once when the disk refuses, and once when it takes entries again. Nothing here ever stops the worker.
    """

    def __init__(self, home: Path, namespace: str, worker: str, epoch: Epoch, say: Callable[[str], None]) -> None:
        self._folder = home / "journal" / namespace
        self._path = self._folder / f"{worker}.journal"
        self._worker = worker
        self._host = socket.gethostname()
        self._born = epoch.born
        self._say = say
        self._epoch = epoch.id  # that of the last record on the disk
        self._waiting: list[tuple[Any, ...]] = []
        self._lock = threading.Lock()  # of what waits
        self._disk = threading.Lock()  # of the files
        self._noted = threading.Event()
        self._closing = threading.Event()
        self._file: int | None = None
        self._lock_file: int | None = None
        self._size = 0
        self._is_refused = False
        self._try_at = 0.0
        self._thread = threading.Thread(target=self._work, name="orch-journal", daemon=True)

    def start(self) -> list[Entry]:
        """Begin to write. What dead workers of this host, and earlier ones of this name, have left of the last ten minutes.

        Those entries are part of this journal from now on.
        """
        adopted: list[Entry] = []
        try:
            private_folder(self._folder)
            self._lock_file = _take_lock(self._folder / f"{self._worker}.lock")
            adopted = [entry for path in reversed(self._segments()) for entry in self._read(path, self._worker)]
            adopted += self._adopt()
        except (OSError, ConfigurationError) as error:
            self._refuse(error)
        self._thread.start()
        return _young(adopted)

    def note(self, ends: Iterable[AcceptedEnd]) -> None:
        """These ends have been accepted, in the present epoch."""
        self._add([("x", "", "", *end) for end in ends])

    def move(self, epoch: Epoch) -> None:
        """From now on ends are accepted in this epoch."""
        self._add([("e", epoch.id)])

    def recent(self) -> list[Entry]:
        """All ends of the last ten minutes, the newest first, those included that wait to be written."""
        self.flush()
        entries: list[Entry] = []
        with self._disk:
            for path in reversed(self._segments()):
                entries += self._read(path, self._worker)
        with self._lock:  # the disk may have refused some
            entries += _entries(self._waiting, self._worker, self._epoch)
        return _young(reversed(entries))

    def flush(self) -> None:
        """Write what waits, and return when the disk has it, or refuses it."""
        with self._disk:
            self._write()

    def close(self) -> None:
        """Write what waits. The files stay: a fail-over may come yet, and the next worker here takes them over."""
        self._closing.set()
        self._noted.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()
        for descriptor in (self._file, self._lock_file):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._lock_file = None

    # -- writing

    def _add(self, records: list[tuple[Any, ...]]) -> None:
        with self._lock:
            self._waiting += records
            del self._waiting[:-_WAITING]  # only while the disk refuses them
        self._noted.set()

    def _work(self) -> None:
        while not self._closing.is_set():
            self._noted.wait()
            self._closing.wait(_GATHER_S)
            self._noted.clear()
            self.flush()

    def _write(self) -> None:
        """Write and fsync what waits, unless the disk has just refused. The caller holds ``_disk``."""
        if clock.monotonic() < self._try_at or not self._waiting:
            return
        if self._lock_file is None and not self._lock_late():
            return
        with self._lock:
            waiting, self._waiting = self._waiting, []
        packed = b"".join(map(_pack, waiting))
        try:
            packed = self._open() + packed
            assert self._file is not None
            left = memoryview(packed)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            self._undo()
            with self._lock:
                self._waiting = (waiting + self._waiting)[-_WAITING:]
            self._refuse(error)
            return
        self._size += len(packed)
        self._epoch = next((record[1] for record in reversed(waiting) if record[0] == "e"), self._epoch)
        if self._is_refused:
            self._is_refused = False
            self._say("The worker's journal can be written again.")

    def _lock_late(self) -> bool:
        """The disk refused the lock, or another worker that starts has it for a moment, to see whether we live."""
        try:
            private_folder(self._folder)
            self._lock_file = _take_lock(self._folder / f"{self._worker}.lock")
        except (OSError, ConfigurationError) as error:
            self._refuse(error)
            return False
        if self._lock_file is None:
            self._try_at = clock.monotonic() + _TRY_LOCK_S
        return self._lock_file is not None

    def _open(self) -> bytes:
        """See that there is a file with room, and return what has to stand in front where it is empty."""
        if self._file is not None and self._size > _SEGMENT_BYTES:
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._rotate()
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = 0
        if self._size:
            return b""
        return _pack(("h", 1, self._born, self._host, self._worker)) + _pack(("e", self._epoch))

    def _rotate(self) -> None:
        """Make way for a new file: each older one moves on, the oldest goes, and so do those that are too old."""
        for path in reversed(self._segments()):
            number = int(path.suffix[1:]) if path.suffix != ".journal" else 0
            too_old = clock.now_ms() - path.stat().st_mtime * 1000 > KEPT / timedelta(milliseconds=1)
            if too_old or number + 1 >= _SEGMENTS:
                path.unlink()
            else:
                path.rename(self._path.with_name(f"{self._path.name}.{number + 1}"))

    def _segments(self) -> list[Path]:
        """This journal's files, the newest first."""
        return _segments(self._path)

    def _undo(self) -> None:
        """Cut off what was written in part."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)

    def _refuse(self, error: Exception) -> None:
        self._try_at = clock.monotonic() + _TRY_AGAIN_S
        if not self._is_refused:
            self._is_refused = True
            self._say(
                f"The worker's journal in {self._folder} cannot be written ({error}). Runs go on; ends that a fail-over of "
                "Redis forgets can then not be put right."
            )

    # -- reading

    def _adopt(self) -> list[Entry]:
        """Take over what dead workers have left: into this journal first, then off the disk."""
        adopted: list[Entry] = []
        for lock in sorted(self._folder.glob("*.lock")):
            worker = lock.name.removesuffix(".lock")
            descriptor = _take_lock(lock) if worker != self._worker else None
            if descriptor is None:
                continue
            try:
                files = _segments(self._folder / f"{worker}.journal")
                if all(self._is_of_here(file) for file in files):
                    found = _young(entry for file in reversed(files) for entry in self._read(file, worker))
                    self._add([("x", entry.worker, entry.epoch, *entry.end) for entry in found])
                    self.flush()
                    for path in (*files, lock):
                        path.unlink()
                    adopted += found
            finally:
                os.close(descriptor)
        return adopted

    def _is_of_here(self, path: Path) -> bool:
        """Whether this host wrote it: where several share a home, a lock may mean nothing to the others."""
        header = next(_records(path), None)
        return header is None or header[:1] != ["h"] or header[3] == self._host

    def _read(self, path: Path, worker: str) -> list[Entry]:
        """The ends in a file, the oldest first; none of a namespace that was begun anew since."""
        records = list(_records(path))
        if not records or records[0][:2] != ["h", 1] or records[0][2] != self._born:
            return []
        return _entries(records[1:], worker, "")


def _segments(path: Path) -> list[Path]:
    older = (path.with_name(f"{path.name}.{number}") for number in range(1, _SEGMENTS))
    return [found for found in (path, *older) if found.exists()]


def _entries(records: Iterable[Any], worker: str, epoch: str) -> list[Entry]:
    found: list[Entry] = []
    for record in records:
        if record[0] == "e":
            epoch = record[1]
        elif record[0] == "x":
            found.append(Entry(record[1] or worker, record[2] or epoch, AcceptedEnd(*record[3:])))
    return found


def _young(entries: Iterable[Entry]) -> list[Entry]:
    since_ms = clock.now_ms() - KEPT / timedelta(milliseconds=1)
    return [entry for entry in entries if entry.end.ended_ms >= since_ms]


def _pack(record: tuple[Any, ...]) -> bytes:
    packed: bytes = msgpack.packb(record)
    return _FRAME.pack(len(packed), zlib.crc32(packed)) + packed


def _records(path: Path) -> Iterator[Any]:
    """The records of a file, up to its end or to what is no whole record: its writer died, or the disk lost something."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    place = 0
    while place + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, place)
        packed = data[place + _FRAME.size : place + _FRAME.size + length]
        # Zeros are what a file system may show for what it had not written when the power went: a record of no length.
        if not length or len(packed) < length or zlib.crc32(packed) != checksum:
            return
        yield msgpack.unpackb(packed)
        place += _FRAME.size + length


def _take_lock(path: Path) -> int | None:
    """The descriptor of a lock that nobody else holds; None where somebody does. Raises OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it has just taken the file away
