"""What ``orch deploy`` does: from a project's file to deployments that are ready to be saved, or to what is wrong with them.

``prepare`` loads flows and checks; ``settle`` keeps what people have changed since the last time; ``diff`` compares;
``warnings`` says what will keep runs from starting; ``apply`` saves. Only ``apply`` writes.
"""

from __future__ import annotations

import difflib
import fnmatch
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from orchestrator.deployments import entrypoints, steps
from orchestrator.deployments.file import Entry, Project
from orchestrator.deployments.located import Place, Value
from orchestrator.deployments.parameters import check_parameters, check_size
from orchestrator.deployments.templates import Sources, render
from orchestrator.exceptions import InvalidDefinition, ObjectNotFound, OrchError
from orchestrator.keys import check_name
from orchestrator.models import Deployment, Schedule, as_json

if TYPE_CHECKING:
    from orchestrator.flows import Flow
    from orchestrator.store import Store

DEFAULT_QUEUE = "default"

_STORED = frozenset({"id", "created", "updated", "revision", "deployed_from", "generation", "mark"})
"""Fields that the store fills in, or that change by themselves: not part of a comparison."""


@dataclass(frozen=True, slots=True)
class Question:
    """Something that the file leaves open: ``field`` is name, entrypoint or pool; ``flag`` answers it without a terminal.

    ``choices`` are known answers, where there are any.
    """

    field: str
    text: str
    flag: str
    choices: tuple[str, ...] = ()


Ask = Callable[[Question], str]
"""Puts a question to whoever is there, or raises."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the command line said. ``name`` and ``entrypoint`` fill what the file leaves open; the others replace it."""

    name: str | None = None
    entrypoint: str | None = None
    pool: str | None = None
    queue: str | None = None


@dataclass(slots=True)
class Prepared:
    """One deployment, ready to be saved. ``unsaid`` names what the file leaves to how it is set in the store."""

    deployment: Deployment
    flow: Flow[..., Any]
    place: Place
    unsaid: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Warning:  # noqa: A001 - it is one
    """Something that will keep runs from starting, or that was not done; and what to type."""

    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Change:
    """One field that a deploy would change. ``field`` is a path such as ``schedules.tokyo-9am.cron``; None: is not there."""

    field: str
    old: Any
    new: Any


def prepare(
    project: Project,
    names: Sequence[str] = (),
    *,
    every: bool = False,
    sources: Sources | None = None,
    answers: Answers | None = None,
    ask: Ask | None = None,
) -> list[Prepared]:
    """The chosen deployments of a project, their flows loaded and everything checked that can be.

    ``names`` are names, ``flow/name`` or patterns with ``*``; without them and without ``every`` the file's only deployment is
    meant. What the file leaves open is asked for, or an error that names the flag.

    Raises InvalidDefinition, ParameterTypeError, FlowLoadError, StepError: each with the line of the deployment.
    """
    sources, answers = sources or _sources(), answers or Answers()
    chosen = _choose(project, list(names), every, sources, answers)
    outputs: dict[str, Mapping[str, Any]] = {}
    prepared = []
    for value in chosen:
        try:
            prepared.append(_prepare(project, value, sources, answers, ask, outputs))
        except OrchError as error:
            if str(error).startswith(f"{value.place.file}:"):
                raise
            raise type(error)(f"{value.place}: {error}", hint=error.hint) from error.__cause__ or error
    _check_unique(prepared)
    return prepared


def settle(prepared: Prepared, stored: Deployment | None) -> Deployment:
    """The deployment as saving it would leave it: what the file does not say (paused, active) stays as it is in the store."""
    new = prepared.deployment
    if stored is None:
        return new
    old = {schedule.slug: schedule for schedule in stored.schedules}
    schedules = [
        replace(schedule, active=old[schedule.slug].active)
        if f"schedules.{schedule.slug}.active" in prepared.unsaid and schedule.slug in old
        else schedule
        for schedule in new.schedules
    ]
    return replace(new, paused=stored.paused if "paused" in prepared.unsaid else new.paused, schedules=schedules)


