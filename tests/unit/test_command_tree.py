"""The whole tree of commands: what every command of ``orch`` owes its user."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest

from orch_cli.commands import Command, Noun
from orch_cli.main import SECTIONS, orch
from orch_cli.output import FORMATS

LISTING = ("ls", "inspect", "preview", "status", "view", "logs", "doctor", "version", "watch", "wait")
DESTRUCTIVE = ("delete", "cancel", "unset", "drop", "redrive")


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, f"{' '.join(path)} {name}"
            yield from walk(child, (*path, name))


TREE = {" ".join(("orch", *path)): command for path, command in walk(orch)}
LEAVES = {path: command for path, command in TREE.items() if not isinstance(command, click.Group)}


def options(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts}


def parse(line: str) -> None:
    """Parse a command line as ``orch`` would, running nothing."""
    words = shlex.split(line)
    assert words.pop(0) == "orch"
    context = orch.make_context("orch", words)
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("path", TREE)
def test_every_command_has_help_and_an_example(path: str) -> None:
    command = TREE[path]
    assert isinstance(command, Command | Noun), path
    assert command.help
    assert command.help.strip()[0].isupper()
    assert command.examples, f"{path} has no example"
    assert "Examples:" in command.get_help(click.Context(command, info_name=path))


@pytest.mark.parametrize("path", TREE)
def test_every_example_parses(path: str) -> None:
    for example in TREE[path].examples:  # type: ignore[attr-defined]
        assert example.startswith(path), f"{example!r} is no example of {path}"
        parse(example.partition(" < ")[0].partition(" | ")[0])


@pytest.mark.parametrize("path", [path for path in LEAVES if path.split()[-1] in LISTING])
def test_every_command_that_lists_or_shows_has_all_forms_of_output(path: str) -> None:
    [form] = [parameter for parameter in TREE[path].params if "--output" in parameter.opts]
    assert isinstance(form.type, click.Choice)
    assert tuple(form.type.choices) == FORMATS


@pytest.mark.parametrize("path", [path for path in LEAVES if path.split()[-1] in ("ls", "preview")])
def test_every_list_can_be_cut_sorted_and_narrowed(path: str) -> None:
    assert {"--limit", "--sort", "--columns", "--no-headers"} <= options(TREE[path])


@pytest.mark.parametrize("path", [path for path in LEAVES if path.split()[-1] in DESTRUCTIVE and path != "orch config unset"])
def test_every_command_that_destroys_can_be_answered_by_a_flag(path: str) -> None:
    assert "--yes" in options(TREE[path])


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if path.split()[-1] in ("delete", "cancel", "deploy", "drop", "redrive")]
)
def test_what_deletes_cancels_or_deploys_can_be_tried_dry(path: str) -> None:
    assert "--dry-run" in options(TREE[path])


@pytest.mark.parametrize("path", LEAVES)
def test_every_option_is_explained(path: str) -> None:
    for parameter in LEAVES[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts}"


def test_the_roots_table_says_what_the_commands_say() -> None:
    for commands in SECTIONS.values():
        for name, short in commands.items():
            command = TREE[f"orch {name}"]
            assert command.help is not None
            assert command.help.partition("\n")[0] == short
