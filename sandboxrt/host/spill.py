"""Where replayable output goes that is too much for memory: files of fixed size, and quotas over them.

A file is opened for each piece of work, in a worker thread: however many commands' output is kept, none of it holds a
descriptor. What a host that died has left is removed before its sandbox is used again (:func:`sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import attrs
import trio

from sandboxrt.threads import run_blocking

__all__ = ["SpillBudget", "SpillFile", "SpillQuota", "sweep"]

_PREFIX = "output."
_numbers = itertools.count()


@attrs.define
class SpillBudget:
    """How much the spill files of all sandboxes of a host may hold together, in bytes.

    A sandbox may hold as much as is still free, no more: one that fills its files leaves half to the others.

    Attributes:
        limit_bytes: For all together.
        least_free_bytes: What is left free on the file system in any case.
        used_bytes: What they hold.
    """

    limit_bytes: int = 16 * 1024**3
    least_free_bytes: int = 0
    used_bytes: int = attrs.field(default=0, init=False)


@attrs.define
class SpillQuota:
    """How much the spill files of one sandbox may hold together, in bytes."""

    limit_bytes: int
    budget: SpillBudget = attrs.field(factory=SpillBudget)
    used_bytes: int = attrs.field(default=0, init=False)

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes, or say no."""
        wanted = self.used_bytes + size
        if size > 0 and wanted > min(self.limit_bytes, self.budget.limit_bytes - self.budget.used_bytes):
            return False
        self.give_back(-size)
        return True

    def give_back(self, size: int) -> None:
        """Return what :meth:`take` reserved."""
        self.used_bytes -= size
        self.budget.used_bytes -= size


class SpillFile:
    """One file in a folder of a sandbox, made at the first write, gone when closed.

    Every method does its file work in a worker thread, one at a time.
    """

    def __init__(self, folder: Path, quota: SpillQuota, limiter: trio.CapacityLimiter) -> None:
        self._folder = folder
        self._quota = quota
        self._limiter = limiter
        self._lock = trio.Lock()
        self._path: Path | None = None
        self._size = 0
        self._closed = False

    async def write(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write each piece at its position.

        Raises:
            OSError: The disk is full, the quota is used up, or the file is closed.
        """
        pieces = tuple(pieces)
        async with self._lock:
            if self._closed:
                raise OSError("the spill file is closed")
            size = max(self._size, *(position + len(data) for position, data in pieces))
            if not self._quota.take(size - self._size):
                raise OSError("the quota for output that is kept on disk is used up")
            self._size = size
            await run_blocking(self._limiter, lambda: self._write(pieces))

    async def read(self, pieces: Iterable[tuple[int, int]]) -> bytes:
        """The bytes at the given (position, length) places, joined; shorter if the file is closed or damaged."""
        async with self._lock:
            if (path := self._path) is None:
                return b""
            return await run_blocking(self._limiter, lambda: _read(path, tuple(pieces)))

    async def aclose(self) -> None:
        """Free the file. Idempotent; shielded, as long as the kernel takes to drop its pages."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                self._closed = True
                path, self._path = self._path, None
                if path is not None:
                    await run_blocking(self._limiter, lambda: _remove(path))
                self._quota.give_back(self._size)
                self._size = 0

    def _write(self, pieces: tuple[tuple[int, bytes], ...]) -> None:
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        if self._path is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._folder / f"{_PREFIX}{next(_numbers)}"
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            self._path = path
        else:
            fd = os.open(self._path, flags)
        try:
            found = os.fstatvfs(fd)
            if found.f_bavail * found.f_frsize < self._quota.budget.least_free_bytes:
                raise OSError(errno.ENOSPC, "the file system has too little room left to keep output")
            for position, data in pieces:
                written = 0
                while written < len(data):
                    written += os.pwrite(fd, memoryview(data)[written:], position + written)
        finally:
            os.close(fd)


def sweep(folder: Path) -> None:
    """Remove the spill files that a host has left in a folder when it died. Blocking; never raises."""
    for path in folder.glob(_PREFIX + "*"):
        _remove(path)


def _read(path: Path, pieces: tuple[tuple[int, int], ...]) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        return b"".join(os.pread(fd, length, position) for position, length in pieces)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
