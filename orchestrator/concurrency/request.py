"""What ``concurrency`` and ``rate_limit`` share: from their arguments to slots that are held."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

from orchestrator.context import recorded_run
from orchestrator.engine.protocol import Wanted
from orchestrator.engine.slots import NoRoom, NotRecorded, Slots
from orchestrator.exceptions import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError, MissingContextError
from orchestrator.logging.loggers import get_run_logger

_ANSWER_SECONDS = 5.0
"""How long who does not want to wait waits for the answer that there is no room."""

_warned: set[str] = set()


class Request:
    """``with`` and ``async with``: the slots are held inside the block. Entered once.

    Raises TypeError and ValueError for arguments that make no sense, MissingContextError outside of runs; what entering raises
    is said at ``concurrency``.
    """

    def __init__(
        self,
        names: str | Iterable[str],
        occupy: int,
        timeout_seconds: float | None,
        *,
        strict: bool,
        rate: bool = False,
        max_retries: int | None = None,
    ) -> None:
        self._names = _checked_names(names)
        if not isinstance(occupy, int):
            raise TypeError(f"occupy is {occupy!r}; it must be a whole number.")
        if occupy < 1:
            raise ValueError(f"occupy is {occupy}; it must be at least 1.")
        self._timeout = timeout_seconds
        self._strict = strict
        is_patient = max_retries != 0 and (timeout_seconds is None or timeout_seconds > 0)
        self._patience = timeout_seconds if is_patient else _ANSWER_SECONDS
        self._slots: Slots | None = None
        if self._names:
            recorded = recorded_run()
            if recorded is None:
                raise MissingContextError(
                    "Slots of concurrency limits belong to a run, and no flow or task is running here.",
                    hint="Call this from a flow or a task; in a thread that you start, through contextvars.copy_context().run.",
                )
            link, run = recorded
            if link is not None:
                wanted = Wanted("global", self._names, occupy, rate, strict, is_patient)
                # At a rate limit waiting is the rule: ten thousand calls would fill the log.
                say = partial(get_run_logger().log, logging.DEBUG if rate else logging.INFO, "%s")
                self._slots = Slots(link, run, wanted, say)

    def __enter__(self) -> None:
        if not self._names:
            return
        try:
            self._recorded().take(self._patience)
            self._warn_of_missing()
        except BaseException as problem:
            self._not_held(problem)

    def __exit__(self, *_: object) -> None:
        if self._slots is not None:
            self._slots.release()

    async def __aenter__(self) -> None:
        if not self._names:
            return
        try:
            await self._recorded().take_async(self._patience)
            self._warn_of_missing()
        except BaseException as problem:
            self._not_held(problem)

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def _recorded(self) -> Slots:
        if self._slots is None:
            raise NotRecorded("Concurrency limits hold only for runs that are recorded, and there is no Redis for this one.")
        return self._slots

    def _not_held(self, problem: BaseException) -> None:
        self.__exit__()
        if not isinstance(problem, NoRoom | NotRecorded):
            raise problem
        if isinstance(problem, NoRoom) and self._timeout is not None and self._timeout <= 0:
            raise AcquireConcurrencySlotTimeoutError(str(problem), hint=problem.hint) from None
        if isinstance(problem, NoRoom) or self._strict:
            raise ConcurrencySlotAcquisitionError(str(problem), hint=problem.hint) from None
        _warn_once("", f"{problem} The code goes on without slots.")

    def _warn_of_missing(self) -> None:
        for name in self._slots.missing if self._slots is not None else ():
            _warn_once(
                name,
                f"There is no global limit '{name}', so it holds nobody back. Create it: orch gcl create '{name}' --limit N",
            )


def _checked_names(names: Any) -> list[str]:
    found = [names] if isinstance(names, str) else list(dict.fromkeys(names or ()))
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is no name of a concurrency limit; it must be text.")
    return [name for name in found if name]


def _warn_once(what: str, sentence: str) -> None:
    if what not in _warned:
        _warned.add(what)
        get_run_logger().warning("%s", sentence)
