"""Who may import whom, and who alone may do what. The rules are those of the architecture; a module is read, never run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import orchestrator

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "orchestrator": ROOT / "orchestrator",
    "orch_workers": ROOT / "workers/orch_workers",
    "orch_scheduler": ROOT / "scheduler/orch_scheduler",
    "orch_cli": ROOT / "cli/orch_cli",
}

# From the bottom up: a module may import its own layer and those below it. What no line names stands beside `flows`.
LAYERS: list[set[str]] = [
    {"_version", "states", "exceptions", "clock", "names", "settings", "profiles"},
    {"models", "keys", "logging", "metrics", "schedules", "context"},
    {"store"},
    {"engine", "flows", "tasks", "futures", "deployments", "variables"},
    {"orch_workers", "orch_scheduler", "server"},
    {"orch_cli"},
]
BESIDE_FLOWS = 3
STRANGERS = {"orch_workers": "orch_scheduler", "orch_scheduler": "orch_workers"}

REDIS_OWNERS = ("orchestrator.store",)
RQ_OWNERS = ("orchestrator.task_runners", "orch_workers.rq")


@dataclass(frozen=True)
class Module:
    """A module's dotted name and its source."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @classmethod
    def of(cls, name: str, source: str) -> Module:
        return cls(name, ast.parse(source))


def modules() -> list[Module]:
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found.append(Module(name, ast.parse(path.read_text(encoding="utf-8")), is_package))
    return found


