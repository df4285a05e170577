"""``orch init``: a first orch.yaml, with the flows that are there already."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.deployments.entrypoints import FoundFlow, find_flows
from orchestrator.deployments.file import FILE_NAMES
from orchestrator.exceptions import InvalidDefinition, InvalidName, ObjectAlreadyExists, OrchError
from orchestrator.keys import check_name

FILE = "orch.yaml"
EXAMPLE = "flows/hello.py"
RECIPES = ("local",)

_COMING = ("git", "docker", "s3", "bundle")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(:[A-Za-z_][A-Za-z0-9_.]*)?", re.ASCII)
_NOT_TEXT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})

_HEAD = """\
# What of this folder is deployed, where it runs and when. Deploy it with: orch deploy --all
#
# Keys may be null or left out. Values may hold templates: {{{{ $NAME }}}} is an environment variable,
# {{{{ orch.variables.name }}}} a value that was set with: orch variable set

name: {name}

# Steps before a deployment is saved (build, push), and on the worker before each run (pull).
# Without pull steps a worker runs the code where this file is now.
build: null
push: null
pull: null

deployments:
"""

_DEPLOYMENT = """\
  - name: {name}
    version: null
    tags: []
    description: null
    entrypoint: {entrypoint}  # file.py:function, from this folder
    parameters: {{}}
    schedules: []
    #  - cron: "0 14 * * *"  # minute, hour, day of month, month, day of week
    #    timezone: Asia/Tokyo
    #    slug: every-afternoon
    #    active: true
    concurrency_limit: null
    work_pool:
      name: null  # null: 'orch deploy' asks for it, or takes --pool NAME
      work_queue_name: null
      job_variables: {{}}
"""

_EXAMPLE = '''\
"""A first flow. Run it with: python flows/hello.py"""

from orchestrator import flow, get_run_logger, task


@task(retries=2, retry_delay_seconds=1)
def greeting(name: str) -> str:
    """Make a greeting."""
    return f"Hello, {name.strip().title()}!"


@flow
def hello(name: str = "world") -> str:
    """Greet someone."""
    text = greeting(name)
    get_run_logger().info(text)
    return text


if __name__ == "__main__":
    hello()
'''


@dataclass(frozen=True, slots=True)
class Initialised:
    """What ``init`` has written, and the flows it has put into orch.yaml."""

    written: tuple[Path, ...]
    flows: tuple[FoundFlow, ...]


def init(
    directory: str | Path, recipe: str = "local", name: str | None = None, *, example: bool = False, force: bool = False
) -> Initialised:
    """Make a directory a project: write orch.yaml with a deployment for each flow found, and a first flow with ``example``.

    Files of the user's are never replaced; a project file only with ``force``.

    Raises ObjectAlreadyExists, InvalidDefinition for an unknown recipe, InvalidName.
    """
    root = Path(directory)
    _check_recipe(recipe)
    if not root.is_dir():
        raise InvalidDefinition(f"There is no directory {str(root)!r}.", hint=f"Create it with: mkdir -p {root}")
    for present in FILE_NAMES:
        if (root / present).exists() and not force:
            raise ObjectAlreadyExists(
                f"{present} is there already, in {root.absolute()}.",
                hint="Deploy it with: orch deploy --all, or replace it: --force",
            )
    project = check_name("project", name) if name is not None else _name_of(root.absolute())
    try:
        written = [_write(root / EXAMPLE, _EXAMPLE)] if example and not (root / EXAMPLE).exists() else []
        flows = tuple(find_flows(root))
        written.append(_write(root / FILE, _document(project, flows)))
    except OSError as error:
        raise OrchError(
            f"{error.filename} cannot be written: {error.strerror}.", hint="May you write to this folder?"
        ) from None
    return Initialised(tuple(written), flows)


def _check_recipe(recipe: str) -> None:
    if recipe in _COMING:
        raise InvalidDefinition(f"The recipe {recipe!r} is not available in this version of Orch.", hint="Available: local.")
    if recipe not in RECIPES:
        raise InvalidDefinition(f"There is no recipe {ascii(recipe)[:40]}.", hint=f"Available: {', '.join(RECIPES)}.")


def _name_of(directory: Path) -> str:
    try:
        return check_name("project", directory.name)
    except InvalidName:
        return "project"


def _document(name: str, flows: tuple[FoundFlow, ...]) -> str:
    head = _HEAD.format(name=_quoted(name))
    if not flows:
        return head + _DEPLOYMENT.format(name="null", entrypoint="null")
    names = [found.function for found in flows]
    deployments = []
    for found in flows:
        # Two files may hold a function of the same name; their flows may, too.
        single = names.count(found.function) == 1
        deployment = found.function if single else found.entrypoint.removesuffix(".py:" + found.function).replace("/", "-")
        deployments.append(_DEPLOYMENT.format(name=_quoted(deployment), entrypoint=_quoted(found.entrypoint)))
    return head + "\n".join(deployments)


def _quoted(text: str) -> str:
    """A text as YAML: bare where that is safe, else in the double quotes that JSON and YAML share."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT else json.dumps(text)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
