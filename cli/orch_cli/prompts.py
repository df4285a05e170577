"""Questions: asked on a terminal only, each answerable by a flag.

Without a terminal a missing answer ends the command with exit code 2 and the flag to use, so no script ever hangs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from orch_cli import output
from orch_cli.commands import Usage
from orchestrator.exceptions import OrchError

MANY = 100
"""Changing more things than this asks for their number to be typed."""


class Declined(OrchError):
    """Nothing was changed."""


def on_terminal() -> bool:
    """Someone is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, yes: bool, count: int = 1, flag: str = "--yes") -> None:
    """Go on only if the user agrees, or agreed by ``flag``. Raises Declined (exit code 1)."""
    if yes:
        return
    if not on_terminal():
        raise Usage(f"{output.clean(question)} There is no terminal to answer on.", hint=f"Answer with {flag}.")
    if count > MANY:
        answer = click.prompt(f"{output.clean(question)} Type {count} to go on", default="", show_default=False, err=True)
        agreed = str(answer).strip() == str(count)
    else:
        agreed = click.confirm(output.clean(question), default=False, err=True)
    if not agreed:
        raise Declined()


def agree(question: str, default: bool = True) -> bool:
    """A yes or a no, on a terminal; the caller has looked at its flag and at ``on_terminal``."""
    return click.confirm(output.clean(question), default=default, err=True)


def choose(question: str, choices: Sequence[str], default: int = 1) -> int:
    """One of numbered choices, on a terminal; answers its index."""
    output.say(output.clean(question))
    for number, choice in enumerate(choices, 1):
        output.say(f"  {number}) {output.clean(choice)}")
    answer: int = click.prompt("Number", type=click.IntRange(1, len(choices)), default=default, err=True)
    return answer - 1


def ask(question: str, flag: str, default: str | None = None) -> str:
    """A text. Without a terminal the answer must have come by ``flag``."""
    if not on_terminal():
        raise Usage(f"{output.clean(question)}: no answer, and no terminal to ask on.", hint=f"Answer with {flag}.")
    return str(click.prompt(output.clean(question), default=default, err=True))
