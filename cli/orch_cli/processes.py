"""The workers and schedulers of a namespace that live: their release, and the settings that they read when they started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orch_cli.output import duration_text

if TYPE_CHECKING:
    from orchestrator.store import Store
    from orchestrator.store.facade import NamespaceSettings


@dataclass(frozen=True)
class Process:
    """A worker or a scheduler. ``version`` and ``settings`` are empty and None where its release does not tell them."""

    kind: str
    name: str
    host: str
    version: str
    settings: NamespaceSettings | None

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'{f' on {self.host}' if self.host else ''}"


def living(store: Store) -> list[Process]:
    """Every process that was heard of lately: workers, then schedulers, by name."""
    return [*_workers(store), *_schedulers(store)]


def _workers(store: Store) -> Iterator[Process]:
    for worker in store.pools.workers():
        if worker.status != "OFFLINE":
            yield Process("worker", worker.name, worker.host, worker.version, _read(worker.agreed))


def _schedulers(store: Store) -> Iterator[Process]:
    for scheduler in sorted(store.pools.scheduler_processes(), key=lambda scheduler: scheduler.name):
        yield Process("scheduler", scheduler.name, scheduler.host, scheduler.version, _read(scheduler.agreed))


def _read(agreed: dict[str, str]) -> NamespaceSettings | None:
    from orchestrator.store.facade import NamespaceSettings

    return NamespaceSettings.read(agreed) if agreed else None


def behind(processes: list[Process], settings: NamespaceSettings) -> list[tuple[Process, str]]:
    """The processes that run with other settings than these, each with those of its own that differ."""
    own = [(process, differences(process.settings, settings)) for process in processes if process.settings is not None]
    return [(process, difference) for process, difference in own if difference]


def differences(settings: NamespaceSettings, other: NamespaceSettings) -> str:
    """What of ``settings`` is not as in ``other``: ``lease 15 s, durability default``."""
    known = described(other)
    return ", ".join(f"{name} {value}" for name, value in described(settings).items() if known[name] != value)


def described(settings: NamespaceSettings) -> dict[str, str]:
    """The settings in words, by name."""
    return {
        "lease": duration_text(settings.lease),
        "retention": duration_text(settings.retention),
        "durability": settings.durability,
    }
