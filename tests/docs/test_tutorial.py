"""The tutorial works exactly as it is printed: its files are saved, its commands typed, on terminals of 110 columns.

What a command prints below it in the tutorial must be printed in that order; other lines may stand between. Times, names
of runs and the like differ from one day to the next and are compared by their form.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pexpect
import pytest

from documents import DOCS, ROOT, Block, blocks
from harness import eventually

TUTORIALS = [ROOT / "README.md", DOCS / "tutorial.md"]
TIMEOUT_S = 60
READING = re.compile(r"orch [\w-]+(?: [\w-]+)* (?:ls|preview|inspect)\b|orch doctor")
"""Commands that only look: what they show may take a moment to be so."""


class Terminals:
    """A person's terminals in one folder: commands in the foreground, and those left running in others."""

    def __init__(self, folder: Path, home: Path, bin_folder: Path) -> None:
        self.folder = folder
        self.home = home
        self.background: list[pexpect.spawn[str]] = []
        self.environment = {
            **os.environ,
            "ORCH_HOME": str(home),
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            "TERM": "xterm",
            "TZ": "UTC",
            "COLUMNS": "110",
        }

    def type(self, command: str) -> tuple[str, int]:
        """What a command prints until it ends, and its exit code."""
        terminal = self.open(command)
        try:
            printed = terminal.read()
        except pexpect.TIMEOUT:
            pytest.fail(f"{command} goes on after {TIMEOUT_S} s: {terminal.before}")
        finally:
            terminal.close()
        return self.tidy(printed), terminal.exitstatus if terminal.exitstatus is not None else -1

    def open(self, command: str) -> pexpect.spawn[str]:
        """A terminal in which a command has been typed."""
        return pexpect.spawn(
            "/bin/sh",
            ["-c", f"exec {command}"],
            cwd=str(self.folder),
            env=self.environment,  # type: ignore[arg-type]
            dimensions=(50, 110),
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )

    def leave_running(self, command: str, expected: list[str]) -> None:
        """Type a command into another terminal and leave it there once it has printed what it should."""
        terminal = self.open(command)
        self.background.append(terminal)
        for line in expected:
            printed = self.tidy(terminal.readline())
            assert form(printed) == form(line), f"{command} prints {printed!r}"

    def press_ctrl_c(self) -> None:
        """End what was left running, as the tutorial says."""
        for terminal in self.background:
            terminal.sendintr()
            terminal.expect(pexpect.EOF)
            terminal.close()
            assert terminal.exitstatus == 0, terminal.before
        self.background.clear()

    def tidy(self, printed: str) -> str:
        """Line ends and the home as in the tutorial."""
        return printed.replace("\r\n", "\n").replace(str(self.home), "~/.orch")

    def close(self) -> None:
        """Leave no process behind, whatever went wrong."""
        for terminal in self.background:
            terminal.close(force=True)
        self.type("orch server stop --force")


@pytest.fixture
def terminals(tmp_path: Path, orch_home: Path) -> Iterator[Terminals]:
    """An empty folder, a fresh ORCH_HOME, and `python` and `orch` of this environment."""
    folder, commands = tmp_path / "empty", tmp_path / "bin"
    folder.mkdir()
    commands.mkdir()
    # Scripts, not links: a link to an environment's python leaves the environment.
    for name, arguments in {"python": "", "orch": "-m orch_cli"}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (commands / name).chmod(0o755)
    made = Terminals(folder, orch_home, commands)
    yield made
    made.close()


def form(line: str) -> str:
    """A line without what differs from one day to the next."""
    line = re.sub(r"unix://\S+\.sock", "URL", line)
    line = re.sub(r"[\w.-]+-\d+-[0-9a-f]{4}\b", "PROCESS", line)
    line = re.sub(r"(?:\w{3} \d+ |\d{4}-\d\d-\d\d )?\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?: \([^()]*\))?", "TIME", line)
    line = re.sub(r"(?<=run ')[a-z]+-[a-z]+(?=')", "NAME", line)
    line = re.sub(r"^[a-z]+-[a-z]+ +(?=(?:Scheduled|Completed) )", "NAME ", line)
    line = re.sub(r"\b\d+(?:\.\d+)? (?:ms|s|min)\b", "DURATION", line)
    line = re.sub(r"(?<=pid )\d+|(?<=Valkey )[\d.]+", "N", line)
    return " ".join(line.split())


def shows(printed: str, expected: list[str]) -> bool:
    """The expected lines are among the printed ones, in this order."""
    lines = iter(map(form, printed.splitlines()))
    return all(any(line == wanted for line in lines) for wanted in map(form, expected))


