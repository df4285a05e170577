"""``orch namespace``: what all processes of a namespace agree on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from orch_cli import output, processes, prompts
from orch_cli.commands import Noun, Usage
from orch_cli.connection import open_store
from orch_cli.options import DURATION, dry_run_option, yes_option
from orch_cli.output import Column, Lines, Printer, View, plural, shows
from orch_cli.processes import Process

if TYPE_CHECKING:
    from orchestrator.store import Store
    from orchestrator.store.facade import NamespaceSettings

_DURABILITIES = ("default", "replicated")


@dataclass(frozen=True)
class Namespace:
    """A namespace's settings, and the processes that live; ``behind``: those that run with others, and with which."""

    name: str
    server: str
    settings: NamespaceSettings
    living: list[Process]
    behind: list[tuple[Process, str]]


def _json(namespace: Namespace) -> dict[str, Any]:
    settings = namespace.settings
    return {
        "namespace": namespace.name,
        "server": namespace.server,
        "lease": settings.lease.total_seconds(),
        "retention": settings.retention.total_seconds(),
        "durability": settings.durability,
        "renewed_every": settings.renew.total_seconds(),
        "stops_after": settings.self_kill.total_seconds(),
        "gone_after": settings.silence.total_seconds(),
        "processes": len(namespace.living),
        "behind": [
            {"kind": process.kind, "name": process.name, "host": process.host, "runs_with": difference}
            for process, difference in namespace.behind
        ],
    }


NAMESPACE: View[Namespace] = View(
    name=lambda namespace: namespace.name,
    columns=(
        Column("Namespace", lambda namespace: namespace.name),
        Column("Server", lambda namespace: namespace.server),
        Column("Lease", lambda namespace: namespace.settings.lease),
        Column("Retention", lambda namespace: namespace.settings.retention),
        Column("Durability", lambda namespace: namespace.settings.durability),
    ),
    sheet=(
        Column("Renewed every", lambda namespace: namespace.settings.renew),
        Column("Stops after", lambda namespace: namespace.settings.self_kill),
        Column("Gone after", lambda namespace: namespace.settings.silence),
        Column("Processes", lambda namespace: len(namespace.living)),
        Column("Run with others", lambda namespace: _behind_lines(namespace)),
    ),
    json=_json,
)


def _behind_lines(namespace: Namespace) -> Lines | None:
    lines = tuple((str(process), difference) for process, difference in namespace.behind)
    return Lines(lines) if lines else None


@click.group("namespace", cls=Noun, examples=("orch namespace inspect", "orch namespace update --retention 90d"))
def namespace() -> None:
    """Show and change what all processes of a namespace agree on.

    The length of leases, how long ended runs are kept, and when a write counts. They are stored in the namespace; workers,
    schedulers and clients read them when they start.
    """


@namespace.command("inspect", examples=("orch namespace inspect", "orch namespace inspect -o json"))
@shows(NAMESPACE)
def inspect(out: Printer[Namespace]) -> None:
    """Show the namespace's settings, what follows from them, and which processes run with others."""
    with open_store() as store:
        found = _found(store, store.settings)
    out.one(found)
    if found.behind and out.is_for_people:
        output.say_hint(_restart(found))


@namespace.command(
    "update",
    examples=(
        "orch namespace update --lease 30s",
        "orch namespace update --retention 90d --yes",
        "orch namespace update --durability replicated",
    ),
)
@click.option("--lease", type=DURATION, metavar="DURATION", help="How long a worker may be silent before its runs start again.")
@click.option("--retention", type=DURATION, metavar="DURATION", help="How long ended runs are kept.")
@click.option("--durability", type=click.Choice(_DURABILITIES), help="Whether a write has to reach a replica before it counts.")
@yes_option
@dry_run_option
@shows(NAMESPACE)
def update(
    out: Printer[Namespace],
    lease: timedelta | None,
    retention: timedelta | None,
    durability: str | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Change the namespace's settings. Processes read them when they start.

    Asks before a shorter retention deletes ended runs, before a durability that the server cannot give now, and while processes
    run with the settings of now.
    """
    given = {"lease": lease, "retention": retention, "durability": durability}
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        raise Usage(
            "Nothing to change was given.",
            hint="Give --lease, --retention or --durability. See the present ones with: orch namespace inspect",
        )
    with open_store() as store:
        settings = replace(store.settings, **wanted)
        settings.check()
        changes = processes.differences(settings, store.settings)
        found = _found(store, settings)
        if not changes:
            out.done(f"Namespace '{found.name}' has these settings already.", found)
            return
        consequences = list(_consequences(store, found))
        if dry_run:
            out.one(found)
            output.say(f"Nothing was done: this would set {changes}. {' '.join(consequences)}".rstrip())
            return
        prompts.confirm(f"{' '.join(consequences)} Set {changes}?", yes or not consequences)
        store.write_settings(settings)
    out.done(f"Namespace '{found.name}' now has {changes}.", found)
    if found.behind and out.is_for_people:
        output.say_hint(_restart(found))


def _found(store: Store, settings: NamespaceSettings) -> Namespace:
    living = processes.living(store)
    return Namespace(store.namespace, store.address, settings, living, processes.behind(living, settings))


def _consequences(store: Store, found: Namespace) -> Iterator[str]:
    """What a change means that nobody would want by accident, a sentence each."""
    if found.settings.retention < store.settings.retention:
        lost = store.queries.count_ended(before=store.now() - found.settings.retention)
        if lost:
            yield f"{plural(lost, 'run')} that ended longer ago will be deleted for good."
    becomes_replicated = found.settings.durability == "replicated" != store.settings.durability
    if becomes_replicated and not any(replica.is_online for replica in store.server_info().replicas):
        yield "No replica is connected: until one is, nothing can be submitted."
    if found.behind:
        alive = plural(len(found.behind), "process")
        yield f"{alive} will go on with the settings of now until restarted."


def _restart(found: Namespace) -> str:
    kinds = " and ".join(sorted({f"{process.kind}s" for process, _ in found.behind}, reverse=True))
    return f"Processes read the settings when they start. Restart these {kinds}, one after another: " + ", ".join(
        f"'{process.name}'" for process, _ in found.behind
    )
