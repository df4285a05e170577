"""Whether there is room for new runs: what runs already must be able to renew, end and say something."""

from __future__ import annotations

from orchestrator import clock
from orchestrator.exceptions import StoreFull
from orchestrator.store.connection import FULL_PERCENT
from orchestrator.store.scripts import Scripts

_ASK_EVERY_S = 1.0


class Room:
    """The memory of the server that holds the namespace, asked for at most once a second by each process."""

    def __init__(self, scripts: Scripts, address: str) -> None:
        self._scripts = scripts
        self._address = address
        self._asked_at = float("-inf")
        self._has_room, self._percent = True, 0

    def demand(self) -> None:
        """Raises StoreFull where more than 80 % of the server's maxmemory are used. One without a maxmemory always has room."""
        now = clock.monotonic()
        if now - self._asked_at >= _ASK_EVERY_S:
            has_room, self._percent = map(int, self._scripts.call("memory", most=FULL_PERCENT))
            self._has_room = has_room == 1
            self._asked_at = now
        if not self._has_room:
            raise StoreFull(
                f"Redis at {self._address} has used {self._percent}% of its maxmemory and takes no new runs; "
                "those that it has go on.",
                hint="Raise maxmemory on the server, or delete ended runs with: orch flow-run delete --state completed",
            )
