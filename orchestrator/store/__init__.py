"""The only folder that talks to Redis.

    store = open_store()
    [run] = store.runs.create([NewRun(flow="hello")])

``open_store`` connects to the configured server, or starts or joins the private one of this ORCH_HOME. A ``Store`` is a set
of small objects, one a subject, over one connection pool; it is thread-safe. All calls are synchronous (docs/decisions/).

redis-py is imported with the first of these names, not before: a flow that only asks whether a server runs
(``store.embedded``) does not pay for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.store.facade import NamespaceSettings as NamespaceSettings
    from orchestrator.store.facade import Store as Store
    from orchestrator.store.facade import open_store as open_store

__all__ = ["NamespaceSettings", "Store", "open_store"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("orchestrator.store.facade"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
