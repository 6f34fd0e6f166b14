"""What a mounted sandbox disk has taken and may still take, seen from outside: through its loop device and sysfs.

Nothing inside a sandbox is asked and no mount is held. The group descriptors are read from the loop device, whose page
cache is where the kernel keeps those of the mounted file system: they are as of this moment. What is written but has no
block yet, and how much the file system keeps back from everybody, root included, is in ``/sys/fs/ext4``. What is kept
back can be changed at any time, and holds from the next allocation on, delayed ones included: ``write`` then fails
with ``ENOSPC`` before anything was accepted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

import attrs

__all__ = ["BLOCK_BYTES", "DiskUse", "MountedDisk", "can_keep_back"]

BLOCK_BYTES: Final = 4096
"""Of every sandbox's disk; see ``engine/disk.py``."""

_SYS: Final = Path("/sys/fs/ext4")
_SUPERBLOCK_AT, _SUPERBLOCK_BYTES, _MAGIC = 1024, 1024, 0xEF53
_HAS_META_BG, _HAS_64BIT = 0x10, 0x80
_TABLE_LOW, _FREE_LOW, _FREE_INODES_LOW = 0x08, 0x0C, 0x0E
_TABLE_HIGH, _FREE_HIGH, _FREE_INODES_HIGH = 0x28, 0x2C, 0x2E
_OWN_RESERVE, _OWN_SHARE = 4096 * BLOCK_BYTES, 50
_STAT_BLOCK_BYTES: Final = 512
_LOOP_GET_STATUS64, _LOOP_STATUS_BYTES, _BLKFLSBUF = 0x4C05, 232, 0x1261


def can_keep_back() -> str:
    """Why disks cannot be kept from growing on this host; empty where they can."""
    try:
        if os.statvfs(_SYS).f_flag & os.ST_RDONLY:
            return f"{_SYS} is read-only here"
    except OSError as error:
        return f"{_SYS}: {error.strerror}"
    return "" if os.access(_SYS, os.W_OK) else f"{_SYS} is not writable"


