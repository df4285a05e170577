"""Takes one call of a flow or task through its attempts.

What happens between the attempts is the call's own business and the same for all; here is only how each of the four kinds of
Python function is run: plain, async, generator, async generator.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from orchestrator.engine.timeouts import TimeLimit
from orchestrator.exceptions import RunTimedOut
from orchestrator.logging.loggers import get_logger

if TYPE_CHECKING:
    from orchestrator.engine.slots import Slots

Hook = Callable[[], Any]


class Call(ABC):
    """One call of a flow or task, as the drivers see it.

    ``open`` it; inside its ``context``, take the ``slots`` that an attempt needs, ``begin`` it, run ``fn``, tell ``returned``
    or ``raised``, wait ``delay`` seconds, until ``begin`` says that there is no other; ``close`` it, whatever happened; the
    caller gets its ``outcome``.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: AbstractContextManager[Any]
    timeout: float | None
    delay: float
    due_hooks: list[Hook]
    slots: Slots | None = None

    @property
    @abstractmethod
    def what(self) -> str:
        """The run, for messages."""

    @abstractmethod
    def open(self) -> None:
        """The run exists from now on."""

    @abstractmethod
    def begin(self) -> bool:
        """Enter the next attempt; False when the run has ended."""

    @abstractmethod
    def returned(self, value: Any) -> None:
        """The attempt's function returned."""

    @abstractmethod
    def raised(self, problem: BaseException) -> None:
        """The attempt's function raised."""

    @abstractmethod
    def break_off(self, problem: BaseException) -> None:
        """Something was raised outside of the function: while waiting for tasks, or between attempts."""

    @abstractmethod
    def close(self) -> None:
        """Record the run's end."""

    @abstractmethod
    def outcome(self) -> Any:
        """What the caller gets; raises what the caller must see."""


def call_plain(call: Call) -> Any:
    """Run a plain function."""
    call.open()
    try:
        with call.context:
            while _begin(call):
                if call.due_hooks:
                    fire_hooks(call)
                try:
                    if call.timeout is None:
                        value = call.fn(*call.args, **call.kwargs)
                    else:
                        with TimeLimit(call.timeout, call.what):
                            value = call.fn(*call.args, **call.kwargs)
                except BaseException as problem:
                    call.raised(problem)
                else:
                    call.returned(value)
                if call.due_hooks:
                    fire_hooks(call)
                if call.delay:
                    _sleep(call.delay)
    except BaseException as problem:
        call.break_off(problem)
        fire_hooks(call)
    call.close()
    return call.outcome()


async def call_async(call: Call) -> Any:
    """Run a coroutine function."""
    call.open()
    try:
        with call.context:
            while await _begin_async(call):
                await _fire_async(call)
                try:
                    value = await _within_time(call)
                except BaseException as problem:
                    call.raised(problem)
                else:
                    call.returned(value)
                await _fire_async(call)
                await _sleep_async(call.delay)
    except BaseException as problem:
        call.break_off(problem)
        await _fire_async(call)
    call.close()
    return call.outcome()


def generate(call: Call) -> Generator[Any, Any, Any]:
    """Run a generator function. A retry begins from its first item again.

    The run's context is left between the steps: the code that consumes the items is not part of the run.
    """
    call.open()
    try:
        while True:
            with call.context:
                if not _begin(call):
                    break
                fire_hooks(call)
            steps = call.fn(*call.args, **call.kwargs)
            try:
                sent: Any = None
                while True:
                    with call.context:
                        item = steps.send(sent)
                    sent = yield item
            except StopIteration as end:
                call.returned(end.value)
            except GeneratorExit:
                steps.close()
                call.returned(None)
                call.close()
                raise
            except BaseException as problem:
                call.raised(problem)
            with call.context:
                fire_hooks(call)
            if call.delay:
                _sleep(call.delay)
    except GeneratorExit:
        raise
    except BaseException as problem:
        call.break_off(problem)
        fire_hooks(call)
    call.close()
    return call.outcome()


