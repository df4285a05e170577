"""Profiles: named sets of settings in ``$ORCH_HOME/profiles.toml``, one of them in use.

The file holds ``active = "NAME"`` and one table ``[profiles.NAME]`` per profile. It may hold passwords: it is written with mode
0600, and always as a whole, so that a reader never sees half of it. Comments that people wrote into it stay.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.exceptions import ConfigurationError, ObjectAlreadyExists, ObjectNotFound, Refused
from orchestrator.settings import DEFAULT_PROFILE, PROFILES_FILE, coerce, did_you_mean, private_folder, read_profiles


def names(home: Path) -> list[str]:
    """Every profile's name, the default one first even where no file names it."""
    _, tables = read_profiles(home)
    return [DEFAULT_PROFILE, *sorted(name for name in tables if name != DEFAULT_PROFILE)]


def active(home: Path) -> str:
    """The profile that the file says is in use. ``ORCH_PROFILE`` and ``--profile`` go before it."""
    return read_profiles(home)[0]


def get(home: Path, name: str) -> dict[str, Any]:
    """One profile's settings as they are written. Passwords are not hidden; ``settings.show`` does that.

    Raises ObjectNotFound.
    """
    _, tables = read_profiles(home)
    if name not in names(home):
        raise _unknown(home, name)
    return tables.get(name, {})


def create(home: Path, name: str, values: Mapping[str, Any] | None = None) -> None:
    """Add a profile. Raises ObjectAlreadyExists, and ConfigurationError for a wrong name or value."""
    if not name or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigurationError(f"A profile cannot be called {name!r}.", hint="Use letters, digits, '-' and '_'.")
    checked = {setting: _checked(setting, value, name) for setting, value in (values or {}).items()}
    document = _open(home)
    if name in document["profiles"]:
        raise ObjectAlreadyExists(f"There is a profile {name!r} already.", hint=f"See it with: orch profile inspect {name}")
    document["profiles"][name] = checked
    _write(home, document)


def use(home: Path, name: str) -> None:
    """Make a profile the one in use. Raises ObjectNotFound."""
    get(home, name)
    document = _open(home)
    document["active"] = name
    _write(home, document)


def rename(home: Path, name: str, to: str) -> None:
    """Give a profile another name; it stays in use if it was. Raises ObjectNotFound, ObjectAlreadyExists."""
    create(home, to, get(home, name))
    if active(home) == name:
        use(home, to)
    delete(home, name)


def delete(home: Path, name: str) -> None:
    """Remove a profile. Raises ObjectNotFound, and Refused for the one in use."""
    get(home, name)
    if active(home) == name:
        raise Refused(f"The profile {name!r} is in use.", hint="Use another one first: orch profile use NAME")
    document = _open(home)
    document["profiles"].pop(name, None)
    _write(home, document)


def set_value(home: Path, name: str, setting: str, value: Any) -> None:
    """Set one setting in a profile. Raises ObjectNotFound, and ConfigurationError for a wrong setting or value."""
    get(home, name)
    checked = _checked(setting, value, name)
    document = _open(home)
    document["profiles"].setdefault(name, {})[setting] = checked
    _write(home, document)


def unset_value(home: Path, name: str, setting: str) -> None:
    """Take one setting out of a profile. Raises ObjectNotFound if the profile does not set it."""
    if setting not in get(home, name):
        raise ObjectNotFound(
            f"The profile {name!r} does not set {setting!r}.{did_you_mean(setting, get(home, name))}",
            hint=f"See what it sets with: orch profile inspect {name}",
        )
    document = _open(home)
    del document["profiles"][name][setting]
    _write(home, document)


def _checked(setting: str, value: Any, profile: str) -> str | bool | float:
    """A value that the setting may have, as TOML spells it."""
    if setting in ("home", "profile"):
        raise ConfigurationError(f"A profile cannot set {setting!r}.", hint=f"Set ORCH_{setting.upper()}.")
    checked: str | bool | float = coerce(setting, value, f"profile {profile!r}")
    return checked


def _unknown(home: Path, name: str) -> ObjectNotFound:
    return ObjectNotFound(
        f"There is no profile {name!r}.{did_you_mean(name, names(home))}", hint="List the profiles with: orch profile ls"
    )


def _open(home: Path) -> Any:
    """The file as a document that keeps its comments, with the two parts that it must have."""
    import tomlkit

    read_profiles(home)
    path = home / PROFILES_FILE
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    document.setdefault("active", DEFAULT_PROFILE)
    if "profiles" not in document:
        document["profiles"] = tomlkit.table(is_super_table=True)
    return document


def _write(home: Path, document: Any) -> None:
    """Replace the file by a complete new one."""
    import tomlkit

    private_folder(home)
    descriptor, name = tempfile.mkstemp(dir=home, prefix=".profiles-")  # mkstemp creates it with mode 0600
    written = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(tomlkit.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        written.replace(home / PROFILES_FILE)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
