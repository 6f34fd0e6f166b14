"""``delete_after_stop_seconds`` of our own client, embedded and over the wire; what it means is tested at the host."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio.testing

from sandboxrt import AsyncSandboxClient, ResourceNotFoundError
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.peer import Peer


async def test_embedded(tmp_path: Path) -> None:
    async with (
        FakeEngine() as engine,
        AsyncSandboxClient(mode="embedded", state_dir=tmp_path, engine=engine) as client,
    ):
        made = await client.create_sandbox(name="box", idle_ttl_seconds=3600, delete_after_stop_seconds=7200)
        assert made.delete_after_stop_seconds == 7200
        changed = await client.update_sandbox("box", delete_after_stop_seconds=0)
        assert (changed.delete_after_stop_seconds, changed.idle_ttl_seconds) == (0, 3600)
        for wrong in (90, -60):
            with pytest.raises(ValueError, match="delete_after_stop_seconds must be 0 or a multiple of 60"):
                await client.create_sandbox(delete_after_stop_seconds=wrong)
            with pytest.raises(ValueError, match="delete_after_stop_seconds must be 0 or a multiple of 60"):
                await client.update_sandbox("box", delete_after_stop_seconds=wrong)


async def test_over_the_wire(clock: trio.testing.MockClock, client: AsyncSandboxClient, peer: Peer) -> None:
    await client.create_sandbox(name="mine", delete_after_stop_seconds=600)
    assert peer.requests[-1].json["delete_after_stop_seconds"] == 600
    with pytest.raises(ResourceNotFoundError):
        await client.update_sandbox("nobody", delete_after_stop_seconds=0)
    assert peer.requests[-1].json == {"delete_after_stop_seconds": 0}
