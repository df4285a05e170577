"""Settings of one process: where they come from, which source wins, and what they mean. The only reader of the environment.

A setting's value is the first that exists of: a flag of the command line; an environment variable ``ORCH_<NAME>``;
``./orch.toml`` or ``[tool.orch]`` in ``./pyproject.toml``; the profile in use, a table of ``$ORCH_HOME/profiles.toml``
(``orchestrator.profiles`` edits that file); the default below.

What several processes must agree on (the length of a lease, for one) is no setting: it is stored in the namespace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.exceptions import ConfigurationError, ObjectNotFound

PREFIX = "ORCH_"
DEFAULT_PROFILE = "default"
PROFILES_FILE = "profiles.toml"
FENCE = "ORCH_FENCE"
"""The environment variable that tells a run's process its fence. No setting: it says what runs, not how."""

_HIDDEN = "***"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _setting(default: Any, about: str, **metadata: Any) -> Any:
    """A field of Settings. ``secret`` hides it when shown, ``choices`` and ``minimum`` limit it."""
    return field(default=default, repr="secret" not in metadata, metadata={"about": about, **metadata})


@dataclass(frozen=True)
class Settings:
    """The settings of one process. ``load`` makes them; tests may call the constructor."""

    home: Path = field(
        default_factory=lambda: Path.home() / ".orch",
        metadata={"about": "Folder of the private Redis, the profiles and the workers' journals."},
    )
    profile: str = _setting(DEFAULT_PROFILE, "The profile in use.")
    redis_url: str | None = _setting(None, "The Redis or Valkey to use; unset: a private one under home.", secret=True)
    namespace: str = _setting("default", "Which set of flows, runs and pools on that server.")
    allow_unsafe_redis: bool = _setting(False, "Go on with a server whose settings may lose runs.")
    redis_timeout_s: float = _setting(5.0, "How long to wait for one answer of Redis, in seconds.", minimum=0.01)
    redis_retry_s: float = _setting(60.0, "How long to try again while Redis cannot be reached, in seconds.", minimum=0)
    task_pool: str = _setting("tasks", "The work pool of tasks that run in the background; created when it is needed.")
    log_level: str = _setting(
        "INFO", "Log lines below this level are dropped.", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    )
    log_format: str = _setting("text", "A flow's log lines on stderr as text or as JSON.", choices=("text", "json"))
    metrics_max_series: int = _setting(
        500, "Series of one metric by flow, task, deployment or limit; what is beyond is `__other__`.", minimum=1
    )
    _sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


NAMES: tuple[str, ...] = tuple(f.name for f in fields(Settings) if f.name != "_sources")
"""Every setting's name, in the order in which they are shown."""

_FIELDS = {f.name: f for f in fields(Settings) if f.name != "_sources"}


def load(**flags: Any) -> Settings:
    """The settings of this process. A flag that is None was not given.

    Cheap to call again: the answer is remembered until the environment, the working directory or one of the files changes.

    Raises ConfigurationError for a wrong value, unknown setting or unreadable file, ObjectNotFound for an unknown profile.
    """
    given = tuple(sorted((name, value) for name, value in flags.items() if value is not None))
    environment = tuple(
        sorted((name, value) for name, value in os.environ.items() if name.startswith(PREFIX) and name != FENCE)
    )
    folder = Path.cwd()
    home = _resolve_home(dict(given), dict(environment), folder)
    stamps = tuple(_stamp(path) for path in (folder / "orch.toml", folder / "pyproject.toml", home / PROFILES_FILE))
    return _load(given, environment, folder, home, stamps)


def sources(settings: Settings) -> dict[str, str]:
    """Where each setting comes from: ``--namespace``, ``ORCH_NAMESPACE``, ``orch.toml``, ``profile 'x'``, ``default``..."""
    return {name: settings._sources.get(name, "default") for name in NAMES}


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting as people may see it: no passwords."""
    return {name: show(name, getattr(settings, name)) for name in NAMES}


def show(name: str, value: Any) -> Any:
    """One setting's value as people may see it."""
    if name == "redis_url" and isinstance(value, str):
        return shown_url(value)
    if value is not None and is_secret(name):
        return _HIDDEN
    return str(value) if isinstance(value, Path) else value


def about(name: str) -> str:
    """One sentence on what a setting is."""
    return str(_known(name, "settings").metadata["about"])


def is_secret(name: str) -> bool:
    """Whether the setting's value may hold a password."""
    return bool(_known(name, "settings").metadata.get("secret", False))


