"""Captures of real sandboxes through the client: what they hold, on what they lie, and what is left of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxrt import (
    AsyncSandbox,
    AsyncSandboxClient,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNotFoundError,
    RunConfig,
    Snapshot,
    ValidationError,
)
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.exec import Execute, Exit
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, CreateSnapshot
from sandboxrt.snapshots import host as host_snapshot
from sandboxrt.snapshots.content import SnapshotConfig
from tests.images.catalogue import Catalogue
from tests.leaks import assert_nothing_left

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

MIB = 1024**2


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncSandboxClient]:
    with assert_nothing_left(tmp_path):
        async with AsyncSandboxClient(mode="embedded", state_dir=tmp_path) as client:
            yield client


async def printed(sandbox: AsyncSandbox, command: str) -> str:
    result = await sandbox.run(command)
    assert result.success, result
    return result.stdout


async def test_image_settings_limits_and_tags_go_along(client: AsyncSandboxClient, catalogue: Catalogue) -> None:
    image = await client.create_snapshot("base", catalogue.reference("nobash:1"), 64 * MIB)
    async with client.sandbox(image.id, fs_capacity_bytes=96 * MIB) as sandbox:
        await sandbox.write("/srv/app/note", "kept")
        first = await sandbox.capture_snapshot("mine")
        second = await sandbox.capture_snapshot(
            "mine", tag="v2", fs_capacity_bytes=128 * MIB, run_config=RunConfig(user="root", work_dir="/tmp")
        )
    assert (first.fs_capacity_bytes, second.fs_capacity_bytes) == (96 * MIB, 128 * MIB)
    assert first.source_sandbox_id == sandbox.id
    assert image.fs_used_bytes is not None
    assert first.fs_used_bytes is not None
    assert first.fs_used_bytes > image.fs_used_bytes
    assert (first.tags, second.tags) == (("latest",), ("v2",))
    assert (await client.get_snapshot("mine:v2")).id == second.id
    async with client.sandbox(snapshot_name="mine") as newest:
        assert await printed(newest, "id -u; pwd") == "0\n/tmp\n"
        assert newest.fs_capacity_bytes == 128 * MIB
    async with client.sandbox(first.id) as older:
        assert await printed(older, "id -u; pwd; cat note; echo $GREETING") == "1234\n/srv/app\nkepthello world\n"


async def test_what_is_in_use_is_not_deleted_and_says_by_whom(client: AsyncSandboxClient, catalogue: Catalogue) -> None:
    image = await client.create_snapshot("base", catalogue.reference("tiny:1"), 64 * MIB)
    async with client.sandbox(image.id, name="first") as sandbox:
        capture = await sandbox.capture_snapshot("derived")
        with pytest.raises(ResourceInUseError) as caught:
            await client.delete_snapshot(image.id)
        assert caught.value.used_by == ("first", "derived")
    with pytest.raises(ResourceInUseError) as caught:
        await client.delete_snapshot(image.id)
    assert caught.value.used_by == ("derived",)
    await client.delete_snapshot(capture.id)
    await client.delete_snapshot(image.id)
    with pytest.raises(ResourceNotFoundError):
        await client.get_snapshot(capture.id)


async def test_too_small_a_capacity_is_refused(client: AsyncSandboxClient, catalogue: Catalogue) -> None:
    image = await client.create_snapshot("base", catalogue.reference("nobash:1"), 64 * MIB)
    async with client.sandbox(image.id) as sandbox:
        with pytest.raises(ResourceCreationError, match="fs_capacity_bytes of 1 is less than"):
            await sandbox.capture_snapshot("small", fs_capacity_bytes=1)
    assert image.fs_used_bytes is not None
    with pytest.raises(ValidationError, match="that the snapshot holds") as caught:
        await client.create_sandbox(image.id, fs_capacity_bytes=image.fs_used_bytes - 1)
    assert caught.value.field == "fs_capacity_bytes"
    with pytest.raises(ResourceCreationError, match="fs_capacity_bytes of 4096 is less than"):
        await client.create_snapshot("image", catalogue.reference("nobash:1"), 4096)
    for failed in await client.list_snapshots(name_contains="image"):
        await client.delete_snapshot(failed.id)
    assert await client.list_sandboxes() == []
    assert [each.name for each in await client.list_snapshots(name_contains="small")] == ["small"]
    assert sorted(path.name for path in (client._config.state_dir / "snapshots").iterdir()) == [image.id]


async def chain(host: Host, first: Snapshot, depth: int) -> list[Snapshot]:
    """Captures of captures, each of which adds a file, changes one and removes one."""
    made = [first]
    for number in range(depth):
        request = CreateSandbox(name=f"chain{number}", snapshot_id=made[-1].id)
        await host.create_sandbox(request)
        script = f"mkdir -p d; echo {number} > d/at{number}; echo {number} > d/last; rm -f d/at{number - 3}"
        await run(host, request.name, script)
        begun = await host.capture_snapshot(request.name, CaptureSnapshot(name=f"capture{number}"))
        made.append(await host.wait_for_snapshot(begun.id, 60))
        await host.delete_sandbox(request.name)
    return made


async def run(host: Host, name: str, command: str) -> str:
    attachment = await host.attach(name, Execute(command=command, shell="/bin/sh"))
    text = ""
    try:
        while not isinstance(frame := await attachment.receive(), Exit):
            text += getattr(frame, "data", "")
        assert frame.exit_code == 0, text
    finally:
        await attachment.aclose()
    return text


@contextlib.asynccontextmanager
async def base_on(state_dir: Path, catalogue: Catalogue, **settings: int) -> AsyncIterator[tuple[Host, Snapshot]]:
    with assert_nothing_left(state_dir):
        async with open_host(HostConfig(state_dir=state_dir, snapshots=SnapshotConfig(**settings))) as host:  # type: ignore[arg-type]
            image = CreateSnapshot(
                name="base", docker_image=catalogue.reference("nobash:1"), fs_capacity_bytes=64 * MIB
            )
            begun = await host.create_snapshot(image)
            yield host, await host.wait_for_snapshot(begun.id, 60)


async def test_a_deep_chain(tmp_path: Path, catalogue: Catalogue) -> None:
    async with base_on(tmp_path, catalogue) as (host, base):
        made = await chain(host, base, 40)
        await host.create_sandbox(CreateSandbox(name="deep", snapshot_id=made[-1].id))
        found = await run(host, "deep", "cat d/last; ls d | sort")
        assert found.split() == ["39", "at37", "at38", "at39", "last"]
        for snapshot in made[:-1]:
            with pytest.raises(ResourceInUseError):
                await host.delete_snapshot(snapshot.id)
        await host.delete_sandbox("deep")
        for snapshot in reversed(made):
            await host.delete_snapshot(snapshot.id)
        assert list((tmp_path / "snapshots").iterdir()) == []


async def test_past_the_limit_of_layers_a_capture_stands_alone(tmp_path: Path, catalogue: Catalogue) -> None:
    async with base_on(tmp_path, catalogue, max_layers=3) as (host, base):
        made = await chain(host, base, 7)
        # The third and the sixth capture would have had a fourth layer, so that nothing lies on those before them.
        for snapshot in reversed(made[:3]):
            await host.delete_snapshot(snapshot.id)
        with pytest.raises(ResourceInUseError):
            await host.delete_snapshot(made[3].id)
        await host.create_sandbox(CreateSandbox(name="deep", snapshot_id=made[-1].id))
        found = await run(host, "deep", "cat d/last; ls d | sort; id -u")
        assert found.split() == ["6", "at4", "at5", "at6", "last", "1234"]


async def test_deleting_a_sandbox_ends_its_capture_and_stopping_waits_for_it(
    client: AsyncSandboxClient, tmp_path: Path
) -> None:
    sandbox = await client.create_sandbox(fs_capacity_bytes=512 * MIB)
    await printed(sandbox, "for i in $(seq 1500); do head -c 100000 /dev/zero > /root/$i; done")
    async with trio.open_nursery() as nursery:

        async def capture() -> None:
            await sandbox.capture_snapshot("whole")

        nursery.start_soon(capture)
        await trio.sleep(0.05)
        await sandbox.stop()
    async with trio.open_nursery() as nursery:

        async def fail_to_capture() -> None:
            with pytest.raises(ResourceCreationError, match="ended while it was captured"):
                await sandbox.capture_snapshot("doomed")

        await sandbox.start()
        nursery.start_soon(fail_to_capture)
        await trio.sleep(0.05)
        await sandbox.delete()
    async with client.sandbox(snapshot_name="whole") as copy:
        assert await printed(copy, "ls /root | wc -l") == "1500\n"


async def test_on_the_built_in_snapshot_a_capture_outlives_a_change_of_packages(
    client: AsyncSandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.sandbox() as sandbox:
        await sandbox.write("/opt/config.yaml", "model: gpt-5\n")
        await printed(sandbox, "echo mine > /usr/local/bin/tool")
        capture = await sandbox.capture_snapshot("on-host")
        before = sandbox.snapshot_id
        assert before is not None
        fingerprint = host_snapshot.fingerprint
        monkeypatch.setattr("sandboxrt.snapshots.library.fingerprint", lambda: fingerprint() + " upgraded")
        with pytest.raises(ResourceInUseError, match="packages of this machine changed"):
            await client.create_sandbox(capture.id)
        late = await sandbox.capture_snapshot("late")
    async with client.sandbox(late.id) as copy:
        assert await printed(copy, "cat /usr/local/bin/tool") == "mine\n"
    async with client.sandbox(capture.id) as copy:
        assert await copy.read("/opt/config.yaml") == b"model: gpt-5\n"
        assert await printed(copy, "cat /usr/local/bin/tool; python3 -c 'print(1)'") == "mine\n1\n"
        again = await copy.capture_snapshot("again")
    with pytest.raises(ResourceNotFoundError):
        await client.get_snapshot(before)
    async with client.sandbox(again.id) as copy:
        assert await printed(copy, "cat /usr/local/bin/tool") == "mine\n"
    (host,) = [each for each in await client.list_snapshots() if each.name == "host"]
    with pytest.raises(ResourceInUseError) as caught:
        await client.delete_snapshot(host.id)
    assert caught.value.used_by == ("late", "on-host")


async def test_what_an_earlier_host_has_kept_can_be_captured(tmp_path: Path) -> None:
    config = HostConfig(state_dir=tmp_path, keep=True)
    with assert_nothing_left(tmp_path):
        async with open_host(config) as host:
            await host.create_sandbox(CreateSandbox(name="kept"))
            await run(host, "kept", "echo mine > /root/file")
        async with open_host(config) as host:
            assert (await host.get_sandbox("kept")).status == "stopped"
            begun = await host.capture_snapshot("kept", CaptureSnapshot(name="of-kept"))
            assert (await host.wait_for_snapshot(begun.id, 60)).status == "ready"
            await host.start_sandbox("kept")
            assert await run(host, "kept", "cat /root/file") == "mine\n"
            await host.create_sandbox(CreateSandbox(name="copy", snapshot="of-kept"))
            assert await run(host, "copy", "cat /root/file") == "mine\n"
        async with open_host(config) as host:
            for name in ("kept", "copy"):
                await host.delete_sandbox(name)
