"""The flows that are measured."""

import time
from pathlib import Path

from bench.marks import mark
from orchestrator import flow, task


@task
def nothing(number: int) -> int:
    return number


@flow
def noop() -> None:
    pass


@flow
def marked(marks: str) -> None:
    mark(marks)


@flow
def held(marks: str, milliseconds: int) -> None:
    mark(marks)
    time.sleep(milliseconds / 1000)
    mark(marks)


@flow
def sequential(count: int, report: str) -> None:
    nothing(0)
    start = time.perf_counter()
    for number in range(count):
        nothing(number)
    Path(report).write_text(repr(time.perf_counter() - start))


@flow
def submitted(count: int, report: str) -> None:
    nothing.submit(0).result()
    start = time.perf_counter()
    for future in [nothing.submit(number) for number in range(count)]:
        future.result()
    Path(report).write_text(repr(time.perf_counter() - start))