def shown_url(url: str) -> str:
    """A URL without its passwords, for people and logs."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _HIDDEN if "@" in url else url
    address, question, query = rest.partition("?")
    # The last @ ends the password even where it holds an unescaped @ or /: showing too little is the safe mistake.
    userinfo, at, host = address.rpartition("@")
    if not at and "@" in query:
        return f"{scheme}://{_HIDDEN}"
    user, colon, _ = userinfo.partition(":")
    shown_query = "&".join(_shown_option(option) for option in query.split("&"))
    return f"{scheme}://{user}{colon and ':' + _HIDDEN}{at}{host}{question}{shown_query}"


def home_folder(home: str | Path | None = None) -> Path:
    """ORCH_HOME, found without reading a profile, so that it also works while the profiles are broken."""
    flags = {} if home is None else {"home": home}
    return _resolve_home(flags, os.environ, Path.cwd())


def private_folder(path: Path) -> Path:
    """The folder, made if it is missing, readable by its owner only.

    Raises ConfigurationError if it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {path} cannot be created: {error.strerror or error}.",
            hint="Set ORCH_HOME to a folder of your own that you can write to.",
        ) from None
    return path


def environment(settings: Settings | None = None) -> dict[str, str]:
    """The ``ORCH_*`` variables that give a child process these settings, wherever they came from and whatever its folder is."""
    settings = settings or load()
    values = {name: getattr(settings, name) for name in NAMES if name in settings._sources}
    # The profile's values are among them; its name alone would only make the child read the file again.
    values["home"] = settings.home
    return {PREFIX + name.upper(): _spelled(value) for name, value in values.items() if value is not None}


def child_environment(settings: Settings | None = None, **extra: str) -> dict[str, str]:
    """The whole environment for a child process: ours, the settings in use, and ``extra``."""
    return {**os.environ, **environment(settings), **extra}


def add_to_environment(variables: Mapping[str, str]) -> None:
    """Set variables for the rest of this process and for its children: what a deployment wants for its runs."""
    os.environ.update(variables)


def tell_fence(fence: int) -> None:
    """Put a run's fence into the environment of its process and of whatever that starts."""
    os.environ[FENCE] = str(fence)


def variable(name: str) -> str | None:
    """An environment variable that is no setting (NO_COLOR, TERM, EDITOR...); None if unset or empty."""
    return os.environ.get(name) or None


def environment_flag(name: str) -> bool:
    """Whether a variable such as CI is set to anything but empty, 0, false, no, off."""
    return os.environ.get(name, "").strip().lower() not in _FALSE | {""}


def coerce(name: str, value: Any, source: str) -> Any:
    """A setting's value as its type wants it.

    Raises ConfigurationError naming setting, source and, unless it is secret, the value.
    """
    setting = _known(name, source)
    kind = str(setting.type)
    try:
        result = _CONVERSIONS[kind](value)
    except (TypeError, ValueError):
        raise _wrong(name, value, source, _EXPECTED[kind]) from None
    choices = setting.metadata.get("choices")
    if choices:
        result = next((choice for choice in choices if choice.lower() == str(result).lower()), None)
        if result is None:
            raise _wrong(name, value, source, f"expected one of {', '.join(choices)}")
    minimum = setting.metadata.get("minimum")
    if minimum is not None and not result >= minimum:
        raise _wrong(name, value, source, f"expected at least {minimum}")
    return result


