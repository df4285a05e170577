"""Being told to stop: SIGTERM becomes an exception in the main thread, so that user code is left in order."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class Terminated(BaseException):
    """This process was told to stop. No ``except Exception`` holds it up."""


_told = False
_users = 0
_tasks: dict[str, asyncio.Task[Any]] = {}
_wakes: dict[int, Callable[[], object]] = {}


def install() -> bool:
    """From now on SIGTERM raises Terminated in the main thread, once. Paired with ``uninstall`` where it answers True.

    False on other threads, and where the program handles SIGTERM itself.
    """
    global _told, _users
    if threading.current_thread() is not threading.main_thread():
        return False
    if not _users:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return False
        _told = False
        signal.signal(signal.SIGTERM, _raise)
    _users += 1
    return True


def uninstall() -> None:
    """SIGTERM does what it did before, when the last run that needed it has ended."""
    global _users
    _users -= 1
    if not _users:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def watch_asyncio_task(run: str) -> None:
    """The asyncio task that calls this executes ``run``: it is stopped by cancelling it, not by an exception out of nowhere.

    An event loop would swallow that exception wherever it does not strike the right task.
    """
    import asyncio

    task = asyncio.current_task()
    if task is not None:
        _tasks[run] = task


def forget_asyncio_task(run: str) -> None:
    """The run has ended."""
    _tasks.pop(run, None)


def is_watched(run: str) -> bool:
    """Whether an asyncio task executes the run."""
    return run in _tasks


def stop_run(run: str, thread: int | None) -> None:
    """Stop what executes a run: its asyncio task, or else what runs in its thread."""
    task = _tasks.get(run)
    if task is not None:
        task.get_loop().call_soon_threadsafe(task.cancel)
    elif thread is not None:
        stop_thread(thread)


def stop_thread(thread: int) -> None:
    """Raise Terminated in a thread as soon as it runs Python code again; in the main thread at once."""
    if thread == threading.main_thread().ident:
        signal.pthread_kill(thread, signal.SIGTERM)
    else:
        throw(thread, Terminated)


def throw(thread: int, kind: type[BaseException]) -> None:
    """Raise an exception in a thread as soon as it runs Python code: at once where it waits ``interruptibly``."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
    wake = _wakes.get(thread)
    if wake is not None:
        wake()


@contextmanager
def interruptibly(wake: Callable[[], object]) -> Iterator[None]:
    """Inside the block ``wake`` ends a wait of this thread, in which no exception could reach it."""
    thread = threading.get_ident()
    _wakes[thread] = wake
    try:
        yield
    finally:
        _wakes.pop(thread, None)


def was_told() -> bool:
    """SIGTERM has arrived since ``install``."""
    return _told


def _raise(signum: int, frame: FrameType | None) -> None:
    global _told
    # A second one while user code cleans up must not break that off; whoever is in a hurry has SIGKILL.
    if _told:
        return
    _told = True
    loop = _running_loop()
    for task in list(_tasks.values()):
        task.get_loop().call_soon_threadsafe(task.cancel)
    if loop is None or all(task.get_loop() is not loop for task in _tasks.values()):
        raise Terminated


def _running_loop() -> Any:
    if "asyncio" not in sys.modules:
        return None
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
