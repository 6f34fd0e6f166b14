"""Owner locks: how processes that share a state folder tell the living from the dead."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Final

from sandboxrt.models import SandboxOwner
from sandboxrt.store.forks import keep_from_children, now_closed

__all__ = ["OwnerLock"]

_MAX_BYTES: Final = 4096


class OwnerLock:
    """A locked file that says: this owner lives. Nothing but the death or close of its holder frees it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        keep_from_children(descriptor)

    @classmethod
    def create(cls, path: Path) -> OwnerLock:
        """Make a new lock file; it has its final name only once it is locked, so nobody ever sees it free."""
        draft = path.with_suffix(".new")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "program": _program()}).encode())
            os.rename(draft, path)
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        return cls(path, descriptor)

    @classmethod
    def take(cls, path: Path) -> OwnerLock | None:
        """Lock a dead owner's file, or return ``None``: it lives, another was first, or there is no such file."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever cleaned it before us unlinked the file; then what we locked is a nameless inode.
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return cls(path, descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether nobody holds it. Tested with a shared lock, so that two testers do not mistake each other."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    @staticmethod
    def owner(path: Path) -> SandboxOwner:
        """Whose it is, as far as it says so."""
        try:
            with path.open("rb") as file:
                said = json.loads(file.read(_MAX_BYTES))
            return SandboxOwner(int(said["pid"]), str(said["program"]))
        except (OSError, ValueError, TypeError, KeyError):
            return SandboxOwner(None, "an unknown program")

    def release(self, *, forget: bool) -> None:
        """Free the lock; with ``forget`` the file goes too. Idempotent."""
        if self._descriptor is None:
            return
        if forget:
            self.path.unlink(missing_ok=True)
        now_closed(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None


def _program() -> str:
    """What this process runs, in a word."""
    path = Path(sys.argv[0] if sys.argv else "")
    return (path.parent.name if path.name == "__main__.py" else path.name) or "python"
