"""``orch demo``: two flows from their files to their results, on a private Redis, with everything started and stopped here."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from orch_cli import output
from orch_cli.commands import Command
from orch_cli.demonstration import check
from orch_cli.output import Column, Printer, View, Word, state_word
from orchestrator import clock
from orchestrator.exceptions import ConfigurationError, OrchError
from orchestrator.models import NewRun, Run

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.store import Store

POOL = "demo"
HELLO = "hello-flow/hello_flow"
AIRPORTS = "airports/world"

_PATIENCE = timedelta(seconds=60)
_START_S = 20.0
_STOP_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """One run after its end; ``wrong`` says what is wrong with its result, empty if nothing is."""

    run: Run
    tasks: int
    retried: int
    wrong: str

    @property
    def is_good(self) -> bool:
        """It ended Completed, and the result is right."""
        return self.run.state.is_completed() and not self.wrong


OUTCOME: View[Outcome] = View(
    name=lambda outcome: outcome.run.id,
    columns=(
        Column("Run", lambda outcome: outcome.run.name),
        Column(
            "Deployment", lambda outcome: outcome.run.deployment_name and f"{outcome.run.flow}/{outcome.run.deployment_name}"
        ),
        Column("State", lambda outcome: state_word(outcome.run.state)),
        Column("Took", lambda outcome: outcome.run.duration),
        Column("Tasks", lambda outcome: outcome.tasks),
        Column("Retried", lambda outcome: outcome.retried),
        Column(
            "Result",
            lambda outcome: Word("right", "green") if outcome.is_good else Word(outcome.wrong or "none", "red"),
            fold=True,
        ),
    ),
)

REGION: View[check.Region] = View(
    name=lambda region: region.name,
    columns=(
        Column("Region", lambda region: region.name),
        Column("Airports", lambda region: region.airports),
        Column("Countries", lambda region: region.countries),
        Column("Median m", lambda region: region.median_elevation_m),
        Column("Highest", lambda region: region.highest),
        Column("Highest m", lambda region: region.highest_elevation_m),
        Column("Northernmost", lambda region: region.northernmost),
    ),
)


@click.command("demo", cls=Command, examples=("orch demo",))
def demo() -> int:
    """Deploy and run two flows on a private Redis, and check what comes out.

    One is the tutorial's; the other brings the airports of the world into SQLite, from a source that fails once. Takes some ten
    seconds, needs no Redis, and stops what it has started. The exit code is 0 if both runs complete with the right result.
    """
    from orch_cli.connection import settings
    from orchestrator.store import embedded, open_store

    if find_spec(check.DATA_SET) is None:
        raise ConfigurationError(
            f"The demonstration's data, the package {check.DATA_SET}, is not installed.",
            hint="Install it with: pip install 'orch[demo]'",
        )
    configured = settings()
    private = replace(configured, redis_url=None)
    if configured.redis_url is not None:
        output.say("A Redis is configured. The demonstration leaves it alone and uses a private one.")
    project = _lay_out(private.home)
    was_running = embedded.running(private.home)
    try:
        with open_store(private, announce=output.say) as store:
            environment = _environment(private, None if configured.redis_url is None else embedded.url(private.home))
            outcomes = _run_all(store, project, environment)
    finally:
        if not was_running:
            embedded.stop(private.home)
    _conclude(outcomes, project, private.home, configured)
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _lay_out(home: Path) -> Path:
    """Write the project's files into ORCH_HOME, afresh, and return their folder."""
    from orchestrator.settings import private_folder

    project = private_folder(home) / "demo"
    with as_file(files("orch_cli.demonstration") / "project") as packaged:
        shutil.copytree(packaged, project, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "airports.sqlite").unlink(missing_ok=True)
    return project


def _environment(private: Settings, url: str | None) -> dict[str, str]:
    """The environment of the child processes: our settings, and the private server where another is configured."""
    from orchestrator.settings import child_environment

    environment = child_environment(private)
    return environment if url is None else {**environment, "ORCH_REDIS_URL": url}


def _run_all(store: Store, project: Path, environment: Mapping[str, str]) -> list[Outcome]:
    if not store.pools.exists(POOL):
        output.say(f"\n$ orch work-pool create {POOL}")
        store.pools.create(POOL)
    commands = {
        "scheduler": ["scheduler", "start"],
        "worker": ["worker", "start", "--pool", POOL, "--limit", "2"],
    }
    for arguments in commands.values():
        output.say(f"\n$ orch {' '.join(arguments)} &")
    with _children(commands, project, environment) as children:
        _wait_for_worker(store, children, project)
        output.say(f"\n$ cd {quote(str(project))} && orch deploy --all")
        _deploy(project, environment)
        hello = _watch(store, HELLO)
        wrong = check.wrong_with_greeting(line.message for line in store.runs.read_log(hello.id))
        outcomes = [_outcome(store, hello, wrong)]
        airports = _watch(store, AIRPORTS)
        completed = airports.state.is_completed()
        wrong = check.wrong_with_airports(project / "airports.sqlite") if completed else ""
        return [*outcomes, _outcome(store, airports, wrong)]


