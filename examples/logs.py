"""What a flow says: through the run logger, with print, and with an ordinary logger's levels. All of it is in the run's log.

python logs.py
"""

from orchestrator import flow, get_run_logger, tags, task


@task
def talk() -> None:
    print("A print inside a task is a log line too")


@flow(log_prints=True, flow_run_name="talk-about-{topic}")
def conversation(topic: str = "weather") -> None:
    logger = get_run_logger()
    logger.info("Let us talk about the %s", topic)
    logger.warning("This is a warning")
    with tags("small-talk"):
        talk()


if __name__ == "__main__":
    conversation()
