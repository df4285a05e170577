"""``orch completion``: the script for a shell, and names of deployments, pools, workers and limits while someone types.

The server has 300 ms to tell the names, besides the time that Python takes to start. What takes longer or fails completes
nothing and says nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from orch_cli import output
from orch_cli.commands import Command

_BUDGET_S = 0.3
_VARIABLE = "_ORCH_COMPLETE"
_WHERE = {
    "bash": '~/.bashrc: eval "$(orch completion bash)"',
    "zsh": '~/.zshrc: eval "$(orch completion zsh)"',
    "fish": "~/.config/fish/config.fish: orch completion fish | source",
}


@click.command("completion", cls=Command, examples=("orch completion bash", "orch completion fish"))
@click.argument("shell", type=click.Choice(list(_WHERE)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and names in your shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click knows every shell that the argument allows"
    output.write(found(context.find_root().command, {}, "orch", _VARIABLE).source())
    if output.is_terminal():
        output.say_hint(f"To load it in every new shell, add to {_WHERE[shell]}")


def complete_deployment(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Deployments whose name begins so."""
    return _names(context, incomplete, lambda store: store.deployments.slugs())


def complete_pool(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Work pools whose name begins so."""
    return _names(context, incomplete, lambda store: store.pools.names())


def complete_worker(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Workers whose name begins so."""
    return _names(context, incomplete, lambda store: [worker.name for worker in store.pools.workers()])


def complete_limited_tag(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Tags with a concurrency limit that begin so."""
    return _names(context, incomplete, lambda store: store.limits.tags())


def complete_global_limit(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Global limits whose name begins so."""
    return _names(context, incomplete, lambda store: [limit.title for limit in store.limits.global_limits()])


def _names(context: click.Context, incomplete: str, read: Callable[[Any], list[str]]) -> list[CompletionItem]:
    from orch_cli.connection import settings
    from orchestrator.store import open_store

    names: list[str] = []

    def work() -> None:
        try:
            with open_store(settings(context), start_embedded=False) as store:
                names.extend(read(store))
        except Exception:  # noqa: S110 - a shell that waits for a completion is no place for an error
            pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_BUDGET_S)
    return [CompletionItem(name) for name in list(names) if name.startswith(incomplete)]
