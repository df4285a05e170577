"""The only printer: tables for people, JSON, YAML and names for programs; data on stdout, talk on stderr.

A noun says once how its things look (a ``View``); ``@shows(view)`` gives a command ``-o`` and the other output options and
hands it a ``Printer``. On a terminal a table fits its width; piped, it is plain, untruncated and separated by tabs. Text
that came from users or their flows loses its escape sequences on the way (``clean``).
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar

import click

from orch_cli.commands import Usage
from orchestrator import clock

if TYPE_CHECKING:
    from orchestrator.states import State

T = TypeVar("T")

FORMATS = ("table", "wide", "json", "yaml", "jsonl", "name")
COLOR_CHOICES = ("auto", "always", "never")

# By the state's type. Models, states and settings are imported where they are used: `orch --help` has no time for them.
_STATE_COLORS = {
    "SCHEDULED": "yellow",
    "PENDING": "cyan",
    "RUNNING": "blue",
    "PAUSED": "magenta",
    "CANCELLING": "magenta",
    "COMPLETED": "green",
    "FAILED": "red",
    "CRASHED": "bright_red",
    "CANCELLED": "bright_black",
}
_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
_LEVEL_COLORS = {"DEBUG": "bright_black", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bright_red"}

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))

# CSI and OSC sequences first, whole; then what is left of C0, C1 and the marks that turn the direction of text.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(thing: Any) -> Any:
    """A thing in plain JSON types, as ``orchestrator.models.as_json`` makes it."""
    from orchestrator.models import as_json

    return as_json(thing)


@dataclass(frozen=True)
class Word:
    """A word with a colour. The word alone says it too."""

    text: str
    color: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Lines:
    """A value of several lines, each of a few parts; moments in it are shown as times alone."""

    lines: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Column(Generic[T]):
    """One property of a thing. ``wide`` columns show with ``-o wide`` and ``--columns`` only; ``fold`` lets long text wrap."""

    title: str
    of: Callable[[T], Any]
    wide: bool = False
    fold: bool = False

    @property
    def key(self) -> str:
        """The column's name in ``--columns`` and ``--sort``."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class View(Generic[T]):
    """How one kind of thing looks.

    ``name`` is what ``-o name`` prints and other commands accept. ``empty`` says what the thing is and which command makes the
    first one. ``sheet`` holds what ``inspect`` shows beside the columns, or at greater length than one of them. ``json`` is
    the thing's JSON form.
    """

    name: Callable[[T], str]
    columns: tuple[Column[T], ...]
    empty: str = ""
    sheet: tuple[Column[T], ...] = ()
    json: Callable[[T], Any] = plain


@dataclass
class _Terminal:
    """What the whole command was told about output."""

    color: str = "auto"
    format: str = "table"

    def colored(self, stream: TextIO) -> bool:
        """Escape sequences may go to ``stream``: the flag decides, then the environment, then whether it is a terminal."""
        choice = self.color if self.color != "auto" else _environment_color()
        return choice == "always" or (choice == "auto" and stream.isatty())


def _environment_color() -> str:
    from orchestrator.settings import environment_flag, variable

    if variable("NO_COLOR"):
        return "never"
    if environment_flag("FORCE_COLOR") or environment_flag("CLICOLOR_FORCE"):
        return "always"
    return "never" if variable("TERM") == "dumb" else "auto"


_terminal = _Terminal()


def set_up(color: str) -> None:
    """Begin a command: take its ``--color`` flag, and never fail on a character that the terminal's encoding lacks."""
    _terminal.color, _terminal.format = color, "table"
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def is_terminal() -> bool:
    """Data goes to a terminal, not to a file or another program."""
    return sys.stdout.isatty()


# --- text -----------------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """``text`` without escape sequences and control characters (line breaks and tabs stay), so that it can only be read."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class ReaderLeft(Exception):
    """The program that reads stdout (head, a pager) has seen enough."""


def write(text: str) -> None:
    """One line of data on stdout. Raises ReaderLeft where nobody reads on."""
    try:
        click.echo(text, color=True)
    except BrokenPipeError:
        raise ReaderLeft from None  # click would turn a broken pipe into exit code 1


def write_colored(text: str, color: str) -> None:
    """One line of data on stdout, in a colour where colours are shown."""
    write(_paint(text, sys.stdout, fg=color))


def say(text: str) -> None:
    """One line of talk on stderr."""
    click.echo(text, err=True, color=True)


def warn(text: str, hint: str | None = None) -> None:
    """Something the user should know, and what to type about it, on stderr."""
    say(f"{_paint('warning:', sys.stderr, fg='yellow', bold=True)} {clean(text)}")
    if hint:
        say_hint(hint)


