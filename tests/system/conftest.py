"""``orch`` against the test's own namespace."""

from __future__ import annotations

import pytest

from console import Answer, Orch
from orch_cli.main import main
from orchestrator.settings import Settings
from orchestrator.store import Store


@pytest.fixture
def orch(store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Orch:
    """Run one command against the test's namespace."""
    assert settings.redis_url is not None
    monkeypatch.setenv("ORCH_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("ORCH_NAMESPACE", settings.namespace)
    monkeypatch.setenv("ORCH_HOME", str(settings.home))

    def run(*words: str) -> Answer:
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run