@attrs.frozen
class DiskUse:
    """A disk at one moment, in bytes.

    Attributes:
        size: Its size.
        free: What its file system has not given away.
        waiting: What was accepted of that, but has no place yet.
        kept_back: What of ``free`` nobody gets.
        unmade: What its inode tables may still take, for which no block is asked.
        backed: What the host has allocated for its image.
    """

    size: int
    free: int
    waiting: int
    kept_back: int
    unmade: int
    backed: int

    @property
    def taken(self) -> int:
        """What was given away or accepted, its own structures included."""
        return self.size - self.free + self.waiting

    @property
    def own_reserve(self) -> int:
        """What the file system keeps back by itself, for its own structures."""
        return min(_OWN_RESERVE, self.size // _OWN_SHARE)

    @property
    def may_take(self) -> int:
        """What may still be accepted, as things are set."""
        return max(0, self.free - self.waiting - self.kept_back)

    def owed(self, slack: int) -> int:
        """What the host has yet to find blocks for, of what was accepted.

        Args:
            slack: For how much of ``unmade`` there should be room.
        """
        return max(0, self.taken - self.backed - self.unmade) + min(slack, self.unmade)


@attrs.define
class MountedDisk:
    """A disk that is mounted for a sandbox.

    Attributes:
        image: Its image on the host.
        loop: Number of the loop device that holds it.
    """

    image: Path
    loop: int
    _holes: int | None = attrs.field(default=None, init=False)
    """What its inode tables lacked when it was first looked at."""
    _first_free: int = attrs.field(default=0, init=False)
    _least_free: int = attrs.field(default=0, init=False)

    @property
    def _folder(self) -> Path:
        return _SYS / f"loop{self.loop}"

    def _number(self, name: str) -> int:
        return int((self._folder / name).read_text())

    def use(self) -> DiskUse:
        """What it has taken. Blocking, and quick: some kilobytes are read for each TiB.

        Raises:
            OSError: It is not mounted any more, or cannot be told.
        """
        device = os.open(f"/dev/loop{self.loop}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check_backing(device)
            counts = _Counts.read(device)
        finally:
            os.close(device)
        return DiskUse(
            size=counts.size,
            free=counts.free,
            waiting=self._number("delayed_allocation_blocks") * BLOCK_BYTES,
            kept_back=self._number("reserved_clusters") * BLOCK_BYTES,
            unmade=self._unmade(counts),
            backed=os.stat(self.image).st_blocks * _STAT_BLOCK_BYTES,
        )

    def _unmade(self, counts: _Counts) -> int:
        """What the inode tables lack. What was made stays, so it is the most that ever were used that counts."""
        if self._holes is None:
            self._holes = _holes_in(self.image, counts.tables)
            self._first_free = self._least_free = counts.free_inodes
        self._least_free = min(self._least_free, counts.free_inodes)
        return max(0, self._holes - (self._first_free - self._least_free))

    def _check_backing(self, device: int) -> None:
        """The number may be another disk's by now; an open device can no longer become that."""
        held = fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_LOOP_STATUS_BYTES))
        image = os.stat(self.image)
        if struct.unpack_from("QQ", held) != (image.st_dev, image.st_ino):
            raise FileNotFoundError(f"loop{self.loop} does not hold {self.image}")

    def keep_back(self, size_bytes: int, use: DiskUse) -> None:
        """Give away ``size_bytes`` of what is free to nobody; never less than what the file system wants itself.

        Args:
            size_bytes: How much.
            use: Its latest figures.

        Raises:
            OSError: It is not mounted any more, or this host does not allow that.
        """
        wanted = -(-max(size_bytes, use.own_reserve) // BLOCK_BYTES) * BLOCK_BYTES
        if wanted != use.kept_back:
            (self._folder / "reserved_clusters").write_text(str(wanted // BLOCK_BYTES))

    def write_out(self) -> None:
        """Have everything that was accepted find its place. Blocking, as long as that takes.

        Raises:
            OSError: It is not mounted any more, or something was lost.
        """
        device = os.open(f"/dev/loop{self.loop}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check_backing(device)
            fcntl.ioctl(device, _BLKFLSBUF)
        finally:
            os.close(device)

    def back_wholly(self, room_bytes: int) -> None:
        """Have the host allocate all of its image, so that whatever is accepted has its place. Blocking.

        Args:
            room_bytes: How much it may take for that.

        Raises:
            OSError: ``ENOSPC``: there is not as much room. Nothing was taken then.
        """
        fd = os.open(self.image, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if found.st_size - found.st_blocks * _STAT_BLOCK_BYTES > room_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.image))
            os.posix_fallocate(fd, 0, found.st_size)
        finally:
            os.close(fd)


def _holes_in(image: Path, ranges: list[tuple[int, int]]) -> int:
    """How much of some ranges of a file (start and end) has no blocks."""
    holes = 0
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in ranges:
            at = start
            while at < end:
                try:
                    data = min(end, os.lseek(fd, at, os.SEEK_DATA))
                except OSError:  # nothing but holes to the file's end
                    data = end
                holes += data - at
                at = min(end, os.lseek(fd, data, os.SEEK_HOLE)) if data < end else end
    finally:
        os.close(fd)
    return holes


@attrs.frozen
class _Counts:
    """What the superblock and the group descriptors say: bytes, and where the inode tables are."""

    size: int
    free: int
    free_inodes: int
    tables: list[tuple[int, int]]

    @classmethod
    def read(cls, device: int) -> _Counts:
        head = os.pread(device, _SUPERBLOCK_BYTES, _SUPERBLOCK_AT)

        def number(at: int, layout: str) -> int:
            return int(struct.unpack_from(f"<{layout}", head, at)[0])

        incompatible = number(0x60, "I")
        if number(0x38, "H") != _MAGIC or 1024 << number(0x18, "I") != BLOCK_BYTES or incompatible & _HAS_META_BG:
            raise OSError("its file system is none that sandboxes have")
        wide = bool(incompatible & _HAS_64BIT)
        blocks = number(0x04, "I") + (number(0x150, "I") << 32 if wide else 0)
        descriptor = number(0xFE, "H") if wide else 32
        groups = -(-(blocks - number(0x14, "I")) // number(0x20, "I"))
        inode = number(0x58, "H")
        table_bytes = number(0x28, "I") * inode
        table = os.pread(device, groups * descriptor, BLOCK_BYTES)
        if len(table) != groups * descriptor:
            raise OSError("its group descriptors end too soon")

        def half(at: int) -> int:
            return int.from_bytes(table[at : at + 2], "little")

        free = inodes = 0
        tables: list[tuple[int, int]] = []
        for at in range(0, len(table), descriptor):
            free += half(at + _FREE_LOW)
            inodes += half(at + _FREE_INODES_LOW)
            start = int.from_bytes(table[at + _TABLE_LOW : at + _TABLE_LOW + 4], "little")
            if descriptor > _FREE_HIGH:
                free += half(at + _FREE_HIGH) << 16
                inodes += half(at + _FREE_INODES_HIGH) << 16
                start += int.from_bytes(table[at + _TABLE_HIGH : at + _TABLE_HIGH + 4], "little") << 32
            tables.append((start * BLOCK_BYTES, start * BLOCK_BYTES + table_bytes))
        return cls(blocks * BLOCK_BYTES, free * BLOCK_BYTES, inodes * inode, tables)
