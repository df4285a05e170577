"""Tasks in the background with real workers: served from Python and by command, submitted by other programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import RedisServer, eventually, python
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from worker_processes import environment_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "background_tasks.py"

SHOP = """
import asyncio
import sys
from dataclasses import dataclass
from datetime import date

from orchestrator import task
from orchestrator.task_worker import aserve, serve


@dataclass
class Parcel:
    grams: int


@task
def weekday(day: date) -> str:
    return day.strftime("%A")


@task
async def double(parcel: Parcel) -> Parcel:
    await asyncio.sleep(0)
    return Parcel(2 * parcel.grams)


@task
def fails():
    raise ValueError("out of stock")


@task
def returns_a_lock():
    import threading

    return threading.Lock()


@task
def number(n: int):
    return n


@task
def submits_another():
    return number.delay(7).task_run_id


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(weekday, double, fails, number, limit=20)
    elif sys.argv[1] == "aserve":
        asyncio.run(aserve(number, timeout=float(sys.argv[2])))
    else:
        print(number.delay(5).result(timeout=60))
"""

CLIENT = """
import asyncio
import json
from datetime import date

import shop

answers = {
    "weekday": shop.weekday.delay(date(2026, 1, 31)).result(timeout=60),
    "double": shop.double.delay(shop.Parcel(4)).result(timeout=60),
    "fails": str(shop.fails.delay().result(timeout=60, raise_on_failure=False)),
    "lock": type(shop.returns_a_lock.delay().state).__name__,
    "many": sum(shop.number.delay_many(range(300)).result(timeout=60)),
    "wrong": str(shop.weekday.delay("soon").result(timeout=60, raise_on_failure=False)),
}
outer = shop.submits_another.delay()
answers["outer"], answers["inner"] = outer.task_run_id, outer.result(timeout=60)
answers["async"] = asyncio.run(shop.number.delay(3).result_async(timeout=60))
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def shop(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Path]]:
    """A project folder and the settings of a namespace, with a worker that was started from the project's own script."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(SHOP)
    (folder / "client.py").write_text(CLIENT)
    settings = Settings(home=folder, redis_url=server.url, namespace=f"t-{uuid.uuid4().hex[:12]}", redis_retry_s=5.0)
    with serving(settings, folder, "shop.py", "serve"):
        yield settings, folder
    with open_store(settings) as store:
        for key in store.client.scan_iter(f"{store.keys}*", count=1000):
            store.client.unlink(key)


@contextmanager
def serving(settings: Settings, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that serves, from when its worker polls until it is told to stop."""
    with (folder / "said").open("w+") as said:
        serving = python(*arguments, env=environment_of(settings), cwd=folder, stdout=said, stderr=said)

        def polls() -> bool:
            assert serving.poll() is None, (folder / "said").read_text()
            return "polls work pool" in (folder / "said").read_text()

        try:
            eventually(polls, what="the worker to poll")
            yield serving
        finally:
            serving.send_signal(signal.SIGTERM)
            serving.wait(30)


def run(settings: Settings, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment_of(settings)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_another_program_submits_to_a_served_script_and_gets_the_results(shop: tuple[Settings, Path]) -> None:
    settings, folder = shop
    done = run(settings, folder, "client.py")
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    with open_store(settings) as store:
        assert store.runs.get(answers.pop("inner")).parent == answers.pop("outer")
    assert "day: Input should be a valid date" in answers.pop("wrong")
    assert answers == {
        "weekday": "Saturday",
        "double": {"grams": 8},
        "fails": "ValueError: out of stock",
        "lock": "State",
        "many": 44850,
        "async": 3,
    }


def test_a_script_submits_its_own_tasks_by_its_file(shop: tuple[Settings, Path], tmp_path: Path) -> None:
    settings, folder = shop
    for place, script in ((folder, "shop.py"), (tmp_path, str(folder / "shop.py"))):
        done = run(settings, place, script, "submit")
        assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr


def test_an_async_program_serves_for_a_while(shop: tuple[Settings, Path]) -> None:
    settings, folder = shop
    done = run(settings, folder, "shop.py", "aserve", "0.5")
    assert done.returncode == 0, done.stderr


def test_an_entry_point_that_leads_nowhere_is_an_error_before_the_worker_starts(shop: tuple[Settings, Path]) -> None:
    settings, folder = shop
    done = run(settings, folder, "-m", "orch_cli", "task", "serve", "shop.py:weekdays")
    assert done.returncode == 2
    assert "Did you mean shop.py:weekday?" in done.stderr
    assert "polls" not in done.stderr


def test_a_burst_of_the_command_does_what_waits_and_ends(store: Store, settings: Settings, tmp_path: Path) -> None:
    from orchestrator.engine.submission import ensure_pool
    from orchestrator.models import NewRun

    (tmp_path / "shop.py").write_text(SHOP)
    ensure_pool(store, "tasks")
    new = NewRun("number", kind="task", entrypoint="shop:number", pool="tasks", parameters={"args": [4], "kwargs": {}})
    [created] = store.runs.create([new])
    done = run(settings, tmp_path, "-m", "orch_cli", "task", "serve", "shop:number", "--burst", "--concurrency", "5")
    assert done.returncode == 0, done.stderr
    assert "Serving shop:number from work pool 'tasks'." in done.stderr
    assert store.runs.get(created.id).state.is_completed()


def test_the_example_does_what_it_says(store: Store, settings: Settings, tmp_path: Path) -> None:
    with serving(settings, tmp_path, str(EXAMPLE), "serve"):
        done = run(settings, tmp_path, str(EXAMPLE))
    assert "31 January 2026 is a Saturday" in done.stdout, done.stderr
    assert "their sum is 2664667000" in done.stdout
