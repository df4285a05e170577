"""Flows that call flows: each call is a run of its own, with its own state and log, below the run that called it.

python nested.py
"""

from orchestrator import flow, get_run_logger, task


@task
def load(region: str) -> list[int]:
    return {"eu": [3, 4], "us": [5]}[region]


@flow
def region_total(region: str) -> int:
    return sum(load(region))


@flow
def world_total() -> int:
    total = sum(region_total(region) for region in ("eu", "us"))
    get_run_logger().info("The total is %s", total)
    return total


if __name__ == "__main__":
    world_total()
