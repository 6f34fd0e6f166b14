"""The copier keeps what a layer needs, takes nothing else along, and refuses what must not be in one."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.base import Captured, Layer
from sandboxrt.engine.capture import merge
from sandboxrt.engine.copy.copier import Copier, Mounts
from sandboxrt.engine.remove_tree import remove_tree
from sandboxrt.errors import ResourceCreationError

pytestmark = [pytest.mark.container, pytest.mark.timeout(60)]

BASE = 0x30000000
V2_CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
V3_CAPABILITY = struct.pack("<IIIIII", 0x03000001, 0x400, 0, 0, 0, BASE)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tools")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "@").mkdir(parents=True)
    return folder


async def copy(tools: Path, source: Path, *, first_id: int | None = BASE, reserve_bytes: int = 0) -> Captured:
    target = source.parent / "target"
    target.mkdir()
    return await Copier(tools, is_root=True).copy(
        Mounts((), str(source)), target, first_id=first_id, reserve_bytes=reserve_bytes
    )


def give(folder: Path, uid: int = BASE) -> None:
    """Everything to the sandbox's root, as far as it has no owner in the block."""
    for path in (folder, *folder.rglob("*")):
        if path.lstat().st_uid < BASE:
            mode = stat.S_IMODE(path.lstat().st_mode)
            os.chown(path, uid, uid, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(mode)


async def test_everything_is_kept(tools: Path, source: Path) -> None:
    root = source / "@"
    (root / "plain").write_bytes(b"text")
    (root / "plain").chmod(0o4755)
    os.utime(root / "plain", ns=(1_000_000_007, 2_000_000_009))
    os.setxattr(root / "plain", "user.note", b"\0\xff")
    os.link(root / "plain", root / "hard")
    (root / "soft").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("x" * 4095)
    os.mkfifo(root / "fifo", 0o640)
    (root / "folder/deeper").mkdir(parents=True)
    (root / "folder").chmod(0o2770)
    (root / "folder/empty").touch()
    os.link(root / "plain", root / "folder/deeper/hard too")
    os.chown(root / "folder", BASE + 1000, BASE + 50)
    (root / "folder").chmod(0o2770)
    os.utime(root / "folder", ns=(3_000_000_000, 4_000_000_000))
    with open(root / "sparse", "wb") as file:
        file.seek(2**30)
        file.write(b"end")
        file.truncate(2**31)
    give(source)
    (root / "plain").chmod(0o4755)
    copied = await copy(tools, source)
    tree = source.parent / "target/tree/@"
    assert not (source.parent / "target/links").exists()
    plain = (tree / "plain").stat()
    assert (tree / "plain").read_bytes() == b"text"
    assert (plain.st_uid, plain.st_gid, stat.S_IMODE(plain.st_mode), plain.st_nlink) == (0, 0, 0o4755, 3)
    assert plain.st_mtime_ns == 2_000_000_009
    assert os.getxattr(tree / "plain", "user.note") == b"\0\xff"
    assert {(tree / name).stat().st_ino for name in ("hard", "folder/deeper/hard too")} == {plain.st_ino}
    assert os.readlink(tree / "soft") == "/etc/passwd"
    assert os.readlink(tree / "dangling") == "x" * 4095
    assert stat.S_ISFIFO((tree / "fifo").stat().st_mode)
    assert stat.S_IMODE((tree / "fifo").stat().st_mode) == 0o640
    folder = (tree / "folder").stat()
    assert (folder.st_uid, folder.st_gid, stat.S_IMODE(folder.st_mode)) == (1000, 50, 0o2770)
    assert folder.st_mtime_ns == 4_000_000_000
    sparse = (tree / "sparse").stat()
    assert sparse.st_size == 2**31
    assert sparse.st_blocks * 512 < 2**20
    with open(tree / "sparse", "rb") as file:
        file.seek(2**30 - 1)
        assert file.read(5) == b"\0end\0"
    assert copied.files == 6  # links counted once
    assert copied.paused_s is None


async def test_what_overlays_say_is_kept_and_nothing_of_how_they_work(tools: Path, source: Path) -> None:
    root = source / "@"
    (root / "opaque").mkdir()
    os.setxattr(root / "opaque", "trusted.overlay.opaque", b"y")
    (root / "other").mkdir()
    for name in ("origin", "impure", "nlink", "redirect"):
        os.setxattr(root / "other", f"trusted.overlay.{name}", b"y")
    os.setxattr(root / "other", "trusted.overlay.opaque", b"x")
    os.setxattr(root / "other", "trusted.mine", b"y")
    os.setxattr(root / "other", "user.overlay.opaque", b"y")
    os.mknod(root / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.link(root / "gone", root / "gone too")
    give(source)
    await copy(tools, source)
    tree = source.parent / "target/tree/@"
    assert os.listxattr(tree / "opaque") == ["trusted.overlay.opaque"]
    assert os.listxattr(tree / "other") == []
    for name in ("gone", "gone too"):
        found = (tree / name).lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == os.makedev(0, 0)


async def test_capabilities_and_access_lists_are_shifted(tools: Path, source: Path) -> None:
    root = source / "@"
    for name in ("v2", "v3", "list"):
        (root / name).touch()
    (root / "folder").mkdir()
    give(source)
    os.setxattr(root / "v2", "security.capability", V2_CAPABILITY)
    os.setxattr(root / "v3", "security.capability", V3_CAPABILITY)
    nobody = 0xFFFFFFFF
    entries = [(0x01, 6, nobody), (0x02, 4, BASE + 7), (0x04, 4, nobody), (0x08, 5, BASE + 8)]
    entries += [(0x10, 7, nobody), (0x20, 0, nobody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(root / "list", "system.posix_acl_access", acl)
    os.setxattr(root / "folder", "system.posix_acl_default", acl)
    await copy(tools, source)
    tree = source.parent / "target/tree/@"
    for name in ("v2", "v3"):
        assert os.getxattr(tree / name, "security.capability") == V2_CAPABILITY
    shifted = acl.replace(struct.pack("<I", BASE + 7), struct.pack("<I", 7))
    shifted = shifted.replace(struct.pack("<I", BASE + 8), struct.pack("<I", 8))
    assert os.getxattr(tree / "list", "system.posix_acl_access") == shifted
    assert os.getxattr(tree / "folder", "system.posix_acl_default") == shifted


async def test_depth_and_names_do_not_matter(tools: Path, source: Path) -> None:
    at = os.open(source / "@", os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d" * 200, dir_fd=at)
        above, at = at, os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        os.chown(".", BASE, BASE, dir_fd=at)
        os.close(above)
    file = os.open("deep", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=at)
    os.fchown(file, BASE, BASE)
    os.close(file)
    os.close(at)
    os.chown(source / "@", BASE, BASE)
    try:
        assert (await copy(tools, source)).files == 1
    finally:
        # What pytest removes by itself must not be that deep.
        for folder in (source, source.parent / "target"):
            await remove_tree(folder)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda root: os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)), "device node"),
        (lambda root: os.mknod(root / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 0)), "device node"),
        (lambda root: (root / "theirs").touch(), "outside of the sandbox"),
    ],
    ids=["character", "block", "owner"],
)
async def test_what_must_not_be_in_a_layer_is_refused(tools: Path, source: Path, make: object, reason: str) -> None:
    os.chown(source / "@", BASE, BASE)
    make(source / "@")  # type: ignore[operator]
    with pytest.raises(ResourceCreationError, match=reason) as caught:
        await copy(tools, source)
    assert caught.value.error_type == "Capture"


