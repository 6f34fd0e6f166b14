"""The conformance suites through our server and our client's remote transport: fake engine, and real containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxrt import AsyncSandboxClient, SandboxOperationError
from sandboxrt.client.transport.http import HttpTransport
from sandboxrt.protocol.exec import COMMAND_TOO_LONG
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


@pytest.mark.container
@pytest.mark.timeout(90)
async def test_a_command_that_is_too_long_is_told_as_embedded(state_dir: Path) -> None:
    """One that the kernel does not take, and one that is too long for a message."""
    async with served(state_dir) as (server, config):
        url = f"http://127.0.0.1:{server.port}/v2/sandboxes"
        async with AsyncSandboxClient(api_endpoint=url, api_key=config.api_key) as client, client.sandbox() as box:
            for size in (200_000, 5_000_000):
                with pytest.raises(SandboxOperationError) as caught:
                    await box.run("true #" + "x" * size)
                assert caught.value.args[0] == COMMAND_TOO_LONG
            assert (await box.run("echo lives")).stdout == "lives\n"
