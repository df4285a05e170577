"""``orch doctor``: one line per check, and per thing that it mended; exit code 1 if a problem is left.

A check is a generator of findings about the store; ``_CHECKS`` is their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from shlex import quote
from typing import TYPE_CHECKING

import click

from orch_cli import output, processes
from orch_cli.commands import Command
from orch_cli.connection import open_store, settings
from orch_cli.output import Column, Printer, View, Word, duration_text, plural, shows
from orchestrator import clock
from orchestrator._version import __version__
from orchestrator.exceptions import OrchError

if TYPE_CHECKING:
    from orchestrator.store import Store
    from orchestrator.store.failover import Report

_COLORS = {"ok": "green", "mended": "green", "warning": "yellow", "problem": "red"}
_MOST_SKEW = timedelta(seconds=5)
_FAILOVER_IS_NEWS = timedelta(days=7)
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

    Changes nothing without --repair. Exit code 1 if there is a problem (left); warnings alone do not count.
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
        for check in _CHECKS:
            yield from check(store)
        yield from _invariants(store, repair)


def _server(store: Store) -> Iterator[Finding]:
    info = store.server_info()
    kind = "private" if store.embedded else "configured"
    yield Finding("server", "ok", f"{info.product} {info.version} at {store.address} ({kind}; {info.topology})")
    if store.settings.durability == "replicated" and not any(replica.is_online for replica in info.replicas):
        yield Finding(
            "durability",
            "problem",
            "It is 'replicated', and no replica is connected: nothing can be submitted.",
            "Start a replica, or lower it with: orch namespace update --durability default",
        )
    yield Finding("persistence", "ok" if info.appendonly else "warning", info.persistence)
    full = f" of {info.max_bytes / 1e6:,.0f} MB" if info.max_bytes else ""
    yield Finding("memory", "ok", f"{info.used_bytes / 1e6:,.1f} MB{full}; maxmemory-policy is {info.eviction_policy}")
    for warning in info.warnings:
        yield Finding("server setting", "warning", warning)


def _namespace(store: Store) -> Iterator[Finding]:
    now = store.settings
    agreed = ", ".join(f"{name} {value}" for name, value in processes.described(now).items())
    yield Finding("namespace", "ok", f"'{store.namespace}': {agreed}")
    for process, difference in processes.behind(processes.living(store), now):
        yield Finding(
            "namespace",
            "warning",
            f"The {process} runs with {difference}.",
            "Restart it: processes read the namespace's settings when they start. See: orch namespace inspect",
        )


def _releases(store: Store) -> Iterator[Finding]:
    """Releases that run side by side: one and the one before it may, for as long as an upgrade takes."""
    by_version: dict[str, list[str]] = {__version__: ["this command"]}
    for process in processes.living(store):
        by_version.setdefault(process.version, []).append(str(process))
    if len(by_version) == 1:
        count = len(by_version[__version__]) - 1
        others = f", and so {'is' if count == 1 else 'are'} {plural(count, 'process')}" if count else "; no process is alive"
        yield Finding("releases", "ok", f"this command is of {__version__}{others}")
        return
    mix = "; ".join(f"{version or 'unknown'}: {', '.join(_shown(who))}" for version, who in sorted(by_version.items()))
    if _may_mix(list(by_version)):
        hint = "That is fine during an upgrade. Restart the older ones with the newer release, one after another."
        yield Finding("releases", "warning", f"Two releases run side by side. {mix}", hint)
    else:
        hint = "Only a release and the one before it may run side by side. Restart the oldest ones with a newer release now."
        yield Finding("releases", "problem", f"Releases run side by side that do not know each other. {mix}", hint)


def _shown(names: Sequence[str]) -> list[str]:
    return [*names[:_SHOWN], *([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])]


def _may_mix(versions: Sequence[str]) -> bool:
    """At most two minor releases, next to each other; patches of one do not count. One that is not told is an old one."""
    minors = {tuple(map(int, re.findall(r"\d+", version)[:2])) for version in versions}
    if () in minors:
        return len(minors) <= 2
    oldest, newest = min(minors), max(minors)
    return oldest[0] == newest[0] and newest[1] - oldest[1] <= 1


def _schema(store: Store) -> Iterator[Finding]:
    from orchestrator.store.failover import SCHEMA

    stored = store.settings.schema
    if stored == SCHEMA:
        yield Finding("schema", "ok", f"{stored}, the one that this release writes")
    else:
        yield Finding(
            "schema",
            "warning",
            f"The namespace is of schema {stored}, which the release before this one shares; this release knows {SCHEMA}.",
            "Nothing has to be done while both releases run.",
        )


def _failover(store: Store) -> Iterator[Finding]:
    """What the last change of the server under the namespace did to runs."""
    report = store.failover.last()
    if report is None:
        yield Finding("fail-over", "ok", "none: no worker or scheduler has worked here yet")
        return
    epoch = report.epoch
    if epoch.number == 1:
        yield Finding("fail-over", "ok", f"none since {_since(report)}")
        return
    how = {"promoted": "a replica took over", "replaced": "the server restarted, or is another one"}.get(epoch.how, epoch.how)
    damage = _damage(report)
    is_news = store.now() - epoch.since < _FAILOVER_IS_NEWS
    status = "warning" if is_news and (report.mended is None or report.lost_count or report.twice_count) else "ok"
    yield Finding("fail-over", status, f"{_since(report)} {how} (epoch {epoch.number}): {damage}.", _failover_hint(report))


def _since(report: Report) -> str:
    return f"{report.epoch.since:%Y-%m-%d %H:%M:%S} UTC"


def _damage(report: Report) -> str:
    def ids(runs: Sequence[str], count: int) -> str:
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        return f" ({', '.join(runs[:_SHOWN])}{more})" if count else ""

    mended = "nobody has mended the namespace yet" if report.mended is None else f"{plural(report.mended, 'thing')} mended"
    return (
        f"{mended}, {plural(report.lost_count, 'run')} lost{ids(report.lost, report.lost_count)}, "
        f"{plural(report.twice_count, 'run')} started twice{ids(report.twice, report.twice_count)}, "
        f"{plural(report.restored_count, 'run')} restored"
    )


def _failover_hint(report: Report) -> str:
    if report.mended is None:
        return "A scheduler mends it: orch scheduler start. Or mend it now: orch doctor --repair"
    if report.lost_count:
        return "Submit the lost runs again. With --durability replicated a fail-over loses none: orch namespace update --help"
    return ""


def _rescue(store: Store) -> Iterator[Finding]:
    """Whether the sweep is held because the server's clock has jumped."""
    until = store.client.get(store.keys.brake)
    if until is not None:
        yield Finding(
            "rescue",
            "warning",
            f"The server's clock has jumped, or it was away. No lease is over until {clock.from_ms(int(until)):%H:%M:%S} UTC.",
            "Workers renew their leases meanwhile. Let NTP set the clock of the server's machine.",
        )


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


def _stalls(store: Store) -> Iterator[Finding]:
    from orchestrator.store.watch import stalled

    stalls = stalled(store)
    for stall in stalls:
        yield Finding(
            "claims", "problem", stall.sentence, f"Restart {', '.join(stall.workers)}; a worker that hangs takes nothing."
        )
    if not stalls:
        yield Finding("claims", "ok", "no work waits where workers are free")


def _quarantine(store: Store) -> Iterator[Finding]:
    from orchestrator.models import RunFilter

    count = store.queries.count(RunFilter(quarantined=True))
    if count:
        yield Finding("quarantine", "warning", f"{plural(count, 'run')} lost every start that was allowed.", "orch dead ls")
    else:
        yield Finding("quarantine", "ok", "empty")
    letters = store.letters.count()
    if letters:
        detail = f"{plural(letters, 'thing')} in the place of runs or their messages could not be read."
        yield Finding("dead letters", "warning", detail, "orch dead letter ls")


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


_CHECKS: tuple[Callable[[Store], Iterator[Finding]], ...] = (
    _server,
    _namespace,
    _schema,
    _releases,
    _failover,
    _clocks,
    _rescue,
    _schedulers,
    _pools,
    _stalls,
    _late_runs,
    _quarantine,
)
