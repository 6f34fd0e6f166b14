"""Creates by a name of the user's whose answer nobody takes: nothing is left, and what others made is not touched."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from sandboxrt import AsyncSandboxClient
from sandboxrt.errors import ResourceAlreadyExistsError
from tests.cancelling import CancelAt
from tests.server.app_kit import Site, site


async def left(found: Site) -> list[str]:
    return [box["name"] for box in (await found.acme.get("/boxes")).json()["sandboxes"]]


@pytest.mark.timeout(240)
async def test_cancelled_at_every_step(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        endpoint = f"{found.server.url}/v2/sandboxes"
        async with AsyncSandboxClient(api_endpoint=endpoint, api_key=found.secret) as client:
            await (await client.create_sandbox(name="mine")).delete()
            for step in range(1, 1000):
                instrument = CancelAt(step)
                await instrument.run(lambda: client.create_sandbox(name="mine"))
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
                with contextlib.suppress(ResourceAlreadyExistsError):
                    await CancelAt(step).run(lambda: client.create_sandbox(name="mine"))
                assert await left(found) == ["mine"], f"cancelled at step {step}"
