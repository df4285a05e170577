"""What the documentation says, taken apart: its files, fenced blocks, tables, links and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from orch_cli.main import orch

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(.*)$")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_CODE_SPAN = re.compile(r"`[^`]*`")
_SEPARATORS = frozenset({"|", "||", "&&", ";", "<", ">", ">>", "&"})


@dataclass(frozen=True)
class Block:
    """A fenced block. ``words`` are those behind the fence; the first is the language, the others say what to do with it."""

    file: Path
    line: int
    words: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    def steps(self) -> list[tuple[str, list[str]]]:
        """The commands of a console block, each with the lines that are printed below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            elif found and line.strip():
                found[-1][1].append(line)
        return found


def pages() -> list[Path]:
    """Every page of the documentation, the README first."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    words: tuple[str, ...] | None = None
    start, lines = 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif words is None:
            words, start, lines = tuple(fence[1].split()), number, []
        else:
            yield Block(page, start, words, "\n".join(lines) + "\n")
            words = None
    assert words is None, f"{page.name}: the block of line {start} is not closed"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            lines.append(line)
    return "\n".join(lines)


def links(page: Path) -> list[str]:
    """Where a page's links lead."""
    return _LINK.findall(_CODE_SPAN.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: Path, *titles: str) -> list[list[str]]:
    """The cells of the table with these titles."""
    found: list[list[str]] | None = None
    for line in prose(page).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if found is None:
            found = [] if cells == list(titles) else None
        elif not cells:
            break
        elif set(cells[0]) != {"-"}:
            found.append(cells)
    assert found, f"{page.name} has no table with the titles {', '.join(titles)}"
    return found


def orch_commands(text: str) -> list[list[str]]:
    """The arguments of every ``orch`` in one line of shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = []
    arguments: list[str] | None = None
    begins = True
    for word in lexer:
        if word in _SEPARATORS:
            arguments, begins = None, word not in ("<", ">", ">>")
        elif arguments is not None:
            arguments.append(word)
        elif begins and word in ("orch", "/opt/orch/bin/orch"):
            arguments = []
            found.append(arguments)
        else:
            begins = begins and "=" in word
    return found


def parse(arguments: list[str]) -> click.Context:
    """The context in which ``orch ARGUMENTS`` would run; it is not run. Raises click.UsageError."""
    context = orch.make_context("orch", list(arguments))
    command: click.Command = orch
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return context
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, name
        command = found
        context = command.make_context(name, rest, parent=context)
    return context