async def generate_async(call: Call) -> AsyncGenerator[Any, Any]:
    """Run an async generator function; see ``generate``."""
    call.open()
    try:
        while True:
            with call.context:
                if not await _begin_async(call):
                    break
                await _fire_async(call)
            steps: AsyncGenerator[Any, Any] = call.fn(*call.args, **call.kwargs)
            try:
                sent: Any = None
                while True:
                    with call.context:
                        item = await steps.asend(sent)
                    sent = yield item
            except StopAsyncIteration:
                call.returned(None)
            except GeneratorExit:
                await steps.aclose()
                call.returned(None)
                call.close()
                raise
            except BaseException as problem:
                call.raised(problem)
            with call.context:
                await _fire_async(call)
            await _sleep_async(call.delay)
    except GeneratorExit:
        raise
    except BaseException as problem:
        call.break_off(problem)
        await _fire_async(call)
    call.close()
    call.outcome()


def forgotten(call: Call, value: Any) -> TypeError | None:
    """The error of a function that returned a coroutine in place of what it would have given; the coroutine never runs."""
    if not inspect.iscoroutine(value):
        return None
    value.close()
    return TypeError(
        f"{call.what} returned the coroutine '{value.__name__}', which nobody awaited; await it in an 'async def'."
    )


def driver_of(fn: Callable[..., Any]) -> Callable[[Call], Any]:
    """The driver for this kind of function."""
    if inspect.isasyncgenfunction(fn):
        return generate_async
    if inspect.isgeneratorfunction(fn):
        return generate
    if inspect.iscoroutinefunction(fn):
        return call_async
    return call_plain


def complete(driver: Callable[[Call], Any], call: Call) -> Any:
    """Run a call to its end in this thread, whatever its kind. A generator's value is then the list of what it yields."""
    fn = call.fn
    if driver is generate:
        call.fn = lambda *args, **kwargs: list(fn(*args, **kwargs))
        return call_plain(call)
    if driver is generate_async:
        call.fn = lambda *args, **kwargs: _collect(fn(*args, **kwargs))
        return run_coroutine(call_async(call))
    answer = driver(call)
    return run_coroutine(answer) if driver is call_async else answer


def complete_async(driver: Callable[[Call], Any], call: Call) -> Coroutine[Any, Any, Any]:
    """As ``complete``, for what is async: the coroutine that does it on the loop that runs here."""
    fn = call.fn
    if driver is generate_async:
        call.fn = lambda *args, **kwargs: _collect(fn(*args, **kwargs))
    return call_async(call)


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end from synchronous code: in this thread, or beside the loop that runs here already."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    import contextvars
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()


async def _collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def _begin(call: Call) -> bool:
    if call.slots is not None:
        call.slots.take()
    return call.begin()


async def _begin_async(call: Call) -> bool:
    if call.slots is not None:
        await call.slots.take_async()
    return call.begin()


async def _within_time(call: Call) -> Any:
    if call.timeout is None:
        return await call.fn(*call.args, **call.kwargs)
    import asyncio

    try:
        async with asyncio.timeout(call.timeout) as limit:
            return await call.fn(*call.args, **call.kwargs)
    except TimeoutError:
        if limit.expired():
            raise RunTimedOut(f"{call.what} took longer than its {call.timeout:g} seconds.") from None
        raise


def fire_hooks(call: Call) -> None:
    """Call the hooks that are due; one that raises is logged."""
    hooks, call.due_hooks = call.due_hooks, []
    for hook in hooks:
        try:
            answer = hook()
            if inspect.isawaitable(answer):
                run_coroutine(_awaited(answer))
        except Exception:
            _hook_failed(call)


async def _fire_async(call: Call) -> None:
    hooks, call.due_hooks = call.due_hooks, []
    for hook in hooks:
        try:
            answer = hook()
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            _hook_failed(call)


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


def _hook_failed(call: Call) -> None:
    get_logger("engine").exception("A hook of %s raised", call.what)


async def _sleep_async(seconds: float) -> None:
    if seconds:
        import asyncio

        await asyncio.sleep(seconds)


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)  # the clock module only tells time; a signal or a timeout breaks this off
