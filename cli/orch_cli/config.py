"""``orch config``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import click

from orch_cli import output
from orch_cli.commands import Noun, Usage, password_on_the_command_line
from orch_cli.connection import settings
from orch_cli.output import Column, Printer, View, shows
from orchestrator.exceptions import ConfigurationError


@dataclass(frozen=True)
class Setting:
    """One setting as it holds now, passwords hidden."""

    name: str
    value: Any
    source: str
    about: str


SETTING: View[Setting] = View(
    name=lambda setting: setting.name,
    columns=(
        Column("Setting", lambda setting: setting.name),
        Column("Value", lambda setting: setting.value, fold=True),
        Column("Source", lambda setting: setting.source, wide=True),
        Column("About", lambda setting: setting.about, wide=True, fold=True),
    ),
)


@click.group("config", cls=Noun, examples=("orch config view --show-sources", "orch config set log_level DEBUG"))
def config() -> None:
    """Show and change settings.

    A flag goes before ORCH_<NAME> in the environment, that before ./orch.toml or [tool.orch] in pyproject.toml, that before the
    profile, that before the default.
    """


@config.command("view", examples=("orch config view", "orch config view --show-sources -o json"))
@click.option("--show-sources", is_flag=True, help="Say where each value comes from.")
@shows(SETTING, many=True)
def view(out: Printer[Setting], show_sources: bool) -> None:
    """Show the settings that hold here. Passwords are hidden."""
    from orchestrator.settings import about, shown, sources

    now = settings()
    origins = sources(now)
    if show_sources:
        out.show_columns("setting", "value", "source")
    out.many([Setting(name, value, origins[name], about(name)) for name, value in shown(now).items()])


@config.command("set", examples=("orch config set log_level DEBUG", "orch config set redis_url --from-stdin < url.txt"))
@click.argument("name")
@click.argument("value", required=False)
@click.option("--from-stdin", is_flag=True, help="Read the value from stdin; for values that hold a password.")
def set_(name: str, value: str | None, from_stdin: bool) -> None:
    """Set a setting in the profile in use."""
    from orchestrator import profiles
    from orchestrator.settings import PREFIX, coerce, show, sources

    if (value is None) != from_stdin:
        raise Usage("A setting needs one value.", hint="Give it behind the name, or with --from-stdin.")
    given = value if value is not None else sys.stdin.readline().strip()
    coerce(name, given, "the command line")
    if value is not None and show(name, value) != value:
        raise password_on_the_command_line(name, f"Pass it with: orch config set {name} --from-stdin")
    now = settings()
    profiles.set_value(now.home, now.profile, name, given)
    output.say(f"Set {name} in profile '{now.profile}'.")
    source = sources(settings())[name]
    if not source.startswith("profile"):
        output.warn(
            f"{name} is also set by {source}, which goes before the profile.",
            hint=f"Unset it there ({PREFIX}{name.upper()} in the environment, or the project's file).",
        )


@config.command("unset", examples=("orch config unset log_level",))
@click.argument("name")
def unset(name: str) -> None:
    """Take a setting out of the profile in use."""
    from orchestrator import profiles

    now = settings()
    profiles.unset_value(now.home, now.profile, name)
    output.say(f"Unset {name} in profile '{now.profile}'.")


@config.command("validate", examples=("orch config validate",))
def validate() -> None:
    """Check the settings that hold here and those of every profile. Exit code 2 if one is wrong."""
    from orchestrator import profiles
    from orchestrator.settings import coerce

    home = settings().home
    names = profiles.names(home)
    for profile in names:
        for name, value in profiles.get(home, profile).items():
            coerce(name, value, f"profile {profile!r}")
    if profiles.active(home) not in names:
        raise ConfigurationError(
            f"There is no profile '{profiles.active(home)}'.", hint="Choose one with: orch profile use NAME"
        )
    output.say(f"The settings are valid, and so are those of {output.plural(len(names), 'profile')}.")
