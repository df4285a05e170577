"""``orch concurrency-limit``: how many flow runs and task runs with one tag may execute at a time."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

import click

from orch_cli.commands import Noun
from orch_cli.completion import complete_limited_tag
from orch_cli.connection import open_store
from orch_cli.limits import Kind, add_verbs, limit_view
from orch_cli.output import Printer, shows
from orchestrator.exceptions import ObjectAlreadyExists
from orchestrator.models import Gate

if TYPE_CHECKING:
    from orchestrator.store import Store

LIMIT = limit_view(
    "Tag",
    "No tag has a concurrency limit. Let at most 5 runs with a tag run at a time: orch concurrency-limit create TAG 5",
    json=lambda gate: {},
)


def _find(store: Store, tag: str) -> Gate | None:
    from orchestrator.store.limits import tag_gate

    found = store.limits.get(tag_gate(tag))
    return found if found.limit is not None else None


def _every(store: Store) -> list[Gate]:
    from orchestrator.store.limits import tag_gate

    return store.limits.get_many([tag_gate(tag) for tag in store.limits.tags()])


def _activate(store: Store, tag: str, active: bool) -> bool:
    from orchestrator.store.limits import tag_gate

    return store.limits.enable(tag_gate(tag)) if active else store.limits.disable(tag_gate(tag))


def _remove(store: Store, tag: str) -> bool:
    from orchestrator.store.limits import tag_gate

    return store.limits.update(tag_gate(tag), None)


TAGS = Kind(
    noun="concurrency-limit",
    command="concurrency-limit",
    argument="TAG",
    example="database",
    label=lambda tag: f"limit of tag '{tag}'",
    missing=lambda tag: f"Tag '{tag}' has no concurrency limit.",
    create_hint=lambda tag: f"orch concurrency-limit create {tag} 5",
    find=_find,
    every=_every,
    activate=_activate,
    remove=_remove,
    complete=complete_limited_tag,
    view=LIMIT,
)

_limit_argument = click.argument("limit", type=click.IntRange(min=0))


@click.group(
    "concurrency-limit",
    cls=Noun,
    examples=("orch concurrency-limit create database 5", "orch concurrency-limit inspect database"),
)
def concurrency_limit() -> None:
    """Let at most so many flow runs and task runs with a tag run at a time.

    A run takes a slot of the limit of each of its tags, or waits until it can have them all. For limits that code takes by name
    see: orch global-concurrency-limit --help
    """


@concurrency_limit.command("create", examples=("orch concurrency-limit create database 5",))
@click.argument("tag")
@_limit_argument
@shows(LIMIT)
def create(out: Printer[Gate], tag: str, limit: int) -> None:
    """Let at most LIMIT runs with TAG run at a time; 0 lets none."""
    from orchestrator.store.limits import tag_gate

    with open_store() as store:
        if not store.limits.create(tag_gate(tag), limit):
            raise ObjectAlreadyExists(
                f"Tag '{tag}' has a concurrency limit already.",
                hint=f"Change it with: orch concurrency-limit update {quote(tag)} {limit}",
            )
        out.done(f"Runs with tag '{tag}' now run at most {limit} at a time.", TAGS.found(store, tag))


@concurrency_limit.command("update", examples=("orch concurrency-limit update database 8",))
@TAGS.name_argument()
@_limit_argument
@shows(LIMIT)
def update(out: Printer[Gate], name: str, limit: int) -> None:
    """Change the limit of a tag.

    Above the old limit, waiting runs go on at once. Below the number of runs that execute, these end in peace, and no
    other starts until enough of them have.
    """
    from orchestrator.store.limits import tag_gate

    with open_store() as store:
        if not store.limits.update(tag_gate(name), limit):
            raise TAGS.not_found(name)
        changed = TAGS.found(store, name)
        out.done(f"Runs with tag '{name}' now run at most {limit} at a time.{TAGS.while_disabled(changed)}", changed)


add_verbs(concurrency_limit, TAGS)
