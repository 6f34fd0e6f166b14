"""Fills the disk in the middle of an operation: before or after one of the calls that change what is on it.

The calls are found by wrapping those methods here, in the process of the host, embedded or a server's; which one it is
to happen at is in a file, so that another process can say so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store

MIB = 1024**2
FOLDER = Path(os.environ.get("STATE_FOLDER", "/nonexistent"))
TRAP = FOLDER.with_name("trap")
FILLER = FOLDER / "filler"
METHODS: dict[str, tuple[type, str]] = {
    "record": (Store, "add_sandbox"),
    "status": (Store, "set_sandbox_status"),
    "forget": (Store, "remove_sandbox"),
    "image": (DiskTemplates, "clone"),
    "make": (OciEngine, "create"),
    "discard": (OciEngine, "discard"),
    "close": (OciContainer, "close"),
    "replace": (OciContainer, "replace_file"),
    "copy": (OciContainer, "capture"),
    "copy-stopped": (OciEngine, "capture"),
    "snapshot": (Store, "add_snapshot"),
    "finish": (Store, "finish_snapshot"),
    "unpack": (SnapshotLibrary, "_make_image"),
}


def free_bytes() -> int:
    """What ordinary users could still write."""
    found = os.statvfs(FOLDER)
    return found.f_bavail * found.f_frsize


def fill(leave_bytes: int = 0, *, everything: bool = False) -> None:
    """Another program takes all that is left on the file system at once.

    An ordinary user's; one of root's takes ``everything``, the reserve of the file system's root, too.
    """
    fd = os.open(FILLER, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size = os.fstat(fd).st_size
        for step in (64 * MIB, MIB, 65536, 4096, 1024):
            while True:
                found = os.statvfs(FOLDER)
                left = found.f_bfree if everything else found.f_bavail
                if left * found.f_frsize < leave_bytes + step:
                    break
                try:
                    os.posix_fallocate(fd, size, step)
                except OSError:
                    break
                size += step
    finally:
        os.close(fd)


def empty() -> None:
    """That program goes, and with it what it took."""
    FILLER.unlink(missing_ok=True)


def install() -> None:
    """Wrap the methods, in this process."""
    for label, (owner, name) in METHODS.items():
        inner: Callable[..., Awaitable[Any]] = getattr(owner, name)
        setattr(owner, name, _trapped(inner, label))


def _trapped(inner: Callable[..., Awaitable[Any]], label: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(inner)
    async def trapped(*args: Any, **options: Any) -> Any:
        _spring(f"{label} before")
        result = await inner(*args, **options)
        _spring(f"{label} after")
        return result

    return trapped


def _spring(here: str) -> None:
    try:
        wanted = TRAP.read_text()
    except FileNotFoundError:
        return
    if wanted == here:
        TRAP.unlink()
        fill()
