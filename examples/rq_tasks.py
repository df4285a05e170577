"""One task over many inputs on an RQ fleet you have: the flow runs here, its mapped tasks wherever RQ workers are.

In other terminals, as often as you like, with the same ORCH_REDIS_URL and in this folder:

rq worker --url "$ORCH_REDIS_URL" reports

and then:

python rq_tasks.py
"""

import os

from orchestrator import flow, get_run_logger, task
from orchestrator.task_runners import RQTaskRunner


@task(retries=1)
def measure(text: str) -> dict[str, int]:
    get_run_logger().info("Measured %r in process %s", text, os.getpid())
    return {"words": len(text.split()), "letters": sum(letter.isalpha() for letter in text)}


@flow(task_runner=RQTaskRunner(queue="reports"))
def report() -> int:
    texts = ["the quick brown fox", "jumps over", "the lazy dog"]
    # All three go into the queue at once. What comes back is plain data: see docs/flows-and-tasks.md.
    measured = measure.map(texts).result()
    words = sum(each["words"] for each in measured)
    get_run_logger().info("%s texts, %s words", len(texts), words)
    return words


if __name__ == "__main__":
    report()
