"""How each kind of thing looks in tables and sheets. Its JSON form is ``as_json``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from orch_cli.output import Column, Lines, View, Word, absolute, relative, state_word
from orchestrator import clock
from orchestrator.models import Deployment, Event, LogLine, Run, Schedule, TaskRun, Worker, WorkPool, WorkQueue, as_json

if TYPE_CHECKING:
    from orchestrator.store.explain import Explanation

_STATUS_COLORS = {"READY": "green", "NOT_READY": "yellow", "PAUSED": "magenta", "ONLINE": "green", "DRAINING": "yellow"}
_STATUS_WORDS = {"READY": "Ready", "NOT_READY": "Not Ready", "PAUSED": "Paused"}


def status_word(status: str) -> Word:
    """A pool's or a worker's status as people read it."""
    return Word(_STATUS_WORDS.get(status, status.capitalize()), _STATUS_COLORS.get(status, "bright_black"))


def deployment_slug(run: Run) -> str | None:
    """``flow/deployment`` of a run, or None for a run without a deployment."""
    name = run.deployment_name
    return name if name is None or "/" in name else f"{run.flow}/{name}"


def schedule_text(schedule: Schedule) -> str:
    """When a schedule fires, in a few words."""
    from orchestrator.schedules import describe

    return describe(schedule).removeprefix("cron ")


def _paused(paused: bool) -> Word:
    return Word("Paused", "magenta") if paused else Word("Active", "green")


def _schedules(deployment: Deployment) -> str:
    return "; ".join(f"{schedule_text(s)}{'' if s.active else ' (paused)'}" for s in deployment.schedules)


def _schedule_lines(deployment: Deployment) -> Lines:
    def when(schedule: Schedule) -> str:
        moment = _next_fire(deployment, schedule)
        otherwise = "no next run" if schedule.active and not deployment.paused else "paused"
        return f"next {absolute(moment)} ({relative(moment)})" if moment else otherwise

    return Lines(
        tuple(
            (schedule.slug, schedule_text(schedule), when(schedule), *_unusual(schedule)) for schedule in deployment.schedules
        )
    )


def _unusual(schedule: Schedule) -> tuple[str, ...]:
    return (f"misfire: {_misfire(schedule)}",) if schedule.misfire != "latest" else ()


def _misfire(schedule: Schedule) -> str:
    """What the schedule does about fires that were missed in a long outage."""
    return f"all, up to {schedule.misfire_limit}" if schedule.misfire == "all" else schedule.misfire


def _next_fire(deployment: Deployment, schedule: Schedule) -> datetime | None:
    """When a schedule fires next, if it is active."""
    from orchestrator.schedules import next_after

    return next_after(schedule, clock.now()) if schedule.active and not deployment.paused else None


def _history(run: Run) -> Lines:
    return Lines(tuple((entry.at, entry.name, entry.message) for entry in run.history))


def _limit(used: int, limit: int | None) -> str:
    return f"{used} of {limit}" if limit is not None else str(used)


RUN: View[Run] = View(
    name=lambda run: run.id,
    empty="There are no flow runs to show. Start one with: orch deployment run FLOW/NAME",
    columns=(
        Column("Name", lambda run: run.name, fold=True),
        Column("State", lambda run: state_word(run.state)),
        Column("Deployment", lambda run: deployment_slug(run) or run.flow, fold=True),
        Column("When", lambda run: run.started or run.due),
        Column("Took", lambda run: run.duration),
        Column("Flow", lambda run: run.flow, wide=True),
        Column("Pool", lambda run: run.pool, wide=True),
        Column("Queue", lambda run: run.queue, wide=True),
        Column("Worker", lambda run: run.worker, wide=True),
        Column("Due", lambda run: run.due, wide=True),
        Column("Ended", lambda run: run.ended, wide=True),
        Column("Attempt", lambda run: run.attempt, wide=True),
        Column("Tags", lambda run: run.tags, wide=True),
        Column("Message", lambda run: run.state.message, wide=True),
        Column("ID", lambda run: run.id, wide=True),
    ),
    sheet=(
        Column("Waits at", lambda run: run.gate),
        Column("Starts", lambda run: run.run_count),
        Column("Crashes", lambda run: f"{run.crash_count} (at most {run.crash_budget} starts)"),
        Column("Priority", lambda run: run.priority),
        Column("Parent", lambda run: run.parent),
        Column("Schedule", lambda run: run.schedule),
        Column("Created", lambda run: run.created),
        Column("Created by", lambda run: run.created_by),
        Column("Expires", lambda run: run.expires),
        Column("Parameters", lambda run: run.parameters),
        Column("History", _history),
    ),
)

EXPLANATION: View[Explanation] = View(
    name=lambda explanation: explanation.reason,
    columns=(
        Column("Why", lambda explanation: explanation.sentence),
        Column("What helps", lambda explanation: explanation.hint),
        Column("Reason", lambda explanation: explanation.reason),
    ),
)

TASK_RUN: View[TaskRun] = View(
    name=lambda task: task.id,
    empty="This flow run has no task runs. A function with @task, called in a flow, makes one.",
    columns=(
        Column("Name", lambda task: task.name, fold=True),
        Column("State", lambda task: state_word(task.state)),
        Column("Task", lambda task: task.key, fold=True),
        Column("Started", lambda task: task.started),
        Column("Took", lambda task: task.ended - task.started if task.ended and task.started else None),
        Column("Starts", lambda task: task.run_count, wide=True),
        Column("Tags", lambda task: task.tags, wide=True),
        Column("Message", lambda task: task.state.message, wide=True),
        Column("ID", lambda task: task.id, wide=True),
    ),
    sheet=(Column("Upstream", lambda task: task.upstream), Column("Parent", lambda task: task.parent)),
)

LOG: View[LogLine] = View(name=lambda line: line.message, columns=(Column("Message", lambda line: line.message),))


def _limit_of_deployment(deployment: Deployment) -> str | None:
    """The limit, and what becomes of a run beyond it where that is not to wait."""
    if deployment.concurrency_limit is None:
        return None
    strategy = "" if deployment.collision_strategy == "ENQUEUE" else f", {deployment.collision_strategy}"
    return f"{deployment.concurrency_limit}{strategy}"


DEPLOYMENT: View[Deployment] = View(
    name=lambda deployment: deployment.slug,
    empty="There are no deployments. A deployment makes a flow run on workers; create one with: orch init, then orch deploy",
    columns=(
        Column("Name", lambda deployment: deployment.slug, fold=True),
        Column("Status", lambda deployment: _paused(deployment.paused)),
        Column("Schedules", _schedules, fold=True),
        Column("Pool", lambda deployment: deployment.pool, fold=True),
        Column("Queue", lambda deployment: deployment.queue, wide=True),
        Column("Entrypoint", lambda deployment: deployment.entrypoint, wide=True),
        Column("Tags", lambda deployment: deployment.tags, wide=True),
        Column("Version", lambda deployment: deployment.version, wide=True),
        Column("Updated", lambda deployment: deployment.updated, wide=True),
        Column("ID", lambda deployment: deployment.id, wide=True),
    ),
    sheet=(
        Column("Schedules", _schedule_lines),
        Column("Description", lambda deployment: deployment.description),
        Column("Path", lambda deployment: deployment.path),
        Column("Deployed from", lambda deployment: deployment.deployed_from),
        Column("Parameters", lambda deployment: deployment.parameters),
        Column("Concurrency limit", _limit_of_deployment),
        Column("Crash budget", lambda deployment: deployment.crash_budget),
        Column("Job variables", lambda deployment: deployment.job_variables),
        Column("Created", lambda deployment: deployment.created),
        Column("Revision", lambda deployment: deployment.revision),
    ),
)

SCHEDULE: View[tuple[Deployment, Schedule]] = View(
    name=lambda pair: pair[1].slug,
    empty="There are no schedules. Add 'schedules:' to the deployment in orch.yaml and type: orch deploy",
    columns=(
        Column("Slug", lambda pair: pair[1].slug, fold=True),
        Column("Schedule", lambda pair: schedule_text(pair[1]), fold=True),
        Column("Status", lambda pair: _paused(not pair[1].active or pair[0].paused)),
        Column("Next", lambda pair: _next_fire(*pair)),
        Column("Deployment", lambda pair: pair[0].slug, fold=True),
        Column("Misfire", lambda pair: _misfire(pair[1]), wide=True),
        Column("Parameters", lambda pair: pair[1].parameters, wide=True),
    ),
    json=lambda pair: {"deployment": pair[0].slug, **as_json(pair[1])},
)


POOL: View[WorkPool] = View(
    name=lambda pool: pool.name,
    empty="There are no work pools. A work pool is a named set of workers; create one with: orch work-pool create NAME",
    columns=(
        Column("Name", lambda pool: pool.name, fold=True),
        Column("Type", lambda pool: pool.type),
        Column("Status", lambda pool: status_word(pool.status)),
        Column("Workers", lambda pool: pool.workers),
        Column("Running", lambda pool: _limit(pool.slots_used, pool.concurrency_limit)),
        Column("Queued", lambda pool: sum(queue.depth for queue in pool.queues)),
        Column("Queues", lambda pool: [queue.name for queue in pool.queues], wide=True),
        Column("Description", lambda pool: pool.description, wide=True, fold=True),
        Column("Created", lambda pool: pool.created, wide=True),
    ),
    sheet=(Column("Concurrency limit", lambda pool: pool.concurrency_limit),),
)

QUEUE: View[WorkQueue] = View(
    name=lambda queue: queue.name,
    empty="There are no work queues to show. Create one with: orch work-queue create NAME --pool POOL",
    columns=(
        Column("Name", lambda queue: queue.name, fold=True),
        Column("Pool", lambda queue: queue.pool, fold=True),
        Column("Status", lambda queue: _paused(queue.paused)),
        Column("Priority", lambda queue: queue.priority),
        Column("Limit", lambda queue: queue.concurrency_limit),
        Column("Queued", lambda queue: queue.depth),
        Column("Description", lambda queue: queue.description, wide=True, fold=True),
    ),
)

WORKER: View[Worker] = View(
    name=lambda worker: worker.name,
    empty="There are no workers. A worker runs the flow runs of a work pool; start one with: orch worker start --pool NAME",
    columns=(
        Column("Name", lambda worker: worker.name, fold=True),
        Column("Pool", lambda worker: worker.pool, fold=True),
        Column("Status", lambda worker: status_word(worker.status)),
        Column("Running", lambda worker: _limit(worker.running, worker.limit)),
        Column("Heartbeat", lambda worker: worker.heartbeat),
        Column("Host", lambda worker: worker.host, fold=True),
        Column("Type", lambda worker: worker.type, wide=True),
        Column("PID", lambda worker: worker.pid, wide=True),
        Column("Queues", lambda worker: worker.queues, wide=True),
        Column("Orch", lambda worker: worker.version, wide=True),
        Column("Python", lambda worker: worker.python, wide=True),
        Column("Started", lambda worker: worker.started, wide=True),
        Column("Clock skew", lambda worker: worker.clock_skew, wide=True),
    ),
)

EVENT: View[Event] = View(
    name=lambda event: event.id,
    empty="Nothing has happened yet.",
    columns=(
        Column("When", lambda event: event.at),
        Column("Event", lambda event: event.name),
        Column("Fields", lambda event: ", ".join(f"{key}={value}" for key, value in event.fields.items()), fold=True),
        Column("ID", lambda event: event.id, wide=True),
    ),
)

FLOW: View[str] = View(
    name=lambda flow: flow,
    empty="There are no flows. Run a flow file, or deploy one with: orch deploy",
    columns=(Column("Name", lambda flow: flow, fold=True),),
    json=lambda flow: {"name": flow},
)
