"""The layout of uid blocks, subordinate id files, and user namespaces made for their mapping alone."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from sandboxrt import store
from sandboxrt.engine import idmap
from sandboxrt.engine.idmap import (
    SubidRange,
    UsernsFds,
    overlapping_ranges,
    parse_subids,
    read_subids,
    subid_ranges_of,
    uid_base,
)
from sandboxrt.engine.init.build import build_tool
from sandboxrt.engine.launch import __file__ as launch_package

LAUNCHER = Path(launch_package).with_name("launch.c")


def _children() -> set[str]:
    """This process's children, dead ones that nobody waited for included; other tests' servers may be among them."""
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


def test_blocks_lie_side_by_side_below_the_negative_ids() -> None:
    assert uid_base(0) == 0x20000000
    assert uid_base(1) == 0x20010000
    assert uid_base(idmap.UID_BLOCK_COUNT - 1) + idmap.UID_BLOCK_SIZE == 0x80000000
    for block in (-1, idmap.UID_BLOCK_COUNT):
        with pytest.raises(ValueError, match="uid blocks"):
            uid_base(block)


def test_the_store_hands_out_the_same_blocks() -> None:
    theirs = (store.UID_BLOCK_BASE, store.UID_BLOCK_SIZE, store.UID_BLOCK_COUNT)
    assert theirs == (idmap.UID_BLOCK_BASE, idmap.UID_BLOCK_SIZE, idmap.UID_BLOCK_COUNT)


def test_ranges_of_subordinate_ids() -> None:
    text = "alice:100000:65536\n1001:165536:65536\nbad line\nbob:x:1\n:1:1\nbig:536870911:2\n"
    ranges = parse_subids(text)
    assert [each.owner for each in ranges] == ["alice", "1001", "big"]
    assert subid_ranges_of(ranges, "alice", 1000) == (SubidRange("alice", 100000, 65536),)
    assert subid_ranges_of(ranges, "carol", 1001) == (SubidRange("1001", 165536, 65536),)
    assert overlapping_ranges(ranges) == (SubidRange("big", 536870911, 2),)
    assert overlapping_ranges([SubidRange("low", 0x1FFFFFFF, 1), SubidRange("high", 0x80000000, 9)]) == ()


def test_a_missing_file_has_no_ranges(tmp_path: Path) -> None:
    assert read_subids(tmp_path / "subuid") == ()


@pytest.mark.container
async def test_a_namespace_with_the_mapping_and_without_a_process(tmp_path: Path) -> None:
    fds = UsernsFds(await build_tool(LAUNCHER, tmp_path))
    descriptors, children = len(os.listdir("/proc/self/fd")), _children()
    fd = await fds.open(uid_base(5))
    try:
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("user:[")
        assert os.fstat(fd).st_ino != os.stat("/proc/self/ns/user").st_ino
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).setns(fd, 0x10000000)
            os.setuid(7)
            os._exit(0 if Path("/proc/self/uid_map").read_text().split() == ["0", str(uid_base(5)), "65536"] else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert _children() == children


@pytest.mark.container
async def test_maps_that_the_kernel_refuses_leave_no_process_and_no_descriptor(tmp_path: Path) -> None:
    fds = UsernsFds(await build_tool(LAUNCHER, tmp_path))
    descriptors, children = len(os.listdir("/proc/self/fd")), _children()
    with pytest.raises(OSError):
        await fds.open(0xFFFFFFFF, 65536)
    assert _children() == children
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.container
async def test_a_launcher_that_is_none_is_an_error_at_once() -> None:
    with pytest.raises(PermissionError):
        await UsernsFds(Path("/bin/true")).open(uid_base(0))
