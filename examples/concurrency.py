"""Twenty downloads, at most so many at a time and so many a second: from this flow and all others together.

orch gcl create mirror --limit 3
orch gcl create mirror-rate --limit 10 --slot-decay-per-second 10
python concurrency.py

The limits are kept in Redis, by name. Where none is configured the flow runs all the same, says so, and downloads at once.
"""

from orchestrator import flow, get_run_logger, task
from orchestrator.concurrency.sync import concurrency, rate_limit


@task
def download(number: int) -> int:
    rate_limit("mirror-rate")
    with concurrency("mirror"):
        return number * 1024


@flow
def downloads() -> int:
    total: int = sum(download.map(range(20)).result())
    get_run_logger().info("20 files, %s bytes", total)
    return total


if __name__ == "__main__":
    downloads()
