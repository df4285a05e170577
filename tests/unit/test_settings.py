from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator import profiles, settings
from orchestrator.exceptions import ConfigurationError, ObjectAlreadyExists, ObjectNotFound, OrchError, Refused


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a home beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def home(project: Path) -> Path:
    return settings.home_folder()


def test_without_any_source_every_setting_has_its_default(project: Path) -> None:
    found = settings.load()
    assert (found.redis_url, found.namespace, found.profile, found.allow_unsafe_redis) == (None, "default", "default", False)
    assert set(settings.sources(found)) == set(settings.NAMES)
    assert settings.sources(found)["namespace"] == "default"


def test_the_home_is_in_the_users_home_by_default(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_HOME")
    monkeypatch.setenv("HOME", str(project))
    assert settings.load().home == settings.Settings().home == project / ".orch"


def test_each_source_wins_over_the_ones_below_it(project: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> tuple[str, str]:
        loaded = settings.load()
        return loaded.namespace, settings.sources(loaded)["namespace"]

    profiles.create(home, "work", {"namespace": "of-profile"})
    profiles.use(home, "work")
    assert found() == ("of-profile", "profile 'work'")
    (project / "pyproject.toml").write_text('[tool.orch]\nnamespace = "of-pyproject"\n')
    assert found() == ("of-pyproject", "pyproject.toml [tool.orch]")
    (project / "orch.toml").write_text('namespace = "of-project"\n')
    assert found() == ("of-project", "orch.toml")
    monkeypatch.setenv("ORCH_NAMESPACE", "of-environment")
    assert found() == ("of-environment", "ORCH_NAMESPACE")
    flagged = settings.load(namespace="of-flag")
    assert (flagged.namespace, settings.sources(flagged)["namespace"]) == ("of-flag", "--namespace")


def test_a_flag_that_was_not_given_changes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_NAMESPACE", "mine")
    assert settings.load(namespace=None).namespace == "mine"


def test_an_empty_variable_counts_as_unset(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_REDIS_URL", "")
    assert settings.load().redis_url is None


def test_the_answer_is_remembered_until_a_source_changes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings.load()
    assert settings.load() is first
    monkeypatch.setenv("ORCH_LOG_LEVEL", "debug")
    assert settings.load().log_level == "DEBUG"


def test_a_relative_home_belongs_to_the_working_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_HOME", "state")
    assert settings.load().home == project / "state"
    monkeypatch.delenv("ORCH_HOME")
    (project / "orch.toml").write_text('home = ".orch"\n')
    assert settings.load().home == project / ".orch"
    assert settings.home_folder("/elsewhere") == Path("/elsewhere")


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("redis_timeout_s", "2.5", 2.5),
        ("redis_timeout_s", 2, 2.0),
        ("allow_unsafe_redis", "YES", True),
        ("allow_unsafe_redis", "off", False),
        ("allow_unsafe_redis", True, True),
        ("log_level", "warning", "WARNING"),
        ("home", "~", Path.home()),
    ],
)
def test_values_become_what_the_setting_is(name: str, value: object, becomes: object) -> None:
    assert settings.coerce(name, value, "test") == becomes


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("redis_timeout_s", "soon", "expected a number, not 'soon'"),
        ("redis_timeout_s", True, "expected a number, not True"),
        ("redis_timeout_s", "nan", "expected a number"),
        ("redis_timeout_s", "0", "expected at least 0.01, not '0'"),
        ("allow_unsafe_redis", "maybe", "expected true or false, not 'maybe'"),
        ("log_level", "loud", "expected one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not 'loud'"),
        ("namespace", 7, "expected text, not 7"),
        ("home", 7, "expected a path, not 7"),
    ],
)
def test_a_wrong_value_names_setting_source_and_value(name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings.coerce(name, value, "orch.toml")
    assert f"{name} (from orch.toml)" in str(caught.value)
    assert expected in str(caught.value)


def test_a_wrong_secret_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings.coerce("redis_url", ["hunter2"], "orch.toml")
    assert "hunter2" not in str(caught.value)


def test_an_unknown_setting_is_an_error_that_suggests_the_known_one(project: Path) -> None:
    (project / "orch.toml").write_text('name_space = "x"\n')
    with pytest.raises(ConfigurationError, match=r"no setting 'name_space' \(in orch.toml\). Did you mean 'namespace'\?"):
        settings.load()


def test_the_hint_on_an_unknown_setting_needs_no_other_command(project: Path) -> None:
    """It used to name a command that fails with the same error."""
    (project / "orch.toml").write_text('colour = "x"\n')
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    assert caught.value.hint is not None
    assert "orch config" not in caught.value.hint
    assert all(name in caught.value.hint for name in settings.NAMES)


def test_every_level_of_python_is_a_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        monkeypatch.setenv("ORCH_LOG_LEVEL", level.lower())
        assert settings.load().log_level == level


def test_a_misspelled_variable_is_an_error_but_a_strangers_is_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_HARD_DRIVE", "1")
    settings.load()
    monkeypatch.setenv("ORCH_REDIS_ULR", "redis://elsewhere")
    with pytest.raises(ConfigurationError, match="Did you mean ORCH_REDIS_URL"):
        settings.load()


@pytest.mark.parametrize("content", ["namespace = ", "tool = 3", "[tool]\norch = 3"])
def test_an_unreadable_project_file_is_named(project: Path, content: str) -> None:
    (project / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml"):
        settings.load()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:hunter2@h", "redis://:***@h"),
        ("rediss://me:hunter2@h:1/2", "rediss://me:***@h:1/2"),
        ("redis://me:hunt@er/2@h", "redis://me:***@h"),
        ("redis://me@h", "redis://me@h"),
        ("unix:///a/b.sock?db=1&password=hunter2", "unix:///a/b.sock?db=1&password=***"),
        ("redis://me:hunt?er2@h", "redis://***"),
        ("me:hunter2@h", "***"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert settings.shown_url(url) == shown


def test_no_way_of_showing_settings_shows_a_password(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_REDIS_URL", "redis://me:hunter2@h")
    loaded = settings.load()
    assert loaded.redis_url == "redis://me:hunter2@h"
    assert "hunter2" not in repr(loaded) + str(settings.shown(loaded)) + str(settings.sources(loaded))
    assert settings.shown(loaded)["redis_url"] == "redis://me:***@h"


def test_every_setting_says_what_it_is() -> None:
    assert all(settings.about(name).endswith(".") for name in settings.NAMES)


def test_a_child_gets_the_settings_in_use_wherever_they_came_from(project: Path, home: Path) -> None:
    (project / "orch.toml").write_text("redis_timeout_s = 2\nallow_unsafe_redis = true\n")
    given = settings.environment(settings.load(namespace="flagged"))
    assert given == {
        "ORCH_HOME": str(home),
        "ORCH_NAMESPACE": "flagged",
        "ORCH_REDIS_TIMEOUT_S": "2.0",
        "ORCH_ALLOW_UNSAFE_REDIS": "true",
    }
    whole = settings.child_environment(settings.load(), EXTRA="1")
    assert whole.items() >= {**os.environ, "ORCH_REDIS_TIMEOUT_S": "2.0", "EXTRA": "1"}.items()


def test_a_child_in_another_folder_loads_the_same_settings(
    project: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles.create(home, "work", {"namespace": "of-profile"})
    (project / "orch.toml").write_text('profile = "work"\nlog_level = "ERROR"\n')
    ours = settings.load()
    for name, value in settings.environment(ours).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert settings.load() == ours


def test_other_variables_are_read_as_flags_or_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("NO_COLOR", "0")
    monkeypatch.setenv("EDITOR", "")
    assert settings.environment_flag("CI")
    assert not settings.environment_flag("NO_COLOR")
    assert settings.variable("EDITOR") is None
    assert settings.variable("CI") == "true"


def test_the_default_profile_need_not_exist(home: Path) -> None:
    assert profiles.names(home) == ["default"]
    assert profiles.active(home) == "default"
    assert profiles.get(home, "default") == {}
    assert not home.exists()


def test_a_profile_is_created_used_changed_renamed_and_deleted(home: Path) -> None:
    profiles.create(home, "work", {"redis_url": "redis://:hunter2@h"})
    profiles.use(home, "work")
    profiles.set_value(home, "work", "redis_timeout_s", "2")
    assert settings.load().redis_timeout_s == 2.0
    profiles.unset_value(home, "work", "redis_timeout_s")
    assert settings.load().redis_timeout_s == 5.0
    profiles.rename(home, "work", "production")
    assert (profiles.active(home), settings.load().profile) == ("production", "production")
    profiles.use(home, "default")
    profiles.delete(home, "production")
    assert profiles.names(home) == ["default"]


def test_the_profiles_file_is_private_and_replaced_as_a_whole(home: Path) -> None:
    profiles.create(home, "work", {"redis_url": "redis://:hunter2@h"})
    path = home / settings.PROFILES_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    before = path.stat().st_ino
    with path.open() as reader:
        profiles.set_value(home, "work", "namespace", "n")
        assert "namespace" not in reader.read()
    assert path.stat().st_ino != before
    assert [entry.name for entry in home.iterdir()] == [settings.PROFILES_FILE]


def test_comments_in_the_profiles_file_stay(home: Path) -> None:
    settings.private_folder(home)
    (home / settings.PROFILES_FILE).write_text('# ours\nactive = "work"\n[profiles.work]\nnamespace = "n"  # old\n')
    profiles.set_value(home, "work", "log_level", "debug")
    text = (home / settings.PROFILES_FILE).read_text()
    assert "# ours" in text
    assert "# old" in text
    assert settings.load().log_level == "DEBUG"


def test_what_a_profile_cannot_do_is_said(home: Path) -> None:
    profiles.create(home, "work")
    profiles.use(home, "work")
    refused: list[tuple[type[OrchError], object]] = [
        (ObjectAlreadyExists, lambda: profiles.create(home, "work")),
        (ObjectNotFound, lambda: profiles.use(home, "wrok")),
        (ObjectNotFound, lambda: profiles.delete(home, "wrok")),
        (ObjectNotFound, lambda: profiles.unset_value(home, "work", "namespace")),
        (Refused, lambda: profiles.delete(home, "work")),
        (ConfigurationError, lambda: profiles.create(home, "a b")),
        (ConfigurationError, lambda: profiles.set_value(home, "work", "home", "/x")),
        (ConfigurationError, lambda: profiles.set_value(home, "work", "redis_timeout_s", "soon")),
    ]
    for kind, attempt in refused:
        with pytest.raises(kind):
            attempt()  # type: ignore[operator]
    assert profiles.get(home, "work") == {}


@pytest.mark.parametrize("content", ["active = 3", "profiles = 3", "[profiles]\nwork = 3"])
def test_a_profiles_file_of_another_shape_is_named(home: Path, content: str) -> None:
    settings.private_folder(home)
    (home / settings.PROFILES_FILE).write_text(content)
    with pytest.raises(ConfigurationError, match="unexpected shape"):
        settings.load()


def test_an_unknown_profile_is_an_error_that_suggests_the_known_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles.create(home, "production")
    monkeypatch.setenv("ORCH_PROFILE", "prodution")
    with pytest.raises(ObjectNotFound, match=r"asked for by ORCH_PROFILE\). Did you mean 'production'\?"):
        settings.load()


def test_a_profile_cannot_say_where_profiles_live(home: Path) -> None:
    settings.private_folder(home)
    (home / settings.PROFILES_FILE).write_text('[profiles.default]\nhome = "/x"\n')
    with pytest.raises(ConfigurationError, match="cannot set"):
        settings.load()


def test_what_a_deployment_wants_is_added_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "red")
    settings.add_to_environment({"COLOUR": "blue"})
    assert settings.variable("COLOUR") == "blue"