MODULES = modules()
NAMES = {module.name for module in MODULES}


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports at any time; what only the type checker sees does not count."""
    for node in _run(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            yield from ((node.lineno, _resolved(source, alias.name)) for alias in node.names)


def wrong_imports(module: Module) -> Iterator[str]:
    for line, imported in imports(module):
        if imported.split(".")[0] not in FOLDERS:
            continue
        if layer(imported) > layer(module.name):
            yield f"{module.name}:{line} imports {imported}, which stands above it"
        if STRANGERS.get(module.name.split(".")[0]) == imported.split(".")[0]:
            yield f"{module.name}:{line} imports {imported}: workers and schedulers meet in Redis"


def wrong_clients(module: Module) -> Iterator[str]:
    for line, imported in imports(module):
        package = imported.split(".")[0]
        owners = {"redis": REDIS_OWNERS, "hiredis": REDIS_OWNERS, "rq": RQ_OWNERS}.get(package)
        if owners and not module.name.startswith(owners):
            yield f"{module.name}:{line} imports {imported}; only {' and '.join(owners)} may"


def wrong_keys(module: Module) -> Iterator[str]:
    if module.name == "orchestrator.keys":
        return
    said = _docstrings(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said and "orch:{" in node.value:
            yield f"{module.name}:{node.lineno} spells a Redis key; only orchestrator.keys may"


def wrong_environment(module: Module) -> Iterator[str]:
    if module.name == "orchestrator.settings":
        return
    for line, name in _uses(module):
        if name in ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"):
            yield f"{module.name}:{line} uses {name}; only orchestrator.settings may"


def wrong_prints(module: Module) -> Iterator[str]:
    if module.name == "orch_cli.output":
        return
    for line, name in _calls(module):
        if name in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write", "rich.print"):
            yield f"{module.name}:{line} calls {name}; only orch_cli.output may print"


def wrong_clocks(module: Module) -> Iterator[str]:
    if module.name == "orchestrator.clock":
        return
    for line, name in _uses(module):
        if name.startswith("time.") and name != "time.sleep":
            yield f"{module.name}:{line} uses {name}; only orchestrator.clock asks the time"
    for line, name in _calls(module):
        if name.startswith("datetime.") and name.split(".")[-1] in ("now", "utcnow", "today"):
            yield f"{module.name}:{line} calls {name}; only orchestrator.clock asks the time"


def wrong_lua(module: Module) -> Iterator[str]:
    if module.name == "orchestrator.store.scripts":
        return
    for line, name in _calls(module):
        if name.split(".")[-1] in ("eval", "evalsha", "register_script", "script_load", "fcall"):
            yield f"{module.name}:{line} calls {name}; only orchestrator.store.scripts knows that Lua exists"


RULES = [wrong_imports, wrong_clients, wrong_keys, wrong_environment, wrong_prints, wrong_clocks, wrong_lua]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    broken = [complaint for module in MODULES for complaint in rule(module)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "name", "source", "complaint"),
    [
        (wrong_imports, "orchestrator.store.runs", "from orchestrator.flows import Flow", "stands above"),
        (wrong_imports, "orchestrator.store.runs", "def f():\n    from orchestrator import flow", "imports orchestrator.flows"),
        (wrong_imports, "orchestrator.clock", "from orchestrator import models", "imports orchestrator.models"),
        (wrong_imports, "orchestrator.keys", "import orchestrator.store", "stands above"),
        (wrong_imports, "orchestrator.flows", "import orch_cli.main", "stands above"),
        (wrong_imports, "orchestrator.results", "from orch_workers import base", "stands above"),
        (wrong_imports, "orch_workers.base", "from orch_scheduler import loop", "meet in Redis"),
        (wrong_clients, "orchestrator.flows", "from redis import Redis", "only orchestrator.store"),
        (wrong_clients, "orchestrator.flows", "def f():\n    import rq", "orchestrator.task_runners"),
        (wrong_keys, "orchestrator.flows", "key = f'orch:{{{name}}}:due'", "spells a Redis key"),
        (wrong_environment, "orchestrator.flows", "import os\nos.environ['X']", "os.environ"),
        (wrong_environment, "orchestrator.flows", "from os import getenv\ngetenv('X')", "os.getenv"),
        (wrong_prints, "orch_cli.main", "print('x')", "calls print"),
        (wrong_prints, "orch_cli.main", "import click\nclick.echo('x')", "calls click.echo"),
        (wrong_prints, "orch_cli.main", "import sys\nsys.stderr.write('x')", "sys.stderr.write"),
        (wrong_clocks, "orchestrator.flows", "import time\ntime.monotonic()", "uses time.monotonic"),
        (wrong_clocks, "orchestrator.flows", "from time import time_ns\nf(time_ns)", "uses time.time_ns"),
        (wrong_clocks, "orchestrator.flows", "from datetime import datetime\ndatetime.now()", "datetime.now"),
        (wrong_clocks, "orchestrator.flows", "import datetime\ndatetime.datetime.utcnow()", "utcnow"),
        (wrong_lua, "orchestrator.store.runs", "client.evalsha(sha, 0)", "knows that Lua exists"),
    ],
)
def test_the_rules_see_what_they_forbid(
    rule: Callable[[Module], Iterator[str]], name: str, source: str, complaint: str
) -> None:
    assert [complaint in found for found in rule(Module.of(name, source))] == [True]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "orchestrator.flows",
            "from orchestrator.store import open_store\nfrom orchestrator import clock\nfrom . import tasks",
        ),
        (
            "orchestrator.context",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from orchestrator.flows import Flow",
        ),
        ("orchestrator.store.runs", "import redis\nfrom orchestrator.keys import Keys"),
        ("orchestrator.store.runs", '"""Keys begin with orch:{namespace}."""'),
        ("orch_cli.main", "from orch_workers.process import ProcessWorker\nfrom orch_scheduler import service"),
        ("orchestrator.schedules", "from datetime import datetime\nmoment = datetime.fromtimestamp(0)"),
        ("orchestrator.flows", "import time\ntime.sleep(1)"),
    ],
)
def test_the_rules_let_pass_what_is_allowed(name: str, source: str) -> None:
    assert [found for rule in RULES for found in rule(Module.of(name, source))] == []


def test_every_module_of_a_layer_is_named_once() -> None:
    assert sum(len(names) for names in LAYERS) == len(set().union(*LAYERS))


def layer(name: str) -> int:
    """How high a module stands; the package `orchestrator` itself holds nothing but names, so it stands at the bottom."""
    package, _, rest = name.partition(".")
    if package == "orchestrator" and not rest:
        return 0
    known = rest.split(".")[0] if package == "orchestrator" else package
    return next((height for height, names in enumerate(LAYERS) if known in names), BESIDE_FLOWS)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that may run: not what stands under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from (other, *_run(other))
        else:
            yield node
            yield from _run(node)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    """The dotted name that ``from ..x`` means."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def _resolved(source: str, name: str) -> str:
    """The module that ``from source import name`` needs: a module of that name, or where a public name lives."""
    if source == "orchestrator" and name in orchestrator._MODULES:
        return f"orchestrator.{orchestrator._MODULES[name]}"
    dotted = f"{source}.{name}"
    if dotted in NAMES or source.split(".")[0] not in FOLDERS or source == "orchestrator":
        return dotted
    return source


def _uses(module: Module) -> Iterator[tuple[int, str]]:
    """Line and full name of every name that occurs."""
    return _full(module, [node for node in ast.walk(module.tree) if isinstance(node, ast.Name | ast.Attribute)])


def _calls(module: Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is called."""
    return _full(module, [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)])


def _full(module: Module, nodes: Sequence[ast.expr]) -> Iterator[tuple[int, str]]:
    """Names as they are written, but ``echo`` after ``from click import echo`` as ``click.echo``."""
    origins: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            origins |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for expression in nodes:
        first, dot, rest = ast.unparse(expression).partition(".")
        yield expression.lineno, origins.get(first, first) + dot + rest


def _docstrings(tree: ast.AST) -> set[int]:
    """The identities of the strings that stand as statements: docstrings, and words about a constant."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
