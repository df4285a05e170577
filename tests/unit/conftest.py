"""Fixtures of tests that need no server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.engine import direct
from recording import Recording


@pytest.fixture
def recording() -> Iterator[Recording]:
    """Flows that the test calls are recorded here."""
    recording = Recording()
    direct.use(recording.link)
    yield recording
    direct.use(None)
    recording.end()
