"""Deployments and their schedules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgpack

from orchestrator import clock
from orchestrator.exceptions import ObjectNotFound
from orchestrator.keys import Keys, check_name, lengthen, new_id, shorten
from orchestrator.models import Deployment, RunFilter, Schedule
from orchestrator.store.client import Redis
from orchestrator.store.limits import Limits, deployment_gate
from orchestrator.store.queries import Queries
from orchestrator.store.records import pack, read_setting, unpack
from orchestrator.store.runs import Runs
from orchestrator.store.scripts import Scripts

_TEXTS = (
    "name",
    "flow",
    "entrypoint",
    "path",
    "description",
    "version",
    "pool",
    "queue",
    "collision_strategy",
    "deployed_from",
)
_PACKED = ("tags", "parameters", "parameter_schema", "job_variables", "pull")
_MISFIRE = [Schedule("").misfire, Schedule("").misfire_limit]
_NOT_STARTED = ("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot")


class Deployments:
    """Deployments of one namespace, by slug (``flow/name``) or id."""

    def __init__(self, client: Redis, scripts: Scripts, names: Keys, limits: Limits, runs: Runs, queries: Queries) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = names
        self._limits = limits
        self._runs = runs
        self._queries = queries

    def save(self, deployment: Deployment) -> Deployment:
        """Create the deployment, or update the one of that slug.

        Schedules that are new, changed or gone take effect at once: what was planned of them and is not due yet is deleted.
        A schedule that did not change keeps its runs, unless the pool, the queue, the parameters or the tags of its runs did.
        """
        check_name("flow", deployment.flow)
        check_name("deployment", deployment.name)
        before = self._stored(deployment.slug)
        fields: list[Any] = []
        for name in _TEXTS:
            fields += [name, getattr(deployment, name)]
        for name in _PACKED:
            value = getattr(deployment, name)
            fields += [name, pack(list(value) if isinstance(value, tuple) else value)]
        fields += ["enforce", int(deployment.enforce_parameter_schema), "crash_budget", deployment.crash_budget]
        fields += ["paused", int(deployment.paused)]
        short, revision = self._scripts.call("deploy", slug=deployment.slug, new_id=shorten(new_id()), fields=fields)
        deployment.id, deployment.revision = lengthen(short), int(revision)
        self._limits.set(deployment_gate(short.decode()), deployment.concurrency_limit, strategy=deployment.collision_strategy)
        self._save_schedules(deployment, before)
        return self.get(deployment.slug)

    def _save_schedules(self, deployment: Deployment, before: Deployment | None) -> None:
        old = {schedule.slug: schedule for schedule in before.schedules} if before else {}
        same_runs = before is not None and _run_template(before) == _run_template(deployment)
        for schedule in deployment.schedules:
            was = old.pop(schedule.slug, None)
            if was is None or not same_runs or _pack_schedule(was) != _pack_schedule(schedule):
                self._reschedule(deployment, schedule)
        for schedule in old.values():
            self._reschedule(deployment, schedule, remove=True)

    def _reschedule(self, deployment: Deployment, schedule: Schedule, *, remove: bool = False) -> None:
        self._scripts.call(
            "reschedule",
            deployment=shorten(deployment.id),
            slug=schedule.slug,
            definition="" if remove else _pack_schedule(schedule),
            active=int(schedule.active and not deployment.paused),
        )

    def get(self, slug_or_id: str) -> Deployment:
        """One deployment with its schedules. Raises ObjectNotFound, naming the one that was perhaps meant."""
        found = self._stored(slug_or_id)
        if found is None:
            slugs = self.slugs()
            close = difflib.get_close_matches(slug_or_id, slugs, 1) or [s for s in slugs if s.split("/")[1] == slug_or_id]
            hint = f"Did you mean {close[0]!r}?" if close else "List deployments with: orch deployment ls"
            raise ObjectNotFound(f"There is no deployment {slug_or_id!r}.", hint=hint)
        return found

    def find(self, flow: str, name: str) -> Deployment | None:
        """The deployment of that slug, if there is one."""
        return self._stored(f"{flow}/{name}")

    def _stored(self, slug_or_id: str) -> Deployment | None:
        short = self._client.hget(self._keys.deployments, slug_or_id)
        if short is None and "/" not in slug_or_id and len(slug_or_id) == 36:
            short = _short_or_none(slug_or_id)
        return self._read([short])[0] if short else None

    def slugs(self) -> list[str]:
        """All deployments' slugs, sorted."""
        return sorted(slug.decode() for slug in self._client.hkeys(self._keys.deployments))

    def all(self, *, flow: str | None = None, pool: str | None = None) -> list[Deployment]:
        """Deployments by slug, those of one flow or one pool where given."""
        found = [deployment for deployment in self._read(self._client.hvals(self._keys.deployments)) if deployment]
        wanted = (d for d in found if flow in (None, d.flow) and pool in (None, d.pool))
        return sorted(wanted, key=lambda deployment: deployment.slug)

    def get_many(self, ids: Iterable[str]) -> list[Deployment | None]:
        """Deployments by id, None for those that do not exist. One round trip."""
        return self._read([shorten(deployment).encode() for deployment in ids])

    def _read(self, shorts: Iterable[bytes]) -> list[Deployment | None]:
        pipeline = self._client.pipeline(transaction=False)
        for short in (stored.decode() for stored in shorts):
            pipeline.hgetall(self._keys.deployment(short))
            pipeline.hgetall(self._keys.schedules(short))
            pipeline.hget(self._keys.limits, deployment_gate(short))
        answers = pipeline.execute()
        return [_read_deployment(*answers[i : i + 3]) for i in range(0, len(answers), 3)]

    def delete(self, slug_or_id: str) -> Deployment:
        """Remove a deployment, its schedules and its runs that have not started. Those that execute go on; history stays."""
        deployment = self.get(slug_or_id)
        for schedule in deployment.schedules:
            self._reschedule(deployment, schedule, remove=True)
        waiting = RunFilter(deployment=deployment.id, states=_NOT_STARTED)
        for run in self._queries.every_run(waiting):
            self._runs.cancel(run.id, "Its deployment was deleted.")
        short = shorten(deployment.id)
        pipeline = self._client.pipeline(transaction=True)
        pipeline.hdel(self._keys.deployments, deployment.slug)
        pipeline.hdel(self._keys.limits, deployment_gate(short))
        pipeline.delete(self._keys.deployment(short), self._keys.schedules(short))
        pipeline.execute()
        return deployment

    def pause(self, slug_or_id: str) -> Deployment:
        """Stop all schedules of a deployment; runs that somebody asks for still start."""
        return self._set_paused(slug_or_id, True)

    def resume(self, slug_or_id: str) -> Deployment:
        """Let the active schedules of a deployment run again, from now on."""
        return self._set_paused(slug_or_id, False)

    def _set_paused(self, slug_or_id: str, paused: bool) -> Deployment:
        deployment = self.get(slug_or_id)
        deployment.paused = paused
        self._client.hset(self._keys.deployment(shorten(deployment.id)), "paused", int(paused))
        for schedule in deployment.schedules:
            self._reschedule(deployment, schedule)
        return self.get(deployment.slug)

    def pause_schedule(self, slug_or_id: str, schedule: str) -> Schedule:
        """Stop one schedule: its runs that are not due yet disappear."""
        return self._set_active(slug_or_id, schedule, False)

    def resume_schedule(self, slug_or_id: str, schedule: str) -> Schedule:
        """Let one schedule run again, from now on."""
        return self._set_active(slug_or_id, schedule, True)

    def _set_active(self, slug_or_id: str, slug: str, active: bool) -> Schedule:
        deployment = self.get(slug_or_id)
        schedule = _schedule_of(deployment, slug)
        schedule.active = active
        self._reschedule(deployment, schedule)
        return _schedule_of(self.get(deployment.slug), slug)

    def due_for_planning(self, limit: int = 100) -> list[tuple[Deployment, Schedule]]:
        """Active schedules that want more runs planned, the most urgent first."""
        now_ms = self._scripts.now_ms()
        members = self._client.zrange(self._keys.planning, "-inf", now_ms, byscore=True, offset=0, num=limit)
        pairs = [member.decode().split(":", 1) for member in members]
        found: list[tuple[Deployment, Schedule]] = []
        for (short, slug), deployment in zip(pairs, self._read([short.encode() for short, _ in pairs]), strict=True):
            schedule = next((s for s in deployment.schedules if s.slug == slug), None) if deployment else None
            if deployment is None or schedule is None:
                self._client.zrem(self._keys.planning, f"{short}:{slug}")
            else:
                found.append((deployment, schedule))
        return found

    def postpone_planning(self, deployment: Deployment, schedule: Schedule, until: datetime) -> None:
        """Leave a schedule that cannot be planned alone for a while."""
        member = f"{shorten(deployment.id)}:{schedule.slug}"
        self._client.zadd(self._keys.planning, {member: clock.to_ms(until)}, xx=True)

    def planned(self, deployment: Deployment, schedule: Schedule, now: datetime) -> int:
        """How many runs of a schedule stand ready that are due after ``now``."""
        key = self._keys.planned(shorten(deployment.id), schedule.slug)
        return int(self._client.zcount(key, f"({clock.to_ms(now)}", "+inf"))

    def overdue(self, deployment: Deployment, schedule: Schedule, now: datetime) -> list[tuple[str, datetime]]:
        """The planned runs of a schedule whose time has come and that nobody has queued yet: (id, when), oldest first."""
        key = self._keys.planned(shorten(deployment.id), schedule.slug)
        found = self._client.zrange(key, "-inf", clock.to_ms(now), byscore=True, withscores=True, offset=0, num=1000)
        return [(lengthen(member), clock.from_ms(int(due))) for member, due in found]

    def flows(self) -> list[str]:
        """Names of all flows that have been deployed or run, sorted."""
        ran = {name.decode() for name in self._client.zrange(self._keys.flows, 0, -1)}
        return sorted(ran | {slug.split("/")[0] for slug in self.slugs()})


