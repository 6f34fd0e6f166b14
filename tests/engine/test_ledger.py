"""How the room of a host is shared out, and what is seen of a mounted disk from outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.ext4 import BLOCK_BYTES, DiskUse, MountedDisk, can_keep_back
from sandboxrt.engine.ledger import plan_leaves
from sandboxrt.room import default_min_free

MIB = 1024**2
GIB = 1024**3


def use(free: int, *, may_take: int | None = None, waiting: int = 0, size: int = 4 * GIB) -> DiskUse:
    kept_back = 0 if may_take is None else max(0, free - waiting - may_take)
    return DiskUse(size=size, free=free, waiting=waiting, kept_back=kept_back, unmade=0, backed=size - free)


amounts = st.integers(0, 4 * GIB)
disks = st.lists(st.tuples(amounts, amounts, st.floats(0, 1e10)), min_size=1, max_size=6)


@given(disks, st.integers(-GIB, 8 * GIB))
def test_leaves_that_are_raised_never_promise_more_than_there_is(
    found: list[tuple[int, int, float]], spare: int
) -> None:
    uses = [use(max(free, may), may_take=may) for free, may, _ in found]
    plan = plan_leaves(uses, [wrote for _, _, wrote in found], spare, 24 * MIB, 16 * GIB)
    assert plan.is_near
    lowered = [min(leave, each.may_take) for leave, each in zip(plan.leaves, uses, strict=True)]
    raised = sum(plan.leaves) - sum(lowered)
    # Until a look has seen that the others obey, what they could take before counts.
    assert raised == 0 or sum(each.may_take for each in uses) + raised <= max(0, spare)
    assert all(leave >= 0 for leave in plan.leaves)


@given(disks, st.integers(0, 8 * GIB))
def test_once_everybody_obeys_the_leaves_are_within_what_there_is(
    found: list[tuple[int, int, float]], spare: int
) -> None:
    uses = [use(max(free, may), may_take=may) for free, may, _ in found]
    wrote = [each for _, _, each in found]
    for _ in range(3):
        plan = plan_leaves(uses, wrote, spare, 24 * MIB, 16 * GIB)
        uses = [
            use(each.free, may_take=min(leave, each.free - each.waiting))
            for leave, each in zip(plan.leaves, uses, strict=True)
        ]
    assert sum(each.may_take for each in uses) <= spare


def test_with_room_for_all_nobody_is_restricted() -> None:
    plan = plan_leaves([use(4 * GIB), use(4 * GIB)], [0, 0], 70 * GIB, 2 * GIB, 7 * GIB)
    assert not plan.is_near
    assert all(leave > 4 * GIB for leave in plan.leaves)


def test_who_writes_gets_more_of_little_room() -> None:
    uses = [use(4 * GIB, may_take=0) for _ in range(4)]
    plan = plan_leaves(uses, [100.0 * MIB, 0, 0, 0], 80 * MIB, 24 * MIB, 7 * GIB)
    assert plan.leaves[0] > 45 * MIB
    assert all(leave >= 9 * MIB for leave in plan.leaves)


def test_when_too_much_is_owed_nobody_gets_anything() -> None:
    plan = plan_leaves([use(4 * GIB, may_take=GIB)], [5.0], -20 * MIB, 24 * MIB, 7 * GIB)
    assert plan.leaves == (0,)
    assert plan.is_broken


@pytest.mark.parametrize(
    ("size", "kept"), [(16 * MIB, 8 * MIB), (300 * MIB, 24 * MIB), (10 * GIB, 512 * MIB), (250 * GIB, 2 * GIB)]
)
def test_the_mark_follows_from_the_size(size: int, kept: int) -> None:
    assert default_min_free(size) == kept


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[MountedDisk, Path]]:
    """A disk, mounted by itself; where it is, is the caller's to see alone."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    assert not can_keep_back(), "root's disks cannot be restricted here, so nothing would be proved"
    image, folder = tmp_path / "disk.img", tmp_path / "mounted"
    folder.mkdir()
    DiskTemplates(tmp_path / "templates").clone_blocking(GIB, image)
    subprocess.run(["mount", "-o", "loop,discard", str(image), str(folder)], check=True)
    try:
        found = subprocess.run(["losetup", "-nO", "NAME", "-j", str(image)], check=True, capture_output=True, text=True)
        yield MountedDisk(image, int(found.stdout.strip().removeprefix("/dev/loop"))), folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_what_is_owed_is_known_to_the_block(mounted: tuple[MountedDisk, Path]) -> None:
    disk, folder = mounted
    before = disk.use()
    (folder / "file").write_bytes(os.urandom(20 * MIB))
    waiting = disk.use()
    assert waiting.owed(0) - before.owed(0) == pytest.approx(20 * MIB, abs=MIB // 4)
    disk.write_out()
    assert disk.use().owed(0) == pytest.approx(before.owed(0), abs=MIB // 4)
    subprocess.run(["fallocate", "-l", "30M", str(folder / "set-aside")], check=True)
    assert disk.use().owed(0) - before.owed(0) == pytest.approx(30 * MIB, abs=MIB // 4)
    (folder / "set-aside").unlink()
    (folder / "file").unlink()
    assert disk.use().backed == pytest.approx(before.backed, abs=MIB // 4)


def test_inode_tables_that_were_made_stay_made(mounted: tuple[MountedDisk, Path]) -> None:
    disk, folder = mounted
    before = disk.use()
    for number in range(8000):
        (folder / str(number)).touch()
    many = disk.use()
    assert before.unmade - many.unmade == pytest.approx(8000 * 256, rel=0.05)
    for number in range(8000):
        (folder / str(number)).unlink()
    assert disk.use().unmade == many.unmade
    # Another process that comes later sees the same, from the image.
    disk.write_out()
    assert MountedDisk(disk.image, disk.loop).use().unmade == pytest.approx(many.unmade, rel=0.05)


def test_nobody_gets_what_is_kept_back(mounted: tuple[MountedDisk, Path]) -> None:
    disk, folder = mounted
    found = disk.use()
    disk.keep_back(found.free - found.waiting - 5 * MIB, found)
    assert disk.use().may_take <= 5 * MIB
    with pytest.raises(OSError, match="No space left"), (folder / "file").open("wb", buffering=0) as file:
        for _ in range(3000):
            file.write(bytes(BLOCK_BYTES))
    assert (folder / "file").stat().st_size == pytest.approx(5 * MIB, abs=BLOCK_BYTES)
    disk.keep_back(0, disk.use())
    assert disk.use().kept_back == found.own_reserve
