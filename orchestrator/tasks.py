"""Tasks: the steps of a flow, and work in the background.

Each call of one in a flow is a task run, with a state, retries, and a line in the flow run's record. ``Task.delay`` makes a run
of its own, which some worker executes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from orchestrator.context import FlowRunContext
from orchestrator.engine import drive, submission
from orchestrator.engine.parameters import Signature
from orchestrator.engine.retries import Delay, Retries, as_number
from orchestrator.engine.task_call import TaskCall, new_task_run
from orchestrator.exceptions import InvalidDefinition, MappingLengthMismatch, MappingMissingIterable, MissingContextError
from orchestrator.futures import DistributedFuture, Future, FutureList
from orchestrator.keys import check_name
from orchestrator.states import State, StateType
from orchestrator.utilities.annotations import Annotation, allow_failure, quote, unmapped

if TYPE_CHECKING:
    from orchestrator.context import TaskRunContext

P = ParamSpec("P")
R = TypeVar("R")

Hook = Callable[..., Any]
RetryCondition = Callable[..., bool]

_KEEP: Any = object()


class Task(Generic[P, R]):
    """A function whose calls are recorded as task runs. Made by ``@task``; see there for what the arguments mean."""

    def __init__(
        self,
        fn: Callable[P, R],
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] | None = None,
        version: str | None = None,
        task_run_name: str | Callable[..., str] | None = None,
        retries: int | None = None,
        retry_delay_seconds: Delay = None,
        retry_jitter_factor: float | None = None,
        timeout_seconds: float | None = None,
        log_prints: bool | None = None,
        on_completion: list[Hook] | None = None,
        on_failure: list[Hook] | None = None,
        on_running: list[Hook] | None = None,
        retry_condition_fn: RetryCondition | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(
                f"@task goes onto a function, not onto {type(fn).__name__}; put @classmethod and @staticmethod above it."
            )
        self._options: dict[str, Any] = {
            "name": name,
            "description": description,
            "tags": tags,
            "version": version,
            "task_run_name": task_run_name,
            "retries": retries,
            "retry_delay_seconds": retry_delay_seconds,
            "retry_jitter_factor": retry_jitter_factor,
            "timeout_seconds": timeout_seconds,
            "log_prints": log_prints,
            "retry_condition_fn": retry_condition_fn,
        }
        update_wrapper(self, fn)
        self.fn = fn
        self.name = check_name("task", name or _function_name(fn))
        self.description = description if description is not None else inspect.getdoc(fn)
        self.version = version
        self.tags = frozenset(tags or ())
        self.task_run_name = task_run_name
        self.retries = retries or 0
        whose = f"Task '{self.name}'"
        self.retry_policy = Retries.of(retries, retry_delay_seconds, retry_jitter_factor, whose=whose)
        self.retry_condition_fn = retry_condition_fn
        self.timeout_seconds = None if timeout_seconds is None else as_number(timeout_seconds, whose, "timeout_seconds")
        self.log_prints = log_prints
        self.on_completion_hooks = list(on_completion or ())
        self.on_failure_hooks = list(on_failure or ())
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
        """How the task is called."""
        return Signature(self.fn, f"Task '{self.name}'", bound=len(self._bound))

    def __get__(self, instance: Any, owner: type | None = None) -> Task[..., R]:
        """A method: the task with ``self`` filled in."""
        if instance is None:
            return self
        bound = copy.copy(self)
        for known in ("signature", "entrypoint"):
            bound.__dict__.pop(known, None)
        bound._bound = (instance,)
        return bound

    @cached_property
    def entrypoint(self) -> str:
        """Where another process finds the task: ``module:name``, or ``path/file.py:name`` where a script was started as such.

        Raises InvalidDefinition for a task that no other process can find.
        """
        from orchestrator.engine.origin import entrypoint_of

        return entrypoint_of(self)

    @property
    def is_bound(self) -> bool:
        """It is a method of one object, ``self`` filled in."""
        return bool(self._bound)

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, return_state: bool, wait_for: Iterable[Any] | None = ..., **kwargs: Any) -> Any: ...
    @overload
    def __call__(self, *args: Any, return_state: bool = ..., wait_for: Iterable[Any] | None, **kwargs: Any) -> Any: ...

    def __call__(  # type: ignore[misc]  # P may hold anything but the two names that are ours
        self, *args: Any, return_state: bool = False, wait_for: Iterable[Any] | None = None, **kwargs: Any
    ) -> Any:
        """Run the task here and now and return its value, or its final state with ``return_state=True``.

        Of an async task: a coroutine that does so. ``wait_for``: futures or states that must complete first.
        """
        self.signature.check(args, kwargs)
        return self._driver(TaskCall(self, self._bound + args, kwargs, wait_for=wait_for, return_state=return_state))

    def submit(self, *args: Any, return_state: bool = False, wait_for: Iterable[Any] | None = None, **kwargs: Any) -> Any:
        """Have the flow's task runner run the task, and return a future at once. Async tasks too.

        With ``return_state=True``: wait, and return the final state. Raises MissingContextError outside of flows.
        """
        self.signature.check(args, kwargs)
        flow = FlowRunContext.get()
        if flow is None:
            raise MissingContextError(
                f"Task '{self.name}' was submitted outside of a flow, where there is no task runner.",
                hint="Call it from inside a @flow, or call the task itself instead of .submit.",
            )
        future = flow.task_runner.submit(self, args, kwargs, wait_for)
        if return_state:
            future.wait()
            return future.state
        return future

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> DistributedFuture[R]:
        """Have some worker run the task in the background, and return a future at once. As ``apply_async`` without options."""
        return submission.submitter().submit(self, [(args, kwargs)], submission.NOW, _NO_KEY)[0]

    def apply_async(
        self,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        wait_for: Iterable[Any] | None = None,
        *,
        eta: datetime | None = None,
        countdown: float | timedelta | None = None,
        expires: datetime | float | timedelta | None = None,
        priority: str = "normal",
        queue: str = "default",
        pool: str | None = None,
        idempotency_key: str | None = None,
        tags: Iterable[str] = (),
        run_name: str | None = None,
    ) -> DistributedFuture[R]:
        """Have some worker run the task in the background, and return a future at once.

        args, kwargs: the arguments of the call. Futures among them, and those in wait_for, are waited for here.
        eta, countdown: start it then (a datetime with a time zone), or after so many seconds, instead of now.
        expires: a run that has not started by then, or in so many seconds from now, is cancelled.
        priority: high, normal or low, within its work queue. queue: a work queue of the pool.
        pool: the work pool; by default that of the setting ``task_pool``, which is created if need be.
        idempotency_key: a second call of this task with the same key and arguments gives a future of the first one's run.
        tags: on the run, beside those of the task and of ``tags`` blocks. run_name: its name; by default as ``task_run_name``
        has it, or two words.

        Inside a flow, the run is recorded as started by the flow run. It is independent of it all the same: it neither keeps
        the flow run from ending nor is it cancelled with it.

        Raises ParameterBindError, ParameterTypeError, PayloadTooLarge, InvalidDefinition (no other process can find the task),
        ObjectNotFound (no such pool or queue), Refused (another type of pool; the key stands for other arguments), StoreFull,
        StoreUnavailable.
        """
        options = submission.options_of(
            eta, countdown, expires, priority=priority, queue=queue, pool=pool, tags=tags, run_name=run_name
        )
        submission.wait_for(wait_for)
        return submission.submitter().submit(self, [(tuple(args), dict(kwargs or {}))], options, [idempotency_key])[0]

    def delay_many(
        self,
        calls: Iterable[Any],
        *,
        eta: datetime | None = None,
        countdown: float | timedelta | None = None,
        expires: datetime | float | timedelta | None = None,
        priority: str = "normal",
        queue: str = "default",
        pool: str | None = None,
        idempotency_keys: Iterable[str] | None = None,
        tags: Iterable[str] = (),
    ) -> FutureList[R]:
        """``apply_async`` for many calls, a hundred in one request; the futures in their order.

        Each of ``calls`` is a tuple of arguments, a dict of named arguments, or, if it is neither, the only argument.
        ``idempotency_keys``: one for each call. The options are those of ``apply_async``, the same for all.

        Nothing is submitted if one of the calls is wrong. If Redis fails in the middle, some may have been submitted all the
        same: with idempotency keys it is safe to try again.
        """
        options = submission.options_of(eta, countdown, expires, priority=priority, queue=queue, pool=pool, tags=tags)
        every = [submission.arguments_of(call) for call in calls]
        keys = [None] * len(every) if idempotency_keys is None else list(idempotency_keys)
        return FutureList(submission.submitter().submit(self, every, options, keys))

    def serve(self, **options: Any) -> None:
        """Run a worker for this task, until it is stopped. Options as for ``orchestrator.task_worker.serve``."""
        from orchestrator.task_worker import serve

        serve(self, **options)

    def map(
        self,
        *args: Any,
        return_state: bool = False,
        wait_for: Iterable[Any] | None = None,
        deferred: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Submit the task once for each element of its iterable arguments; a FutureList in their order.

        Several iterables go side by side and must be equally long. Strings, and what ``unmapped`` marks, go whole into every
        call. A future of a list is waited for. With ``deferred``, workers run the calls in the background, as ``delay_many``
        has it.

        Raises MappingLengthMismatch, MappingMissingIterable.
        """
        calls = self._mapped(self.signature.bind_given(args, kwargs))
        if deferred:
            submission.wait_for(wait_for)
            deferred_calls = list(calls)
            keys = [None] * len(deferred_calls)
            return FutureList(submission.submitter().submit(self, deferred_calls, submission.NOW, keys))
        every = None if wait_for is None else list(wait_for)
        futures: FutureList[R] = FutureList(self.submit(*some, wait_for=every, **named) for some, named in calls)
        if return_state:
            futures.wait()
            return [future.state for future in futures]
        return futures

    def with_options(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Iterable[str] | None = None,
        task_run_name: str | Callable[..., str] | None = _KEEP,
        retries: int | None = _KEEP,
        retry_delay_seconds: Delay = _KEEP,
        retry_jitter_factor: float | None = _KEEP,
        timeout_seconds: float | None = None,
        log_prints: bool | None = _KEEP,
        on_completion: list[Hook] | None = None,
        on_failure: list[Hook] | None = None,
        on_running: list[Hook] | None = None,
        retry_condition_fn: RetryCondition | None = None,
    ) -> Task[P, R]:
        """The same task with some arguments changed; what is not given stays as it is."""
        changes: dict[str, Any] = {
            "name": name,
            "description": description,
            "tags": tags,
            "timeout_seconds": timeout_seconds,
            "on_completion": on_completion,
            "on_failure": on_failure,
            "on_running": on_running,
            "retry_condition_fn": retry_condition_fn,
        }
        clearable: dict[str, Any] = {
            "task_run_name": task_run_name,
            "retries": retries,
            "retry_delay_seconds": retry_delay_seconds,
            "retry_jitter_factor": retry_jitter_factor,
            "log_prints": log_prints,
        }
        changes = {option: value for option, value in changes.items() if value is not None}
        changes |= {option: value for option, value in clearable.items() if value is not _KEEP}
        hooks = {name: getattr(self, f"{name}_hooks") for name in _HOOKS}
        changed = type(self)(self.fn, **{**self._options, **hooks, **changes})
        changed._bound = self._bound
        return changed

    def on_completion(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a run completes."""
        self.on_completion_hooks.append(fn)
        return fn

    def on_failure(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a run fails or crashes."""
        self.on_failure_hooks.append(fn)
        return fn

    def on_running(self, fn: Hook) -> Hook:
        """Decorator: call ``fn(task, task_run, state)`` when a run's body starts."""
        self.on_running_hooks.append(fn)
        return fn

    # For the engine

    def hooks_after(self, state: State) -> list[Hook]:
        """The hooks that a final state calls for."""
        if state.type is StateType.COMPLETED:
            return self.on_completion_hooks
        return self.on_failure_hooks if state.type in (StateType.FAILED, StateType.CRASHED) else []

    def name_of_run(self, context: TaskRunContext) -> str:
        """What ``task_run_name`` makes of a run's arguments."""
        return render_run_name(self.task_run_name, context.parameters, f"task_run_name of task '{self.name}'")

    def name_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What ``task_run_name`` makes of the arguments of a call that runs elsewhere."""
        what = f"task_run_name of task '{self.name}'"
        return render_run_name(self.task_run_name, self.signature.bind(args, kwargs), what)

    def submitted_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: list[Any] | None) -> TaskCall:
        """A call for a task runner; its run is known, as Pending, from now on."""
        flow = FlowRunContext.get()
        task_run = new_task_run(self, flow)
        if flow is not None and flow.link is not None:
            flow.link.task(flow.flow_run.id, task_run)
        return TaskCall(self, self._bound + args, kwargs, wait_for=wait_for, return_state=True, task_run=task_run)

    def complete(self, call: TaskCall) -> Any:
        """Run a submitted call to its end in this thread."""
        return drive.complete(self._driver, call)

    def complete_async(self, call: TaskCall) -> Coroutine[Any, Any, Any]:
        """Of an async task: the coroutine that runs a call to its end."""
        return drive.complete_async(self._driver, call)

    def _mapped(self, values: dict[str, Any]) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
        from orchestrator.engine.inputs import resolve

        flow = FlowRunContext.get()
        producers = None if flow is None else flow.producers
        columns: dict[str, list[Any]] = {}
        whole: dict[str, Any] = {}
        for name, value in self._single(values).items():
            mark = type(value) if isinstance(value, (allow_failure, quote)) else None
            content = value.unwrap() if mark else value
            if isinstance(content, unmapped):
                whole[name] = content.unwrap() if mark is None else mark(content.unwrap())
                continue
            if isinstance(content, (Future, State)):
                content = resolve(content, [], producers)
            if _is_iterable(content):
                columns[name] = [mark(item) for item in content] if mark else list(content)
            else:
                whole[name] = value
        if not columns:
            raise MappingMissingIterable(
                f"Task '{self.name}' cannot be mapped: none of its arguments is iterable.", hint="Pass a list, or call .submit."
            )
        lengths = {name: len(items) for name, items in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise MappingLengthMismatch(
                f"Task '{self.name}' cannot be mapped over collections of different lengths: {told}.",
                hint="Wrap what every call should get whole in unmapped(...).",
            )
        for row in zip(*columns.values(), strict=True):
            yield self.signature.arrange(self._several({**dict(zip(columns, row, strict=True)), **whole}))

    def _single(self, values: dict[str, Any]) -> dict[str, Any]:
        """Every argument under a name of its own: ``**kwargs`` opened up."""
        parameters = self.signature.parameters
        opened: dict[str, Any] = {}
        for name, value in values.items():
            if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                opened |= value
            else:
                opened[name] = value
        return opened

    def _several(self, values: dict[str, Any]) -> dict[str, Any]:
        """The opposite of ``_single``."""
        parameters = self.signature.parameters
        extra = {name: value for name, value in values.items() if name not in parameters}
        known = {name: values[name] for name in parameters if name in values}
        variadic = next((n for n, p in parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
        return {**known, variadic: extra} if variadic is not None and extra else known


_NO_KEY = [None]

_HOOKS = ("on_completion", "on_failure", "on_running")


@overload
def task(__fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str | None = ...,
    description: str | None = ...,
    tags: Iterable[str] | None = ...,
    version: str | None = ...,
    task_run_name: str | Callable[..., str] | None = ...,
    retries: int | None = ...,
    retry_delay_seconds: Delay = ...,
    retry_jitter_factor: float | None = ...,
    timeout_seconds: float | None = ...,
    log_prints: bool | None = ...,
    on_completion: list[Hook] | None = ...,
    on_failure: list[Hook] | None = ...,
    on_running: list[Hook] | None = ...,
    retry_condition_fn: RetryCondition | None = ...,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(__fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a function, sync or async, generator or not, method or not.

    name, description, version: for people; the name is the function's own unless given.
    tags: on every run of it.
    task_run_name: the name of each run; a template (``"load {table}"``) or a function that returns it.
    retries, retry_delay_seconds: how often it is tried again; after a number of seconds, or a list of them (the last goes on),
    or a function of ``retries`` that makes such a list. retry_jitter_factor: up to that share longer, by chance.
    retry_condition_fn: ``(task, task_run, state) -> bool``, whether to try again at all.
    timeout_seconds: beyond it the attempt fails with RunTimedOut.
    log_prints: ``print`` writes to the run's log; None as the flow does.
    on_completion, on_failure, on_running: functions ``(task, task_run, state)``.
    """
    if __fn is not None:
        return Task(__fn, **options)
    inspect.signature(Task).bind(None, **options)  # an argument that does not exist is an error here, at its own line
    return lambda fn: Task(fn, **options)


def render_run_name(template: str | Callable[..., str] | None, parameters: dict[str, Any], what: str) -> str:
    """A run's name from its template and its arguments, or from a function that takes ``parameters`` or nothing.

    ``what`` is the template, for messages. Raises InvalidDefinition for a template that does not fit the arguments.
    """
    if callable(template):
        takes = inspect.signature(template).parameters
        name = template(parameters=parameters) if "parameters" in takes else template()
        if not isinstance(name, str):
            raise TypeError(f"{what} returned {type(name).__name__}, not a string.")
        return name
    if isinstance(template, str):
        try:
            return template.format(**parameters)
        except (LookupError, ValueError, AttributeError, TypeError) as problem:
            wrong = f"there is no parameter {problem}" if isinstance(problem, KeyError) else str(problem)
            known = ", ".join(parameters) or "none"
            raise InvalidDefinition(
                f"The {what} is {template!r}, which cannot be filled in: {wrong}. The parameters are: {known}."
            ) from None
    raise TypeError(f"{what} is {type(template).__name__}; it must be a string or a function that returns one.")


def _function_name(fn: Callable[..., Any]) -> str:
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return "lambda" if name == "<lambda>" else cast(str, name)


def _is_iterable(value: Any) -> bool:
    if isinstance(value, (str, bytes, Annotation)):
        return False
    try:
        iter(value)
    except TypeError:
        return False
    return True
