"""A host without room: what is refused, and how each client learns it, embedded and served; what goes on working."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sandboxrt import AsyncSandboxClient
from sandboxrt.errors import HostDiskFullError, ResourceCreationError, SandboxOperationError
from sandboxrt.host.config import HostConfig
from sandboxrt.room import Room
from sandboxrt.testing.fake import FakeEngine
from tests.server.app_kit import API, detail, site

MORE_THAN_THERE_IS = 2**62


@asynccontextmanager
async def opened(mode: str, folder: Path) -> AsyncIterator[tuple[AsyncSandboxClient, Room]]:
    """A client, and the room of its host."""
    if mode == "served":
        async with site(folder) as here:
            url = f"http://127.0.0.1:{here.server.port}{API}"
            async with AsyncSandboxClient(api_endpoint=url, api_key=here.secret) as client:
                yield client, here.server.app._host.room
        return
    async with FakeEngine() as engine, AsyncSandboxClient(engine=engine, state_dir=folder, mode="embedded") as client:
        await client.list_sandboxes()
        yield client, client._owner.transport.host.room  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["embedded", "served"])
async def test_nothing_new_begins_and_all_else_goes_on(mode: str, tmp_path: Path) -> None:
    async with opened(mode, tmp_path) as (client, room):
        box = await client.create_sandbox(name="box")
        rested = await client.create_sandbox(name="rested")
        await box.write("/root/file", "kept")
        await rested.stop()
        room.told_min_free_bytes = MORE_THAN_THERE_IS
        with pytest.raises(HostDiskFullError, match="No sandbox can be made now") as caught:
            await client.create_sandbox(name="new")
        error = caught.value
        assert isinstance(error, ResourceCreationError) and error.resource_type == "sandbox"
        assert error.folder == str(tmp_path) in str(error)
        assert error.min_free_bytes == MORE_THAN_THERE_IS
        assert error.free_bytes is not None and 0 < error.free_bytes < 2**50
        assert error.usage == await room.usage()
        with pytest.raises(HostDiskFullError, match="No sandbox can be started now"):
            await rested.start()
        assert (await client.get_sandbox("rested")).status == "stopped"
        with pytest.raises(HostDiskFullError, match="No file can be uploaded now") as refused:
            await box.write("/root/file", "new")
        assert isinstance(refused.value, SandboxOperationError) and refused.value.operation == "write"
        assert await box.read("/root/file") == b"kept"
        assert (await box.run("echo on")).stdout == "on\n"
        await box.stop()
        await client.delete_sandbox("box")
        room.told_min_free_bytes = 0
        await rested.start()
        await client.create_sandbox(name="new")


async def test_what_a_command_wakes_is_refused_with_the_same_error(tmp_path: Path) -> None:
    async with opened("served", tmp_path) as (client, room):
        box = await client.create_sandbox(name="box")
        await client.stop_sandbox("box")
        room.told_min_free_bytes = MORE_THAN_THERE_IS
        with pytest.raises(HostDiskFullError):
            await client.start_sandbox("box")
        # This one was not told of the stop, so it asks for the command.
        with pytest.raises(SandboxOperationError) as caught:
            await box.run("true")
        assert isinstance(caught.value, HostDiskFullError)


async def test_the_wire_says_what_to_do(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.box()
        room = here.server.app._host.room
        room.told_min_free_bytes = MORE_THAN_THERE_IS
        answer = await here.acme.post("/boxes", json={"name": "two"})
        said = detail(answer, 507)
        assert said["error"] == "HostDiskFull" and said["folder"] == str(tmp_path)
        # Official clients repeat what fails with 500 and above, but not against this.
        assert answer.headers["x-should-retry"] == "false"
        root = f"http://127.0.0.1:{here.server.port}"
        health = await here.nobody.get(root + "/healthz")
        assert (health.status_code, health.json()) == (200, {"status": "degraded", "reason": "HostDiskFull"})
        assert str(tmp_path) not in health.text
        room.restricted, room.frozen, room.owed_bytes = 3, 1, 4096
        text = (await here.nobody.get(root + "/metrics")).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        disk = {sample.labels["kind"]: sample.value for sample in families["sandboxrt_disk_bytes"].samples}
        assert disk["kept"] == MORE_THAN_THERE_IS and disk["owed"] == 4096 and disk["free"] > 0
        held = {sample.labels["state"]: sample.value for sample in families["sandboxrt_disk_sandboxes"].samples}
        assert held == {"restricted": 3, "frozen": 1}
        assert {sample.labels["kind"] for sample in families["sandboxrt_state_bytes"].samples} >= {"records"}


def test_the_mark_is_checked() -> None:
    with pytest.raises(ValueError, match="min_free_bytes"):
        HostConfig(min_free_bytes=-1)
