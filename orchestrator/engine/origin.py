"""Where a task stands in the code, so that another process can find it: ``module:qualname`` or ``path/file.py:qualname``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from orchestrator.exceptions import InvalidDefinition

if TYPE_CHECKING:
    from orchestrator.tasks import Task

_TOP = "Define the task at the top of a module, and pass what it needs as arguments."


def entrypoint_of(task: Task[..., Any]) -> str:
    """The entry point of a task: of its module; of a script that was started as such, its file.

    The file stands relative to the working directory where it lies below it, as workers look for it; else as it is.

    Raises InvalidDefinition for a task that no other process can find: made in a function, a lambda, bound to an object, typed
    at a prompt, or a variation that has no name in its module.
    """
    fn: Any = task.fn
    module_name = getattr(fn, "__module__", None) or ""
    qualname = getattr(fn, "__qualname__", "") or ""
    what = f"Task '{task.name}'"
    if task.is_bound:
        raise InvalidDefinition(
            f"{what} belongs to one object, which a worker does not have.",
            hint="Make it a function that is given what it needs.",
        )
    if qualname.endswith("<lambda>"):
        raise InvalidDefinition(f"{what} is a lambda, which a worker cannot find by name.", hint=f"Write it with def. {_TOP}")
    if "<locals>" in qualname:
        inside = qualname.split(".<locals>")[0]
        raise InvalidDefinition(f"{what} is made inside of {inside}(), where a worker cannot find it.", hint=_TOP)
    module = sys.modules.get(module_name)
    if module is None or not qualname:
        raise InvalidDefinition(f"{what} is in no module, where a worker could find it.", hint=_TOP)
    return f"{_place(module, what)}:{_name_in(module, qualname, task, what)}"


def _place(module: ModuleType, what: str) -> str:
    if module.__name__ != "__main__":
        return module.__name__
    spec = getattr(module, "__spec__", None)
    if spec is not None:  # python -m package.module
        return str(spec.name)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise InvalidDefinition(
            f"{what} was typed at a prompt, where a worker cannot read it.",
            hint="Write it into a file, and import it from there.",
        )
    path = Path(file).resolve()
    return path.relative_to(Path.cwd().resolve()).as_posix() if path.is_relative_to(Path.cwd().resolve()) else str(path)


def _name_in(module: ModuleType, qualname: str, task: Task[..., Any], what: str) -> str:
    """The name under which the module has this very task: its options count, not only its function."""
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is task:
        return qualname
    for name, value in vars(module).items():
        if value is task:
            return name
    raise InvalidDefinition(
        f"{what} has no name in {module.__name__}, by which a worker could find it with these options.",
        hint="Give it one at the top of the module, such as: eager = task.with_options(retries=5)",
    )
