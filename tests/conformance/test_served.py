"""The conformance suites through our server and our client's remote transport: fake engine, and real containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxrt.client.transport.http import HttpTransport
from sandboxrt.testing.conformance import ALL_CASES
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state
from tests.conformance.served_kit import ServedDriver, served
from tests.conformance.test_oci import children, leftovers


@pytest.mark.parametrize("name", ALL_CASES)
@pytest.mark.timeout(90)
async def test_fake(name: str, tmp_path: Path) -> None:
    async with FakeEngine() as engine:
        async with (
            served(tmp_path, engine=engine, state=memory_state) as (_, config),
            HttpTransport.open(config) as transport,
        ):
            await ALL_CASES[name](ServedDriver(transport))
            assert await transport.list_sandboxes() == []
        assert not engine.containers
        assert not engine.kept


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.mark.container
@pytest.mark.parametrize("name", ALL_CASES)
@pytest.mark.timeout(90)
async def test_oci(name: str, state_dir: Path) -> None:
    before = children()
    async with served(state_dir) as (_, config), HttpTransport.open(config) as transport:
        await ALL_CASES[name](ServedDriver(transport))
        assert await transport.list_sandboxes() == []
        assert list(leftovers(state_dir)) == []
    assert list(leftovers(state_dir)) == []
    assert children() <= before