def _short_or_none(text: str) -> bytes | None:
    try:
        return shorten(text).encode()
    except ValueError:
        return None


def _schedule_of(deployment: Deployment, slug: str) -> Schedule:
    for schedule in deployment.schedules:
        if schedule.slug == slug:
            return schedule
    slugs = ", ".join(schedule.slug for schedule in deployment.schedules) or "none"
    raise ObjectNotFound(f"The deployment {deployment.slug!r} has no schedule {slug!r}.", hint=f"Its schedules: {slugs}")


def _run_template(deployment: Deployment) -> tuple[Any, ...]:
    """What of a deployment stands in each run that is planned ahead."""
    d = deployment
    return d.pool, d.queue, d.parameters, d.tags, d.crash_budget, d.paused


def _pack_schedule(schedule: Schedule) -> bytes:
    # Only where they say something: a release that does not know them reads the others all the same.
    misfire = [schedule.misfire, schedule.misfire_limit]
    packed: bytes = msgpack.packb(
        [
            *(schedule.cron, schedule.timezone, schedule.day_or),
            schedule.interval.total_seconds() if schedule.interval else None,
            clock.to_ms(schedule.anchor) if schedule.anchor else None,
            *(schedule.rrule, schedule.active, schedule.parameters, schedule.max_scheduled_runs),
            *(misfire if misfire != _MISFIRE else []),
        ]
    )
    return packed