@contextlib.contextmanager
def _children(
    commands: Mapping[str, Sequence[str]], project: Path, environment: Mapping[str, str]
) -> Iterator[Mapping[str, subprocess.Popen[bytes]]]:
    """Commands of ``orch`` in the background while the block lasts; what they say goes into a file each."""
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, arguments in commands.items():
            with (project / f"{name}.log").open("wb") as log:
                # A session of their own: Ctrl-C is for us, and we stop them.
                children[name] = subprocess.Popen(
                    [sys.executable, "-m", "orch_cli", *arguments],
                    cwd=project,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        yield children
    finally:
        for child in children.values():
            child.send_signal(signal.SIGTERM)
        for child in children.values():
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait_for_worker(store: Store, children: Mapping[str, subprocess.Popen[bytes]], project: Path) -> None:
    """Until a worker polls the pool: else its first run would wait, and 'orch deploy' would warn."""
    deadline = clock.monotonic() + _START_S
    pause = threading.Event()
    while store.pools.get(POOL).status != "READY" or not store.pools.schedulers():
        for name, child in children.items():
            if child.poll() is not None or clock.monotonic() > deadline:
                said = (project / f"{name}.log").read_text(errors="replace").strip()
                raise OrchError(
                    f"The {name} does not start.\n{said}", hint="Run it in the foreground, or look with: orch doctor"
                )
        pause.wait(0.02)


def _deploy(project: Path, environment: Mapping[str, str]) -> None:
    deployed = subprocess.run([sys.executable, "-m", "orch_cli", "deploy", "--all"], cwd=project, env=environment, check=False)
    if deployed.returncode:
        raise OrchError("The demonstration's flows could not be deployed.")


def _watch(store: Store, slug: str) -> Run:
    """Run a deployment, show its states and its log until it has ended, and return it as it is then."""
    from orch_cli.views import RUN
    from orch_cli.watch import watch_run
    from orchestrator.names import generate

    output.say(f"\n$ orch deployment run {slug} --watch")
    deployment = store.deployments.get(slug)
    [created] = store.runs.create(
        [
            NewRun(
                flow=deployment.flow,
                deployment=deployment.id,
                pool=deployment.pool,
                queue=deployment.queue,
                parameters=deployment.parameters,
                tags=deployment.tags,
                crash_budget=deployment.crash_budget,
                name=generate(),
                created_by="orch demo",
            )
        ]
    )
    watch_run(store, store.runs.get(created.id), _PATIENCE, Printer(RUN))
    return store.runs.get(created.id)


def _outcome(store: Store, run: Run, wrong: str) -> Outcome:
    tasks = store.runs.tasks(run.id)
    return Outcome(run, len(tasks), sum(task.run_count > 1 for task in tasks), wrong)


def _conclude(outcomes: Sequence[Outcome], project: Path, home: Path, configured: Settings) -> None:
    """What came out, and what to try next."""
    output.say("")
    if outcomes[-1].is_good:
        Printer(REGION).many(check.read_regions(project / "airports.sqlite"))
        output.say("")
    Printer(OUTCOME).many(outcomes)
    if not all(outcome.is_good for outcome in outcomes):
        output.say_hint(f"See what the worker said in: {project / 'worker.log'}")
    prepare = []
    if shutil.which("orch") is None:
        prepare.append(f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH")
    if home != Path.home() / ".orch":
        prepare.append(f"export ORCH_HOME={quote(str(home))}")
    if configured.redis_url is not None:
        prepare.append("unset ORCH_REDIS_URL")
    output.say("\nTry next:")
    for command in prepare:
        output.say(f"  {command}")
    for command, about in (
        ("orch flow-run ls", "both runs, and those of your last demonstrations"),
        (f"orch flow-run logs {outcomes[-1].run.name}", "the log of the pipeline"),
        (f"orch task-run ls {outcomes[-1].run.name}", "its tasks: one was retried, one ran per region"),
        (f"cd {quote(str(project))}", "the flows: change them, then"),
        ("orch dev", "a scheduler and a worker, in a second terminal"),
        (f"orch deployment run {AIRPORTS} --watch", "run yours"),
    ):
        output.say(f"  {command.ljust(46)}  {about}")
