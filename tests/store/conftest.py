"""A store whose clock stands still, and a floor: one pool, a few workers, short words for what happens to runs there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from floor import Floor
from orchestrator.clock import FrozenClock
from orchestrator.settings import Settings
from orchestrator.store import Store, open_store
from orchestrator.store.invariants import check


@pytest.fixture
def frozen() -> FrozenClock:
    """What Redis's clock shows to the scripts; it moves only when told to."""
    return FrozenClock(1_800_000_000_000)


@pytest.fixture
def frozen_store(settings: Settings, frozen: FrozenClock) -> Iterator[Store]:
    """A store under the frozen clock in a fresh namespace. Afterwards every invariant must hold, and nothing is left of it."""
    with open_store(settings, frozen=frozen) as store:
        yield store
        broken = check(store)
        for key in store.client.scan_iter(f"{store.keys}*", count=1000):
            store.client.unlink(key)
    assert not broken, "\n".join(map(str, broken))


@pytest.fixture
def floor(frozen_store: Store, frozen: FrozenClock) -> Floor:
    """A floor with the pool ``p``."""
    frozen_store.pools.create("p")
    return Floor(frozen_store, frozen)
