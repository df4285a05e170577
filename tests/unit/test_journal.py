"""The worker's journal: what it keeps, who takes it over, and a disk that fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from harness import eventually
from orch_workers import journal as module
from orch_workers.journal import Journal
from orchestrator import clock
from orchestrator.keys import new_id
from orchestrator.store.failover import AcceptedEnd, Epoch

FIRST = Epoch(1, "born", "server-a", "h", clock.from_ms(0))
SECOND = Epoch(2, "born", "server-b", "h", clock.from_ms(0))


def end(run: str = "", ago: timedelta = timedelta(0)) -> AcceptedEnd:
    ended_ms = clock.now_ms() - round(ago / timedelta(milliseconds=1))
    return AcceptedEnd(run or new_id(), 3, "Completed", "Done", "It is done.", b"\x00\x01", ended_ms, 0)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Callable[..., Journal]:
    """A journal of a worker under this ORCH_HOME."""

    def make(worker: str = "w", epoch: Epoch = FIRST) -> Journal:
        return Journal(tmp_path, "default", worker, epoch, said.append)

    return make


def test_what_was_noted_is_read_back_newest_first_with_its_epoch(make: Callable[..., Journal]) -> None:
    journal = make()
    assert journal.start() == []
    before, after = end(), end()
    journal.note([before])
    journal.move(SECOND)
    journal.note([after])
    assert [(entry.worker, entry.epoch, entry.end) for entry in journal.recent()] == [
        ("w", SECOND.id, after),
        ("w", FIRST.id, before),
    ]
    journal.close()


def test_the_thread_writes_without_being_asked(make: Callable[..., Journal], tmp_path: Path) -> None:
    journal = make()
    journal.start()
    noted = end()
    journal.note([noted])
    file = tmp_path / "journal" / "default" / "w.journal"
    eventually(lambda: file.exists() and noted.run.encode() in file.read_bytes())
    assert file.stat().st_mode & 0o77 == 0
    journal.close()


def test_the_next_worker_of_the_host_takes_over_what_a_dead_one_left(make: Callable[..., Journal], tmp_path: Path) -> None:
    dead, noted = make("dead"), end()
    dead.start()
    dead.note([noted])
    heir = make("heir", SECOND)
    assert heir.start() == [], "it lives"
    heir.close()
    dead.close()
    heir = make("heir", SECOND)
    assert [(entry.worker, entry.epoch, entry.end) for entry in heir.start()] == [("dead", FIRST.id, noted)]
    assert [entry.end for entry in heir.recent()] == [noted]
    assert sorted(file.name for file in (tmp_path / "journal" / "default").iterdir()) == ["heir.journal", "heir.lock"]
    heir.close()
    third = make("third", SECOND)
    assert [(entry.worker, entry.end) for entry in third.start()] == [("dead", noted)]
    third.close()


def test_a_worker_finds_its_own_ends_again_after_a_restart(make: Callable[..., Journal]) -> None:
    first, noted = make(), end()
    first.start()
    first.note([noted])
    first.close()
    again = make(epoch=SECOND)
    assert [(entry.epoch, entry.end) for entry in again.start()] == [(FIRST.id, noted)]
    later = end()
    again.note([later])
    assert [(entry.epoch, entry.end) for entry in again.recent()] == [(SECOND.id, later), (FIRST.id, noted)]
    again.close()


def test_what_belongs_to_a_namespace_that_was_begun_anew_is_left_out(make: Callable[..., Journal]) -> None:
    first = make()
    first.start()
    first.note([end()])
    first.close()
    reborn = make(epoch=Epoch(1, "born-again", "server-c", "h", clock.from_ms(0)))
    assert reborn.start() == []
    assert reborn.recent() == []
    reborn.close()


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped", "zeros"])
def test_reading_stops_where_the_file_is_damaged(make: Callable[..., Journal], tmp_path: Path, damage: str) -> None:
    journal, whole = make(), end()
    journal.start()
    journal.note([whole])
    journal.flush()
    file = tmp_path / "journal" / "default" / "w.journal"
    size = file.stat().st_size
    journal.note([end()])
    journal.close()
    data = file.read_bytes()
    damaged = {
        "cut": data[:-5],
        "garbage": data[:size] + os.urandom(200),
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "zeros": data[:size] + bytes(200),  # after a power cut; a worker did not start any more
    }
    file.write_bytes(damaged[damage])
    again = make()
    assert [entry.end for entry in again.start()] == [whole]
    again.close()


def test_old_ends_are_dropped(make: Callable[..., Journal]) -> None:
    journal, young = make(), end(ago=timedelta(minutes=9))
    journal.start()
    journal.note([end(ago=timedelta(minutes=11)), young])
    assert [entry.end for entry in journal.recent()] == [young]
    journal.close()


def test_it_does_not_grow_beyond_its_files(
    make: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 1000)
    journal = make()
    journal.start()
    noted = [end() for _ in range(300)]
    for one in noted:
        journal.note([one])
        journal.flush()
    files = [file for file in (tmp_path / "journal" / "default").iterdir() if ".journal" in file.name]
    assert len(files) == 8
    assert sum(file.stat().st_size for file in files) < 8 * 1500
    kept = [entry.end for entry in journal.recent()]
    assert kept == noted[: -len(kept) - 1 : -1]
    assert len(kept) > 30
    journal.close()


def test_a_disk_that_refuses_is_spoken_of_once_and_stops_nobody(
    make: Callable[..., Journal], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TRY_AGAIN_S", 0.0)
    journal, noted = make(), [end() for _ in range(3)]
    journal.start()
    journal.note(noted[:1])
    journal.flush()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        for one in noted[1:]:
            journal.note([one])
            journal.flush()
        assert len(said) == 1
        assert "No space left" in said[0]
        assert [entry.end for entry in journal.recent()] == noted[::-1]
    assert [entry.end for entry in journal.recent()] == noted[::-1]
    assert said[1:] == ["The worker's journal can be written again."]
    journal.close()


def test_a_disk_that_fills_up_in_the_middle_of_a_files_beginning_costs_nothing_later(
    make: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TRY_AGAIN_S", 0.0)
    journal, noted = make(), end()
    journal.start()
    write, room = os.write, [7, 0]

    def nearly_full(file: int, data: bytes) -> int:
        if not (left := room.pop(0)):
            raise OSError(28, "No space left on device")
        return write(file, data[:left])

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", nearly_full)
        journal.note([noted])
        journal.flush()
    journal.close()
    again = make()
    assert [entry.end for entry in again.start()] == [noted]
    again.close()


def test_a_home_that_cannot_be_written_stops_nobody(make: Callable[..., Journal], tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "journal").write_text("a file in the way")
    journal, noted = make(), end()
    assert journal.start() == []
    journal.note([noted])
    assert [entry.end for entry in journal.recent()] == [noted]
    journal.close()
    assert len(said) == 1
