"""Entry points: where a flow is found. ``file.py:function``, ``folder/file.py:function`` or ``module.name:function``.

The project's directory is the root of everything: files outside of it are refused. It and the file's own directory come to the
front of ``sys.path``, as Python does for a script.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from orchestrator.exceptions import FlowLoadError

if TYPE_CHECKING:
    from orchestrator.flows import Flow
    from orchestrator.tasks import Task

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_LENGTH = 1_000
_FORM = "Write file.py:function or module.name:function, for example flows/etl.py:etl."
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist", "__pypackages__"})
_FILES = 2_000
_FILE_BYTES = 1024 * 1024
_SHIP = "Put the code there on every worker host (a shared disk, an image, or a pull step in orch.yaml), and deploy again."

_stamps: dict[str, tuple[int, int]] = {}
"""Which version of a file a module that was loaded here came from: mtime, size."""


@dataclass(frozen=True, slots=True)
class FoundFlow:
    """A flow seen in a source file: its entry point, its function, its name, and the line of ``def``."""

    entrypoint: str
    function: str
    name: str
    line: int


def load_flow(entrypoint: str, path: str | Path) -> Flow[..., Any]:
    """The flow that an entry point names, its module imported. ``path`` is the project's directory.

    A file is imported once per process; again after it has changed.

    Raises FlowLoadError; where the user's module raised, that exception is its cause, its traceback begins in the user's code.
    """
    from orchestrator.flows import Flow

    where, function = split(entrypoint)
    found: Flow[..., Any] = _load(where, function, Path(path).absolute(), entrypoint, Flow, "flow")
    return found


def load_task(entrypoint: str, path: str | Path) -> Task[..., Any]:
    """The task that an entry point names, its module imported; as ``load_flow``. A file may also be given by its full path.

    Raises FlowLoadError.
    """
    from orchestrator.tasks import Task

    file, _, function = entrypoint.rpartition(":")
    if file.endswith(".py") and Path(file).is_absolute():
        path, entrypoint = Path(file).parent, f"{Path(file).name}:{function}"
    where, function = split(entrypoint)
    found: Task[..., Any] = _load(where, function, Path(path).absolute(), entrypoint, Task, "task")
    return found


def _load(where: str, function: str, root: Path, entrypoint: str, kind: type, noun: str) -> Any:
    module = load_module(entrypoint, root)
    found: Any = module
    for part in function.split("."):
        found = getattr(found, part, None)
    if isinstance(found, kind):
        return found
    others = sorted(name for name, value in vars(module).items() if isinstance(value, kind))
    listed = _listed(where, function, others, noun)
    if found is not None:
        raise FlowLoadError(
            f"{function!r} in {where} is a {type(found).__name__}, not a {noun}.", hint=f"Decorate it with @{noun}.{listed}"
        )
    raise FlowLoadError(f"There is no {noun} {function!r} in {where}.", hint=listed.strip())


def load_module(entrypoint: str, path: str | Path) -> ModuleType:
    """The module of an entry point, imported as for ``load_flow``. Raises as that does."""
    where, _ = split(entrypoint)
    root = Path(path).absolute()
    return _load_file(where, root, entrypoint) if where.endswith(".py") else _load_module(where, root, entrypoint)


def split(entrypoint: str) -> tuple[str, str]:
    """The file or module of an entry point, and the function.

    Raises FlowLoadError for what is neither, and for a path that leaves the project.
    """
    where, _, function = entrypoint.rpartition(":")
    shown = ascii(entrypoint)[:100]
    if not where or not _MODULE.fullmatch(function) or len(entrypoint) > _LENGTH:
        raise FlowLoadError(f"{shown} is not an entry point.", hint=_FORM)
    if where.endswith(".py"):
        parts = re.split(r"[/\\]", where)
        if ".." in parts or not where.isprintable() or Path(where).is_absolute() or re.match(r"[A-Za-z]:", where):
            raise FlowLoadError(
                f"The entry point {shown} leads out of the project.",
                hint="Give the path of the file relative to the directory of orch.yaml, without '..'.",
            )
    elif not _MODULE.fullmatch(where):
        raise FlowLoadError(f"{shown} is not an entry point.", hint=_FORM)
    return where, function


def find_flows(directory: str | Path) -> list[FoundFlow]:
    """Flows in the Python files of a directory and those below, by reading them: nothing is imported."""
    root = Path(directory)
    return [found for file in _python_files(root) for found in _flows_in(file, file.relative_to(root).as_posix())]


def _load_file(where: str, root: Path, entrypoint: str) -> ModuleType:
    file = root / where
    try:
        exists = file.is_file()
        inside = file.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # the name is too long, or symlinks go in a circle
        exists, inside = False, True
    if not exists:
        raise FlowLoadError(f"There is no file {str(file)!r} on host {socket.gethostname()!r}.", hint=_SHIP)
    if not inside:
        raise FlowLoadError(
            f"The entry point {entrypoint!r} leads out of the project: {str(file)!r} is a link to {str(file.resolve())!r}.",
            hint="Put the file itself into the project.",
        )
    _put_on_path(file.parent, root)
    name, package_root = _module_name(file, root)
    status = file.stat()
    stamp = status.st_mtime_ns, status.st_size
    present = sys.modules.get(name)
    if present is not None and _stamps.get(name) == stamp:
        return present
    if package_root is not None:
        _put_on_path(package_root)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise FlowLoadError(f"{str(file)!r} cannot be imported.", hint="An entry point is a .py file or a module.")
    module = importlib.util.module_from_spec(spec)
    # In sys.modules before it runs, so that pickle, pydantic's forward references and dataclasses find it.
    sys.modules[name] = module
    try:
        if package_root is not None and "." in name:
            importlib.import_module(name.rpartition(".")[0])
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _failed(where, error) from error.with_traceback(_user_frames(error))
    _stamps[name] = stamp
    return module


def _load_module(where: str, root: Path, entrypoint: str) -> ModuleType:
    _put_on_path(root)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise FlowLoadError(
                f"There is no module {error.name!r} for the entry point {entrypoint!r} on host {socket.gethostname()!r}.",
                hint=f"It is looked for in {str(root)!r} and among the installed packages. {_SHIP}",
            ) from None
        raise _failed(where, error) from error.with_traceback(_user_frames(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: a script that calls sys.exit() must not end the worker
        raise _failed(where, error) from error.with_traceback(_user_frames(error))


def _module_name(file: Path, root: Path) -> tuple[str, Path | None]:
    """What the module of a file is called; and, if it belongs to a package, the directory that the package is in.

    The dotted path from the project's root, so that pickles made in one process open in another. A name of a module that is
    there already, or of the standard library, is not taken: such a file gets a name of its own.
    """
    parts = file.relative_to(root).with_suffix("").parts
    package = file.parent
    while package != root and (package / "__init__.py").is_file():
        package = package.parent
    in_package = package != file.parent
    if in_package:
        parts = file.relative_to(package).with_suffix("").parts
    name = ".".join(parts)
    if all(part.isidentifier() for part in parts) and parts[0] not in sys.stdlib_module_names:
        present = sys.modules.get(name)
        if present is None or getattr(present, "__file__", None) == str(file):
            return name, package if in_package else None
    digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    return f"orch_flow_{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)[:60]}_{digest}", None


def _put_on_path(*directories: Path) -> None:
    for directory in reversed(directories):
        text = str(directory)
        if text in sys.path:
            sys.path.remove(text)
        sys.path.insert(0, text)


def _failed(where: str, error: BaseException) -> FlowLoadError:
    said = traceback.format_exception_only(error)[-1].strip()
    hint = "Correct the file; it has to import without an error."
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"Install what {error.name!r} comes with into this Python: {sys.executable}"
    elif isinstance(error, SystemExit):
        hint = "Put what is to happen only in a script below: if __name__ == '__main__':"
    return FlowLoadError(f"{where} does not import on host {socket.gethostname()!r}: {said}", hint=hint)


def _user_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the user's first line on; None where none of it ran: a SyntaxError says itself where it is."""
    own = (__file__, "<frozen importlib", importlib.__file__)
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(own):
        frames = frames.tb_next
    return frames


def _listed(where: str, function: str, others: list[str], noun: str) -> str:
    if not others:
        return f" {where} holds no {noun}."
    close = difflib.get_close_matches(function, others, n=1) or (others if len(others) == 1 else [])
    listed = ", ".join(others)
    return f" Did you mean {where}:{close[0]}? Its {noun}s: {listed}." if close else f" Its {noun}s: {listed}."


def _python_files(root: Path) -> Iterator[Path]:
    count = 0
    for folder, folders, files in os.walk(root):
        at = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        folders[:] = [name for name in folders if not (at / name / "pyvenv.cfg").exists()]
        for name in sorted(files):
            if name.endswith(".py"):
                count += 1
                if count > _FILES:
                    return
                yield at / name


def _flows_in(file: Path, shown: str) -> Iterator[FoundFlow]:
    try:
        if file.stat().st_size > _FILE_BYTES:
            return
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) == "flow":
                    name = _given_name(decorator) or node.name.replace("_", "-")
                    yield FoundFlow(f"{shown}:{node.name}", node.name, name, node.lineno)
                    break


def _given_name(decorator: ast.expr) -> str | None:
    for keyword in decorator.keywords if isinstance(decorator, ast.Call) else []:
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
            return keyword.value.value
    return None
