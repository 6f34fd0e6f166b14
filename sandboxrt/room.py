"""How much room the file system of a state folder has, and what is refused while it has too little.

Below a low-water mark nothing new begins: no sandbox is made or started, nothing is captured, built, imported or
uploaded. What is above the mark is for what runs already, as far as the engine says that it is not promised to it; what
is below is for records, for removals, and for other programs' haste. Ending and removing things is never refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import trio

from sandboxrt.errors import HostDiskFullError, ResourceCreationError
from sandboxrt.threads import run_blocking

__all__ = ["Ballast", "Room", "default_min_free"]

_BLOCK: Final = 512
_MOST_KEPT, _LEAST_KEPT, _SHARE_KEPT = 2 * 1024**3, 24 * 1024**2, 20
_BEGINNING: Final = 4 * 1024**2
"""What must be free above the mark for something new: a sandbox's disk, the runtime's record of it, a row."""
_RECORDS_BALLAST: Final = 1024**2
_LEAST_BALLAST, _MOST_BALLAST, _SHARE_BALLAST = 4 * 1024**2, 64 * 1024**2, 8
_NOTHING: Final = 64 * 1024
_MOST_FILES: Final = 200_000
"""So many files are looked at for what takes the room; more would keep who was refused waiting."""
_KINDS: Final = {
    "sandboxes": "sandboxes",
    "snapshots": "snapshots",
    "templates": "empty disks",
    "state.db": "records",
    "state.db-wal": "records",
    "ballast": "the reserve for a full disk",
    "ballast-records": "the reserve for a full disk",
}


def default_min_free(size_bytes: int) -> int:
    """The low-water mark of a file system: a twentieth of it, at least 24 MiB and at most 2 GiB, never over a half."""
    return min(size_bytes // 2, _MOST_KEPT, max(_LEAST_KEPT, size_bytes // _SHARE_KEPT))


def in_words(size_bytes: int) -> str:
    """A size for people, e.g. ``1.5 GiB``."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@attrs.define(eq=False)
