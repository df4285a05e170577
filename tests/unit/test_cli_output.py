"""What reaches the terminal, a pipe or a program, and what must not."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click
import pytest
import yaml

from orch_cli import output
from orch_cli.commands import Usage
from orch_cli.output import Column, Printer, View, Word, clean, duration_text, relative
from orchestrator import clock

MOMENT = datetime(2026, 11, 22, 14, 0, 5, tzinfo=UTC)


@dataclass
class Thing:
    name: str
    size: int | None = None
    at: datetime | None = None
    note: str = ""


THING: View[Thing] = View(
    name=lambda thing: thing.name,
    empty="There are no things. Make one with: orch thing create NAME",
    columns=(
        Column("Name", lambda thing: thing.name, fold=True),
        Column("Size", lambda thing: thing.size),
        Column("Made at", lambda thing: thing.at),
        Column("Note", lambda thing: Word(thing.note, "red"), wide=True),
    ),
)

THINGS = [Thing("pear", 3, MOMENT, "ripe"), Thing("apple", 20, None, "a\tb"), Thing("fig", None, MOMENT)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_color_flag() -> None:
    output.set_up("auto")


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a list looks like on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    def show(things: list[Thing], form: str = "table") -> str:
        with contextlib.redirect_stdout(Terminal()) as screen:
            Printer(THING, form).many(things)
        return screen.getvalue()

    return show


def test_a_piped_table_is_separated_by_tabs_and_its_times_are_utc(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING).many(THINGS)
    assert capsys.readouterr().out.splitlines() == [
        "NAME\tSIZE\tMADE AT",
        "pear\t3\t2026-11-22T14:00:05Z",
        "apple\t20\t",
        "fig\t\t2026-11-22T14:00:05Z",
    ]


def test_wide_shows_every_column_and_a_tab_inside_a_value_separates_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING, "wide").many(THINGS[:2])
    assert capsys.readouterr().out.splitlines()[2] == "apple\t20\t\ta b"


def test_columns_are_chosen_by_name_and_an_unknown_one_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING, columns="note,made-at", headers=False).many(THINGS[:1])
    assert capsys.readouterr().out == "ripe\t2026-11-22T14:00:05Z\n"
    with pytest.raises(Usage) as caught:
        Printer(THING, columns="colour")
    assert caught.value.hint == "The columns are: name, size, made-at, note"


def test_sorting_puts_what_has_no_value_last_either_way(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING, "name", sort="size").many(THINGS)
    Printer(THING, "name", sort="-size").many(THINGS)
    assert capsys.readouterr().out.split() == ["pear", "apple", "fig", "apple", "pear", "fig"]


def test_a_list_that_was_cut_says_so_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING, "json", limit=2).many(THINGS)
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 2
    assert "Only 2 are shown" in captured.err
    Printer(THING, "json", limit=0).many(THINGS)
    assert capsys.readouterr().err == ""


def test_json_is_an_array_for_a_list_and_an_object_for_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING, "json").many([])
    Printer(THING, "json").one(THINGS[0])
    array, one = capsys.readouterr().out.split("\n", 1)
    assert json.loads(array) == []
    assert json.loads(one) == {"name": "pear", "size": 3, "at": "2026-11-22T14:00:05Z", "note": "ripe"}


def test_jsonl_is_a_line_a_thing_and_yaml_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING, "jsonl").many(THINGS)
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["pear", "apple", "fig"]
    Printer(THING, "yaml").many(THINGS)
    assert [thing["size"] for thing in yaml.safe_load(capsys.readouterr().out)] == [3, 20, None]


def test_an_empty_list_says_on_stderr_what_makes_the_first_one(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(THING).many([])
    captured = capsys.readouterr()
    assert captured.out == "NAME\tSIZE\tMADE AT\n"
    assert captured.err == "There are no things. Make one with: orch thing create NAME\n"


@pytest.mark.parametrize(
    ("dirty", "seen"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x07\x08b\x7f", "ab"),
        ("\x9b31mx", "31mx"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("user\u202egnp.exe", "usergnp.exe"),
        ("こんにちは", "こんにちは"),
    ],
)
def test_escape_sequences_of_users_never_reach_the_terminal(dirty: str, seen: str) -> None:
    assert clean(dirty) == seen


@pytest.mark.parametrize("form", ["table", "wide", "json", "jsonl", "yaml", "name"])
def test_no_form_of_output_lets_an_escape_sequence_through(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    thing = Thing("\x1b[2Jevil\x9b31m\u202e", note="\x1b]0;x\x07")
    Printer(THING, form).many([thing])
    Printer(THING, form).one(thing)
    captured = capsys.readouterr()
    assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(captured.out + captured.err)


def test_a_terminal_gets_a_table_that_fits_it(on_terminal: Callable[..., str]) -> None:
    lines = on_terminal([Thing("long " * 40, 1, clock.now())]).splitlines()
    assert "NAME" in lines[0]
    assert len(lines) > 2
    assert all(len(clean(line)) <= 80 for line in lines)


def test_wide_on_a_terminal_cuts_nothing(on_terminal: Callable[..., str]) -> None:
    shown = on_terminal([Thing("x" * 200, 1, None, "y" * 100)], "wide")
    assert "x" * 200 in shown
    assert "y" * 100 in shown


@pytest.mark.parametrize(
    ("flag", "variables", "colored"),
    [
        ("auto", {}, True),
        ("auto", {"NO_COLOR": "1"}, False),
        ("auto", {"TERM": "dumb"}, False),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {"FORCE_COLOR": "1"}, False),
    ],
)
def test_the_flag_decides_about_colour_then_the_environment(
    flag: str, variables: dict[str, str], colored: bool, on_terminal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    output.set_up(flag)
    assert ("\x1b[" in on_terminal(THINGS, "wide")) is colored


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CLICOLOR_FORCE"])
def test_colour_can_be_forced_into_a_pipe(
    variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    Printer(THING, "wide").many(THINGS[:1])
    assert "\x1b[31mripe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text", "coarse"),
    [
        (0.0042, "4 ms", "0 s"),
        (0.9999, "1.0 s", "1 s"),
        (7195, "1 h 59 min", "2 h"),
        (1.25, "1.2 s", "1 s"),
        (59, "59 s", "59 s"),
        (3600, "1 h", "1 h"),
        (3661, "1 h 1 min", "1 h"),
        (5000, "1 h 23 min", "1 h"),
        (86400 * 3 + 7200, "3 d 2 h", "3 d"),
    ],
)
def test_durations_are_said_in_their_largest_units(seconds: float, text: str, coarse: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text
    assert duration_text(timedelta(seconds=seconds), coarse=True) == coarse


def test_moments_are_said_relative_to_now() -> None:
    assert relative(MOMENT + timedelta(hours=3, minutes=5), MOMENT) == "in 3 h"
    assert relative(MOMENT - timedelta(minutes=2), MOMENT) == "2 min ago"
    assert relative(MOMENT + timedelta(milliseconds=300), MOMENT) == "now"


def test_an_error_names_its_causes_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise OSError("connection refused\nsecond line")
        except OSError as cause:
            raise RuntimeError("The server is away.") from cause
    except RuntimeError as error:
        output.fail(error, 6, hint="Start it.")
    assert capsys.readouterr().err.splitlines() == [
        "error: The server is away.",
        "  caused by: OSError: connection refused",
        "hint: Start it.",
    ]


def test_a_usage_error_shows_nothing_of_how_it_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong choice used to be "caused by: StopIteration"."""
    try:
        click.Choice(["process"]).convert("docker", None, None)
    except click.UsageError as error:
        output.fail(error, 2)
    assert "caused by" not in capsys.readouterr().err


def test_a_log_line_keeps_its_lines_together(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_log_line(MOMENT, 40, "prefect", "first\nsecond")
    output.write_log_line(MOMENT, 20, "stdout", "printed")
    assert capsys.readouterr().out.splitlines() == [
        "2026-11-22T14:00:05Z ERROR   first",
        "                             second",
        "2026-11-22T14:00:05Z stdout  printed",
    ]
