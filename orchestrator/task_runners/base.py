"""What every task runner is."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from orchestrator.futures import Future

if TYPE_CHECKING:
    from orchestrator.tasks import Task


class TaskRunner(ABC):
    """Runs the submitted tasks of one flow run. A flow's own instance is only a pattern: each run gets a duplicate."""

    @property
    def name(self) -> str:
        """The kind of runner."""
        return type(self).__name__

    @abstractmethod
    def duplicate(self) -> TaskRunner:
        """A fresh runner with the same settings."""

    @abstractmethod
    def submit(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], wait_for: Iterable[Any] | None
    ) -> Future[Any]:
        """Begin one task run as soon as what it needs is there."""

    @abstractmethod
    def finish(self, *, cancel: bool = False) -> None:
        """Wait for all that was submitted; with ``cancel`` drop what has not begun and stop what has. Not used after that."""

    def __enter__(self) -> TaskRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(cancel=kind is not None)


def when_all_ended(upstream: list[Future[Any]], then: Callable[[], None]) -> None:
    """Call ``then`` once when the last of ``upstream`` has ended, in the thread that ended it."""
    left = len(upstream)
    lock = threading.Lock()

    def count(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = left == 0
        if is_last:
            then()

    for future in upstream:
        future.add_done_callback(count)
