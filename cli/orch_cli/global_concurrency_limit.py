"""``orch global-concurrency-limit``, for short ``orch gcl``: limits that code takes slots of by name."""

from __future__ import annotations

import math
from shlex import quote
from typing import TYPE_CHECKING

import click

from orch_cli.commands import Noun, Usage
from orch_cli.completion import complete_global_limit
from orch_cli.connection import open_store
from orch_cli.limits import Kind, add_verbs, limit_view
from orch_cli.output import Column, Printer, plain, plural, shows
from orchestrator.exceptions import ObjectAlreadyExists
from orchestrator.models import Gate

if TYPE_CHECKING:
    from orchestrator.store import Store

_SLOWEST, _FASTEST = 1e-6, 1e6

LIMIT = limit_view(
    "Name",
    "There are no global limits. Let code hold at most 5 slots of one at a time: orch gcl create NAME --limit 5",
    Column("Decay", lambda gate: f"{gate.decay:g} a second" if gate.decay else None),
    Column("Next slot", lambda gate: gate.next_free),
    json=lambda gate: {"slot_decay_per_second": gate.decay, "next_free": plain(gate.next_free)},
)


def _find(store: Store, name: str) -> Gate | None:
    return store.limits.get_global(name)


def _every(store: Store) -> list[Gate]:
    return store.limits.global_limits()


def _activate(store: Store, name: str, active: bool) -> bool:
    return store.limits.update_global(name, active=active) == "ok"


def _remove(store: Store, name: str) -> bool:
    return store.limits.delete_global(name)


GLOBAL = Kind(
    noun="global-concurrency-limit",
    command="gcl",
    argument="NAME",
    example="db",
    label=lambda name: f"global limit '{name}'",
    missing=lambda name: f"There is no global limit '{name}'.",
    create_hint=lambda name: f"orch gcl create {name} --limit 5",
    find=_find,
    every=_every,
    activate=_activate,
    remove=_remove,
    complete=complete_global_limit,
    view=LIMIT,
)


def _check_decay(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is None or value == 0 or (math.isfinite(value) and _SLOWEST <= value <= _FASTEST):
        return value
    raise Usage(
        f"Slots cannot come back at {value:g} a second.",
        hint="Give 0 (holders give them back), or 0.000001 to 1000000; 0.1 is one slot every ten seconds.",
    )


_decay_option = click.option(
    "--slot-decay-per-second",
    "decay",
    type=float,
    metavar="D",
    callback=_check_decay,
    help="A rate limit: so many slots a second come back by time; 0 = holders give them back.",
)


@click.group(
    "global-concurrency-limit",
    cls=Noun,
    examples=(
        "orch global-concurrency-limit create db --limit 5",
        "orch global-concurrency-limit inspect db",
    ),
)
def global_concurrency_limit() -> None:
    """Limit what code does at a time, or how often. For short: gcl.

    'with concurrency("db"):' in a flow or task takes a slot of the limit 'db', or waits for one. Of a limit with slot decay,
    slots come back by time: 'rate_limit("api")' takes one of these.
    """


@global_concurrency_limit.command(
    "create",
    examples=(
        "orch global-concurrency-limit create db --limit 5",
        "orch global-concurrency-limit create api --limit 10 --slot-decay-per-second 2",
    ),
)
@click.argument("name")
@click.option("--limit", type=click.IntRange(min=0), required=True, metavar="N", help="How many slots there are; 0 lets none.")
@_decay_option
@click.option("--disable", is_flag=True, help="Hold nobody back until the limit is enabled.")
@shows(LIMIT)
def create(out: Printer[Gate], name: str, limit: int, decay: float | None, disable: bool) -> None:
    """Create a global limit of N slots."""
    with open_store() as store:
        if not store.limits.create_global(name, limit, decay=decay or 0.0, active=not disable):
            raise ObjectAlreadyExists(
                f"There is a global limit '{name}' already.",
                hint=f"Change it with: orch gcl update {quote(name)} --limit {limit}",
            )
        made = GLOBAL.found(store, name)
    out.done(f"Created global limit '{name}': {_rule(made)}.{GLOBAL.while_disabled(made)}", made)


@global_concurrency_limit.command(
    "update",
    examples=(
        "orch global-concurrency-limit update db --limit 8",
        "orch global-concurrency-limit update api --slot-decay-per-second 0.5",
        "orch global-concurrency-limit update db --name warehouse",
    ),
)
@GLOBAL.name_argument()
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="How many slots there are; 0 lets none.")
@_decay_option
@click.option("--name", "new_name", metavar="NEW", help="Call it so from now on. Holders and waiters stay.")
@click.option("--enable/--disable", "active", default=None, help="Hold to the limit, or let everybody through.")
@shows(LIMIT)
def update(
    out: Printer[Gate], name: str, limit: int | None, decay: float | None, new_name: str | None, active: bool | None
) -> None:
    """Change a global limit, also while code holds its slots.

    Above the old limit, those that wait go on at once. Below what is held, nobody loses a slot, and no other gets one until
    enough were given back.
    """
    if limit is None and decay is None and new_name is None and active is None:
        raise Usage(
            "Nothing to change was given.", hint="Give --limit, --slot-decay-per-second, --name, --enable or --disable."
        )
    with open_store() as store:
        answer = store.limits.update_global(name, limit=limit, decay=decay, active=active, new_name=new_name)
        if answer == "missing":
            raise GLOBAL.not_found(name)
        if answer == "exists":
            raise ObjectAlreadyExists(
                f"There is a global limit '{new_name}' already.",
                hint=f"Look at it with: orch gcl inspect {quote(str(new_name))}",
            )
        changed = GLOBAL.found(store, new_name or name)
    renamed = (
        f"Global limit '{name}' is called '{new_name}' now" if new_name not in (None, name) else f"Global limit '{name}' is set"
    )
    out.done(f"{renamed}: {_rule(changed)}.{GLOBAL.while_disabled(changed)}", changed)


def _rule(gate: Gate) -> str:
    """``5 slots``, ``10 slots, of which 2 a second come back``."""
    slots = plural(gate.limit or 0, "slot")
    return f"{slots}, of which {gate.decay:g} a second come back" if gate.decay else slots


add_verbs(global_concurrency_limit, GLOBAL)
