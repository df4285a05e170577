"""Servers that a test may harm, and settings that lead to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.servers import ClusterServers, SentinelServers
from orchestrator.settings import Settings

MakeSettings = Callable[[str], Settings]


@pytest.fixture
def settings_for(tmp_path: Path) -> MakeSettings:
    """Settings for a URL, in a namespace of their own, without patience."""

    def make(url: str) -> Settings:
        return Settings(
            home=tmp_path, redis_url=url, namespace=f"t-{uuid.uuid4().hex[:12]}", redis_timeout_s=2, redis_retry_s=0
        )

    return make


@pytest.fixture
def make_sentinel() -> Iterator[Callable[..., SentinelServers]]:
    """Start a primary with replicas and Sentinels; they end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(SentinelServers(**options)).start()


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., ClusterServers]]:
    """Start a Cluster; it ends with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(ClusterServers(**options)).start()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Cluster that no test harms for good."""
    with ClusterServers() as servers:
        yield servers.start()
