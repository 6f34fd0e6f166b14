"""Images are made by strangers: nothing that they contain may leave their folder, or act as part of an overlay."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from sandboxrt.errors import ResourceCreationError
from sandboxrt.snapshots.content import SnapshotConfig
from sandboxrt.snapshots.library import SnapshotLibrary
from tests.images.layouts import Blob, compressed, digest, entry, layer, write_layout
from tests.snapshots.conftest import OpenLibrary, left_on_disk, request_for

MIB = 1024**2


async def _build(library: SnapshotLibrary, folder: Path, *layers: Blob) -> Path:
    layout = write_layout(folder, list(layers))
    snapshot = await library.create(request_for(f"oci:{layout}"))
    await library.wait(snapshot.id, 60)
    (root,) = (await library.use(snapshot.id)).layers
    return root.path


def _tricks(outside: Path) -> dict[str, list[Blob]]:
    up = "../" * 30 + str(outside).lstrip("/")
    return {
        "parent": [layer([entry(f"{up}/pwned", "x")])],
        "absolute": [layer([entry(f"{outside}/pwned", "x")])],
        "parent-in-the-middle": [layer([entry("a"), entry(f"a/{up}/pwned", "x")])],
        "absolute-link": [layer([entry("a", link=str(outside)), entry("a/pwned", "x")])],
        "relative-link": [layer([entry("a", link=up), entry("a/pwned", "x")])],
        "link-of-a-lower-layer": [layer([entry("a", link=str(outside))]), layer([entry("a/pwned", "x")])],
        "chain-of-links": [
            layer([entry("d"), entry("d/a", link=".."), entry("d/b", link=f"a/{up}"), entry("d/b/pwned", "x")])
        ],
        "link-as-the-file": [layer([entry("f", link=str(outside / "pwned")), entry("f", "x")])],
        "hard-link-out": [layer([entry("h", hard_link=str(outside / "secret"))])],
        "hard-link-up": [layer([entry("h", hard_link=f"{up}/secret")])],
        "hard-link-through-a-link": [layer([entry("a", link=str(outside)), entry("h", hard_link="a/secret")])],
        "whiteout-out": [layer([entry("a", link=str(outside))]), layer([entry("a/.wh.secret", "")])],
        "opaque-out": [layer([entry("a", link=str(outside))]), layer([entry("a/.wh..wh..opq", "")])],
        "whiteout-of-the-parent": [layer([entry("a"), entry("a/.wh...", "")])],
        "folder-over-a-link": [layer([entry("a", link=str(outside))]), layer([entry("a", mode=0o777)])],
    }


@pytest.mark.parametrize("trick", _tricks(Path("/nowhere")))
async def test_unpacking_stays_in_its_folder(trick: str, open_library: OpenLibrary, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "secret").write_text("secret")
    before = (outside.stat().st_mode, outside.stat().st_uid)
    async with open_library() as library:
        root: Path | None = None
        try:
            root = await _build(library, tmp_path / "layout", *_tricks(outside)[trick])
        except ResourceCreationError as error:
            assert error.error_type in ("ImagePull", "ImageUnpack")
            assert left_on_disk(tmp_path) == []
    assert sorted(os.listdir(outside)) == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert (outside / "secret").stat().st_nlink == 1
    assert (outside.stat().st_mode, outside.stat().st_uid) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layout", "outside", "state"]
    if root is not None:
        assert not any(path.name == "secret" for path in root.rglob("*") if not path.is_symlink())


async def test_whiteouts_are_applied(open_library: OpenLibrary, tmp_path: Path) -> None:
    async with open_library() as library:
        root = await _build(
            library,
            tmp_path / "layout",
            layer(
                [
                    entry("gone", "1"),
                    entry("kept", "2"),
                    entry("d"),
                    entry("d/old", "3"),
                    entry("d/x"),
                    entry("d/x/y", ""),
                ]
            ),
            layer([entry(".wh.gone", ""), entry("d/.wh..wh..opq", ""), entry("d/new", "4")]),
        )
        assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == ["d", "d/new", "kept"]


async def test_owners_modes_links_and_attributes_are_kept(open_library: OpenLibrary, tmp_path: Path) -> None:
    async with open_library() as library:
        root = await _build(
            library,
            tmp_path / "layout",
            layer(
                [
                    entry("tool", "x", mode=0o4755, uid=0, gid=42),
                    entry("same", hard_link="tool"),
                    entry("link", link="/etc/passwd"),
                    entry("noted", "x", uid=65534, gid=65534, xattrs={"user.note": "kept"}),
                    entry("pipe", device=(tarfile.FIFOTYPE, 0, 0)),
                ]
            ),
        )
        tool = (root / "tool").stat()
        assert (stat.S_IMODE(tool.st_mode), tool.st_gid, tool.st_nlink) == (0o4755, 42, 2)
        assert (root / "same").stat().st_ino == tool.st_ino
        assert os.readlink(root / "link") == "/etc/passwd"
        assert (root / "noted").stat().st_uid == 65534
        assert os.getxattr(root / "noted", "user.note") == b"kept"
        assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


async def test_devices_and_forged_overlay_attributes_are_taken_out(open_library: OpenLibrary, tmp_path: Path) -> None:
    forged = {"trusted.overlay.opaque": "y", "trusted.overlay.redirect": "/etc", "user.overlay.opaque": "y"}
    async with open_library() as library:
        root = await _build(
            library,
            tmp_path / "layout",
            layer(
                [
                    entry("dev"),
                    entry("dev/disk", device=(tarfile.BLKTYPE, 8, 0), mode=0o666),
                    entry("dev/mem", device=(tarfile.CHRTYPE, 1, 1), mode=0o666),
                    entry("whiteout", device=(tarfile.CHRTYPE, 0, 0)),
                    entry("d", xattrs=forged),
                    entry("d/f", "x", xattrs={**forged, "user.note": "kept"}),
                ]
            ),
        )
        assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == ["d", "d/f", "dev"]
        assert os.listxattr(root) == []
        assert os.listxattr(root / "d") == []
        assert os.listxattr(root / "d/f") == ["user.note"]


async def test_a_decompression_bomb_is_stopped(open_library: OpenLibrary, tmp_path: Path) -> None:
    # 512 MiB of zeros are half a MiB compressed.
    bomb = layer([entry("zeros", bytes(512 * MIB))])
    assert len(bomb.data) < 4 * MIB
    layout = write_layout(tmp_path / "layout", [bomb])
    async with open_library(SnapshotConfig(max_unpacked_bytes=32 * MIB)) as library:
        snapshot = await library.create(request_for(f"oci:{layout}"))
        with pytest.raises(ResourceCreationError, match=f"larger than the limit of {32 * MIB} bytes") as caught:
            await library.wait(snapshot.id, 60)
    assert caught.value.error_type == "ImageUnpack"
    assert left_on_disk(tmp_path) == []


async def test_a_small_image_beyond_the_limit_is_refused_too(open_library: OpenLibrary, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [layer([entry("some", os.urandom(2 * MIB))])])
    async with open_library(SnapshotConfig(max_unpacked_bytes=MIB)) as library:
        snapshot = await library.create(request_for(f"oci:{layout}"))
        with pytest.raises(ResourceCreationError, match="larger than the limit"):
            await library.wait(snapshot.id, 60)
    assert left_on_disk(tmp_path) == []


async def test_a_layer_that_is_not_what_it_says(open_library: OpenLibrary, tmp_path: Path) -> None:
    good = layer([entry("a", "b")])
    async with open_library() as library:
        for number, broken in enumerate(
            (Blob(good.data, digest(b"another")), Blob(b"no gzip", digest(b"no gzip")), compressed(b"no tar" * 1000))
        ):
            layout = write_layout(tmp_path / f"layout{number}", [broken])
            snapshot = await library.create(request_for(f"oci:{layout}"))
            with pytest.raises(ResourceCreationError, match="umoci: ") as caught:
                await library.wait(snapshot.id, 60)
            assert caught.value.error_type == "ImageUnpack"
            assert "\n" not in str(caught.value)
    assert left_on_disk(tmp_path) == []


async def test_a_deep_tree_can_be_removed(open_library: OpenLibrary, tmp_path: Path) -> None:
    deep = [entry("/".join(["d"] * depth), mode=0o111) for depth in range(1, 700)]
    async with open_library() as library:
        layout = write_layout(tmp_path / "layout", [layer(deep)])
        snapshot = await library.create(request_for(f"oci:{layout}"))
        await library.wait(snapshot.id, 60)
        await library.delete(snapshot.id)
    assert left_on_disk(tmp_path) == []