def follow(page: Path, terminals: Terminals, after: Callable[[str], None] = lambda command: None) -> str:
    """Do what a tutorial says; what was printed in the first terminal."""
    everything = ""
    for block in blocks(page):
        if "install" in block.words or "make" in block.text:
            continue
        if "stopped" in block.words:
            terminals.press_ctrl_c()
        if block.language in ("python", "yaml"):
            save(block, terminals.folder)
        elif block.language == "console":
            for command, expected in block.steps():
                if any(word.endswith("-terminal") for word in block.words):
                    terminals.leave_running(command, expected)
                else:
                    everything += type_and_compare(terminals, command, expected, block)
                after(command)
    return everything


def save(block: Block, folder: Path) -> None:
    """Save a file under the name that stands behind its language."""
    [name] = block.words[1:]
    (folder / name).write_text(block.text)


def type_and_compare(terminals: Terminals, command: str, expected: list[str], block: Block) -> str:
    printed, status = terminals.type(command)
    if READING.match(command) and not shows(printed, expected):
        last = [(printed, status)]

        def look_again() -> bool:
            last[0] = terminals.type(command)
            return shows(last[0][0], expected)

        with suppress(pytest.fail.Exception):
            eventually(look_again)
        printed, status = last[0]
    assert shows(printed, expected), f"{block.place}: {command} prints\n{printed}\ninstead of\n" + "\n".join(expected)
    assert status == 0, f"{block.place}: {command} ends with {status}: {printed}"
    return printed


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_the_tutorial_works_as_printed(page: Path, terminals: Terminals) -> None:
    seen: dict[str, str] = {}

    def look(command: str) -> None:
        if command.startswith("orch worker start"):
            seen["pools"] = terminals.type("orch work-pool ls -o json")[0]
        elif "--watch" in command and "runs" not in seen:
            seen["runs"] = terminals.type("orch flow-run ls --state scheduled --sort when -o json")[0]
            seen["deployments"] = terminals.type("orch deployment ls -o name")[0]

    printed = follow(page, terminals, after=look)

    assert "Hello, Prefect Flow! (reversed: wolF tceferP)" in printed
    assert seen["deployments"].split() == ["hello-flow/hello_flow"]
    assert [(pool["name"], pool["status"]) for pool in json.loads(seen["pools"])] == [("hello_flow_pool", "READY")]
    assert_next_three_days_at_two_in_tokyo(json.loads(seen["runs"]))


def assert_next_three_days_at_two_in_tokyo(runs: list[dict[str, object]]) -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    due = [datetime.fromisoformat(str(run["due"])).astimezone(tokyo) for run in runs]
    now = datetime.now(tokyo)
    first = now.replace(hour=14, minute=0, second=0, microsecond=0)
    first += timedelta(days=0 if first > now else 1)
    assert [run["schedule"] for run in runs] == ["tokyo-9am"] * 3
    # A minute's grace for a test that runs over two o'clock in Tokyo.
    assert due in ([first + timedelta(days=n) for n in range(3)], [first + timedelta(days=n - 1) for n in range(3)])


@pytest.mark.timeout(300)
def test_prompts_ask_for_what_the_file_leaves_open(terminals: Terminals) -> None:
    for block in blocks(DOCS / "tutorial.md"):
        if block.language in ("python", "yaml"):
            save(block, terminals.folder)
    project = terminals.folder / "orch.yaml"
    project.write_text(project.read_text().replace("name: hello_flow_pool", "name: null"))

    terminal = terminals.open("orch deploy --name hello_flow")
    terminal.expect("Name of the new work pool")
    terminal.sendline("hello_flow_pool")
    terminal.expect("Created work pool 'hello_flow_pool'")
    terminal.expect("Created deployment 'hello-flow/hello_flow'")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0

    terminals.leave_running("orch worker start --pool hello_flow_pool", [])
    eventually(lambda: "Ready" in terminals.type("orch work-pool ls")[0].replace("Not Ready", ""))
    printed, status = terminals.type("orch deployment run 'hello-flow/hello_flow' --watch")
    assert "Hello, Prefect Flow! (reversed: wolF tceferP)" in printed
    assert status == 0
    terminals.press_ctrl_c()


@pytest.mark.timeout(300)
def test_an_edit_is_seen_by_the_next_run(terminals: Terminals) -> None:
    """The tutorial invites its reader to try."""
    for block in blocks(DOCS / "tutorial.md"):
        if block.language in ("python", "yaml"):
            save(block, terminals.folder)
    assert terminals.type("orch deploy --all --create-pool process")[1] == 0
    terminals.leave_running("orch worker start --pool hello_flow_pool", [])
    for greeting in ("Hello", "Good morning", "Good night"):
        source = terminals.folder / "hello_flow.py"
        source.write_text(re.sub(r'info\("[^,]*,', f'info("{greeting},', source.read_text()))
        printed, status = terminals.type("orch deployment run hello-flow/hello_flow --watch")
        assert (f"{greeting}, Prefect Flow!" in printed, status) == (True, 0), printed
    terminals.press_ctrl_c()
