"""What the engine and its recorder say to each other.

The engine runs user code and never talks to Redis. It tells a *recorder* (the worker's supervisor, or the sidecar of a flow
that was started with ``python flow.py``) what happens, in frames: msgpack arrays, back to back on a Unix stream socket. The
first item of a frame says what it is.

    engine -> recorder
      open   request, new run           a root flow or a subflow begins; its id is the engine's; no answer
      start  run, state name, at_ms     the body starts (Running) or starts again in this process (Retrying)
      log    run, lines                 [[at_ms, level, logger, message, task run or None], ...]
      tasks  run, rows                  see ``task_row``; a later row of a task run replaces an earlier one
      end    run, type, name, message, result, retry_in_ms or None
      ask    request, what, arguments   something only the recorder can fetch
      files  [[file, mtime_ns, size], ...]
                                        an executor process has imported these of the project's files
      acquire request, run, of, names, occupy, rate, strict, patient
                                        slots of concurrency limits; the request is the call's number, by which it is released.
                                        Not patient: what is not there at once is refused
      release run, call                 the slots are given back, or waited for no longer; no answer

    recorder -> engine
      run      the run to execute       first frame to a worker's child
      runs     rows                     to an executor process: more runs to execute, see ``engine.threads.Row``
      stop     run                      to an executor process: stop what executes this run
      close                             to an executor process: no run comes any more
      answer   request, ok, value       to acquire: granted, or why not, and a detail
      waits    request, detail          the slots are not free; the answer comes when they are
      limited  tags                     the tags that have limits, for who has asked for slots of tags: others need none
      ended    run, answer              ok, again or superseded, as ``finish`` said
      cancel   run, message             someone wants the run stopped; SIGTERM follows it
      trouble  message                  the recorder cannot reach Redis, the run goes on; no message: it can again
      unfit    message                  the recorder can never record, for this reason; its last frame
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import msgpack

from orchestrator import clock
from orchestrator.models import TaskRun
from orchestrator.states import State, StateType

OPEN = "open"
START = "start"
LOG = "log"
TASKS = "tasks"
END = "end"
ASK = "ask"
FILES = "files"
ACQUIRE = "acquire"
RELEASE = "release"

RUN = "run"
RUNS = "runs"
STOP = "stop"
CLOSE = "close"
ANSWER = "answer"
WAITS = "waits"
LIMITED = "limited"
ENDED = "ended"
CANCEL = "cancel"
TROUBLE = "trouble"
UNFIT = "unfit"

INLINE_BYTES = 256 * 1024
"""Parameters, results and log messages beyond this never leave the process."""

MESSAGE_CHARACTERS = 4000
"""A state's message is cut here: it is shown in lists."""

_BUFFER_BYTES = 64 * 1024 * 1024

Frame = list[Any]


class Wanted(NamedTuple):
    """Slots that code of a run asks for; see ``store.limits.Acquire``. Who is not ``patient`` does not wait for them."""

    of: str
    names: list[str]
    occupy: int = 1
    rate: bool = False
    strict: bool = False
    patient: bool = True


def pack(frame: Frame) -> bytes:
    """One frame as bytes. Text that is not valid Unicode arrives with question marks rather than not at all."""
    packed: bytes = msgpack.packb(frame, unicode_errors="replace")
    return packed


class Frames:
    """Bytes in, whole frames out. One per socket."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=_BUFFER_BYTES, strict_map_key=False)

    def feed(self, received: bytes) -> Iterator[Frame]:
        """The frames that ``received`` completes.

        Raises ValueError on bytes that cannot be frames; the socket is then of no more use.
        """
        self._unpacker.feed(received)
        for frame in self._unpacker:
            if not isinstance(frame, list) or not frame:
                raise ValueError(f"{type(frame).__name__} is not a frame")
            yield frame


def task_row(task: TaskRun) -> list[Any]:
    """A task run as it travels."""
    state = task.state
    return [
        *(task.id, task.name, task.key, task.index),
        *(state.type.value, state.name, state.message[:MESSAGE_CHARACTERS], clock.to_ms(state.timestamp)),
        *(_ms(task.started), _ms(task.ended), task.run_count),
        *(task.upstream, task.parent, task.tags),
    ]


def task_of(row: list[Any]) -> TaskRun:
    """The task run that ``task_row`` packed. Raises ValueError on a row of another shape."""
    task_id, name, key, index, kind, state, message, at, started, ended, run_count, upstream, parent, tags = row
    return TaskRun(
        id=task_id,
        name=name,
        key=key,
        index=index,
        state=State(StateType(kind), state, message, timestamp=clock.from_ms(at)),
        started=_moment(started),
        ended=_moment(ended),
        run_count=run_count,
        upstream=tuple(upstream),
        parent=parent,
        tags=tuple(tags),
    )


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else clock.to_ms(moment)


def _moment(ms: int | None) -> datetime | None:
    return None if ms is None else clock.from_ms(ms)
