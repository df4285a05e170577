"""The tutorial's flow: two tasks, called in order."""

from orchestrator import flow, get_run_logger, task


@task
def get_title(name: str) -> str:
    """A name as a title, without the blanks around it."""
    return name.strip().title()


@task
def hello(title: str) -> None:
    """Greet in the run's log, forwards and backwards."""
    get_run_logger().info("Hello, %s! (reversed: %s)", title, title[::-1])


@flow
def hello_flow(name: str = "  prefect flow ") -> None:
    """Say hello."""
    hello(get_title(name))


if __name__ == "__main__":
    hello_flow()
