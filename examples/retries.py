"""A task that fails twice and succeeds at the third try, half a second between them.

python retries.py
"""

from itertools import count

from orchestrator import flow, get_run_logger, task

attempts = count(1)


@task(retries=2, retry_delay_seconds=0.5)
def fetch_price() -> float:
    attempt = next(attempts)
    if attempt < 3:
        raise ConnectionError(f"the exchange did not answer, attempt {attempt}")
    return 41.5


@flow
def price_report() -> float:
    price = fetch_price()
    get_run_logger().info("The price is %s", price)
    return price


if __name__ == "__main__":
    price_report()