async def test_sockets_are_left_out(tools: Path, source: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(source / "@/sock"))
        give(source)
        assert (await copy(tools, source)).files == 0
    assert os.listdir(source.parent / "target/tree/@") == []


async def test_a_full_disk_is_said(tools: Path, source: Path) -> None:
    give(source)
    with pytest.raises(ResourceCreationError, match="No space left on device") as caught:
        await copy(tools, source, reserve_bytes=2**60)
    assert caught.value.error_type == "DiskFull"


async def test_the_reason_of_a_copier_that_cannot_start(tools: Path, source: Path) -> None:
    source.joinpath("@").rmdir()
    source.rmdir()
    with pytest.raises(ResourceCreationError, match="No such file"):
        await copy(tools, source)


async def test_a_cancelled_copy_ends(tools: Path, source: Path) -> None:
    for number in range(2000):
        (source / "@" / str(number)).write_bytes(b"x" * 4096)
    give(source)
    with trio.move_on_after(0.03) as scope:
        await copy(tools, source)
    assert scope.cancelled_caught
    with trio.fail_after(5):
        while any("copy" in name for name in _programs(tools)):
            await trio.sleep(0.01)


def _programs(tools: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append(os.readlink(entry / "exe"))
            except OSError:
                continue
    return [name for name in found if name.startswith(str(tools))]


async def test_layers_are_merged_as_they_are_seen(tools: Path, tmp_path: Path) -> None:
    for name in ("top", "middle", "bottom", "usr"):
        (tmp_path / name).mkdir()
    (tmp_path / "bottom/a").write_text("bottom")
    (tmp_path / "bottom/b").write_text("bottom")
    (tmp_path / "bottom/folder").mkdir()
    (tmp_path / "bottom/folder/hidden").touch()
    os.mknod(tmp_path / "middle/a", stat.S_IFCHR, os.makedev(0, 0))
    (tmp_path / "middle/folder").mkdir()
    os.setxattr(tmp_path / "middle/folder", "trusted.overlay.opaque", b"y")
    (tmp_path / "middle/folder/seen").touch()
    (tmp_path / "top/b").write_text("top")
    os.chown(tmp_path / "top/b", 1000, 1000)
    (tmp_path / "usr/program").touch()
    target = tmp_path / "target"
    target.mkdir()
    layers = (
        Layer(tmp_path / "top"),
        Layer(tmp_path / "middle"),
        Layer(tmp_path / "bottom"),
        Layer(tmp_path / "usr", "/usr"),
    )
    await merge(Copier(tools, is_root=True), layers, target)
    tree = target / "tree"
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == [
        "@",
        "@/b",
        "@/folder",
        "@/folder/seen",
        "@usr",
        "@usr/program",
    ]
    assert (tree / "@/b").read_text() == "top"
    assert (tree / "@/b").stat().st_uid == 1000
    assert os.listxattr(tree / "@/folder") == []
