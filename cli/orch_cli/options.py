"""Options and arguments that several commands share, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from orch_cli.completion import complete_deployment, complete_pool
from orchestrator import clock
from orchestrator.models import RunFilter

if TYPE_CHECKING:  # click's types are generic since 8.3 only
    _DurationType = click.ParamType[timedelta]
    _MomentType = click.ParamType[datetime]
else:
    _DurationType = _MomentType = click.ParamType

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_CLOCK_TIME = re.compile(r"(?:(today|tomorrow)\s+)?(\d{1,2}):(\d{2})(?::(\d{2}))?")


class Duration(_DurationType):
    """``90s``, ``5m``, ``1h30m``, ``2d``; a bare number counts seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The text as a timedelta."""
        if isinstance(value, timedelta):
            return value
        text = str(value).strip().lower()
        pieces = _DURATION.findall(text)
        if not pieces or _DURATION.sub("", text) or any(unit and unit not in _UNITS for _, unit in pieces):
            self.fail(f"{value!r} is no duration. Write for example 90s, 5m, 1h30m or 2d.", param, ctx)
        try:
            return timedelta(seconds=sum(float(number) * _UNITS[unit or "s"] for number, unit in pieces))
        except OverflowError:
            self.fail(f"{value!r} is too long.", param, ctx)


class Moment(_MomentType):
    """An ISO 8601 date and time, ``HH:MM`` for the next such time, or that of ``today`` or ``tomorrow``.

    In the local zone where the text names none.
    """

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The text as an aware datetime."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        try:
            return self._clock_time(text) or datetime.fromisoformat(text).astimezone()
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no moment. Write for example 18:00, 'tomorrow 9:00' or 2026-12-31T18:00+09:00.", param, ctx
            )

    def _clock_time(self, text: str) -> datetime | None:
        match = _CLOCK_TIME.fullmatch(text.lower())
        if match is None:
            return None
        day, hour, minute, second = match.groups()
        now = clock.now().astimezone()
        moment = now.replace(hour=int(hour), minute=int(minute), second=int(second or 0), microsecond=0, tzinfo=None)
        if day == "tomorrow" or (day is None and moment.astimezone() <= now):
            moment += timedelta(days=1)
        return moment.astimezone()


DURATION = Duration()
MOMENT = Moment()

EVERY = 1_000_000
"""What ``--limit 0`` means where the store wants a number."""

all_option = click.option("--all", "every", is_flag=True, help="All runs, or all that match the filter.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")


def deployment_argument() -> Decorator:
    """A deployment by ``flow/name`` or id."""
    return click.argument("deployment", shell_complete=complete_deployment)


def pool_option(required: bool = False) -> Decorator:
    """A work pool, as ``--pool``."""
    return click.option("-p", "--pool", metavar="NAME", required=required, shell_complete=complete_pool, help="The work pool.")


def worker_name_option() -> Decorator:
    """What the worker is to be called, as ``--name``."""
    return click.option("-n", "--name", metavar="NAME", default="", help="The worker's name; by default made from the host's.")


def worker_queues_option() -> Decorator:
    """The work queues that the worker is to read, as ``--work-queue``; the command takes ``queues``."""
    return click.option(
        "-q", "--work-queue", "queues", multiple=True, metavar="NAME", help="Only this queue of the pool. Can be given again."
    )


def burst_option() -> Decorator:
    """As ``--burst``."""
    return click.option("--burst", is_flag=True, help="End when nothing is left to do.")


def metrics_port_option() -> Decorator:
    """Where to serve metrics, as ``--metrics-port``."""
    told = "Serve Prometheus metrics on this port; 0 picks one."
    return click.option("--metrics-port", type=click.IntRange(0, 65535), metavar="PORT", help=told)


def metrics_address_option() -> Decorator:
    """As ``--metrics-address``."""
    from orchestrator.metrics import ADDRESS

    told = "Serve them at this address."
    return click.option("--metrics-address", default=ADDRESS, show_default=True, metavar="ADDRESS", help=told)


def run_filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that choose runs; the command takes a RunFilter called ``chosen``."""
    state = click.option("--state", multiple=True, metavar="STATE", help="Only runs in this state. Can be given again.")
    return state(stateless_filter_options(function))


def stateless_filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """As ``run_filter_options``, for commands that act on runs in one state anyway."""
    import functools

    @functools.wraps(function)
    def with_filter(
        *args: Any,
        state: tuple[str, ...] = (),
        flow: str | None,
        deployment: str | None,
        pool: str | None,
        tag: tuple[str, ...],
        name: str | None,
        since: timedelta | None,
        **kwargs: Any,
    ) -> Any:
        start = clock.now() - since if since is not None else None
        chosen = RunFilter(
            states=state_names(state), flow=flow, deployment=deployment, pool=pool, tags=tag, name=name, since=start
        )
        return function(*args, chosen=chosen, **kwargs)

    command: Callable[..., Any] = with_filter
    for option in (
        click.option("--since", type=DURATION, metavar="DURATION", help="Only runs due within this time, such as 24h."),
        click.option("--name", metavar="TEXT", help="Only runs whose name contains this."),
        click.option("--tag", multiple=True, metavar="TAG", help="Only runs with this tag. Can be given again."),
        click.option("--pool", metavar="NAME", shell_complete=complete_pool, help="Only runs of this work pool."),
        click.option("--deployment", metavar="NAME", shell_complete=complete_deployment, help="Only runs of this deployment."),
        click.option("--flow", metavar="NAME", help="Only runs of this flow."),
    ):
        command = option(command)
    return command


def state_names(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """State names as typed (``failed``, ``late``) in the spelling of the table; Usage error for one that does not exist."""
    from orch_cli.commands import Usage
    from orchestrator.states import STATE_TYPES, StateType

    # A word that names a type (scheduled, paused) means all of its states: Late is scheduled too.
    spellings = {name.lower(): name for name in STATE_TYPES} | {kind.value.lower(): kind.value for kind in StateType}
    found = []
    for text in wanted:
        key = text.replace("-", "").replace("_", "").lower()
        if key not in spellings:
            raise Usage(f"There is no state {text!r}.", hint="The states are: " + ", ".join(STATE_TYPES))
        found.append(spellings[key])
    return tuple(found)
