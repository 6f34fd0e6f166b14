from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sandboxrt
from sandboxrt.testing.fake import FakeEngine
from tests.bridge.kit import fake_engine


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: preparing the built-in snapshot is most of what a client's first sandbox takes."""
    return tmp_path_factory.mktemp("bridge")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """A fake engine that lives on the bridge's trio thread."""
    with fake_engine() as engine:
        yield engine
        assert engine.containers == {}


@pytest.fixture
def client(engine: FakeEngine, state_dir: Path) -> Iterator[sandboxrt.SandboxClient]:
    with sandboxrt.SandboxClient(engine=engine, state_dir=state_dir) as client:
        yield client
