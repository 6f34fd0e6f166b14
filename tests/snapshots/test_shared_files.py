"""Images with the same layers share one copy of their files, which goes with the last of them."""

from __future__ import annotations

import json
import shutil
import socket
import struct
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt.errors import ResourceCreationError
from sandboxrt.host.doctor.examine import examine
from sandboxrt.snapshots.content import Phase
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store
from tests.images.layouts import entry, layer, write_layout
from tests.images.registry import Registry
from tests.snapshots.conftest import OpenLibrary, left_on_disk, request_for

FILES = layer([entry("etc/"), entry("etc/greeting", "hello\n")])
MORE = layer([entry("etc/more", "more\n")])


async def build(library: SnapshotLibrary, reference: str, name: str = "image", **options: object) -> str:
    begun = await library.create(request_for(reference, name, **options))
    return (await library.wait(begun.id, 30)).id


async def root_of(library: SnapshotLibrary, snapshot_id: str) -> Path:
    (root,) = (await library.use(snapshot_id)).layers
    return root.path


async def test_a_rebuilt_image_takes_no_second_copy(
    open_library: OpenLibrary, registry: Registry, tmp_path: Path
) -> None:
    async with open_library() as library:
        built = [await build(library, f"{registry.address}/tiny:1", tls_verify=False) for _ in range(3)]
        contents = [await library.use(each) for each in built]
        assert len(left_on_disk(tmp_path)) == 1
        assert contents[0] == contents[1] == contents[2]
    assert not examine(tmp_path / "state").findings
    async with open_library() as library:
        # The first may go before the others: whose folder it was does not matter.
        for each in built[:-1]:
            await library.delete(each)
            assert (await root_of(library, built[-1])).is_dir()
            assert not examine(tmp_path / "state").findings
        await library.delete(built[-1])
        assert left_on_disk(tmp_path) == []


async def test_what_is_known_of_the_same_tenant_is_not_fetched_again(
    open_library: OpenLibrary, registry: Registry, tmp_path: Path
) -> None:
    async def phases(library: SnapshotLibrary, tenant: str) -> set[str]:
        begun = await library.create(request_for(f"{registry.address}/tiny:1", tls_verify=False, tenant=tenant))
        seen = {progress.phase async for progress in library.progress(begun.id)}
        assert (await library.wait(begun.id, 30)).status == "ready"
        return seen

    async with open_library() as library:
        assert Phase.UNPACK in await phases(library, "")
        fetched = len(list((tmp_path / "state/snapshots").rglob("*")))
        # Another tenant has to show that it can fetch all of it; then it need not be kept twice.
        assert Phase.UNPACK not in await phases(library, "7f0c2f4e-8a8b-4c55-9d0f-0123456789ab")
        assert Phase.UNPACK not in await phases(library, "")
        assert len(list((tmp_path / "state/snapshots").rglob("*"))) == fetched


async def test_images_with_another_configuration_keep_it(open_library: OpenLibrary, tmp_path: Path) -> None:
    for number in "12":
        write_layout(tmp_path / number, [FILES, MORE], {"Env": [f"N={number}"], "WorkingDir": f"/{number}"})
    async with open_library() as library:
        one, two = [await build(library, f"oci:{tmp_path}/{number}") for number in "12"]
        contents = [await library.use(each) for each in (one, two)]
        assert contents[0].layers == contents[1].layers
        assert [content.config.env["N"] for content in contents] == ["1", "2"]
        assert [content.config.work_dir for content in contents] == ["/1", "/2"]


async def test_layers_in_another_order_are_others(open_library: OpenLibrary, tmp_path: Path) -> None:
    write_layout(tmp_path / "1", [FILES, MORE])
    write_layout(tmp_path / "2", [MORE, FILES])
    write_layout(tmp_path / "3", [FILES])
    async with open_library() as library:
        roots = {await root_of(library, await build(library, f"oci:{tmp_path}/{number}")) for number in "123"}
        assert len(roots) == 3


