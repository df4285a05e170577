"""The documentation keeps its word: links lead somewhere, commands exist, tables say what the code says."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path

import click
import pytest

from documents import DOCS, ROOT, Block, anchors, blocks, links, orch_commands, pages, parse, prose, rows
from orch_cli.main import SECTIONS, TOPICS, orch
from orchestrator import Flow, Task, settings
from orchestrator.deployments import file as project_file
from orchestrator.settings import NAMES, Settings, about
from orchestrator.states import STATE_TYPES, TERMINAL, TRANSITIONS
from orchestrator.store import explain

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_language(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def places(found: list[Block]) -> list[str]:
    return [block.place for block in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}; {target.name} has {sorted(anchors(target))}"


def test_the_index_lists_every_page() -> None:
    listed = {(DOCS / link).resolve() for link in links(DOCS / "index.md")}
    assert {page.resolve() for page in DOCS.glob("*.md")} - listed == {DOCS / "index.md"}


def test_the_architecture_lists_every_decision() -> None:
    listed = {(DOCS / link).resolve() for link in links(DOCS / "architecture.md")}
    assert {page.resolve() for page in (DOCS / "decisions").glob("*.md")} <= listed


def test_every_fenced_block_says_what_it_is() -> None:
    known = {"", "console", "bash", "python", "yaml", "toml", "lua", "text"}
    assert {block.place: block.language for block in BLOCKS if block.language not in known} == {}


@pytest.mark.parametrize("block", of_language("console", "bash"), ids=lambda block: block.place)
def test_every_command_exists_with_these_options(block: Block) -> None:
    commands = [command for command, _ in block.steps()] if block.language == "console" else block.text.splitlines()
    assert commands, "a console block shows commands behind '$ '"
    for command in commands:
        for arguments in orch_commands(command):
            try:
                with redirect_stdout(StringIO()):  # `--help` prints while it is parsed
                    context = parse(arguments)
            except click.exceptions.Exit:
                continue
            except click.UsageError as error:
                pytest.fail(f"{command}: {error.format_message()}")
            assert not isinstance(context.command, click.Group), f"{command}: which of its commands?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_running_text_exists(page: Path) -> None:
    for span in re.findall(r"`(orch [^`]*)`", prose(page)):
        words: list[str] = []
        for word in span.split()[1:]:
            if not re.fullmatch(r"[a-z][a-z-]*", word):
                break
            words.append(word)
        command: click.Command = orch
        for word in words:
            if not isinstance(command, click.Group):
                break
            found = command.get_command(click.Context(command), word)
            assert found is not None, f"{page.name}: `{span}`"
            command = found
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", span))
        known = {option for parameter in (*command.params, *orch.params) for option in parameter.opts}
        assert options <= known | {"--help"}, f"{page.name}: `{span}`"


def test_the_list_of_commands_is_complete() -> None:
    listed = "\n".join(row[0].replace("\\|", "|") + row[1] for row in rows(DOCS / "command-line.md", "command", "does"))
    for name in (name for section in SECTIONS.values() for name in section if name != "help"):
        command = orch.get_command(click.Context(orch), name)
        assert f"orch {name}" in listed
        for verb in getattr(command, "commands", {}):
            assert re.search(rf"orch {name} [^\n]*\b{re.escape(verb)}\b", listed), f"orch {name} {verb}"


def test_the_settings_are_those_of_the_code() -> None:
    defaults = {field.name: field.default for field in fields(Settings)} | {"home": "~/.orch"}
    expected = [[f"`{name}`", "none" if defaults[name] is None else f"`{defaults[name]}`", about(name)] for name in NAMES]
    assert rows(DOCS / "settings.md", "setting", "default", "meaning") == expected


def test_the_states_are_those_of_the_code() -> None:
    table = rows(DOCS / "runs-and-states.md", "name", "type", "meaning")
    assert [(name, kind) for name, kind, _ in table] == [(name, kind.value) for name, kind in STATE_TYPES.items()]


def test_the_transitions_are_those_of_the_code() -> None:
    ends = {name for name, kind in STATE_TYPES.items() if kind in TERMINAL}
    table = {}
    for state, following in rows(DOCS / "runs-and-states.md", "from", "to"):
        names = set(following.replace("any end", ", ".join(sorted(ends))).split(", "))
        table[state] = frozenset(names)
    assert table == dict(TRANSITIONS)


def test_the_reasons_why_a_run_is_not_running_are_those_of_the_code() -> None:
    listed = [name for row in rows(DOCS / "runs-and-states.md", "reason", "the run") for name in re.findall(r"`(\w+)`", row[0])]
    given = re.findall(r"Explanation\(\s*\"(\w+)\"", inspect.getsource(explain))
    named = inspect.getdoc(explain.Explanation) or ""
    assert sorted(listed) == sorted(set(given)) == sorted(re.findall(r"\w+", named.partition("Reasons:")[2]))


def test_the_exit_codes_are_those_of_the_code() -> None:
    table = rows(DOCS / "command-line.md", "code", "meaning")
    expected = [line.split(maxsplit=1) for line in TOPICS["exit-codes"].splitlines()]
    assert [[code, meaning.replace("`", "")] for code, meaning in table] == expected


@pytest.mark.parametrize(("decorator", "made"), [("@flow", Flow), ("@task", Task)])
def test_the_arguments_of_decorators_are_those_of_the_code(decorator: str, made: type) -> None:
    table = rows(DOCS / "flows-and-tasks.md", f"argument of `{decorator}`", "meaning")
    listed = {name for row in table for name in re.findall(r"`(\w+)`", row[0])}
    assert listed <= set(inspect.signature(made).parameters)
    assert set(inspect.signature(made).parameters) - listed - {"fn"} <= {"description", "version"}


def test_every_key_of_a_deployment_and_a_schedule_is_one_that_is_read() -> None:
    for page, known in (("deployments.md", project_file._DEPLOYMENT_KEYS), ("schedules.md", project_file._SCHEDULE_KEYS)):
        listed = {name for row in rows(DOCS / page, "key", "meaning") for name in re.findall(r"`(\w+)`", row[0])}
        assert listed <= set(known)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())}
    assert named
    assert named <= targets


@pytest.mark.parametrize("block", of_language("python"), ids=lambda block: block.place)
def test_every_python_example_compiles_and_those_marked_run(block: Block, tmp_path: Path) -> None:
    compile(block.text, block.place, "exec")
    if "run" not in block.words:
        return
    script = tmp_path / "example.py"
    script.write_text(block.text)
    environment = {**os.environ, "ORCH_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", of_language("yaml"), ids=lambda block: block.place)
def test_every_project_file_can_be_read(block: Block, tmp_path: Path) -> None:
    if "deployments:" not in block.text:
        pytest.fail("A yaml block is a project's file, or a part that begins at 'deployments:'.")
    (tmp_path / "orch.yaml").write_text(block.text)
    project = project_file.read(tmp_path / "orch.yaml")
    assert project.deployments
    for deployment in project.deployments:
        project.entry(deployment, str, str)


@pytest.mark.parametrize("block", of_language("toml"), ids=lambda block: block.place)
def test_every_settings_file_holds_settings(block: Block) -> None:
    content = tomllib.loads(block.text)
    for name, value in content.get("tool", {}).get("orch", content).items():
        settings.coerce(name, value, block.place)


def published() -> list[Path]:
    """Every text file that users see."""
    folders = [DOCS, ROOT / "examples", ROOT / "deploy", ROOT / "tests" / "docs"]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix not in (".pyc", "")]
    return [*found, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "Dockerfile"]


def test_no_text_names_the_machine_it_was_written_on() -> None:
    for path in published():
        found = re.findall(r"(?:/home/(?!you/)|/root/|/work/|/Users/|/tmp/\w)\S*", path.read_text(encoding="utf-8"))
        assert path == Path(__file__) or found == [], path


def test_no_text_speaks_of_how_it_came_about() -> None:
    words = "TO" + "DO|FIX" + "ME|coll" + "eague|as an A" + "I|language m" + "odel|lorem i" + "psum"
    for path in published():
        assert re.findall(rf"\b(?:{words})\b", path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short_enough_to_read(page: Path) -> None:
    for line in prose(page).splitlines():
        assert len(line) <= 160 or line.startswith("|"), line