class Ballast:
    """Room on a file system that is nobody's until another program fills it.

    Attributes:
        path: The file that takes it. Those who share a folder share it.
        size: How much.
    """

    path: Path
    size: int

    def take(self) -> None:
        """Take the room, where it is not taken yet. Blocking. Harmless where it cannot be had."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_blocks * _BLOCK < self.size:
                    os.posix_fallocate(fd, 0, self.size)
            finally:
                os.close(fd)

    def release(self) -> None:
        """Give the room back at once. Harmless where there is none."""
        with contextlib.suppress(OSError):
            self.path.unlink()
            fd = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)  # what is free in a transaction is nobody's before its end
            finally:
                os.close(fd)


@attrs.define(eq=False)
class Room:
    """The room for one state folder, as its host, its snapshots and its engine see it.

    Attributes:
        folder: The state folder; it need not be there yet.
        told_min_free_bytes: The low-water mark; :func:`default_min_free` of the file system where left out.
        owed_bytes: What was promised to running sandboxes and has no place on the host's disk yet.
        restricted: How many running sandboxes may not take all of their disks now.
        frozen: How many of those stand still, because what they were promised is not there.
    """

    folder: Path = attrs.field(converter=Path)
    told_min_free_bytes: int | None = None
    owed_bytes: int = attrs.field(default=0, init=False)
    restricted: int = attrs.field(default=0, init=False)
    frozen: int = attrs.field(default=0, init=False)
    _usage: tuple[float, Mapping[str, int]] | None = attrs.field(default=None, init=False)

    @property
    def min_free_bytes(self) -> int:
        """The low-water mark."""
        if self.told_min_free_bytes is not None:
            return self.told_min_free_bytes
        found = self._look()
        return default_min_free(found.f_blocks * found.f_frsize)

    @property
    def free_bytes(self) -> int:
        """What ordinary users could still write."""
        found = self._look()
        return found.f_bavail * found.f_frsize

    @property
    def spare_bytes(self) -> int:
        """What is above the mark and promised to nobody; negative where promises reach below."""
        return self.free_bytes - self.min_free_bytes - self.owed_bytes

    @property
    def is_low(self) -> bool:
        """Whether nothing new may begin."""
        return self.spare_bytes < _BEGINNING

    def figures(self) -> Mapping[str, int]:
        """What is free, kept and owed, in bytes."""
        return {"free": self.free_bytes, "kept": self.min_free_bytes, "owed": self.owed_bytes}

    @property
    def latest_usage(self) -> Mapping[str, int]:
        """What :meth:`usage` found last; nothing before."""
        return {} if self._usage is None else self._usage[1]

    @property
    def ballast(self) -> Ballast:
        """What is given away when nothing else is left for what was accepted inside of sandboxes."""
        size = min(_MOST_BALLAST, max(_LEAST_BALLAST, self.min_free_bytes // _SHARE_BALLAST))
        return Ballast(self.folder / "ballast", size)

    @property
    def records_ballast(self) -> Ballast:
        """The same for records: what is removed to make room is recorded first."""
        return Ballast(self.folder / "ballast-records", _RECORDS_BALLAST)

    def tend_ballast(self) -> None:
        """Give the ballast away where more is owed than there is, and take it where there is room. Blocking, quick."""
        ballast = self.ballast
        if self.free_bytes < self.owed_bytes + ballast.size // 2:
            ballast.release()
        elif self.spare_bytes > 2 * ballast.size:
            ballast.take()
            self.records_ballast.take()

    def _look(self) -> os.statvfs_result:
        for folder in (self.folder, *self.folder.absolute().parents):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return os.statvfs(folder)
        return os.statvfs("/")

    async def require(self, what: str, resource_type: str | None = None, operation: str | None = None) -> None:
        """Refuse something new where there is too little room.

        Args:
            what: Its name for people, as in "no ... now": ``"sandbox can be made"``.
            resource_type: Of the error, as ``operation``.
            operation: See :class:`~sandboxrt.errors.HostDiskFullError`.

        Raises:
            HostDiskFullError: It names the folder, what is free, the mark and what takes the room.
        """
        # A look costs less than a turn of the scheduler, on the way of every create and upload.
        if self.is_low:
            raise await self.refusal(what, resource_type, operation)

    async def refusal(
        self, what: str, resource_type: str | None = None, operation: str | None = None
    ) -> HostDiskFullError:
        """The error for what was refused, or failed, for lack of room; arguments as of :meth:`require`."""
        return self.refuse(what, resource_type, operation, usage=await self.usage())

    def refuse(
        self,
        what: str,
        resource_type: str | None = None,
        operation: str | None = None,
        *,
        usage: Mapping[str, int] | None = None,
    ) -> HostDiskFullError:
        """The same for callers in a thread of their own."""
        usage = self._measure() if usage is None else usage
        free, mark = self.free_bytes, self.min_free_bytes
        parts = [f"{kind} take {in_words(size)}" for kind, size in sorted(usage.items(), key=lambda item: -item[1])]
        owed = f", of which {in_words(self.owed_bytes)} is promised to running sandboxes" if self.owed_bytes else ""
        return HostDiskFullError(
            f"No {what} now: the file system of {self.folder} has {in_words(free)} free{owed}, and {in_words(mark)} are"
            f" kept (--min-free). In that folder {', '.join(parts) or 'there is nothing yet'}. Delete sandboxes or"
            " snapshots, or free room elsewhere on that file system",
            folder=str(self.folder),
            free_bytes=free,
            min_free_bytes=mark,
            usage=usage,
            resource_type=resource_type,
            operation=operation,
        )

    def was_the_reason(self, error: BaseException) -> bool:
        """Whether what failed did so for lack of room: it says so, or there is next to nothing left."""
        words = os.strerror(errno.ENOSPC).lower()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self.is_low
        if getattr(error, "error_type", None) == "DiskFull" or words in str(error).lower():
            return self.is_low
        return isinstance(error, OSError | ResourceCreationError) and self.free_bytes < _NOTHING

    async def usage(self, max_age_s: float = 5.0) -> Mapping[str, int]:
        """What takes the room in the folder, bytes by kind, at most ``max_age_s`` old."""
        now = trio.current_time()
        if self._usage is None or self._usage[0] < now - max_age_s:
            self._usage = (now, await run_blocking(None, self._measure))
        return self._usage[1]

    def _measure(self) -> Mapping[str, int]:
        sizes: dict[str, int] = {}
        left = [_MOST_FILES]
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(self.folder), key=lambda each: each.name):
                kind = _KINDS.get(entry.name, "other files")
                sizes[kind] = sizes.get(kind, 0) + _size_of(entry, left)
        return {kind: size for kind, size in sizes.items() if size}


def _size_of(entry: os.DirEntry[str], left: list[int]) -> int:
    """What a file, or all in a folder, takes; hard links count once for each name."""
    total = 0
    waiting = [entry]
    while waiting and left[0] > 0:
        current = waiting.pop()
        left[0] -= 1
        with contextlib.suppress(OSError):
            total += current.stat(follow_symlinks=False).st_blocks * _BLOCK
            if current.is_dir(follow_symlinks=False):
                with os.scandir(current) as entries:
                    waiting.extend(entries)
    return total
