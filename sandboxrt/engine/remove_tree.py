"""Removes what a sandbox wrote, however it is nested, without ever touching anything else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import attrs
import trio

from sandboxrt.threads import run_blocking

__all__ = ["remove_tree"]

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_BATCH = 256
_BATCHED_DEPTH = 32
_SCANS = 5
_THREADS = 2
_limiters: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("tree removal threads")


async def remove_tree(path: Path) -> None:
    """Remove a file or folder with all that is in it. Nothing happens when it does not exist.

    Symbolic links are removed, never followed. Depth and size do not matter: it holds two descriptors and a bounded
    number of names. Nobody else may be changing the tree.

    Raises:
        OSError: ``EXDEV`` when another file system is mounted in it (nothing of that one is removed), ``EPERM`` or
            ``EACCES`` where it belongs to somebody else. What could be removed before is gone; try again later.

    Cancellation: not during the removal, which is finished in its thread.
    """
    try:
        limiter = _limiters.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_THREADS)
        _limiters.set(limiter)
    await run_blocking(limiter, lambda: _remove(path))


def _remove(path: Path) -> None:
    try:
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if _unlink(path.name, parent):
            return
        walk = _Walk(_open_folder(path.name, parent))
        try:
            walk.empty()
        finally:
            os.close(walk.fd)
        os.rmdir(path.name, dir_fd=parent)
    finally:
        os.close(parent)


def _unlink(name: str, parent: int) -> bool:
    """Remove a file, a link or an empty folder; ``False`` for a folder that is not empty."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
        else:
            os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if error.errno == errno.EBUSY:
            raise OSError(errno.EXDEV, "a file system is mounted here", name) from error
        raise
    return True


def _open_folder(name: str, parent: int) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=parent)
    except PermissionError:
        # Our own folder without permissions. It is no link: it was looked at, and nobody else is here.
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _OPEN, dir_fd=parent)


@attrs.define
class _Level:
    """A folder that is being emptied: who it is, its name above, and folders in it that are known to need emptying."""

    identity: tuple[int, int]
    name: str
    pending: list[str] = attrs.field(factory=list)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


@attrs.define
class _Walk:
    """Empties the folder ``fd`` depth first. Goes up by ``..``, so the depth costs no descriptors."""

    fd: int
    levels: list[_Level] = attrs.field(factory=list)

    def empty(self) -> None:
        self.levels.append(_Level(_identity(self.fd), ""))
        while True:
            level = self.levels[-1]
            if not level.pending:
                self._sweep(level)
            if level.pending:
                self._down(level.pending.pop())
            elif len(self.levels) == 1:
                return
            else:
                self._up()

    def _sweep(self, level: _Level) -> None:
        """Remove what can be removed at once, and note the folders that are left: many, or one where it is deep."""
        most = _BATCH if len(self.levels) <= _BATCHED_DEPTH else 1
        _make_writable(self.fd)
        for _ in range(_SCANS):
            seen = False
            with os.scandir(self.fd) as entries:
                for entry in entries:
                    seen = True
                    if not _unlink(entry.name, self.fd):
                        level.pending.append(entry.name)
                        if len(level.pending) == most:
                            return
            # A file system may pass over entries while others are being removed.
            if level.pending or not seen:
                return

    def _down(self, name: str) -> None:
        child = _open_folder(name, self.fd)
        identity = _identity(child)
        if identity[0] != self.levels[0].identity[0]:
            os.close(child)
            raise OSError(errno.EXDEV, "a file system is mounted here", name)
        self.levels.append(_Level(identity, name))
        self._move_to(child)

    def _up(self) -> None:
        done = self.levels.pop()
        above = os.open("..", _OPEN, dir_fd=self.fd)
        if _identity(above) != self.levels[-1].identity:
            os.close(above)
            raise OSError(errno.ESTALE, "the folder was moved while it was being removed", done.name)
        self._move_to(above)
        os.rmdir(done.name, dir_fd=self.fd)

    def _move_to(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd


def _make_writable(fd: int) -> None:
    """Make a folder of ours such that its entries can be removed."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, mode | 0o700)