def say_hint(hint: str) -> None:
    """What to do next, on stderr."""
    say(f"{_paint('hint:', sys.stderr, fg='cyan', bold=True)} {clean(hint)}")


def fail(error: BaseException, code: int, hint: str | None = None, message: str | None = None) -> None:
    """An error with its causes and its hint on stderr; with ``-o json`` (or jsonl, yaml) as an object on stdout too."""
    text = clean(message or str(error) or type(error).__name__)
    causes = [clean(cause) for cause in _causes(error, text)]
    say(f"{_paint('error:', sys.stderr, fg='red', bold=True)} {text}")
    for cause in causes:
        say(f"  caused by: {cause}")
    if hint:
        say_hint(hint)
    if _terminal.format in ("json", "jsonl", "yaml"):
        report = {"code": code, "message": text, "hint": hint, "details": causes}
        write(_serialize({"error": report}, _terminal.format))


def _causes(error: BaseException, said: str) -> Iterable[str]:
    """The chain of causes, one line each, without those that the message repeats."""
    if isinstance(error, click.UsageError):
        return  # its message says all; what click was handling when it raised says nothing to people
    seen: set[int] = set()
    while True:
        seen.add(id(error))
        following = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if following is None or id(following) in seen or isinstance(following, click.exceptions.Exit):
            return
        error = following
        first_line = str(error).strip().partition("\n")[0]
        if not first_line:
            yield type(error).__name__
        elif clean(first_line) not in said:
            yield f"{type(error).__name__}: {first_line}"


def _paint(text: str, stream: TextIO, **style: Any) -> str:
    return click.style(text, **style) if _terminal.colored(stream) else text


def state_word(state: State) -> Word:
    """A state's name in its colour."""
    return Word(state.name, _STATE_COLORS[state.type])


# --- moments and durations ------------------------------------------------------------------------------------------------


def relative(moment: datetime, now: datetime | None = None) -> str:
    """How far away a moment is: ``in 3 h``, ``2 min ago``, ``now``."""
    distance = moment - (now or clock.now())
    size = duration_text(abs(distance), coarse=True)
    if size == "0 s":
        return "now"
    return f"in {size}" if distance > timedelta() else f"{size} ago"


def absolute(moment: datetime, now: datetime | None = None) -> str:
    """A moment in the local zone, 24 hours; the date where it is not today."""
    local, today = moment.astimezone(), (now or clock.now()).astimezone()
    if local.date() == today.date():
        return local.strftime("%H:%M:%S")
    if local.year == today.year:
        return local.strftime("%b %d %H:%M")
    return local.strftime("%Y-%m-%d %H:%M")


def duration_text(length: timedelta, coarse: bool = False) -> str:
    """A duration in its two largest units; ``coarse``: in its largest one, rounded."""
    seconds = length.total_seconds()
    if coarse:
        return _coarse(seconds)
    if seconds < 60:
        if seconds == int(seconds):
            return f"{int(seconds)} s"
        return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
    parts: list[str] = []
    rest = int(seconds)
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part)


def _coarse(seconds: float) -> str:
    for unit, size in _UNITS:
        if round(seconds / size) and seconds >= size * 0.99:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds)} s"


def _cell(value: Any, terminal: bool) -> str:
    """A value as the text of one table cell; times are relative and local on a terminal, ISO in UTC elsewhere."""
    match value:
        case None | "" | () | []:
            return "-" if terminal else ""
        case bool():
            return "yes" if value else "no"
        case Lines():
            return "\n".join("  ".join(_part(part, terminal) for part in line if part) for line in value.lines)
        case datetime():
            return f"{absolute(value)} ({relative(value)})" if terminal else str(plain(value))
        case timedelta():
            return duration_text(value) if terminal else str(value.total_seconds())
        case Mapping():
            return clean(json.dumps(plain(value), ensure_ascii=False)) if value else ("-" if terminal else "{}")
        case list() | tuple():
            return ", ".join(_cell(item, terminal) for item in value)
        case _:
            return clean(str(value))


def _part(value: Any, terminal: bool) -> str:
    return absolute(value) if terminal and isinstance(value, datetime) else _cell(value, terminal)


def _color(value: Any) -> str | None:
    return value.color if isinstance(value, Word) else None


# --- things ---------------------------------------------------------------------------------------------------------------