def diff(old: Deployment | None, new: Deployment) -> list[Change]:
    """What saving ``new`` would change; everything, if there is no ``old``. Empty: nothing."""
    before = _flat(old) if old is not None else {}
    after = _flat(new)
    return [
        Change(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*after, *before))
        if name not in before or name not in after or before[name] != after[name]
    ]


def missing_pools(store: Store, prepared: Sequence[Prepared]) -> list[str]:
    """Work pools that the deployments name and that do not exist."""
    pools = dict.fromkeys(item.deployment.pool for item in prepared)
    return [pool for pool in pools if not store.pools.exists(pool)]


def missing_queues(store: Store, prepared: Sequence[Prepared]) -> list[tuple[str, str]]:
    """Work queues, each behind its pool, that the deployments name and that do not exist; those of missing pools too."""
    named = dict.fromkeys((item.deployment.pool, item.deployment.queue) for item in prepared)
    missing = set(missing_pools(store, prepared))
    return [
        (pool, queue)
        for pool, queue in named
        if queue not in ((DEFAULT_QUEUE,) if pool in missing else store.pools.queue_names(pool))
    ]


def apply(store: Store, prepared: Sequence[Prepared]) -> list[Deployment]:
    """Save the deployments, and return them as they are stored then.

    Raises ObjectNotFound, before anything is saved, for a work pool or queue that does not exist.
    """
    for pool in missing_pools(store, prepared):
        raise ObjectNotFound(
            f"There is no work pool {pool!r}.",
            hint=f"Create it with: orch work-pool create '{pool}' --type process, or add --create-pool process",
        )
    for item in prepared:
        store.pools.get_queue(item.deployment.pool, item.deployment.queue)
    store.failover.check()  # a namespace that begins here gets its schema
    saved = []
    for item in prepared:
        deployment = item.deployment
        saved.append(store.deployments.save(settle(item, store.deployments.find(deployment.flow, deployment.name))))
    return saved


def warnings(store: Store, prepared: Sequence[Prepared]) -> list[Warning]:
    """What will keep runs of these deployments from starting as things stand, each with the command to type."""
    found: list[Warning] = []
    deployments = [item.deployment for item in prepared]
    for item in prepared:
        if item.ignored:
            found.append(
                Warning(
                    f"{item.place}: {', '.join(item.ignored)} has no effect in this version.",
                    "Remove it, or leave it for later.",
                )
            )
    scheduled = [d for d in deployments if not d.paused and any(schedule.active for schedule in d.schedules)]
    if scheduled and not store.pools.schedulers():
        found.append(Warning("No scheduler is running: schedules will not fire.", "Start one with: orch scheduler start"))
    for pool in dict.fromkeys(d.pool for d in deployments):
        if not store.pools.exists(pool):
            continue
        state = store.pools.get(pool)
        if state.paused:
            found.append(
                Warning(
                    f"Work pool {pool!r} is paused: its runs wait.", f"Resume it with: orch work-pool resume {_quoted(pool)}"
                )
            )
        if not state.workers:
            found.append(
                Warning(
                    f"No worker polls work pool {pool!r}: its runs wait.",
                    f"Start one with: orch worker start --pool {_quoted(pool)}",
                )
            )
        if store.embedded and _is_elsewhere(store, pool, deployments):
            found.append(
                Warning(
                    f"The server in use is the private one of this machine ({socket.gethostname()}); "
                    f"workers of work pool {pool!r} on other machines cannot reach it.",
                    "Run a Redis that all machines reach, and set on each: ORCH_REDIS_URL=redis://...",
                )
            )
    return found


