"""Orch as a contender beside other task queues: background task runs through a thread worker, with full state.

For a harness that drives contenders by such modules (``make bench-peers PEERS=DIR``): INFO, ``session`` and ``worker`` are what
it asks for; its ``proto`` says where Redis is and has the body of the job.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from proto import URL, mark

INFO = {
    "pip": ["orch"],
    "import": "orchestrator",
    "variants": {"processes-1": 40000, "processes-2": 40000},
    "kept": "the run with its states, events, indexes and result for 30 days (default); acked when its end is recorded",
}

os.environ["ORCH_REDIS_URL"] = URL
os.environ["ORCH_HOME"] = str(Path(os.environ["BENCH_MARKS"]).parent / "orch-home")
os.environ["ORCH_ALLOW_UNSAFE_REDIS"] = "1"  # the harness's Redis keeps nothing on disk, for all contenders

from orchestrator import task  # noqa: E402 - after its settings


@task
def noop():
    mark()


@contextmanager
def session():
    yield noop.delay, lambda n: noop.delay_many([()] * n)


def worker(variant):
    processes = variant.rpartition("-")[2]
    args = f"-m orch_cli task serve peer_orch:noop --processes {processes}".split()
    os.execv(sys.executable, [sys.executable, *args])