class Printer(Generic[T]):
    """Prints things of one kind in the chosen form."""

    def __init__(
        self,
        view: View[T],
        form: str = "table",
        columns: str | None = None,
        headers: bool = True,
        sort: str | None = None,
        limit: int = 0,
    ) -> None:
        self.view = view
        self.format = form
        self.limit = limit
        self._headers = headers
        self._were_chosen = columns is not None
        self._columns = self._chosen(columns)
        self._sort = sort
        if sort:
            self._column(sort.lstrip("-"))

    @property
    def is_for_people(self) -> bool:
        """The form is a table."""
        return self.format in ("table", "wide")

    def many(self, things: Sequence[T], more: bool = False) -> None:
        """A list. ``more``: there are others beyond it, so say that it was cut."""
        shown = self._sorted(things)
        if self.limit and len(shown) > self.limit:
            shown, more = shown[: self.limit], True
        if self.is_for_people:
            self._table(shown)
            if not shown and self.view.empty:
                say(self.view.empty)
        elif self.format == "jsonl":
            for thing in shown:
                self.each(thing)
        elif self.format == "name":
            for thing in shown:
                write(clean(self.view.name(thing)))
        else:
            write(_serialize([self.view.json(thing) for thing in shown], self.format))
        if more:
            warn(f"Only {len(shown)} are shown; there are more.", hint="Use --limit N for more, --limit 0 for all.")

    def one(self, thing: T) -> None:
        """One thing: every property on a line of its own, or the object."""
        if self.is_for_people:
            self._sheet(thing)
        elif self.format == "name":
            write(clean(self.view.name(thing)))
        else:
            write(_serialize(self.view.json(thing), self.format))

    def done(self, sentence: str, thing: T | None = None) -> None:
        """What a command has done: the sentence for people, the thing as it is now for programs."""
        if self.is_for_people or thing is None:
            say(clean(sentence))
        else:
            self.one(thing)

    def each(self, thing: T) -> None:
        """One thing of a list, as a line (``-o jsonl``)."""
        write(_serialize(self.view.json(thing), "jsonl"))

    def show_columns(self, *keys: str) -> None:
        """Show these columns, unless the user chose others."""
        if not self._were_chosen and self.format == "table":
            self._columns = [self._column(key) for key in keys]

    def _chosen(self, wanted: str | None) -> list[Column[T]]:
        if wanted:
            return [self._column(key.strip()) for key in wanted.split(",")]
        return [column for column in self.view.columns if self.format == "wide" or not column.wide]

    def _column(self, key: str) -> Column[T]:
        for column in self.view.columns:
            if column.key == key.lower():
                return column
        known = ", ".join(column.key for column in self.view.columns)
        raise Usage(f"There is no column {key!r}.", hint=f"The columns are: {known}")

    def _sorted(self, things: Sequence[T]) -> list[T]:
        if not self._sort:
            return list(things)
        column = self._column(self._sort.lstrip("-"))
        present = [thing for thing in things if column.of(thing) is not None]
        absent = [thing for thing in things if column.of(thing) is None]
        return sorted(present, key=lambda thing: _order(column.of(thing)), reverse=self._sort.startswith("-")) + absent

    def _table(self, things: Sequence[T]) -> None:
        terminal = is_terminal()
        rows = [[column.of(thing) for column in self._columns] for thing in things]
        if terminal:
            if rows:
                _print_table(self._columns, rows, self._headers, untruncated=self.format == "wide")
            return
        if self._headers:
            write("\t".join(column.title.upper() for column in self._columns))
        for row in rows:
            write("\t".join(_paint_cell(value, _one_line(_cell(value, False))) for value in row))

    def _sheet(self, thing: T) -> None:
        terminal = is_terminal()
        # What the sheet tells under a column's title, it tells at greater length.
        longer = {column.key: column for column in self.view.sheet}
        columns = [*(longer.pop(column.key, column) for column in self.view.columns), *longer.values()]
        width = max(len(column.title) for column in columns)
        for column in columns:
            value = column.of(thing)
            text = _cell(value, terminal)
            if not terminal:
                write(f"{column.title}\t{_paint_cell(value, _one_line(text, between='; '))}")
                continue
            first, *others = text.split("\n")
            write(f"{_paint(column.title.ljust(width), sys.stdout, bold=True)}  {_paint_cell(value, first)}")
            for line in others:
                write(f"{'':{width}}  {line}")


def _order(value: Any) -> Any:
    match value:
        case datetime() | timedelta() | int() | float():
            return value
        case _:
            return _cell(value, False).casefold()


def _one_line(text: str, between: str = " ") -> str:
    return re.sub(r"[\t\r\n]+", between, text.strip("\n"))


def _paint_cell(value: Any, text: str) -> str:
    color = _color(value)
    return _paint(text, sys.stdout, fg=color) if color and text else text


