"""One attempt of a submitted task in a process of another machine: what travels there, how it runs, and what comes back.

Everything is msgpack of None, bool, int, float, str, bytes, list and dict; a tuple arrives as a list. Nothing that arrives is
ever unpickled: who may write to Redis cannot make the flow's process run code.

An answer is a list: ``done`` value | ``raised`` type, text, traceback | ``timed_out`` text | ``refused`` type, text, hint:
there is to be no other attempt | ``crashed`` text | ``stopped``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from orchestrator.context import FlowRunContext, TaskRunContext
from orchestrator.engine import outcomes, protocol, termination
from orchestrator.engine.arguments import PLAIN
from orchestrator.engine.drive import Call, complete, driver_of, forgotten
from orchestrator.engine.interruption import state_of_interruption
from orchestrator.engine.link import as_exception
from orchestrator.exceptions import (
    CannotTravel,
    FlowLoadError,
    InvalidDefinition,
    OrchError,
    PayloadTooLarge,
    RemoteTaskError,
    RunTimedOut,
)
from orchestrator.models import TaskRun

if TYPE_CHECKING:
    from orchestrator.engine.link import Link
    from orchestrator.engine.records import FlowRun
    from orchestrator.tasks import Task

PAYLOAD_BYTES = 1024 * 1024
"""Bytes of msgpack that the arguments of a call may take, and its result."""

VERSION = 1
"""Of the form in which calls and answers travel."""

_TRACEBACK_CHARACTERS = 64 * 1024
_TEXT_CHARACTERS = 16 * 1024


# The flow's side


def place_of(task: Task[..., Any]) -> tuple[str, str]:
    """Where another process finds the task: ``module:name`` or ``file.py:name``, and the folder of that file, else empty.

    Only its function is looked for there: the options travel, so that a task from ``with_options`` needs no name.

    Raises InvalidDefinition for a task that is no variable of a module.
    """
    from orchestrator.tasks import Task

    name = getattr(task.fn, "__module__", None) or ""
    module = sys.modules.get(name)
    variable = next((n for n, v in vars(module).items() if isinstance(v, Task) and v.fn is task.fn), None) if module else None
    if module is None or variable is None or task.is_bound:
        raise InvalidDefinition(
            f"Task '{task.name}' cannot run in another process: it is not to be found by its name in the module {name!r}.",
            hint="Define it at the top level of a module, as a function of its own: no method, no function inside another.",
        )
    spec = getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None)
    if name == "__main__" and spec is not None:
        return f"{spec.name}:{variable}", ""
    if file is not None and (name == "__main__" or name.startswith("orch_flow_")):
        path = Path(file).absolute()
        return f"{path.name}:{variable}", str(path.parent)
    return f"{name}:{variable}", ""


def pack_call(
    task: Task[..., Any],
    context: TaskRunContext,
    flow: FlowRun,
    where: tuple[str, str],
    timeout: float | None,
) -> bytes:
    """One attempt as it travels. Raises CannotTravel and PayloadTooLarge, which say which argument it is."""
    names = {f"argument {number + 1}": value for number, value in enumerate(context.args)}
    names |= {f"argument {name!r}": value for name, value in context.kwargs.items()}
    what = f"Task '{task.name}'"
    for name, value in names.items():
        _check(value, name, what)
    size = len(_pack([list(context.args), context.kwargs], what))
    if size > PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"The arguments of task '{task.name}' take {size:,} bytes; {PAYLOAD_BYTES:,} can travel to another machine.",
            hint="Store what is large where both can reach it, and pass its path or key.",
        )
    entrypoint, root = where
    return _pack(
        {
            "version": VERSION,
            "entrypoint": entrypoint,
            "root": root,
            "args": list(context.args),
            "kwargs": context.kwargs,
            "timeout": timeout,
            "log_prints": context.log_prints,
            "task": protocol.task_row(context.task_run),
            "flow": {
                "id": flow.id,
                "name": flow.name,
                "flow": flow.flow_name,
                "tags": list(flow.tags),
                "attempt": flow.attempt,
                "run_count": flow.run_count,
                "parent": flow.parent,
            },
        },
        what,
    )


def tell(call: Any, answer: list[Any]) -> None:
    """Give a task call what became of its attempt. Raises ValueError for what is no answer."""
    match answer:
        case ["done", value]:
            call.returned(value)
        case ["raised", str(kind), str(text), str(trace)]:
            call.raised(RemoteTaskError(f"{kind}: {text}" if text else kind, kind=kind, traceback=trace))
        case ["timed_out", str(text)]:
            call.raised(RunTimedOut(text))
        case ["refused", str(kind), str(text), hint]:
            call.break_off(as_exception({"type": kind, "message": text, "hint": hint and str(hint)}))
        case ["crashed", str(text)]:
            call.lost(text)
        case ["stopped"]:
            call.lost("It was stopped: its executor heard nothing from the process of its flow.")
        case _:
            raise ValueError(f"{answer!r:.100} is no answer of an executor")


# The executor's side


def perform(packed: bytes, link: Link) -> list[Any]:
    """Run the attempt in this thread; its answer. Task runs, flow runs and log lines in it go to ``link``."""
    from orchestrator.flows import Flow
    from orchestrator.logging import handlers
    from orchestrator.task_runners.threads import ThreadPoolTaskRunner

    handlers.prepare(console=False)
    try:
        request: Mapping[str, Any] = msgpack.unpackb(packed, strict_map_key=False)
        if request.get("version") != VERSION:
            raise InvalidDefinition(
                "The flow's process and this executor have releases of Orch that do not understand each other.",
                hint="Upgrade the older one.",
            )
        task = _find(request["entrypoint"], request["root"])
    except OrchError as problem:
        return _refused(problem)
    stand_in: Flow[..., Any] = Flow(_no_body, name=request["flow"]["flow"], task_runner=ThreadPoolTaskRunner())
    flow = FlowRunContext(stand_in, _flow_run(request["flow"]), {}, link, request["log_prints"], _producers())
    task_run = protocol.task_of(request["task"])
    own = TaskRunContext(task, task_run, tuple(request["args"]), request["kwargs"], request["log_prints"])
    if own.log_prints:
        from orchestrator.logging import prints

        prints.install()
    attempt = _Attempt(task.fn, own, request["timeout"], lambda: _inside(flow, own))
    answer: list[Any] = complete(driver_of(task.fn), attempt)
    return answer


class _Attempt(Call):
    """The one attempt that was asked for. What comes before and after it happens in the flow's process."""

    def __init__(
        self,
        fn: Callable[..., Any],
        own: TaskRunContext,
        timeout: float | None,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.fn = fn
        self.args = own.args
        self.kwargs = own.kwargs
        self.context = context()
        self.timeout = timeout
        self.delay = 0.0
        self.due_hooks = []
        self._task_run = own.task_run
        self._has_begun = False
        self._answer: list[Any] = []

    @property
    def what(self) -> str:
        """The task run, for messages."""
        return f"Task run '{self._task_run.name}'"

    def open(self) -> None:
        """It is known already."""

    def begin(self) -> bool:
        """The first time only."""
        begins, self._has_begun = not self._has_begun, True
        return begins

    def returned(self, value: Any) -> None:
        """``done``, if the value can travel."""
        if problem := forgotten(self, value):
            self.raised(problem)
            return
        try:
            _check(value, "its result", self.what)
            size = len(_pack(value, self.what))
            if size > PAYLOAD_BYTES:
                raise PayloadTooLarge(
                    f"{self.what} returned {size:,} bytes; {PAYLOAD_BYTES:,} can travel back from another machine.",
                    hint="Store what is large where both can reach it, and return its path or key.",
                )
        except (CannotTravel, PayloadTooLarge) as problem:
            self._answer = _refused(problem)
        else:
            self._answer = ["done", value]

    def raised(self, problem: BaseException) -> None:
        """``raised`` for an error of the task."""
        outcomes.let_go(problem)
        if isinstance(problem, RunTimedOut):
            self._answer = ["timed_out", str(problem)]
        elif isinstance(problem, Exception):
            from orchestrator.logging.tracebacks import format_traceback

            trace = format_traceback(problem)[-_TRACEBACK_CHARACTERS:]
            text = "out of memory" if isinstance(problem, MemoryError) and not str(problem) else str(problem)
            self._answer = ["raised", type(problem).__name__, text[:_TEXT_CHARACTERS], trace]
        elif isinstance(problem, termination.Terminated) or type(problem).__name__ == "CancelledError":
            self._answer = ["stopped"]
        else:
            self._answer = ["crashed", state_of_interruption(problem, None).message]

    def break_off(self, problem: BaseException) -> None:
        """As where the function raised."""
        self.raised(problem)

    def close(self) -> None:
        """Nothing is left to do."""

    def outcome(self) -> list[Any]:
        """The answer."""
        return self._answer


@contextmanager
def _inside(flow: FlowRunContext, own: TaskRunContext) -> Iterator[None]:
    """The run's contexts. Tasks that the body submits run in threads of this process, and are waited for."""
    if own.task.isasync:
        termination.watch_asyncio_task(own.task_run.id)
    try:
        with flow, own:
            try:
                yield
            except BaseException:
                _finish(flow, cancel=True)
                raise
            _finish(flow)
    finally:
        termination.forget_asyncio_task(own.task_run.id)


def _finish(flow: FlowRunContext, *, cancel: bool = False) -> None:
    runner, flow.runner = flow.runner, None
    if runner is not None:
        runner.finish(cancel=cancel)


def _refused(problem: OrchError) -> list[Any]:
    return ["refused", type(problem).__name__, str(problem), problem.hint]


def _find(entrypoint: str, root: str) -> Task[..., Any]:
    from orchestrator.deployments.entrypoints import load_module
    from orchestrator.tasks import Task

    module = load_module(entrypoint, root or Path.cwd())
    variable = entrypoint.rpartition(":")[2]
    found = getattr(module, variable, None)
    if not isinstance(found, Task):
        raise FlowLoadError(
            f"There is no task {variable!r} in {module.__name__!r} here.",
            hint="The executor's code is another version of the flow's: bring both up to date.",
        )
    return found


def _flow_run(told: Mapping[str, Any]) -> FlowRun:
    from orchestrator.engine.records import FlowRun
    from orchestrator.states import Running

    return FlowRun(
        id=told["id"],
        name=told["name"],
        flow_name=told["flow"],
        tags=tuple(told["tags"]),
        state=Running(),
        attempt=told["attempt"],
        run_count=told["run_count"],
        parent=told["parent"],
    )


def _producers() -> Any:
    from orchestrator.engine.inputs import Producers

    return Producers()


def _no_body() -> None:
    """The flow itself runs elsewhere."""


# Values


def _pack(value: Any, what: str) -> bytes:
    try:
        packed: bytes = msgpack.packb(value, strict_types=True, default=_as_list)
    except (TypeError, ValueError, OverflowError, RecursionError) as problem:
        raise CannotTravel(f"{what}: what goes to another machine cannot be packed: {problem}", hint=_WHAT_CAN) from None
    return packed


def _as_list(value: Any) -> list[Any]:
    if type(value) is tuple:
        return list(value)
    raise TypeError(f"it holds a {type(value).__name__}")


def _check(value: Any, where: str, what: str) -> None:
    """Raises CannotTravel naming the place of what cannot; ``what`` is the task or its run."""
    misfit = _misfit(value, where, 0)
    if misfit is not None:
        raise CannotTravel(f"{what}: {misfit}, which cannot travel to another machine.", hint=_WHAT_CAN)


def _misfit(value: Any, where: str, depth: int) -> str | None:
    kind = type(value)
    if kind in PLAIN:
        if kind is int and not -(2**63) <= value < 2**64:
            return f"{where} is an integer beyond 64 bits"
        return None
    if depth > 200:
        return f"{where} is nested too deeply"
    if kind in (list, tuple):
        if PLAIN.issuperset(map(type, value)) and int not in set(map(type, value)):
            return None
        return next((m for i, item in enumerate(value) if (m := _misfit(item, f"{where}[{i}]", depth + 1))), None)
    if kind is dict:
        for key, item in value.items():
            if type(key) not in PLAIN:
                return f"a key of {where} is a {type(key).__name__}"
            if misfit := _misfit(item, f"{where}[{key!r:.40}]", depth + 1):
                return misfit
        return None
    return f"{where} is a {kind.__name__}"


_WHAT_CAN = (
    "None, bool, int, float, str, bytes, list, dict and tuple (which arrives as a list) can. Pass an id, a path or plain data."
)


def read_task_run(row: Any) -> TaskRun | None:
    """The task run of a row that came from an executor; None if it is none."""
    try:
        return protocol.task_of(row)
    except (TypeError, ValueError):
        return None
