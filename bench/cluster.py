"""Many workers on one machine: ``python -m bench.cluster COUNT POOL`` forks supervisors, and ends them when it is ended.

Real supervisors with all that they ask of Redis; with no deployment in their pool they start no template, so that hundreds fit.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from orch_workers.base import WorkerOptions
from orch_workers.runner import run_worker


def main(count: int, pool: str) -> int:
    """Fork, and wait for a signal."""
    children = [_fork(pool, number) for number in range(count)]

    def stop(_number: int, _frame: FrameType | None) -> None:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    for child in children:
        os.waitpid(child, 0)
    return 0


def _fork(pool: str, number: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = run_worker(WorkerOptions(pool=pool, name=f"w{number}", limit=4, announce=lambda _: None))
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
