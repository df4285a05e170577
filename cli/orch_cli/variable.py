"""``orch variable``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun, Usage
from orch_cli.connection import open_store
from orch_cli.options import yes_option
from orch_cli.output import Column, Printer, View, shows

if TYPE_CHECKING:
    from orchestrator.store.documents import StoredVariable

VARIABLE: View[StoredVariable] = View(
    name=lambda variable: variable.name,
    empty="There are no variables. Flows share values in them; set one with: orch variable set NAME VALUE",
    columns=(
        Column("Name", lambda variable: variable.name, fold=True),
        Column("Value", lambda variable: _text(variable.value), fold=True),
        Column("Tags", lambda variable: variable.tags),
        Column("Updated", lambda variable: variable.updated),
    ),
)


@click.group("variable", cls=Noun, examples=("orch variable set region eu-west-1", "orch variable get region"))
def variable() -> None:
    """Set and read variables that flows share.

    A flow reads one with Variable.get("name"), orch.yaml with {{ orch.variables.name }}.
    """


@variable.command(
    "set",
    examples=(
        "orch variable set region eu-west-1",
        """orch variable set limits '{"rows": 1000}' --overwrite""",
        "orch variable set notice --from-file notice.txt --text",
    ),
)
@click.argument("name")
@click.argument("value", required=False)
@click.option("--from-file", "path", metavar="PATH", help="Read the value from a file; - is stdin.")
@click.option("--text", is_flag=True, help="Take the value as text, even if it is JSON.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag. Can be given again.")
@click.option("--overwrite", is_flag=True, help="Replace a variable that exists.")
@shows(VARIABLE)
def set_(
    out: Printer[StoredVariable],
    name: str,
    value: str | None,
    path: str | None,
    text: bool,
    tags: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Set a variable to any JSON value. What is no JSON is text."""
    if (value is None) == (path is None):
        raise Usage("A variable needs one value.", hint="Give it behind the name, or with --from-file PATH.")
    given = value if value is not None else _read(str(path))
    with open_store() as store:
        made = store.documents.set_variable(name, given if text else _value(given), tags=tags, overwrite=overwrite)
    out.done(f"Set variable '{name}'.", made)


@variable.command("get", examples=("orch variable get region",))
@click.argument("name")
@click.option("--default", metavar="VALUE", help="Print this if there is no such variable.")
def get(name: str, default: str | None) -> None:
    """Print a variable's value: text as it is, anything else as JSON."""
    from orchestrator.exceptions import ObjectNotFound

    with open_store() as store:
        try:
            shown = _text(store.documents.get_variable(name).value)
        except ObjectNotFound:
            if default is None:
                raise
            shown = default
    output.write(output.clean(shown))


@variable.command("ls", examples=("orch variable ls", "orch variable ls -o json"))
@shows(VARIABLE, many=True)
def ls(out: Printer[StoredVariable]) -> None:
    """List variables."""
    with open_store() as store:
        out.many(store.documents.variables())


@variable.command("inspect", examples=("orch variable inspect region",))
@click.argument("name")
@shows(VARIABLE)
def inspect(out: Printer[StoredVariable], name: str) -> None:
    """Show everything about a variable."""
    with open_store() as store:
        out.one(store.documents.get_variable(name))


@variable.command("unset", examples=("orch variable unset region", "orch variable unset region --yes"))
@click.argument("name")
@yes_option
@shows(VARIABLE)
def unset(out: Printer[StoredVariable], name: str, yes: bool) -> None:
    """Delete a variable."""
    with open_store() as store:
        found = store.documents.get_variable(name)
        prompts.confirm(f"Delete variable '{name}'?", yes)
        store.documents.unset_variable(name)
    out.done(f"Deleted variable '{name}'.", found)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"The file {path} cannot be read: {error}.") from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
