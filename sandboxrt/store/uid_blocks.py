"""Blocks of user ids that are one sandbox's alone on the whole machine, whichever state folder it is in.

Each owner of sandboxes that is root holds locks on bytes of one file of the machine, one byte a block. They are the
kernel's, so they end with their holder, and a child that was forked does not keep them. Sandboxes that nobody holds at
the moment (their server is down) have blocks all the same, in their folder's records and as owners of their files. So
blocks are given out at random, which makes it improbable that another folder's sandbox gets one of theirs; where it
happened, it is seen when the sandbox is started (:meth:`sandboxrt.store.Store.secure_block`).

Source: open file description locks of fcntl(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from sandboxrt.errors import SandboxClientError
from sandboxrt.store.forks import keep_from_children, now_closed

__all__ = ["REGISTRY", "UidBlocks"]

REGISTRY: Final = Path("/run/sandboxrt/uid-blocks")
"""On a file system that is empty after a reboot, and the same for all of the machine's users of root's rights."""


class UidBlocks:
    """The blocks that one owner holds; of an ordinary user, whose sandboxes share the user's own ids, all and none."""

    def __init__(self, registry: Path | None) -> None:
        """Nothing is opened before the first block is held.

        Args:
            registry: The machine's file; ``None`` where there is nothing to keep apart.
        """
        self._registry = registry
        self._descriptor: int | None = None
        self._held: set[int] = set()

    @classmethod
    def of_this_user(cls) -> UidBlocks:
        """Those of root are kept apart; an ordinary user has none to give."""
        return cls(REGISTRY if os.geteuid() == 0 else None)

    def hold(self, block: int) -> bool:
        """Hold a block; ``False`` where another owner on this machine does. Blocking, and quick.

        Raises:
            SandboxClientError: The machine's file cannot be used; the message names it.
        """
        if self._registry is None or block in self._held:
            return True
        if self._descriptor is None:
            self._descriptor = _opened(self._registry)
            keep_from_children(self._descriptor)
        try:
            _lock(self._descriptor, fcntl.F_WRLCK, block)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._held.add(block)
        return True

    def holds(self, block: int) -> bool:
        """Whether this owner holds it."""
        return self._registry is None or block in self._held

    def free(self, block: int) -> None:
        """Hold a block no more. Idempotent."""
        if block in self._held and self._descriptor is not None:
            _lock(self._descriptor, fcntl.F_UNLCK, block)
        self._held.discard(block)

    def close(self) -> None:
        """Hold none. Idempotent."""
        self._held.clear()
        if self._descriptor is not None:
            now_closed(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _opened(registry: Path) -> int:
    try:
        with contextlib.suppress(FileExistsError):
            registry.parent.mkdir(mode=0o700)
        found = registry.parent.lstat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "it is writable for others", str(registry.parent))
        return os.open(registry, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SandboxClientError(
            f"Cannot keep the user ids of this machine's sandboxes apart: {registry}: {error.strerror}. Let root write "
            f"to {registry.parent} (in a systemd unit: RuntimeDirectory={registry.parent.name}, with "
            "RuntimeDirectoryPreserve=yes; in a container with a read-only root: a tmpfs there)"
        ) from error


def _lock(descriptor: int, kind: int, block: int) -> None:
    # struct flock of a 64-bit kernel: type, whence, start, length, and a process id that must be 0.
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, block, 1, 0))