def _choose(project: Project, names: list[str], every: bool, sources: Sources, answers: Answers) -> list[Value]:
    listed = project.deployments
    if not listed:
        raise InvalidDefinition(
            f"{project.path.name} holds no deployment.",
            hint="Add one below 'deployments:' with a name, an entrypoint and a work_pool; 'orch init' writes an example.",
        )
    if every:
        return listed
    if not names:
        if len(listed) == 1:
            return listed
        known = ", ".join(_label(value, sources) for value in listed)
        raise InvalidDefinition(
            f"{project.path.name} holds {len(listed)} deployments: {known}.",
            hint="Choose with -n NAME, or take all with --all.",
        )
    chosen: list[Value] = []
    for pattern in names:
        found = [value for value in listed if _matches(pattern, value, sources)]
        nameless = [value for value in listed if _raw(value, "name", sources) is None]
        if not found and len(nameless) == 1 and pattern == answers.name:
            found = nameless
        if not found:
            named = [name for value in listed if (name := _raw(value, "name", sources))]
            close = difflib.get_close_matches(pattern, named, n=1)
            listing = f"{project.path.name} holds {', '.join(named) or 'none with a name'}."
            raise InvalidDefinition(
                f"There is no deployment {pattern!r} in {project.path.name}.",
                hint=f"Did you mean {close[0]!r}? {listing}" if close else listing,
            )
        chosen += [value for value in found if not any(value is other for other in chosen)]
    return chosen


def _matches(pattern: str, value: Value, sources: Sources) -> bool:
    name, flow = _raw(value, "name", sources), _raw(value, "flow_name", sources)
    if name is None:
        return False
    wanted_flow, slash, wanted = pattern.rpartition("/")
    if slash and flow is None:
        entrypoint = _raw(value, "entrypoint", sources) or ""
        flow = entrypoint.rpartition(":")[2].replace("_", "-")
    return fnmatch.fnmatchcase(name, wanted) and (not slash or fnmatch.fnmatchcase(_folded(flow or ""), _folded(wanted_flow)))


def _raw(value: Value, key: str, sources: Sources) -> str | None:
    """A text of a deployment before the whole of it is read."""
    found = value.value.get(key)
    if found is None or found.text is None or found.is_null:
        return None
    rendered = found.map_text(lambda text: render(text, sources))
    return str(rendered.text) if rendered.text is not None else None


def _label(value: Value, sources: Sources) -> str:
    return _raw(value, "name", sources) or f"one without a name on line {value.place.line}"


def _prepare(
    project: Project,
    value: Value,
    sources: Sources,
    answers: Answers,
    ask: Ask | None,
    outputs: dict[str, Mapping[str, Any]],
) -> Prepared:
    for phase in ("build", "push"):
        known = replace(sources, outputs={**sources.outputs, **outputs})
        outputs.update(steps.run(project.steps(value, phase), project.directory, known).outputs)
    known = replace(sources, outputs={**sources.outputs, **outputs})
    entry = project.entry(
        value, lambda text: render(text, known), lambda text: render(text, known, only_outputs=True)
    )  # fmt: skip
    where = f"{project.path.name}, line {value.place.line}"
    name = entry.name or answers.name or _answer(ask, Question("name", f"Name of the deployment in {where}", "--name NAME"))
    check_name("deployment", name)
    entrypoint = entry.entrypoint or answers.entrypoint or _find_entrypoint(project, entry, ask, name)
    pool = answers.pool or entry.pool or _answer(ask, Question("pool", f"Work pool for deployment {name!r}", "--pool NAME"))
    check_name("work pool", pool)
    queue = check_name("work queue", answers.queue or entry.queue or DEFAULT_QUEUE)
    flow = entrypoints.load_flow(entrypoint, project.directory)
    if entry.flow_name is not None and _folded(entry.flow_name) != _folded(flow.name):
        raise InvalidDefinition(
            f"flow_name is {entry.flow_name!r}, but the flow at {entrypoint} is called {flow.name!r}.",
            hint="Correct one of them, or leave flow_name out.",
        )
    deployment = Deployment(
        name=name,
        flow=check_name("flow", flow.name),
        entrypoint=entrypoint,
        path="" if entry.pull else str(project.directory),
        description=entry.description if entry.description is not None else flow.description or "",
        version=entry.version or flow.version or "",
        tags=entry.tags,
        parameters=entry.parameters,
        parameter_schema=flow.parameters,
        enforce_parameter_schema=entry.enforce_parameter_schema,
        pool=pool,
        queue=queue,
        job_variables=entry.job_variables,
        pull=entry.pull or [],
        concurrency_limit=entry.concurrency_limit,
        collision_strategy=entry.collision_strategy,
        crash_budget=entry.crash_budget,
        paused=bool(entry.paused),
        schedules=entry.schedules,
        deployed_from=socket.gethostname(),
    )
    _check_parameters(deployment)
    return Prepared(deployment, flow, value.place, _unsaid(entry), entry.ignored)


