"""The kinds of server that the store has to work on alike."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.servers import Certificates, ClusterServers, OneServer, SentinelServers, make_certificates
from harness import RedisServer, needs

PASSWORD = "pass word/@:1"

KINDS = ("standalone", "redis", "tls", "sentinel", "sentinel-tls", "cluster", "cluster-tls")
"""``redis`` is Debian's redis-server, and so are those with tls, which have passwords too; the others are the embedded binary,
which is built without TLS."""


@contextmanager
def servers(kind: str) -> Iterator[Any]:
    """A server, or several, of a kind; ``url`` leads there. Ended and forgotten afterwards."""
    with ExitStack() as stack:
        if kind in ("standalone", "redis"):
            binary = Path(needs("redis-server", "redis-server")) if kind == "redis" else None
            server = RedisServer(binary=binary)
            stack.callback(server.stop)
            yield server.start()
            return
        make = {"tls": OneServer, "sentinel": SentinelServers, "cluster": ClusterServers}[kind.removesuffix("-tls")]
        yield stack.enter_context(make(**(secured(stack) if kind.endswith("tls") else {}))).start()


def secured(stack: ExitStack) -> dict[str, Any]:
    """What gives servers a password that has to be escaped in a URL, and TLS."""
    binary = Path(needs("redis-server", "redis-server"))
    return {"password": PASSWORD, "certificates": certificates(stack), "binary": binary}


def certificates(stack: ExitStack) -> Certificates:
    """Certificates for as long as the stack stands."""
    needs("openssl", "openssl")
    return make_certificates(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orch-"))))
