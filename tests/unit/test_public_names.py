"""What `orchestrator` offers: the table, `__all__`, what the type checker sees and what is really there are the same."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import orchestrator
from harness import python

HEAVY = ("redis", "pydantic", "rich", "asyncio", "croniter", "yaml", "click", "msgpack", "rq", "tomllib", "difflib")


def test_the_table_and_all_name_the_same() -> None:
    assert sorted(orchestrator.__all__) == sorted([*orchestrator._MODULES, "__version__"])


def test_the_type_checker_sees_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(Path(orchestrator.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: str(node.module).removeprefix("orchestrator.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == orchestrator._MODULES


@pytest.mark.parametrize("name", orchestrator.__all__)
def test_every_public_name_is_there_and_comes_from_where_the_table_says(name: str) -> None:
    value = getattr(orchestrator, name)
    assert value is getattr(orchestrator, name)
    assert name in dir(orchestrator)
    if name != "__version__":
        assert value is getattr(import_module(f"orchestrator.{orchestrator._MODULES[name]}"), name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'flwo'"):
        _ = orchestrator.flwo


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import orchestrator", ()),
        ("import orchestrator.settings; orchestrator.settings.load()", ()),
    ],
)
def test_what_is_cheap_stays_cheap(statement: str, loaded: tuple[str, ...]) -> None:
    program = f"import sys; sys.path.append(''); {statement}; print(*(name for name in {HEAVY} if name in sys.modules))"
    with python("-c", program, cwd="/") as process:
        out, err = process.communicate(timeout=30)
    assert (tuple(out.split()), err) == (loaded, "")


def test_defining_and_calling_a_flow_loads_nothing_that_it_does_not_need() -> None:
    program = """
import sys
from orchestrator import flow, task

@task
def double(n: int) -> int:
    return 2 * n

@flow
def hello(n: int = 1) -> int:
    return double(n)

assert hello(2) == 4
print(*(name for name in ("redis", "rich", "asyncio", "croniter", "yaml", "click", "rq") if name in sys.modules))
"""
    with python("-c", program, cwd="/") as process:
        out, _ = process.communicate(timeout=30)
    assert (out.split(), process.returncode) == ([], 0)
