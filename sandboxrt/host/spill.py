"""Where replayable output goes that is too much for memory: nameless files of fixed size, and a quota over them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import attrs
import trio

from sandboxrt.threads import run_blocking

__all__ = ["SpillFile", "SpillQuota"]


@attrs.define
class SpillQuota:
    """How much the spill files of one sandbox may hold together, in bytes."""

    limit_bytes: int
    used_bytes: int = attrs.field(default=0, init=False)

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes, or say no."""
        if self.used_bytes + size > self.limit_bytes:
            return False
        self.used_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Return what :meth:`take` reserved."""
        self.used_bytes -= size


class SpillFile:
    """One file without a name in a sandbox's folder, made at the first write, gone when closed or its owner dies.

    Every method does its file work in a worker thread, one at a time.
    """

    def __init__(self, folder: Path, quota: SpillQuota, limiter: trio.CapacityLimiter) -> None:
        self._folder = folder
        self._quota = quota
        self._limiter = limiter
        self._lock = trio.Lock()
        self._fd = -1
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
                raise OSError("the spill quota of the sandbox is used up")
            self._size = size
            await run_blocking(self._limiter, lambda: self._write(pieces))

    async def read(self, pieces: Iterable[tuple[int, int]]) -> bytes:
        """The bytes at the given (position, length) places, joined; shorter if the file is closed or damaged."""
        async with self._lock:
            if self._fd < 0:
                return b""
            return await run_blocking(self._limiter, lambda: self._read(tuple(pieces)))

    async def aclose(self) -> None:
        """Free the file. Idempotent; shielded, as long as the kernel takes to drop its pages."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                self._closed = True
                fd, self._fd = self._fd, -1
                self._quota.give_back(self._size)
                self._size = 0
                if fd >= 0:
                    await run_blocking(self._limiter, lambda: os.close(fd))

    def _write(self, pieces: tuple[tuple[int, bytes], ...]) -> None:
        if self._fd < 0:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                self._fd = os.dup(file.fileno())
        for position, data in pieces:
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, memoryview(data)[written:], position + written)

    def _read(self, pieces: tuple[tuple[int, int], ...]) -> bytes:
        try:
            return b"".join(os.pread(self._fd, length, position) for position, length in pieces)
        except OSError:
            return b""