def _print_table(columns: Sequence[Column[Any]], rows: Sequence[Sequence[Any]], headers: bool, untruncated: bool) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    colored = _terminal.colored(sys.stdout)
    console = Console(file=sys.stdout, color_system="standard" if colored else None, highlight=False, legacy_windows=False)
    table = Table(box=None, pad_edge=False, show_header=headers, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.title.upper(), no_wrap=not column.fold, overflow="fold" if column.fold else "ellipsis")
    for row in rows:
        table.add_row(*(Text(_one_line(_cell(value, True)), style=_color(value) or "") for value in row))
    if untruncated:
        console.width = max(console.width, Measurement.get(console, console.options.update(width=10_000), table).maximum)
    with console.capture() as printed:
        console.print(table)
    write(printed.get().removesuffix("\n"))


def _serialize(data: Any, form: str) -> str:
    if form == "yaml":
        import yaml

        text = str(yaml.safe_dump(data, allow_unicode=True, sort_keys=False)).rstrip("\n")
        # YAML itself escapes control characters, but of marks that turn the direction of text it does so in ASCII only.
        return text if not _CONTROLS.search(text) else str(yaml.safe_dump(data, sort_keys=False)).rstrip("\n")
    text = json.dumps(data, ensure_ascii=False, indent=None if form == "jsonl" else 2, default=str)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


# --- logs -----------------------------------------------------------------------------------------------------------------


def write_log_line(at: datetime, level: int, logger: str, message: str, task_run: str = "") -> None:
    """One line of a run's log on stdout: local time, level, text; a text of several lines is indented below its first.

    ``task_run`` is the name of the task run that it is about, if any.
    """
    terminal = is_terminal()
    level_name = _LEVELS.get(level, str(level))
    moment = at.astimezone().strftime("%H:%M:%S.%f")[:-3] if terminal else str(plain(at))
    source = level_name if logger not in ("stdout", "stderr") else logger
    whose = f"Task run '{clean(task_run)}' - " if task_run else ""
    first, *others = clean(message).rstrip("\n").split("\n")
    color = _LEVEL_COLORS.get(level_name)
    write(f"{_paint(moment, sys.stdout, fg='bright_black')} {_paint(source.ljust(7), sys.stdout, fg=color)} {whose}{first}")
    indent = " " * (len(moment) + 9)
    for line in others:
        write(indent + line)


def plural(count: int, noun: str) -> str:
    """``1 worker``, ``2 workers``, ``2 processes``."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{'' if count == 1 else ending}"


def write_json_line(data: Any) -> None:
    """One JSON document on one line of stdout, for streams of mixed things."""
    write(_serialize(data, "jsonl"))


def say_state(name: str, state: State) -> None:
    """A run's change of state, on stderr."""
    word = _paint(state.name, sys.stderr, fg=_STATE_COLORS[state.type], bold=True)
    message = f": {clean(state.message.strip().partition(chr(10))[0])}" if state.message else ""
    say(f"Flow run '{clean(name)}' is {word}{message}")


# --- the shared decorator -------------------------------------------------------------------------------------------------


def shows(view: View[Any], *, many: bool = False, limit: int = 200) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command ``-o`` (and, for a list, ``--columns --no-headers --sort --limit``) and a Printer as first argument."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        # The names of these options' values are such that no command has an argument of the same name.
        @functools.wraps(function)
        def with_printer(
            *args: Any,
            output_form: str,
            list_columns: str | None = None,
            list_headers: bool = True,
            list_order: str | None = None,
            list_limit: int = 0,
            **kwargs: Any,
        ) -> Any:
            printer = Printer(view, output_form, list_columns, list_headers, list_order, list_limit)
            return function(printer, *args, **kwargs)

        command: Callable[..., Any] = with_printer
        if many:
            keys = ", ".join(column.key for column in view.columns)
            for option in (
                click.option("--limit", "list_limit", type=click.IntRange(min=0), default=limit, show_default=True, metavar="N",
                             help="Show at most N; 0 for all."),
                click.option("--sort", "list_order", metavar="COLUMN", help="Order by a column; -COLUMN for the other way."),
                click.option("--no-headers", "list_headers", flag_value=False, default=True, help="Leave out the titles."),
                click.option("--columns", "list_columns", metavar="A,B", help=f"Show these columns: {keys}."),
            ):  # fmt: skip
                command = option(command)
        return click.option(
            "-o",
            "--output",
            "output_form",
            type=click.Choice(FORMATS),
            default="table",
            show_default=True,
            is_eager=True,
            callback=_take_format,
            help="The form of the output.",
        )(command)

    return decorate


def _take_format(context: click.Context, parameter: click.Parameter, value: str) -> str:
    _terminal.format = value
    return value
