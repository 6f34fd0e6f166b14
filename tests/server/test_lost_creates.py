"""Creates by a name of the user's whose answer nobody takes: nothing is left, and what others made is not touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from sandboxrt.errors import ResourceAlreadyExistsError
from tests.server.app_kit import Site, site


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any task, the client's and the server's."""

    def __init__(self, step: int) -> None:
        self.scope = trio.CancelScope()
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self.scope.cancel()


async def left(found: Site) -> list[str]:
    return [box["name"] for box in (await found.acme.get("/boxes")).json()["sandboxes"]]


@pytest.mark.timeout(240)
async def test_cancelled_at_every_step(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        endpoint = f"{found.server.url}/v2/sandboxes"
        async with AsyncSandboxClient(api_endpoint=endpoint, api_key=found.secret) as client:
            await (await client.create_sandbox(name="mine")).delete()
            for step in range(1, 1000):
                instrument = _CancelAt(step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    with instrument.scope:
                        await client.create_sandbox(name="mine")
                finally:
                    trio.lowlevel.remove_instrument(instrument)
                if not instrument.scope.cancelled_caught:
                    break
                assert await left(found) == [], f"cancelled at step {step}"
            assert step > 20
            assert await left(found) == ["mine"]


async def test_what_somebody_else_made_stays(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        endpoint = f"{found.server.url}/v2/sandboxes"
        await found.box("mine")
        async with AsyncSandboxClient(api_endpoint=endpoint, api_key=found.secret) as client:
            for step in range(1, 120, 3):
                instrument = _CancelAt(step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    with instrument.scope:
                        await client.create_sandbox(name="mine")
                except ResourceAlreadyExistsError:
                    pass
                finally:
                    trio.lowlevel.remove_instrument(instrument)
                assert await left(found) == ["mine"], f"cancelled at step {step}"
