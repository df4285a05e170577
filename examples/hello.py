"""The smallest flow worth running: two tasks, called in order.

python hello.py
"""

from orchestrator import flow, get_run_logger, task


@task
def get_title(name: str) -> str:
    return name.strip().title()


@task
def greet(name: str) -> str:
    greeting = f"Hello, {name}!"
    get_run_logger().info(greeting)
    return greeting


@flow
def hello(name: str = "  world ") -> str:
    return greet(get_title(name))


if __name__ == "__main__":
    hello()
