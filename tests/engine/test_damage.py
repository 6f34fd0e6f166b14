"""Disks that are damaged: repaired where that is possible, else read, and never changed for nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxrt.engine.damage import UNDO, ensure_clean, rescue
from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.errors import ResourceCreationError, SandboxOperationError

pytestmark = pytest.mark.container

MIB = 1024**2
OWNER = 536870912 + 65536


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """A disk as a sandbox leaves it."""
    image, folder = tmp_path / "box" / "disk.img", tmp_path / "mounted"
    folder.mkdir()
    image.parent.mkdir()
    DiskTemplates(tmp_path / "templates").clone_blocking(256 * MIB, image)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        for place in ("upper/@/root/deep", "upper/@/etc", "upper/@usr/lib", "tmp"):
            (folder / place).mkdir(parents=True)
        (folder / "upper/@/root/file").write_text("content")
        (folder / "upper/@/root/deep/large").write_bytes(b"l" * MIB)
        (folder / "upper/@usr/lib/library").write_text("elf")
        (folder / "tmp/draft").write_text("draft")
        (folder / "upper/@/root/link").symlink_to("/etc/hostname")
        (folder / "upper/@/root/secret").write_text("s")
        (folder / "upper/@/root/secret").chmod(0)
        os.mknod(folder / "upper/@/gone", 0o020000, 0)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    yield image


def overwrite(image: Path, at: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        file.write(data)


def block_of(image: Path, path: str) -> int:
    done = subprocess.run(["debugfs", "-R", f"blocks {path}", str(image)], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) * 4096


def check_rescued(target: Path) -> None:
    assert (target / "files/root/file").read_text() == "content"
    assert (target / "files/root/deep/large").read_bytes() == b"l" * MIB
    assert (target / "files/usr/lib/library").read_text() == "elf"
    assert (target / "tmp/draft").read_text() == "draft"
    assert (target / "files/root/link").readlink() == Path("/etc/hostname")
    assert (target / "files/root/secret").read_text() == "s"
    assert {path.lstat().st_uid for path in target.rglob("*")} == {0}


def test_a_whole_disk_is_read_without_a_mount(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    rescued = rescue(image, tmp_path / "out", OWNER)
    check_rescued(tmp_path / "out")
    assert (rescued.files, rescued.said) == (6, "")
    assert image.read_bytes() == before and image.stat().st_uid == 0
    with pytest.raises(FileExistsError):
        rescue(image, tmp_path / "out", OWNER)


def test_a_disk_without_its_superblock_is_read_by_a_copy_of_it(image: Path, tmp_path: Path) -> None:
    overwrite(image, 1024, bytes(1024))
    rescue(image, tmp_path / "out", OWNER)
    check_rescued(tmp_path / "out")


def test_what_is_lost_does_not_keep_the_rest(image: Path, tmp_path: Path) -> None:
    overwrite(image, block_of(image, "/upper/@/root/deep"), os.urandom(4096))
    rescue(image, tmp_path / "out", OWNER)
    assert (tmp_path / "out/files/root/file").read_text() == "content"
    assert (tmp_path / "out/files/usr/lib/library").read_text() == "elf"


def test_a_name_that_leads_out_leads_to_where_nobody_may_write(image: Path, tmp_path: Path) -> None:
    """A folder in which chance, or somebody, put the same name twice: a link first, then a file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    words = [
        f"symlink /upper/@/root/a {outside}/stolen",
        "ln /upper/@/root/file /upper/@/root/b",
    ]
    for word in words:
        subprocess.run(["debugfs", "-w", "-R", word, str(image)], check=True, capture_output=True)
    at = block_of(image, "/upper/@/root")
    with image.open("rb") as file:
        file.seek(at)
        block = file.read(4096)
    assert block.count(b"\x01\x01b") == 1
    overwrite(image, at, block.replace(b"\x01\x01b", b"\x01\x01a"))
    rescue(image, tmp_path / "out", OWNER)
    assert (tmp_path / "out/files/root/a").readlink() == outside / "stolen"
    assert not (outside / "stolen").exists()


def test_nothing_but_rubbish_is_said(image: Path, tmp_path: Path) -> None:
    image.write_bytes(os.urandom(MIB))
    with pytest.raises(SandboxOperationError, match="nothing can be read"):
        rescue(image, tmp_path / "out", OWNER)


async def test_what_needs_a_decision_is_repaired_and_can_be_taken_back(image: Path, tmp_path: Path) -> None:
    at = block_of(image, "/upper/@/root/deep")
    overwrite(image, at, bytes(4096))
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 2", str(image)], check=True, capture_output=True)
    before = image.read_bytes()
    await ensure_clean(image)
    assert subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False).returncode == 0
    assert image.read_bytes() != before
    subprocess.run(["e2undo", str(image.with_name(UNDO)), str(image)], check=True, capture_output=True)
    # But for the times and the flags in the superblock.
    assert image.read_bytes()[4096:] == before[4096:]


async def test_a_repair_that_finds_no_place_for_the_files_is_taken_back(image: Path) -> None:
    """Without its root, everything would be in lost+found, and a sandbox would start with nothing."""
    table = int.from_bytes(image.read_bytes()[4096 + 8 : 4096 + 12], "little") * 4096
    overwrite(image, table + 256, bytes(256))
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 2", str(image)], check=True, capture_output=True)
    before = image.read_bytes()
    with pytest.raises(ResourceCreationError, match="sandboxrt rescue"):
        await ensure_clean(image)
    assert image.read_bytes()[4096:] == before[4096:]


async def test_what_cannot_be_repaired_stays_as_it_was(image: Path, tmp_path: Path) -> None:
    rubbish = os.urandom(MIB)
    image.write_bytes(rubbish)
    with pytest.raises(ResourceCreationError, match="sandboxrt rescue"):
        await ensure_clean(image)
    assert image.read_bytes() == rubbish
