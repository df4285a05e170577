"""Redis Sentinel: several Sentinels watch a primary and its replicas, and make one of these the primary when it dies.

``redis+sentinel://[user:password@]host:26379,host:26379/SERVICE[/DB]``: the hosts are the Sentinels', user and password the
servers'.
"""

from __future__ import annotations

from typing import Any

import redis

from orchestrator.exceptions import ConfigurationError, StoreUnavailable
from orchestrator.settings import did_you_mean, shown_url
from orchestrator.store.primary import Host, Primary, Servers, read_url, spelled

EXAMPLE = "redis+sentinel://USER:PASSWORD@HOST:26379,HOST:26379,HOST:26379/SERVICE"

_PORT = 26379
_OWN_OPTIONS = ("sentinel_username", "sentinel_password")


class SentinelPrimary(Primary):
    """The primary of one service, as its Sentinels name it. One Sentinel that answers is enough."""

    kind = "sentinel"

    def __init__(self, servers: Servers, service: str, timeout_s: float) -> None:
        super().__init__()
        self.service = service
        self._servers = servers
        self._sentinels = list(servers.hosts)
        self._timeout_s = timeout_s
        self._login = {
            "username": servers.own.get("sentinel_username"),
            "password": servers.own.get("sentinel_password"),
        }

    @property
    def askable(self) -> list[Host]:
        """The Sentinels; first the one that answered last."""
        return list(self._sentinels)

    def find(self) -> Host:
        """See Primary."""
        failures: list[str] = []
        refused: StoreUnavailable | None = None
        for sentinel in self.askable:
            try:
                answer = self._ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
            except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
                refused = StoreUnavailable(
                    f"The Sentinel at {spelled(sentinel)} refuses the login: {error}.",
                    hint="Their login is one of its own: add ?sentinel_username=USER&sentinel_password=PASSWORD to the URL.",
                )
            except redis.ResponseError as error:
                refused = StoreUnavailable(
                    f"What answers at {spelled(sentinel)} is no Sentinel: {error}.",
                    hint="The hosts of redis+sentinel:// are the Sentinels (usually port 26379), not the servers.",
                )
            except redis.RedisError as error:
                failures.append(f"{spelled(sentinel)} ({error})")
            else:
                if answer:
                    self._sentinels.remove(sentinel)
                    self._sentinels.insert(0, sentinel)
                    return answer[0].decode(), int(answer[1])
                refused = self._unknown_service(sentinel)
        if refused is not None:
            raise refused
        raise redis.ConnectionError(f"no Sentinel can be reached: {', '.join(failures)}")

    def check(self, connection: Any) -> None:
        """A Sentinel that was cut off itself may name a server that is a replica by now."""
        try:
            connection.send_command("ROLE")
            role = connection.read_response()[0]
        except redis.exceptions.NoPermissionError:
            return
        if role != b"master":
            raise redis.ConnectionError(f"{spelled(connection.address)} is not the primary of {self.service!r} any more")

    def _ask(self, sentinel: Host, *command: str) -> Any:
        with self._servers.asking(sentinel, self._timeout_s, **self._login) as client:
            return client.execute_command(*command)

    def _unknown_service(self, sentinel: Host) -> StoreUnavailable:
        try:
            answer = self._ask(sentinel, "SENTINEL", "MASTERS")
        except redis.RedisError:
            answer = []
        known = [dict(zip(flat[::2], flat[1::2], strict=True))[b"name"].decode() for flat in answer]
        return StoreUnavailable(
            f"The Sentinel at {spelled(sentinel)} knows no service {self.service!r}.{did_you_mean(self.service, known)}",
            hint=f"It knows: {', '.join(known)}. The service is what follows the hosts in the URL."
            if known
            else "It watches nothing. Give it a primary: sentinel monitor SERVICE HOST PORT QUORUM in its configuration file.",
        )


def read(url: str) -> tuple[Servers, str, int]:
    """The Sentinels, the service and the number of the database. Raises ConfigurationError."""
    servers = read_url(url, _PORT, EXAMPLE, _OWN_OPTIONS)
    if not servers.parts:
        raise ConfigurationError(
            f"The address {shown_url(url)} names no service, so the Sentinels cannot be asked for its primary.",
            hint=f"Write {EXAMPLE}, with the name that 'sentinel monitor' has in the Sentinels' configuration.",
        )
    service, *rest = servers.parts
    if len(rest) > 1 or not all(part.isdigit() for part in rest):
        raise ConfigurationError(f"The address {shown_url(url)} is wrong.", hint=f"Write {EXAMPLE} or {EXAMPLE}/DB")
    return servers, service, int(rest[0]) if rest else 0
