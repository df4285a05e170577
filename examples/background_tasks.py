"""Work in the background: two thousand small calls that a worker executes, and how long that takes.

In one terminal, then in another:

python background_tasks.py serve
python background_tasks.py
"""

import sys
import time
from datetime import date

from orchestrator import task
from orchestrator.task_worker import serve


@task
def weekday(day: date) -> str:
    return day.strftime("%A")


@task
def square(number: int) -> int:
    return number * number


def main() -> None:
    # One call; the date is a date again where the task runs.
    print("31 January 2026 is a", weekday.delay(date(2026, 1, 31)).result(timeout=60))
    start = time.perf_counter()
    futures = square.delay_many(range(2_000))
    submitted = time.perf_counter() - start
    total = sum(futures.result(timeout=300))
    done = time.perf_counter() - start
    print(f"2,000 calls: submitted in {submitted:.1f} s, all done after {done:.1f} s; their sum is {total}")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve(weekday, square)
    else:
        main()
