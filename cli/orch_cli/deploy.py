"""``orch deploy``: from orch.yaml to deployments, asking only on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

import click

from orch_cli import output, prompts
from orch_cli.commands import Command, Usage
from orch_cli.completion import complete_pool
from orch_cli.connection import open_store
from orch_cli.options import dry_run_option
from orch_cli.output import Printer, shows
from orch_cli.views import DEPLOYMENT
from orch_cli.work_pool import POOL_TYPES
from orchestrator.exceptions import ObjectNotFound
from orchestrator.models import Deployment, as_json

if TYPE_CHECKING:
    from orchestrator.deployments.file import Project
    from orchestrator.deployments.plan import Answers, Change, Prepared, Question
    from orchestrator.store import Store

_CREATE = "Create a new work pool"


@click.command(
    "deploy",
    cls=Command,
    examples=(
        "orch deploy --all",
        "orch deploy --name hello_flow --create-pool process",
        "orch deploy -n 'etl/*' --dry-run",
        "orch deploy --all --diff",
    ),
)
@click.option("-n", "--name", "names", multiple=True, metavar="NAME",
              help="Only this deployment, or those that match a pattern with *. Can be given again.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Every deployment of the file.")
@click.option("--file", "path", type=click.Path(path_type=Path), metavar="PATH", help="The file instead of ./orch.yaml.")
@click.option("--entrypoint", metavar="FILE:FUNCTION", help="The flow, where the file does not say it.")
@click.option("-p", "--pool", metavar="NAME", shell_complete=complete_pool, help="This work pool instead of the file's.")
@click.option("-q", "--work-queue", "queue", metavar="NAME", help="This work queue instead of the file's.")
@click.option("--create-pool", type=click.Choice(POOL_TYPES), help="Create a work pool that does not exist, of this type.")
@click.option("--create-queue", is_flag=True, help="Create a work queue that does not exist in its work pool.")
@click.option("--diff", "compare", is_flag=True, help="Show what would change, and do nothing. Exit code 1 if anything would.")
@click.option("-y", "--yes", is_flag=True, help="Take the default answer to every question that has one.")
@dry_run_option
@shows(DEPLOYMENT)
def deploy(
    out: Printer[Deployment],
    names: tuple[str, ...],
    every: bool,
    path: Path | None,
    entrypoint: str | None,
    pool: str | None,
    queue: str | None,
    create_pool: str | None,
    create_queue: bool,
    compare: bool,
    yes: bool,
    dry_run: bool,
) -> int:
    """Create or update the deployments of orch.yaml.

    Without --all and --name the file's only deployment is meant. A prefect.yaml is read where there is no orch.yaml.
    """
    from orchestrator.deployments import file, plan

    if every and names:
        raise Usage("--all and --name exclude each other.")
    project = file.read(path or file.find(Path.cwd()))
    if not every and not names:
        names, every = _choose(project)
    with open_store() as store:
        typed = _command(names, every, path, entrypoint, pool, queue, create_pool)
        asker = _Asker(store, create_pool, create_queue, yes, typed)
        answers = plan.Answers(_literal(names), entrypoint, pool, queue)
        prepared = _prepare(project, names, every, answers, asker)
        if compare or dry_run:
            return _preview(store, prepared, compare)
        asker.settle(prepared)
        before = {item.deployment.slug: store.deployments.find(item.deployment.flow, item.deployment.name) for item in prepared}
        saved = plan.apply(store, prepared)
        _plan_if_alone(store)
        if out.is_for_people:
            _tell(saved, before)
        else:
            out.many(saved)
        for warning in plan.warnings(store, prepared):
            output.warn(warning.text, warning.hint)
    if out.is_for_people and len(saved) == 1:
        output.say_hint(f"Run it with: {join(['orch', 'deployment', 'run', saved[0].slug, '--watch'])}")
    return 0


def _choose(project: Project) -> tuple[tuple[str, ...], bool]:
    """Which of several deployments, as names or all, asked on a terminal; else the library says what is missing."""
    named = [name.text for value in project.deployments if (name := value.value.get("name")) is not None and name.text]
    if len(named) < 2 or len(named) < len(project.deployments) or not prompts.on_terminal():
        return (), False
    number = prompts.choose("Which deployment?", ["All of them", *named])
    return ((named[number - 1],), False) if number else ((), True)


@dataclass
class _Asker:
    """Puts the questions of a deploy to the person at the terminal, and knows what was answered about pools."""

    store: Store
    create_type: str | None
    create_queue: bool
    yes: bool
    command: Sequence[str]
    agreed: set[str] = field(default_factory=set)

    def ask(self, question: Question) -> str:
        """Answer a question of ``prepare``."""
        if question.field == "pool":
            return self._choose_pool(question.text)
        if question.choices:
            return question.choices[prompts.choose(question.text, question.choices)]
        return prompts.ask(question.text, question.flag)

    def settle(self, prepared: Sequence[Prepared]) -> None:
        """See to it that every pool and queue exists: created, or another pool chosen instead. Asks everything, then creates.

        Raises ObjectNotFound, with nothing created, where nobody can be asked and no flag answers.
        """
        from orchestrator.deployments import plan

        for name in plan.missing_pools(self.store, prepared):
            self._settle_pool(name, prepared)
        pools, queues = plan.missing_pools(self.store, prepared), plan.missing_queues(self.store, prepared)
        for pool, queue in queues:
            if pool not in pools:
                self._settle_queue(pool, queue)
        for pool in pools:
            self.store.pools.create(pool, self.create_type or POOL_TYPES[0])
            output.say(f"Created work pool '{pool}'.")
        for pool, queue in queues:
            self.store.pools.create_queue(pool, queue)
            output.say(f"Created work queue '{queue}' in work pool '{pool}'.")

    def _settle_pool(self, name: str, prepared: Sequence[Prepared]) -> None:
        if self.create_type or self.yes or name in self.agreed:
            return
        if not prompts.on_terminal():
            raise ObjectNotFound(
                f"There is no work pool '{name}'.",
                hint=f"Create it and deploy with: {join([*self.command, '--create-pool', POOL_TYPES[0]])}",
            )
        chosen = self._replace(name)
        for item in prepared:
            if item.deployment.pool == name:
                item.deployment = replace(item.deployment, pool=chosen)

    def _settle_queue(self, pool: str, queue: str) -> None:
        if self.create_queue or self.yes:
            return
        missing = f"There is no work queue '{queue}' in work pool '{pool}'."
        hint = f"Create it and deploy with: {join([*self.command, '--create-queue'])}"
        if not prompts.on_terminal() or not prompts.agree(f"{missing} Create it?"):
            raise ObjectNotFound(missing, hint=hint)

    def _choose_pool(self, text: str) -> str:
        existing = self.store.pools.names()
        if existing:
            number = prompts.choose(f"{text}?", [*existing, _CREATE])
            if number < len(existing):
                return existing[number]
        name = prompts.ask("Name of the new work pool", "--pool NAME", default=None if existing else "default")
        self.agreed.add(name)
        return name

    def _replace(self, missing: str) -> str:
        existing = self.store.pools.names()
        create = f"Create it, of type {POOL_TYPES[0]}"
        number = prompts.choose(
            f"There is no work pool '{missing}'.", [create, *(f"Use '{name}' instead" for name in existing)]
        )
        return existing[number - 1] if number else missing


def _command(
    names: Sequence[str],
    every: bool,
    path: Path | None,
    entrypoint: str | None,
    pool: str | None,
    queue: str | None,
    create_pool: str | None,
) -> list[str]:
    """The command as it was typed, for a hint that adds to it."""
    options = ["--all"] if every else [word for name in names for word in ("--name", name)]
    given = {
        "--file": path and str(path),
        "--entrypoint": entrypoint,
        "--pool": pool,
        "--work-queue": queue,
        "--create-pool": create_pool,
    }
    return ["orch", "deploy", *options, *(word for flag, value in given.items() if value for word in (flag, value))]


def _prepare(project: Project, names: tuple[str, ...], every: bool, answers: Answers, asker: _Asker) -> list[Prepared]:
    from orchestrator.deployments import plan

    ask = asker.ask if prompts.on_terminal() else None
    return plan.prepare(project, names, every=every, answers=answers, ask=ask)


def _literal(names: tuple[str, ...]) -> str | None:
    """The name for a deployment that has none in the file: the one that was typed, if it is one and no pattern."""
    return names[0] if len(names) == 1 and not set(names[0]) & set("*?[") else None


def _preview(store: Store, prepared: Sequence[Prepared], compare: bool) -> int:
    """Say what a deploy would do; answers the exit code."""
    from orchestrator.deployments import plan

    differs = False
    for item in prepared:
        stored = store.deployments.find(item.deployment.flow, item.deployment.name)
        changes = plan.diff(stored, plan.settle(item, stored))
        differs = differs or bool(changes)
        verb = "create" if stored is None else "update" if changes else "leave as it is"
        output.write(f"Would {verb}: {output.clean(item.deployment.slug)}")
        for change in changes:
            _write_change(change)
    for pool in plan.missing_pools(store, prepared):
        output.write(f"Would need work pool: {output.clean(pool)}")
    for pool, queue in plan.missing_queues(store, prepared):
        output.write(f"Would need work queue: {output.clean(queue)} in work pool {output.clean(pool)}")
    if not compare:
        output.say("Nothing was done.")
    return 1 if compare and differs else 0


def _write_change(change: Change) -> None:
    for sign, value, color in (("-", change.old, "red"), ("+", change.new, "green")):
        if value not in (None, "", [], {}):
            output.write_colored(f"  {sign} {change.field}: {output.clean(_text(value))}", color)


def _text(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)


def _plan_if_alone(store: Store) -> None:
    """Plan the next runs of schedules where no scheduler lives that would."""
    if not store.pools.schedulers():
        from orch_scheduler import planner

        planner.run_once(store)


def _tell(saved: Sequence[Deployment], before: dict[str, Deployment | None]) -> None:
    from orchestrator.deployments import plan

    for deployment in saved:
        stored = before[deployment.slug]
        verb = "Created" if stored is None else "Updated" if plan.diff(stored, deployment) else "Left as it was:"
        output.say(f"{verb} deployment '{output.clean(deployment.slug)}'.")
