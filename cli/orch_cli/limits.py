"""What the limits of tags and global limits have in common: how they look, and the verbs that work alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from orch_cli import output, prompts
from orch_cli.commands import Noun
from orch_cli.connection import open_store
from orch_cli.holding import Held, held, held_view
from orch_cli.options import dry_run_option, yes_option
from orch_cli.output import Column, Printer, View, Word, plural, shows
from orchestrator.exceptions import ObjectNotFound
from orchestrator.models import Gate

if TYPE_CHECKING:
    from orchestrator.store import Store


@dataclass(frozen=True)
class Kind:
    """One kind of limit. ``command`` is its noun as examples and hints type it, ``example`` a name in them.

    ``label`` is what a sentence calls the limit of a name, without an article; ``missing`` says that there is none. ``find``
    reads one with its waiters, ``every`` all; ``activate`` and ``remove`` answer False where there is none.
    """

    noun: str
    command: str
    argument: str
    example: str
    label: Callable[[str], str]
    missing: Callable[[str], str]
    create_hint: Callable[[str], str]
    find: Callable[[Store, str], Gate | None]
    every: Callable[[Store], list[Gate]]
    activate: Callable[[Store, str, bool], bool]
    remove: Callable[[Store, str], bool]
    complete: Callable[[click.Context, click.Parameter, str], Any]
    view: View[Gate]

    def found(self, store: Store, name: str) -> Gate:
        """The limit of that name. Raises ObjectNotFound."""
        gate = self.find(store, name)
        if gate is None:
            raise self.not_found(name)
        return gate

    def not_found(self, name: str) -> ObjectNotFound:
        """The error for a name without a limit."""
        return ObjectNotFound(
            self.missing(name),
            hint=f"List limits with: orch {self.command} ls, or create one with: {self.create_hint(quote(name))}",
        )

    def name_argument(self) -> Callable[..., Any]:
        """The limit's name on the command line."""
        return click.argument("name", metavar=self.argument, shell_complete=self.complete)

    def while_disabled(self, gate: Gate) -> str:
        """What to say beside a change of a limit that is not in force."""
        if gate.active:
            return ""
        return f" The limit is disabled; enable it with: orch {self.command} enable {quote(gate.title)}"


def limit_view(title: str, empty: str, *more: Column[Gate], json: Callable[[Gate], dict[str, object]]) -> View[Gate]:
    """How limits of one kind look; ``title`` is that of the column of names, ``more`` columns stand before the status."""
    return View(
        name=lambda gate: gate.title,
        empty=empty,
        columns=(
            Column(title, lambda gate: gate.title, fold=True),
            Column("Used", lambda gate: gate.used),
            Column("Limit", lambda gate: gate.limit),
            Column("Waiting", lambda gate: gate.waiting),
            *more,
            Column("Status", lambda gate: Word("Active", "green") if gate.active else Word("Disabled", "magenta")),
        ),
        json=lambda gate: {
            title.lower(): gate.title,
            "limit": gate.limit,
            "active": gate.active,
            "used": gate.used,
            "waiting": gate.waiting,
            **json(gate),
        },
    )


def add_verbs(group: Noun, kind: Kind) -> None:
    """Give the noun the verbs that work alike for all limits: ls, inspect, disable, enable, reset, delete."""
    view, inspected = kind.view, held_view(kind.view)

    def examples(verb: str, *options: str) -> tuple[str, ...]:
        first = f"orch {kind.noun} {verb}"
        return tuple(f"{first} {kind.example} {option}".rstrip() for option in ("", *options))

    @group.command("ls", examples=(f"orch {kind.noun} ls", f"orch {kind.noun} ls -o json"))
    @shows(view, many=True)
    def ls(out: Printer[Gate]) -> None:
        """List the limits: slots in use, the limit, and how many wait."""
        with open_store() as store:
            out.many(kind.every(store))

    @group.command("inspect", examples=examples("inspect", "-o json"))
    @kind.name_argument()
    @shows(inspected)
    def inspect(out: Printer[Held[Gate]], name: str) -> None:
        """Show who holds the slots of a limit, since when, and who waits for one, in order."""
        from orchestrator.store.explain import wider

        with open_store() as store:
            gate = kind.found(store, name)
            out.one(held(store, gate, gate))
            if out.is_for_people and gate.waiting and gate.active:
                output.say_hint(f"Let more through with: {wider(store, gate)}")

    @group.command("disable", examples=examples("disable"))
    @kind.name_argument()
    @shows(view)
    def disable(out: Printer[Gate], name: str) -> None:
        """Let everybody through, and remember the limit. Those that wait go on."""
        with open_store() as store:
            if not kind.activate(store, name, False):
                raise kind.not_found(name)
            out.done(
                f"The {kind.label(name)} holds nobody back now. Enable it with: orch {kind.command} enable {quote(name)}",
                kind.found(store, name),
            )

    @group.command("enable", examples=examples("enable"))
    @kind.name_argument()
    @shows(view)
    def enable(out: Printer[Gate], name: str) -> None:
        """Hold to a disabled limit again. Those that are through by now are counted."""
        with open_store() as store:
            if not kind.activate(store, name, True):
                raise kind.not_found(name)
            enabled = kind.found(store, name)
            out.done(f"The {kind.label(name)} is in force: {enabled.used} of {enabled.limit} slots are in use.", enabled)

    @group.command("reset", examples=examples("reset"))
    @kind.name_argument()
    @shows(view)
    def reset(out: Printer[Gate], name: str) -> None:
        """Free the slots that no live run holds; of a rate limit, all of them.

        A slot goes with its run's lease, so there is nothing to free unless Redis has lost writes.
        """
        with open_store() as store:
            gate = kind.found(store, name)
            freed = store.limits.reset(gate.name)
            if gate.decay:
                sentence = f"All slots of the {kind.label(name)} are back: {plural(freed, 'slot')} had been used."
            elif freed:
                sentence = f"Freed {plural(freed, 'slot')} of the {kind.label(name)} that no live run held."
            else:
                sentence = f"Nothing was to be freed: live runs hold all used slots of the {kind.label(name)}."
            out.done(sentence, kind.found(store, name))

    @group.command("delete", examples=examples("delete", "--yes"))
    @kind.name_argument()
    @yes_option
    @dry_run_option
    @shows(view)
    def delete(out: Printer[Gate], name: str, yes: bool, dry_run: bool) -> None:
        """Delete a limit. Those that wait for it go on."""
        with open_store() as store:
            gate = kind.found(store, name)
            if dry_run:
                out.one(gate)
                output.say("Nothing was done: this would delete the limit above.")
                return
            waiting = f" and let {plural(gate.waiting, 'waiter')} go on" if gate.waiting else ""
            prompts.confirm(f"Delete the {kind.label(name)}{waiting}?", yes)
            if not kind.remove(store, name):
                raise kind.not_found(name)
        out.done(f"Deleted the {kind.label(name)}.", gate)
