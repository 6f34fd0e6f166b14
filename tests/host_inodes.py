"""What the host's inodes say of themselves: whatever a sandbox was given of them, nothing may have changed.

The usual devices are the whole machine's, and a sandbox that got hold of one could stop it. So what is tried with
them is tried with nodes that the test made, mounted over the machine's own for the test's processes alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["DEVICES", "changed", "described", "with_devices_of_its_own"]

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_FS_IOC_GETFLAGS = 0x80086601
# Their nodes may not lie on a mount with "nodev", as temporary folders often do.
_ENTER = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 none "$0"
for each in {devices}; do
    set_=${{each#*=}} name=${{each%%=*}}
    mknod -m 666 "$0/$name" c "${{set_%:*}}" "${{set_#*:}}"
    mount --bind "$0/$name" "/dev/$name"
done
exec "$@"
"""


def described(paths: Iterable[Path]) -> dict[str, Mapping[str, object]]:
    """Owner, mode, times, attributes and content of everything at and below ``paths``."""
    found: dict[str, Mapping[str, object]] = {}
    for path in paths:
        below = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        for each in (path, *below):
            found[str(each)] = _describe(each)
    return found


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """What is there no more, new, or another."""
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def _describe(path: Path) -> dict[str, object]:
    kind = path.lstat().st_mode
    content, flags = None, None
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
            try:
                flags = struct.unpack("=i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, b"\0" * 4))[0]
                if stat.S_ISREG(kind):
                    with os.fdopen(os.dup(fd), "rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
            finally:
                os.close(fd)
    seen = path.lstat()
    return {
        "mode": stat.filemode(seen.st_mode),
        "owner": (seen.st_uid, seen.st_gid),
        "device": (seen.st_rdev, seen.st_nlink),
        # Looking at a folder or starting a program reads it, on the host as well.
        "times": (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_atime_ns if stat.S_ISCHR(kind) else 0),
        "attributes": (flags, {name: os.getxattr(path, name) for name in _names(path)}),
        "content": content if stat.S_ISREG(kind) else os.readlink(path) if stat.S_ISLNK(kind) else None,
    }


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listxattr(path, follow_symlinks=False))
    except OSError:
        return []


def with_devices_of_its_own(
    folder: Path, command: Sequence[str], *, timeout_s: float = 100, **options: object
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a mount namespace where ``folder``, which it makes, holds what is seen as the usual devices."""
    folder.mkdir()
    devices = " ".join(f"{name}={major}:{minor}" for name, (major, minor) in DEVICES.items())
    enter = ["unshare", "--mount", "sh", "-c", _ENTER.format(devices=devices), str(folder)]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((root, *filter(None, sys.path)))}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*enter, *command], timeout=timeout_s, check=False, cwd=root, env=environment, **options
    )