async def test_who_names_the_layers_of_another_without_having_them_gets_nothing(
    open_library: OpenLibrary, tmp_path: Path
) -> None:
    write_layout(tmp_path / "theirs", [FILES])
    forged = write_layout(tmp_path / "forged", [layer([entry("mine", "mine\n")])])
    index = json.loads((forged / "index.json").read_text())
    theirs = json.loads((tmp_path / "theirs/index.json").read_text())
    manifest = forged / "blobs/sha256" / index["manifests"][0]["digest"].removeprefix("sha256:")
    wanted = tmp_path / "theirs/blobs/sha256" / theirs["manifests"][0]["digest"].removeprefix("sha256:")
    # The manifest of the other image, and its configuration, but not what is unpacked.
    shutil.copy(wanted, manifest.with_name(wanted.name))
    config = json.loads(wanted.read_text())["config"]["digest"].removeprefix("sha256:")
    shutil.copy(wanted.with_name(config), manifest.with_name(config))
    shutil.copy(tmp_path / "theirs/index.json", forged / "index.json")
    async with open_library() as library:
        await build(library, f"oci:{tmp_path}/theirs")
        with pytest.raises(ResourceCreationError) as caught:
            await build(library, f"oci:{forged}", tenant="7f0c2f4e-8a8b-4c55-9d0f-0123456789ab")
        assert caught.value.error_type == "ImagePull"


async def test_built_at_once(open_library: OpenLibrary, tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [FILES, MORE])
    async with open_library() as library:
        built: list[str] = []

        async def one() -> None:
            built.append(await build(library, f"oci:{tmp_path}/image"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        assert len({await root_of(library, each) for each in built}) == 1
        assert len(left_on_disk(tmp_path)) == 1


async def test_a_build_that_fails_after_it_found_the_files_takes_them_from_nobody(
    open_library: OpenLibrary, tmp_path: Path
) -> None:
    write_layout(tmp_path / "image", [layer([entry("big", b"x" * 300_000)])])
    async with open_library() as library:
        first = await build(library, f"oci:{tmp_path}/image")
        for _ in range(2):
            small = attrs.evolve(request_for(f"oci:{tmp_path}/image"), fs_capacity_bytes=1000)
            begun = await library.create(small)
            with pytest.raises(ResourceCreationError) as caught:
                await library.wait(begun.id, 30)
            assert caught.value.error_type == "Capacity"
            assert (await root_of(library, first) / "big").is_file()
        assert left_on_disk(tmp_path) == [first]


async def test_a_builder_that_died_takes_the_files_of_nobody(open_library: OpenLibrary, tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [FILES])
    async with open_library() as library:
        first = await build(library, f"oci:{tmp_path}/image")
    async with Store.open(tmp_path / "state") as store:
        key = (await store.find_snapshot(first)).layers_key
        dead = await store.add_snapshot(name="dead", kind="image", fs_capacity_bytes=2**20)
        assert await store.share_files(dead.id, layers_key=key)
    async with open_library() as library:
        assert (await library.get(dead.id)).status == "failed"
        assert (await root_of(library, first)).is_dir()
        await library.delete(first)
        assert left_on_disk(tmp_path) == []


async def test_files_that_somebody_removed_are_made_again(open_library: OpenLibrary, tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [FILES])
    async with open_library() as library:
        first = await build(library, f"oci:{tmp_path}/image")
        shutil.rmtree(tmp_path / "state/snapshots" / first)
        second = await build(library, f"oci:{tmp_path}/image")
        assert (await root_of(library, second) / "etc/greeting").read_text() == "hello\n"


async def test_connections_that_break_cost_a_build_nothing(open_library: OpenLibrary, registry: Registry) -> None:
    """The first two that come for each thing are reset; the third is let through."""
    host, port = registry.address.split(":")
    seen: list[int] = []

    async def pass_on(stream: trio.SocketStream) -> None:
        seen.append(1)
        if len(seen) in (1, 2, 4, 5):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
            return
        async with await trio.open_tcp_stream(host, int(port)) as other, trio.open_nursery() as nursery:
            for source, target in ((stream, other), (other, stream)):
                nursery.start_soon(copy, source, target)

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in source:
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery, open_library() as library:
        listeners = await nursery.start(partial(trio.serve_tcp, pass_on, 0, host="127.0.0.1"))
        address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        assert await build(library, f"{address}/tiny:1", tls_verify=False)
        assert len(seen) > 5
        nursery.cancel_scope.cancel()
