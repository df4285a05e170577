"""Being told to stop: SIGTERM becomes an exception in the main thread, so that user code is left in order."""

from __future__ import annotations

import ctypes
import signal
import threading
from types import FrameType


class Terminated(BaseException):
    """This process was told to stop. No ``except Exception`` holds it up."""


_told = False
_users = 0


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


def stop_thread(thread: int | None) -> None:
    """Raise Terminated in a thread as soon as it runs Python code again; in the main thread at once."""
    if thread is None:
        return
    if thread == threading.main_thread().ident:
        signal.pthread_kill(thread, signal.SIGTERM)
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Terminated))


def was_told() -> bool:
    """SIGTERM has arrived since ``install``."""
    return _told


def _raise(signum: int, frame: FrameType | None) -> None:
    global _told
    # A second one while user code cleans up must not break that off; whoever is in a hurry has SIGKILL.
    if not _told:
        _told = True
        raise Terminated
