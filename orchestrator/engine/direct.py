"""A root flow that is called in a plain process: recorded where there is a Redis to record it in, run either way.

The first such call starts a sidecar, one a process, which does the recording (``sidecar.py``). Nobody waits for it at the
start; at the end of a root flow this process waits until the end is safely in Redis.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import settings
from orchestrator.engine import termination
from orchestrator.engine.flow_call import FlowCall
from orchestrator.logging import handlers
from orchestrator.logging.loggers import get_logger

if TYPE_CHECKING:
    import subprocess

    from orchestrator.engine.link import Link

_QUIET_SECONDS = 1.0
_ACKNOWLEDGEMENT_SECONDS = 5.0
_IN_TROUBLE_SECONDS = 0.5

_log = get_logger("flow_runs")
_lock = threading.Lock()
_link: Link | None = None
_sidecar: subprocess.Popen[bytes] | None = None
_threads: dict[str, int] = {}


class DirectCall(FlowCall):
    """One call of a flow from outside of any flow run."""

    def open(self) -> None:
        """Find out who records, and listen for SIGTERM."""
        handlers.prepare(console=True)
        self._link = recorder()
        super().open()
        self._is_terminable = termination.install()
        _threads[self.run.id] = threading.get_ident()

    def close(self) -> None:
        """Tell the end and see it recorded."""
        super().close()
        _threads.pop(self.run.id, None)
        if self._link is not None:
            self._see_recorded(self._link)
        if self._is_terminable:
            termination.uninstall()

    def outcome(self) -> Any:
        """As for any flow; but a process that was told to stop does stop, by the same signal."""
        if self.run.state.is_crashed() and termination.was_told() and self._is_terminable:
            signal.raise_signal(signal.SIGTERM)
        return super().outcome()

    def _see_recorded(self, link: Link) -> None:
        answer = link.wait_ended(self.run.id, _QUIET_SECONDS, timeout_in_trouble=_IN_TROUBLE_SECONDS)
        if answer is None and link.lost is None and link.trouble is None:
            self._logger.warning("Waiting for Redis to record the run, at most %g s.", _ACKNOWLEDGEMENT_SECONDS)
            answer = link.wait_ended(self.run.id, _ACKNOWLEDGEMENT_SECONDS, timeout_in_trouble=_IN_TROUBLE_SECONDS)
        if answer is None and link.lost is None:
            self._logger.warning("The run is not recorded yet; the recorder goes on trying for a while.")
        elif answer == "superseded":
            self._logger.warning("The run's end was not accepted: someone had ended the run before.")
        elif answer == "refused":
            self._logger.warning("The run could not be recorded.")


def use(link: Link | None) -> None:
    """Flows of this process are recorded through ``link``: that of a worker's child, or of a test."""
    global _link
    _link = link


def recorder() -> Link | None:
    """The way to this process's recorder, started if need be; None where there is no Redis to record in."""
    global _link
    with _lock:
        if _link is not None and _link.is_unfit:
            return None  # why has been said, and another recorder would say it again
        if _link is None or _link.lost is not None:
            _link = _start_sidecar() if _is_recorded() else None
        return _link


def _is_recorded() -> bool:
    chosen = settings.load()
    if chosen.redis_url is not None:
        return True
    from orchestrator.store import embedded

    return embedded.running(chosen.home)


def _start_sidecar() -> Link | None:
    global _sidecar
    import socket
    import subprocess

    from orchestrator.engine.link import Link

    ours, its = socket.socketpair()
    path = [str(Path(__file__).parents[2]), settings.variable("PYTHONPATH") or ""]
    try:
        _sidecar = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.engine.sidecar", str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # whoever reads ours to its end must not wait for the recorder's
            env=settings.child_environment(PYTHONPATH=os.pathsep.join(filter(None, path))),
            start_new_session=True,  # Ctrl-C is for the flow; what it leaves behind must still be recorded
        )
    except OSError as problem:
        ours.close()
        _log.warning("Runs of this process are not recorded: the recorder could not be started (%s).", problem)
        return None
    finally:
        its.close()
    link = Link(ours, on_lost=_lost, on_cancel=_cancel, on_trouble=_in_trouble, on_unfit=_cannot_record)
    link.listen()
    return link


def _lost(reason: str) -> None:
    _log.warning("Runs of this process are no longer recorded: the recorder is gone (%s).", reason)


def _cannot_record(reason: str) -> None:
    _log.warning("Runs of this process are not recorded: %s", reason)


def _in_trouble(message: str) -> None:
    _log.warning("Runs go on but cannot be recorded now: %s", message)


def _cancel(run: str, message: str) -> None:
    # A subflow is stopped in the thread of the flow that it belongs to, of which there is hardly ever more than one.
    root = run if run in _threads else next(iter(_threads), run)
    termination.stop_run(root, _threads.get(root))
