"""Opening the store for a command: settings with the global flags, and the one line about an embedded server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orch_cli import output

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.store import Store


def settings(context: click.Context | None = None) -> Settings:
    """The settings that hold for this command."""
    from orch_cli.main import Flags
    from orchestrator.settings import load

    context = context or click.get_current_context(silent=True)
    flags = context.find_object(Flags) if context is not None else None
    return load(profile=flags.profile) if flags is not None and flags.profile else load()


def open_store(start_embedded: bool = True) -> Store:
    """The store; a context manager. Starts or joins the embedded server where no URL is set, and says so on stderr."""
    from orchestrator import store

    return store.open_store(settings(), start_embedded=start_embedded, announce=output.say)
