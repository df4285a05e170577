"""What every command of ``orch`` is made of: help with examples, aliases of verbs, suggestions for a mistyped name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import click

ALIASES = {"list": "ls", "rm": "delete", "get": "inspect", "show": "inspect"}
"""Verbs that people type from habit, and ours. A noun's own verb of that name (``variable get``) comes first."""

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(click.Command):
    """A command whose help ends with examples that can be pasted."""

    def __init__(self, *args: Any, examples: Iterable[str] = (), **kwargs: Any) -> None:
        kwargs["context_settings"] = {**_SETTINGS, **kwargs.get("context_settings", {})}
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        write_examples(self.examples, formatter)


class Noun(click.Group):
    """A noun: a group of verbs."""

    command_class = Command

    def __init__(self, *args: Any, examples: Iterable[str] = (), **kwargs: Any) -> None:
        kwargs["context_settings"] = {**_SETTINGS, **kwargs.get("context_settings", {})}
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name or alias."""
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb, or an error that suggests one."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise unknown_command(ctx, args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the verbs."""
        write_examples(self.examples, formatter)


Noun.group_class = Noun


class Usage(click.UsageError):
    """The command was not given what it needs; ``hint`` says what to type instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, click.get_current_context(silent=True))
        self.hint = hint


def password_on_the_command_line(setting: str, hint: str) -> Usage:
    """The error for a secret given as an argument."""
    return Usage(f"The value of {setting} holds a password, and every user of this machine can see arguments.", hint)


def unknown_command(ctx: click.Context, name: str, known: Iterable[str]) -> Usage:
    """The error for a command that does not exist."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    if close:
        hint = "Did you mean: " + " or ".join(f"{ctx.command_path} {other}" for other in close)
    else:
        hint = f"See the commands with: {ctx.command_path} --help"
    return Usage(f"There is no command '{ctx.command_path} {name}'.", hint)


def write_examples(examples: Iterable[str], formatter: click.HelpFormatter) -> None:
    """Write an ``Examples:`` block, one command a line, never wrapped."""
    lines = [f"{'':>{formatter.current_indent + 2}}{example}\n" for example in examples]
    if lines:
        formatter.write_paragraph()
        formatter.write("Examples:\n")
        for line in lines:
            formatter.write(line)
