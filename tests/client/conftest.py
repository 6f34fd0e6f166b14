from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.testing.peer import Peer, open_peer

_VARIABLES = ("LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Virtual time, which passes while nothing is under way between the peer and its clients."""
    return trio.testing.MockClock(rate=0)


@pytest.fixture
async def peer(clock: trio.testing.MockClock) -> AsyncIterator[Peer]:
    async with open_peer(clock) as peer:
        yield peer
        # Whatever a test did: a closed client keeps no connection, and every connection laid out was made.
        with trio.move_on_after(5):
            await peer.until(lambda: peer.connections == 0)
        assert peer.connections == 0
        assert peer.unplayed == 0


@pytest.fixture
async def client(peer: Peer) -> AsyncIterator[AsyncSandboxClient]:
    async with AsyncSandboxClient(api_endpoint=peer.endpoint, api_key="key") as client:
        with trio.fail_after(7200):  # of virtual time
            yield client


@pytest.fixture
async def box(client: AsyncSandboxClient) -> AsyncSandbox:
    return await client.create_sandbox(name="box")
