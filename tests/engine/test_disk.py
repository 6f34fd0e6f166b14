"""Disk images: their size, their contents, what fails and what is left then. Loop devices that were left behind."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import trio

from sandboxrt.engine import disk
from sandboxrt.engine.damage import ensure_clean
from sandboxrt.engine.disk import DiskTemplates, disk_size, sparse_copy
from sandboxrt.errors import EngineUnavailableError, HostDiskFullError, ResourceCreationError

MIB = 1024**2


def fsck(image: Path) -> int:
    return subprocess.run(["/sbin/e2fsck", "-f", "-n", image], capture_output=True, check=False).returncode


@pytest.fixture
def templates(tmp_path: Path) -> DiskTemplates:
    return DiskTemplates(tmp_path / "templates")


@pytest.mark.parametrize(
    ("asked", "got"), [(1, 16 * MIB), (16 * MIB, 16 * MIB), (16 * MIB + 1, 17 * MIB), (4096 * MIB, 4096 * MIB)]
)
def test_sizes_are_whole_mebibytes_and_at_least_sixteen(asked: int, got: int) -> None:
    assert disk_size(asked) == got


def test_a_size_beyond_reason_is_refused() -> None:
    with pytest.raises(ResourceCreationError, match="at most"):
        disk_size(disk.MAX_DISK_BYTES + 1)


@pytest.mark.parametrize("size_bytes", [16 * MIB, 64 * MIB, 4096 * MIB])
async def test_a_disk_is_a_sound_file_system_of_its_size(
    templates: DiskTemplates, tmp_path: Path, size_bytes: int
) -> None:
    image = tmp_path / "disk.img"
    await templates.clone(size_bytes, image)
    found = image.stat()
    assert found.st_size == size_bytes
    assert found.st_blocks * 512 < 2 * MIB, "sparse: an empty disk must not cost its size"
    assert found.st_mode & 0o777 == 0o600
    assert fsck(image) == 0
    features = subprocess.run(["/sbin/dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    line = next(line for line in features.splitlines() if line.startswith("Filesystem features"))
    assert "has_journal" not in line
    assert "resize_inode" not in line
    assert sorted(path.name for path in templates.folder.iterdir()) == [f"ext4-1-{size_bytes}.img", "lock"]


async def test_many_at_once_in_two_stores_over_one_folder(templates: DiskTemplates, tmp_path: Path) -> None:
    other = DiskTemplates(templates.folder)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            store = other if number % 2 else templates
            nursery.start_soon(store.clone, 32 * MIB, tmp_path / f"{number}.img")
    assert len(list(tmp_path.glob("*.img"))) == 20
    assert all(fsck(tmp_path / f"{number}.img") == 0 for number in (0, 7, 19))


async def test_what_a_killed_maker_left_is_removed_by_the_next(templates: DiskTemplates, tmp_path: Path) -> None:
    left = templates.folder / "tmp-dead"
    left.mkdir(parents=True)
    (left / "made").write_text("half")
    await templates.clone(16 * MIB, tmp_path / "disk.img")
    assert not left.exists()


async def test_templates_of_many_sizes_do_not_stay(
    templates: DiskTemplates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_MAX_TEMPLATES", 4)

    def sizes() -> list[int]:
        return sorted(int(path.stem.rpartition("-")[2]) // MIB for path in templates.folder.glob("*.img"))

    for number in range(16, 16 + disk._MAX_TEMPLATES + 5):
        await templates.clone(number * MIB, tmp_path / f"{number}.img")
        await templates.clone(20 * MIB, tmp_path / f"{number}-often.img")
    assert len(sizes()) == disk._MAX_TEMPLATES
    assert 20 in sizes(), "what is used stays"
    assert 16 not in sizes()
    # One that takes much room leaves none to the others, and is there itself.
    monkeypatch.setattr(disk, "_MAX_TEMPLATE_BYTES", 0)
    await templates.clone(4096 * MIB, tmp_path / "large.img")
    assert sizes() == [4096]
    assert fsck(tmp_path / "16.img") == 0


async def test_an_existing_target_is_not_touched(templates: DiskTemplates, tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    target.write_text("mine")
    with pytest.raises(FileExistsError):
        await templates.clone(16 * MIB, target)
    assert target.read_text() == "mine"


@pytest.mark.container
async def test_a_full_host_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        with pytest.raises(HostDiskFullError, match=r"has 4\.0 MiB free") as caught:
            await DiskTemplates(folder / "templates").clone(64 * MIB, folder / "disk.img")
        assert caught.value.folder == str(folder)
        assert not (folder / "disk.img").exists()
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_a_copy_that_fails_in_the_middle_leaves_nothing(
    templates: DiskTemplates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await templates.clone(16 * MIB, tmp_path / "first.img")

    def fail(source: int, target: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "sparse_copy", fail)
    with pytest.raises(HostDiskFullError):
        await templates.clone(16 * MIB, tmp_path / "disk.img")
    assert not (tmp_path / "disk.img").exists()


async def test_without_mkfs_the_error_names_the_package(
    templates: DiskTemplates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "which", lambda program, path: None)
    with pytest.raises(EngineUnavailableError, match="apt-get install e2fsprogs"):
        await templates.clone(16 * MIB, tmp_path / "disk.img")


def test_a_sparse_copy_has_the_same_bytes_and_holes(tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb+") as source, (tmp_path / "copy").open("wb+") as copy:
        for offset in (0, 5 * MIB, 9 * MIB):
            os.pwrite(source.fileno(), os.urandom(5000), offset)
        source.truncate(12 * MIB)
        sparse_copy(source.fileno(), copy.fileno())
        assert (tmp_path / "source").read_bytes() == (tmp_path / "copy").read_bytes()
        assert os.fstat(copy.fileno()).st_blocks * 512 < MIB


async def test_a_disk_that_was_not_unmounted_is_repaired(templates: DiskTemplates, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    await templates.clone(16 * MIB, image)
    before = image.stat().st_mtime_ns
    await ensure_clean(image)
    assert image.stat().st_mtime_ns == before, "a clean disk is not even written to"
    subprocess.run(["/sbin/debugfs", "-w", "-R", "ssv state 0", image], capture_output=True, check=True)
    subprocess.run(["/sbin/debugfs", "-w", "-R", "ssv free_blocks_count 7", image], capture_output=True, check=True)
    await ensure_clean(image)
    assert fsck(image) == 0


async def test_a_disk_beyond_repair_is_said(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(16 * MIB))
    with pytest.raises(ResourceCreationError, match="cannot repair"):
        await ensure_clean(image)
