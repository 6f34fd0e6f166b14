from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sandboxrt
from sandboxrt.testing.fake import FakeEngine
from tests.bridge.kit import fake_engine


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """A fake engine that lives on the bridge's trio thread."""
    with fake_engine() as engine:
        yield engine
        assert engine.containers == {}


@pytest.fixture
def client(engine: FakeEngine, tmp_path: Path) -> Iterator[sandboxrt.SandboxClient]:
    with sandboxrt.SandboxClient(engine=engine, state_dir=tmp_path) as client:
        yield client
