"""``orch profile``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun, Usage, password_on_the_command_line
from orch_cli.options import dry_run_option, yes_option
from orch_cli.output import Column, Printer, View, Word, shows


@dataclass(frozen=True)
class Profile:
    """A named set of settings, passwords hidden."""

    name: str
    active: bool
    settings: dict[str, Any]


PROFILE: View[Profile] = View(
    name=lambda profile: profile.name,
    columns=(
        Column("Name", lambda profile: profile.name),
        Column("In use", lambda profile: Word("yes", "green") if profile.active else "no"),
        Column("Settings", lambda profile: ", ".join(f"{k}={v}" for k, v in profile.settings.items()), fold=True),
    ),
)


@click.group(
    "profile", cls=Noun, examples=("orch profile create staging redis_url=redis://staging:6379/0", "orch profile use staging")
)
def profile() -> None:
    """Keep several sets of settings and switch between them.

    'orch --profile NAME ...' and ORCH_PROFILE use one without switching.
    """


@profile.command("ls", examples=("orch profile ls", "orch profile ls -o name"))
@shows(PROFILE, many=True)
def ls(out: Printer[Profile]) -> None:
    """List profiles."""
    from orchestrator import profiles

    out.many([_profile(name) for name in profiles.names(_home())])


@profile.command(
    "create",
    examples=(
        "orch profile create staging redis_url=redis://staging:6379/0",
        "orch profile create ci log_level=DEBUG namespace=ci",
    ),
)
@click.argument("name")
@click.argument("values", nargs=-1, metavar="[SETTING=VALUE]...")
@shows(PROFILE)
def create(out: Printer[Profile], name: str, values: tuple[str, ...]) -> None:
    """Create a profile. Values that hold a password are set later, with 'orch config set NAME --from-stdin'."""
    from orchestrator import profiles
    from orchestrator.settings import show

    chosen: dict[str, str] = {}
    for item in values:
        setting, separator, value = item.partition("=")
        if not separator:
            raise Usage("A setting is given as SETTING=VALUE.", hint="For example: orch profile create ci log_level=DEBUG")
        chosen[setting] = value
    profiles.create(_home(), name)
    try:
        for setting, value in chosen.items():
            profiles.set_value(_home(), name, setting, value)
            if show(setting, value) != value:
                hint = f"Leave it out here, then type: orch --profile {name} config set {setting} --from-stdin"
                raise password_on_the_command_line(setting, hint)
    except BaseException:
        profiles.delete(_home(), name)
        raise
    out.done(f"Created profile '{name}'. Use it with: orch profile use {name}", _profile(name))


@profile.command("use", examples=("orch profile use staging",))
@click.argument("name")
@shows(PROFILE)
def use(out: Printer[Profile], name: str) -> None:
    """Make a profile the one in use."""
    from orchestrator import profiles
    from orchestrator.settings import load

    profiles.use(_home(), name)
    out.done(f"Profile '{name}' is in use.", _profile(name))
    if load().profile != name:
        output.warn(f"ORCH_PROFILE or a project file names profile '{load().profile}', which goes first.")


@profile.command("inspect", examples=("orch profile inspect staging",))
@click.argument("name", required=False)
@shows(PROFILE)
def inspect(out: Printer[Profile], name: str | None) -> None:
    """Show a profile's settings; without a name, those of the one in use. Passwords are hidden."""
    from orchestrator import profiles

    out.one(_profile(name or profiles.active(_home())))


@profile.command("rename", examples=("orch profile rename staging test",))
@click.argument("name")
@click.argument("to")
@shows(PROFILE)
def rename(out: Printer[Profile], name: str, to: str) -> None:
    """Give a profile another name."""
    from orchestrator import profiles

    profiles.rename(_home(), name, to)
    out.done(f"Renamed profile '{name}' to '{to}'.", _profile(to))


@profile.command("delete", examples=("orch profile delete staging", "orch profile delete staging --yes"))
@click.argument("name")
@yes_option
@dry_run_option
@shows(PROFILE)
def delete(out: Printer[Profile], name: str, yes: bool, dry_run: bool) -> None:
    """Delete a profile."""
    from orchestrator import profiles

    found = _profile(name)
    if dry_run:
        out.one(found)
        output.say("Nothing was done: this would delete the profile above.")
        return
    prompts.confirm(f"Delete profile '{name}'?", yes)
    profiles.delete(_home(), name)
    out.done(f"Deleted profile '{name}'.", found)


def _home() -> Path:
    """ORCH_HOME, without reading the profiles: one may be broken and this the way to mend it."""
    from orchestrator.settings import home_folder

    return home_folder()


def _profile(name: str) -> Profile:
    from orchestrator import profiles
    from orchestrator.settings import show

    values = profiles.get(_home(), name)
    return Profile(name, profiles.active(_home()) == name, {key: show(key, value) for key, value in values.items()})