def _find_entrypoint(project: Project, entry: Entry, ask: Ask | None, name: str) -> str:
    found = entrypoints.find_flows(project.directory)
    if entry.flow_name is not None:
        matching = [flow for flow in found if _folded(flow.name) == _folded(entry.flow_name)]
        if len(matching) == 1:
            return matching[0].entrypoint
        found = matching or found
    question = Question(
        "entrypoint",
        f"Entry point of deployment {name!r} (file.py:function)",
        "--entrypoint FILE:FUNCTION",
        tuple(flow.entrypoint for flow in found),
    )
    return _answer(ask, question)


def _answer(ask: Ask | None, question: Question) -> str:
    if ask is not None:
        answer = ask(question).strip()
        if answer:
            return answer
    choices = f" There is {', '.join(question.choices[:8])}." if question.choices else ""
    raise InvalidDefinition(
        f"{question.text}: the file does not say it.", hint=f"Write it into the file, or give {question.flag}.{choices}"
    )


def _check_parameters(deployment: Deployment) -> None:
    check_size(deployment.parameters)
    check_size(deployment.job_variables)
    what = f"Deployment {deployment.slug!r}"
    if deployment.enforce_parameter_schema:
        check_parameters(deployment.parameter_schema, deployment.parameters, what=what, complete=False)
    for schedule in deployment.schedules:
        together = {**deployment.parameters, **schedule.parameters}
        check_size(together)
        if deployment.enforce_parameter_schema:
            check_parameters(deployment.parameter_schema, together, what=f"Schedule {schedule.slug!r} of {what.lower()}")


def _unsaid(entry: Entry) -> frozenset[str]:
    unsaid = {f"schedules.{slug}.active" for slug in entry.active_unsaid}
    return frozenset(unsaid | ({"paused"} if entry.paused is None else set()))


def _check_unique(prepared: Sequence[Prepared]) -> None:
    seen: dict[str, Place] = {}
    for item in prepared:
        slug = item.deployment.slug
        if slug in seen:
            raise InvalidDefinition(
                f"{item.place}: the deployment {slug!r} is here for the second time; the first is on line {seen[slug].line}.",
                hint="Give one of them another name.",
            )
        seen[slug] = item.place


def _flat(thing: Deployment) -> dict[str, Any]:
    """A deployment's fields as they are compared and shown: schedules by slug, parameters by name."""
    flat: dict[str, Any] = {}
    for part in fields(thing):
        value = getattr(thing, part.name)
        if part.name in _STORED or part.name in ("name", "flow"):
            continue
        if part.name == "schedules":
            for schedule in value:
                flat |= _flat_schedule(schedule)
        elif part.name in ("parameters", "job_variables"):
            flat |= {f"{part.name}.{key}": as_json(item) for key, item in value.items()}
        else:
            flat[part.name] = as_json(value)
    return flat


def _flat_schedule(schedule: Schedule) -> dict[str, Any]:
    named = [part.name for part in fields(schedule) if part.name not in _STORED and part.name != "slug"]
    values = {name: as_json(getattr(schedule, name)) for name in named}
    return {f"schedules.{schedule.slug}.{name}": value for name, value in values.items() if value not in (None, {})}


def _is_elsewhere(store: Store, pool: str, deployments: Sequence[Deployment]) -> bool:
    """Someone expects this pool's workers on another machine: one is, or was, or the code is to be fetched there."""
    here = socket.gethostname()
    fetched = any(d.pool == pool and d.pull for d in deployments)
    return fetched or any(worker.host != here for worker in store.pools.workers(pool))


def _folded(name: str) -> str:
    return name.replace("_", "-")


def _quoted(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else f"'{name}'"


def _sources() -> Sources:
    from orchestrator.variables import look_up

    return Sources(variable=look_up)