def _read_schedule(slug: str, stored: dict[bytes, bytes]) -> Schedule:
    cron, timezone, day_or, interval, anchor, rrule, active, parameters, kept, *rest = unpack(stored[slug.encode()])
    misfire, misfire_limit = [*rest, *_MISFIRE[len(rest) :]][:2]
    mark = stored.get(f"{slug}:mark".encode())
    return Schedule(
        slug=slug,
        cron=cron,
        timezone=timezone,
        day_or=day_or,
        interval=timedelta(seconds=interval) if interval else None,
        anchor=clock.from_ms(anchor) if anchor is not None else None,
        rrule=rrule,
        active=active,
        parameters=parameters,
        max_scheduled_runs=kept,
        misfire=misfire,
        misfire_limit=misfire_limit,
        generation=int(stored.get(f"{slug}:generation".encode(), 0)),
        mark=clock.from_ms(int(mark)) if mark else None,
    )


def _read_deployment(fields: dict[bytes, bytes], schedules: dict[bytes, bytes], gate: bytes | None) -> Deployment | None:
    if b"id" not in fields:
        return None
    texts: dict[str, Any] = {name: fields[name.encode()].decode() for name in _TEXTS}
    packed: dict[str, Any] = {name: unpack(fields[name.encode()]) for name in _PACKED}
    packed["tags"] = tuple(packed["tags"])
    limit = read_setting("", gate).get("limit") if gate is not None else None
    return Deployment(
        **texts,
        **packed,
        id=lengthen(fields[b"id"]),
        enforce_parameter_schema=fields[b"enforce"] == b"1",
        concurrency_limit=int(limit) if limit is not None else None,
        crash_budget=int(fields[b"crash_budget"]),
        paused=fields[b"paused"] == b"1",
        schedules=[_read_schedule(slug.decode(), schedules) for slug in sorted(schedules) if b":" not in slug],
        created=clock.from_ms(int(fields[b"created"])),
        updated=clock.from_ms(int(fields[b"updated"])),
        revision=int(fields[b"revision"]),
    )
