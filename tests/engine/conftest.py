from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxrt.engine.oci import OciEngine
from tests.engine.oci_kit import Workplace, settled


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace.make(tmp_path)


@pytest.fixture(params=["crun", "runc"])
async def engine(request: pytest.FixtureRequest, workplace: Workplace) -> AsyncIterator[OciEngine]:
    """An engine for each runtime; whatever the test did with it must be gone afterwards."""
    async with OciEngine(workplace.folder, request.param) as engine:
        yield engine
    assert await settled(workplace) == []
