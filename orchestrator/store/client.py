"""A redis-py client whose failures are ours: what Redis's absence raises here is StoreUnavailable, for callers that may not
import redis. Errors about a single command pass through: those are our own mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import AskError, MovedError

from orchestrator.exceptions import StoreUnavailable
from orchestrator.store.connection import explain, is_transient

Redis = Any
"""A ``Client`` as the store's other modules see it. redis-py types every answer as bytes, text or None; ours are bytes."""


class Client(redis.Redis):
    """A client for one server, sharing the connections of another client."""

    def __init__(self, of: redis.Redis, address: str) -> None:
        super().__init__(connection_pool=of.connection_pool)
        self.address = address

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command; one that was not done because a Cluster's slot moved is sent to where it is. Raises StoreUnavailable."""
        with _translated(self.address):
            try:
                return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except MovedError:
                return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """A pipeline whose ``execute`` raises StoreUnavailable too."""
        pipeline = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.address = self.address
        pipeline.is_whole = transaction
        return pipeline


class _Pipeline(Pipeline):
    address = ""
    is_whole = True

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what was collected. Raises StoreUnavailable, also where only a part could not be done now but can be later."""
        commands = self.command_stack
        with _translated(self.address):
            answers = self._send(commands)
            for answer in answers:
                if isinstance(answer, Exception) and is_transient(answer):
                    raise answer
            if raise_on_error:
                self.raise_first_error(commands, answers)  # type: ignore[no-untyped-call]
            return answers

    def _send(self, commands: Sequence[Any]) -> list[Any]:
        """The answers; what was not done because the slot moved is sent to where it is, in the same order."""
        try:
            answers: list[Any] = super().execute(raise_on_error=False)
        except MovedError:
            self.command_stack = list(commands)
            return super().execute(raise_on_error=False)
        moved = [i for i, answer in enumerate(answers) if isinstance(answer, MovedError)]
        if moved and not self.is_whole:
            self.command_stack = [commands[i] for i in moved]
            for i, answer in zip(moved, super().execute(raise_on_error=False), strict=True):
                answers[i] = answer
        return answers


def is_of_another_type(answer: Any, address: str) -> bool:
    """Whether one of a pipeline's answers says that the key is no hash, stream or set, as it should be. Raises other errors."""
    if not isinstance(answer, Exception):
        return False
    if isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE"):
        return True
    with _translated(address):
        raise answer


@contextmanager
def _translated(address: str) -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        if is_transient(error):
            raise StoreUnavailable(
                f"Redis at {address} does not answer: {_words(error)}",
                hint="Start it, or set ORCH_REDIS_URL to one that runs.",
            ) from error
        problem = explain(error, address)
        if problem is None:
            raise
        raise problem from error


def _words(error: redis.RedisError) -> str:
    """What went wrong, on one line. Of ASK, redis-py leaves no more than two numbers."""
    if isinstance(error, AskError):
        return f"its slot {error.slot_id} is being moved to {error.host}:{error.port}"
    return " ".join(str(error).split())