def read_profiles(home: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of the profile in use and every profile's table, unchecked, from ``profiles.toml``.

    Raises ConfigurationError if the file is no TOML or has another shape.
    """
    path = home / PROFILES_FILE
    document = _read_toml(path)
    tables = document.get("profiles", {})
    active = document.get("active", DEFAULT_PROFILE)
    if not isinstance(active, str) or not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise ConfigurationError(
            f"{path} has an unexpected shape.", hint='It holds active = "NAME" and one table [profiles.NAME] per profile.'
        )
    return active, tables


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` or nothing."""
    close = _closest(wrong, known, 0.6)
    return f" Did you mean {close!r}?" if close else ""


def _closest(wrong: str, known: Iterable[str], cutoff: float) -> str | None:
    """The known name most like a wrong one, if one is like it at all. Python loads what it takes only here: it costs 3 ms."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(wrong, list(known), n=1, cutoff=cutoff)), None)


@lru_cache(maxsize=32)
def _load(
    flags: tuple[tuple[str, Any], ...],
    variables: tuple[tuple[str, str], ...],
    folder: Path,
    home: Path,
    _stamps: tuple[object, ...],
) -> Settings:
    """Lay the sources over each other, weakest first. ``_stamps`` are there for the cache alone."""
    project, project_source = _project(folder)
    from_environment = _from_environment(variables)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def lay(name: str, value: Any, source: str) -> None:
        values[name] = coerce(name, value, source)
        origins[name] = source

    layers = [(name, value, project_source) for name, value in project.items()]
    layers += [(name, value, PREFIX + name.upper()) for name, value in from_environment.items()]
    layers += [(name, value, "--" + name.replace("_", "-")) for name, value in flags]
    for layer in layers:
        lay(*layer)
    active, tables = read_profiles(home)
    profile = values.setdefault("profile", active)
    if profile != DEFAULT_PROFILE:
        origins.setdefault("profile", PROFILES_FILE)
    for name, value in _table_of(profile, tables, origins.get("profile", "default")).items():
        source = f"profile {profile!r}"
        if name in ("home", "profile"):
            raise ConfigurationError(
                f"{source} sets {name!r}, which a profile cannot set.", hint=f"Set {PREFIX}{name.upper()}."
            )
        checked = coerce(name, value, source)
        if name not in values:
            values[name], origins[name] = checked, source
    return Settings(**{**values, "home": home}, _sources=MappingProxyType(origins))


def _table_of(profile: str, tables: Mapping[str, dict[str, Any]], asked_by: str) -> dict[str, Any]:
    """One profile's table; the default profile need not exist."""
    if profile in tables or profile == DEFAULT_PROFILE:
        return tables.get(profile, {})
    raise ObjectNotFound(
        f"There is no profile {profile!r} (asked for by {asked_by}).{did_you_mean(profile, [*tables, DEFAULT_PROFILE])}",
        hint=f"List the profiles with: orch profile ls. Create it with: orch profile create {profile}",
    )


def _from_environment(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The settings among the ``ORCH_*`` variables. An empty one counts as unset; a near miss of a setting is an error.

    Other names that begin with ORCH_ may belong to someone else and are left alone.
    """
    found = {}
    for variable_name, value in variables:
        name = variable_name.removeprefix(PREFIX).lower()
        if name not in _FIELDS:
            close = _closest(name, NAMES, 0.85)
            if close:
                raise ConfigurationError(
                    f"There is no setting {variable_name}. Did you mean {PREFIX}{close.upper()}?",
                    hint=_known_settings(),
                )
        elif value:
            found[name] = value
    return found


def _resolve_home(flags: Mapping[str, Any], variables: Mapping[str, str], folder: Path) -> Path:
    """ORCH_HOME as an absolute path. A profile cannot set it, since profiles live there."""
    project, source = _project(folder)
    for value, origin in (
        (flags.get("home"), "--home"),
        (variables.get("ORCH_HOME"), "ORCH_HOME"),
        (project.get("home"), source),
    ):
        if value:
            path: Path = coerce("home", value, origin)
            return folder / path
    return Path.home() / ".orch"


def _project(folder: Path) -> tuple[Mapping[str, Any], str]:
    """The project's own settings and the name of their file: ``orch.toml``, else ``[tool.orch]`` of ``pyproject.toml``."""
    own = folder / "orch.toml"
    stamp = _stamp(own)
    if stamp:
        return _project_table(own, (), stamp), "orch.toml"
    pyproject = folder / "pyproject.toml"
    stamp = _stamp(pyproject)
    return _project_table(pyproject, ("tool", "orch"), stamp) if stamp else {}, "pyproject.toml [tool.orch]"


@lru_cache(maxsize=8)
def _project_table(path: Path, tables: tuple[str, ...], _stamp: object) -> Mapping[str, Any]:
    """A table of a project's file; empty if it has none. ``_stamp`` is there for the cache alone."""
    content: Any = _read_toml(path)
    for table in tables:
        content = content.get(table, {})
        if not isinstance(content, dict):
            raise ConfigurationError(f"{path}: [{'.'.join(tables)}] is no table.")
    return MappingProxyType(content)


def _read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; nothing if there is no such file."""
    if not path.exists():
        return {}
    import tomllib  # 8 ms that most starts do not need

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.", hint="Correct that line.") from None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs once a file was written again; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _known(name: str, source: str) -> Any:
    """The field of a setting, or ConfigurationError with what was probably meant."""
    if name not in _FIELDS:
        raise ConfigurationError(
            f"There is no setting {name!r} (in {source}).{did_you_mean(name, NAMES)}",
            hint=_known_settings(),
        )
    return _FIELDS[name]


def _known_settings() -> str:
    """No command can show them while one is wrong."""
    return f"The settings are {', '.join(NAMES)}."


def _wrong(name: str, value: Any, source: str, expected: str) -> ConfigurationError:
    """A value that its setting cannot have."""
    got = "" if is_secret(name) else f", not {value!r}"
    return ConfigurationError(f"The setting {name} (from {source}) is wrong: {expected}{got}.")


def _shown_option(option: str) -> str:
    """One ``name=value`` of a URL's query; passwords and key files' passphrases hidden."""
    name, equals, value = option.partition("=")
    return f"{name}{equals}{_HIDDEN if 'password' in name.lower() else value}"


def _spelled(value: Any) -> str:
    """A value as an environment variable spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _to_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = _to_text(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _to_number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not number < float("inf"):
        raise ValueError
    return number


def _to_whole(value: Any) -> int:
    number = _to_number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _to_path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    return Path(_to_text(value)).expanduser()


_CONVERSIONS = {
    "str": _to_text,
    "str | None": _to_text,
    "bool": _to_flag,
    "float": _to_number,
    "int": _to_whole,
    "Path": _to_path,
}
_EXPECTED = {
    "str": "expected text",
    "str | None": "expected text",
    "bool": "expected true or false",
    "float": "expected a number",
    "int": "expected a whole number",
    "Path": "expected a path",
}
