"""Flows: the functions whose calls are runs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from orchestrator.context import FlowRunContext
from orchestrator.engine import drive
from orchestrator.engine.direct import DirectCall
from orchestrator.engine.flow_call import FlowCall
from orchestrator.engine.parameters import Signature
from orchestrator.engine.retries import Delay, Retries, as_number
from orchestrator.keys import check_name
from orchestrator.states import State, StateType
from orchestrator.tasks import render_run_name

if TYPE_CHECKING:
    from orchestrator.task_runners import TaskRunner

P = ParamSpec("P")
R = TypeVar("R")

Hook = Callable[..., Any]

_KEEP: Any = object()


class Flow(Generic[P, R]):
    """A function whose calls are flow runs. Made by ``@flow``; see there for what the arguments mean."""

    def __init__(
        self,
        fn: Callable[P, R],
        name: str | None = None,
        version: str | None = None,
        flow_run_name: str | Callable[..., str] | None = None,
        retries: int | None = None,
        retry_delay_seconds: Delay = None,
        task_runner: type[TaskRunner] | TaskRunner | None = None,
        description: str | None = None,
        timeout_seconds: float | None = None,
        validate_parameters: bool = True,
        log_prints: bool | None = None,
        on_completion: list[Hook] | None = None,
        on_failure: list[Hook] | None = None,
        on_cancellation: list[Hook] | None = None,
        on_crashed: list[Hook] | None = None,
        on_running: list[Hook] | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(
                f"@flow goes onto a function, not onto {type(fn).__name__}; put @classmethod and @staticmethod above it."
            )
        self._options: dict[str, Any] = {
            "name": name,
            "version": version,
            "flow_run_name": flow_run_name,
            "retries": retries,
            "retry_delay_seconds": retry_delay_seconds,
            "task_runner": task_runner,
            "description": description,
            "timeout_seconds": timeout_seconds,
            "validate_parameters": validate_parameters,
            "log_prints": log_prints,
        }
        update_wrapper(self, fn)
        self.fn = fn
        self.name = check_name("flow", name or _default_name(fn))
        self.version = version
        self.description = description if description is not None else inspect.getdoc(fn)
        self.flow_run_name = flow_run_name
        self.retries = retries or 0
        whose = f"Flow '{self.name}'"
        self.retry_policy = Retries.of(retries, retry_delay_seconds, whose=whose)
        self.timeout_seconds = None if timeout_seconds is None else as_number(timeout_seconds, whose, "timeout_seconds")
        self.should_validate_parameters = validate_parameters
        self.log_prints = log_prints
        self._task_runner = task_runner
        self.on_completion_hooks = list(on_completion or ())
        self.on_failure_hooks = list(on_failure or ())
        self.on_cancellation_hooks = list(on_cancellation or ())
        self.on_crashed_hooks = list(on_crashed or ())
        self.on_running_hooks = list(on_running or ())
        self.isasync = inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn)
        self.isgenerator = inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)
        self._driver = drive.driver_of(fn)
        self._bound: tuple[Any, ...] = ()
        if log_prints:
            from orchestrator.logging import prints

            prints.install()

    @cached_property
    def signature(self) -> Signature:
        """How the flow is called."""
        return Signature(self.fn, f"Flow '{self.name}'", bound=len(self._bound))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Its parameters as JSON schema."""
        return self.signature.schema()

    @property
    def task_runner(self) -> TaskRunner:
        """The pattern of what runs its submitted tasks; each run gets a duplicate."""
        if self._task_runner is None or isinstance(self._task_runner, type):
            from orchestrator.task_runners import ThreadPoolTaskRunner

            self._task_runner = (self._task_runner or ThreadPoolTaskRunner)()
        return self._task_runner

    def __get__(self, instance: Any, owner: type | None = None) -> Flow[..., R]:
        """A method: the flow with ``self`` filled in."""
        if instance is None:
            return self
        bound = copy.copy(self)
        for cached in ("signature", "parameters"):
            bound.__dict__.pop(cached, None)
        bound._bound = (instance,)
        return bound

    def __repr__(self) -> str:
        return f"Flow({self.name!r})"

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, return_state: bool, wait_for: Iterable[Any] | None = ..., **kwargs: Any) -> Any: ...
    @overload
    def __call__(self, *args: Any, return_state: bool = ..., wait_for: Iterable[Any] | None, **kwargs: Any) -> Any: ...

    def __call__(  # type: ignore[misc]  # P may hold anything but the two names that are ours
        self, *args: Any, return_state: bool = False, wait_for: Iterable[Any] | None = None, **kwargs: Any
    ) -> Any:
        """Run the flow here and now and return its value, or its final state with ``return_state=True``.

        Inside a flow it is a subflow of that one. Of an async flow: a coroutine that does so.

        Raises ParameterBindError, ParameterTypeError, and whatever the flow raises.
        """
        values = self.signature.bind(args, kwargs)
        parent = FlowRunContext.get()
        kind = DirectCall if parent is None else FlowCall
        return self._driver(kind(self, values, parent=parent, wait_for=wait_for, return_state=return_state))

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Parameters by name as the flow would get them: complete, validated and coerced.

        Raises ParameterBindError, ParameterTypeError.
        """
        return self.signature.validate(self.signature.bind_names(parameters))

    def with_options(
        self,
        *,
        name: str | None = None,
        version: str | None = None,
        retries: int | None = None,
        retry_delay_seconds: Delay = None,
        description: str | None = None,
        flow_run_name: str | Callable[..., str] | None = None,
        task_runner: type[TaskRunner] | TaskRunner | None = None,
        timeout_seconds: float | None = None,
        validate_parameters: bool | None = None,
        log_prints: bool | None = _KEEP,
        on_completion: list[Hook] | None = None,
        on_failure: list[Hook] | None = None,
        on_cancellation: list[Hook] | None = None,
        on_crashed: list[Hook] | None = None,
        on_running: list[Hook] | None = None,
    ) -> Flow[P, R]:
        """The same flow with some arguments changed; what is not given stays as it is."""
        changes: dict[str, Any] = {
            "name": name,
            "version": version,
            "retries": retries,
            "retry_delay_seconds": retry_delay_seconds,
            "description": description,
            "flow_run_name": flow_run_name,
            "task_runner": task_runner,
            "timeout_seconds": timeout_seconds,
            "validate_parameters": validate_parameters,
            "on_completion": on_completion,
            "on_failure": on_failure,
            "on_cancellation": on_cancellation,
            "on_crashed": on_crashed,
            "on_running": on_running,
        }
        changes = {option: value for option, value in changes.items() if value is not None}
        if log_prints is not _KEEP:
            changes["log_prints"] = log_prints
        hooks = {name: getattr(self, f"{name}_hooks") for name in _HOOKS}
        changed = type(self)(self.fn, **{**self._options, **hooks, **changes})
        changed._bound = self._bound
        return changed

    def on_completion(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run completes."""
        self.on_completion_hooks.append(fn)
        return fn

    def on_failure(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run fails."""
        self.on_failure_hooks.append(fn)
        return fn

    def on_cancellation(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run is cancelled."""
        self.on_cancellation_hooks.append(fn)
        return fn

    def on_crashed(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run crashes and its process can still say so."""
        self.on_crashed_hooks.append(fn)
        return fn

    def on_running(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(flow, flow_run, state)`` when a run's body starts."""
        self.on_running_hooks.append(fn)
        return fn

    # For the engine

    def hooks_after(self, state: State) -> list[Hook]:
        """The hooks that a final state calls for."""
        return {
            StateType.COMPLETED: self.on_completion_hooks,
            StateType.FAILED: self.on_failure_hooks,
            StateType.CANCELLED: self.on_cancellation_hooks,
            StateType.CRASHED: self.on_crashed_hooks,
        }.get(state.type, [])

    def name_of_run(self, parameters: dict[str, Any]) -> str | None:
        """What ``flow_run_name`` makes of a run's parameters; None if there is no such thing."""
        if self.flow_run_name is None:
            return None
        return render_run_name(self.flow_run_name, parameters, f"flow_run_name of flow '{self.name}'")

    def call_arguments(self, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Parameters by name as the arguments of ``fn``."""
        args, kwargs = self.signature.arrange(values)
        return self._bound + args, kwargs

    def execute(self, call: FlowCall) -> Any:
        """Run a claimed call to its end in this thread, whatever the kind of function."""
        return drive.complete(self._driver, call)


_HOOKS = ("on_completion", "on_failure", "on_cancellation", "on_crashed", "on_running")


@overload
def flow(__fn: Callable[P, R], /) -> Flow[P, R]: ...
@overload
def flow(
    *,
    name: str | None = ...,
    version: str | None = ...,
    flow_run_name: str | Callable[..., str] | None = ...,
    retries: int | None = ...,
    retry_delay_seconds: Delay = ...,
    task_runner: type[TaskRunner] | TaskRunner | None = ...,
    description: str | None = ...,
    timeout_seconds: float | None = ...,
    validate_parameters: bool = ...,
    log_prints: bool | None = ...,
    on_completion: list[Hook] | None = ...,
    on_failure: list[Hook] | None = ...,
    on_cancellation: list[Hook] | None = ...,
    on_crashed: list[Hook] | None = ...,
    on_running: list[Hook] | None = ...,
) -> Callable[[Callable[P, R]], Flow[P, R]]: ...


def flow(__fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a flow of a function, sync or async, generator or not, method or not.

    name, version, description: for people; the name is the function's own, with ``-`` for ``_``, unless given.
    flow_run_name: the name of each run; a template (``"load {table}"``) or a function that returns it.
    retries, retry_delay_seconds: how often a run is tried again, and after how many seconds.
    task_runner: what runs submitted tasks; threads unless given.
    timeout_seconds: beyond it the attempt fails with RunTimedOut.
    validate_parameters: validate and coerce arguments by their annotations.
    log_prints: ``print`` writes to the run's log; None as the calling flow does.
    on_completion, on_failure, on_cancellation, on_crashed, on_running: functions ``(flow, flow_run, state)``.
    """
    if __fn is not None:
        return Flow(__fn, **options)
    inspect.signature(Flow).bind(None, **options)  # an argument that does not exist is an error here, at its own line
    return lambda fn: Flow(fn, **options)


def _default_name(fn: Callable[..., Any]) -> str:
    name = str(getattr(fn, "__name__", None) or type(fn).__name__)
    return "lambda" if name == "<lambda>" else name.replace("_", "-")
