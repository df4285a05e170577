"""``orch doctor``: one line per check, and per thing that it mended; exit code 1 if a problem is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from shlex import quote
from typing import TYPE_CHECKING

import click

from orch_cli import output
from orch_cli.commands import Command
from orch_cli.connection import open_store, settings
from orch_cli.output import Column, Printer, View, Word, duration_text, plural, shows
from orchestrator import clock
from orchestrator.exceptions import OrchError

if TYPE_CHECKING:
    from orchestrator.store import Store

_COLORS = {"ok": "green", "mended": "green", "warning": "yellow", "problem": "red"}
_MOST_SKEW = timedelta(seconds=5)
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """What one check found: ok, mended, warning or problem; and, where something should be done, what."""

    check: str
    status: str
    detail: str
    hint: str = ""


FINDING: View[Finding] = View(
    name=lambda finding: finding.check,
    columns=(
        Column("Check", lambda finding: finding.check),
        Column("Status", lambda finding: Word(finding.status, _COLORS[finding.status])),
        Column("Detail", lambda finding: finding.detail, fold=True),
        Column("Hint", lambda finding: finding.hint, wide=True, fold=True),
    ),
)


@click.command("doctor", cls=Command, examples=("orch doctor", "orch doctor --repair", "orch doctor -o json"))
@click.option("--repair", is_flag=True, help="Mend what a crash of Redis or a restored backup has broken.")
@shows(FINDING, many=True)
def doctor(out: Printer[Finding], repair: bool) -> int:
    """Find what is wrong with the server, the workers and the runs.

    Changes nothing without --repair. Exit code 1 if there is a problem (left).
    """
    findings = list(_examine(repair))
    out.many(findings)
    if out.is_for_people:
        for finding in findings:
            if finding.hint:
                output.say_hint(f"{finding.check}: {finding.hint}")
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def _examine(repair: bool) -> Iterator[Finding]:
    try:
        now = settings()
    except OrchError as error:
        yield Finding("settings", "problem", str(error), error.hint or "")
        return
    yield Finding("settings", "ok", f"profile '{now.profile}', namespace '{now.namespace}', home {now.home}")
    try:
        store = open_store()
    except OrchError as error:
        yield Finding("server", "problem", str(error), error.hint or "")
        return
    with store:
        yield from _server(store)
        yield from _clocks(store)
        yield from _schedulers(store)
        yield from _pools(store)
        yield from _late_runs(store)
        yield from _invariants(store, repair)


def _server(store: Store) -> Iterator[Finding]:
    info = store.server_info()
    kind = "private" if store.embedded else "configured"
    yield Finding("server", "ok", f"{info.product} {info.version} at {store.address} ({kind})")
    yield Finding("persistence", "ok" if info.appendonly else "warning", info.persistence)
    full = f" of {info.max_bytes / 1e6:,.0f} MB" if info.max_bytes else ""
    yield Finding("memory", "ok", f"{info.used_bytes / 1e6:,.1f} MB{full}; maxmemory-policy is {info.eviction_policy}")
    for warning in info.warnings:
        yield Finding("server setting", "warning", warning)


def _clocks(store: Store) -> Iterator[Finding]:
    skews = {"this machine": clock.now() - store.now()}
    skews |= {f"worker '{w.name}' on {w.host}": w.clock_skew for w in store.pools.workers() if w.status != "OFFLINE"}
    wrong = {name: skew for name, skew in skews.items() if abs(skew) > _MOST_SKEW}
    for name, skew in wrong.items():
        direction = "ahead of" if skew > timedelta() else "behind"
        yield Finding(
            "clock",
            "warning",
            f"The clock of {name} is {duration_text(abs(skew))} {direction} the server's.",
            "Runs are not affected, log times are. Let NTP set the clocks.",
        )
    if not wrong:
        yield Finding("clock", "ok", f"{plural(len(skews), 'clock')} within {duration_text(_MOST_SKEW)} of the server's")


def _schedulers(store: Store) -> Iterator[Finding]:
    names = store.pools.schedulers()
    scheduled = [d for d in store.deployments.all() if not d.paused and any(s.active for s in d.schedules)]
    if names:
        yield Finding("schedulers", "ok", f"{len(names)} alive: {', '.join(names)}")
    elif scheduled:
        detail = f"None is alive, and there are active schedules in {plural(len(scheduled), 'deployment')}."
        yield Finding("schedulers", "problem", detail, "Start one with: orch scheduler start")
    else:
        yield Finding("schedulers", "ok", "none alive, and no schedule needs one")


def _pools(store: Store) -> Iterator[Finding]:
    pools = {pool.name: pool for pool in store.pools.all()}
    used = {deployment.pool for deployment in store.deployments.all() if deployment.pool}
    for name in sorted(used - pools.keys()):
        yield Finding(
            "work pool", "problem", f"'{name}' does not exist, but deployments use it.", f"orch work-pool create {quote(name)}"
        )
    for pool in pools.values():
        queued = sum(queue.depth for queue in pool.queues)
        if pool.paused:
            yield Finding("work pool", "warning", f"'{pool.name}' is paused.", f"orch work-pool resume {quote(pool.name)}")
        elif pool.workers == 0 and (queued or pool.name in used):
            yield Finding(
                "work pool",
                "problem" if queued else "warning",
                f"No worker polls '{pool.name}'; it has {plural(queued, 'queued run')}.",
                f"orch worker start --pool {quote(pool.name)}",
            )
        else:
            yield Finding("work pool", "ok", f"'{pool.name}': {plural(pool.workers, 'worker')}, {plural(queued, 'queued run')}")


def _late_runs(store: Store) -> Iterator[Finding]:
    from orchestrator.models import RunFilter

    late = store.queries.count(RunFilter(states=("Late",)))
    if late:
        yield Finding(
            "late runs", "warning", f"{plural(late, 'run')} should have started by now.", "orch flow-run ls --state late"
        )
    else:
        yield Finding("late runs", "ok", "none")


def _invariants(store: Store, repair: bool) -> Iterator[Finding]:
    from orchestrator.store.invariants import check

    broken = check(store)
    if broken and repair:
        for what, subject in store.runs.reconcile_all():
            yield Finding("repair", "mended", f"{subject}: {what}")
        broken = check(store)
    hint = "Nothing mends this by itself; orch flow-run delete RUN removes a run." if repair else "orch doctor --repair"
    for number, violation in enumerate(broken[:_SHOWN]):
        yield Finding("invariants", "problem", str(violation), "" if number else hint)
    if len(broken) > _SHOWN:
        yield Finding("invariants", "problem", f"and {len(broken) - _SHOWN} more")
    if not broken:
        yield Finding("invariants", "ok", "every run is in exactly one place, and every slot belongs to a live run")
