"""Walks over unpacked files that nobody vouches for: makes them safe to be a layer, measures and removes them.

Also runs as a program (``python tidy.py tidy|shift|remove FOLDER``) in the user namespace of an unprivileged user,
where the files of an image have owners that only that namespace can act for. So it imports nothing but the standard
library.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import Final

__all__ = ["remove", "shift", "tidy"]

_FORGED: Final = ("trusted.overlay.", "user.overlay.")


def tidy(folder: str) -> int:
    """Take out of an unpacked image what must not be in a layer, and measure it.

    Device nodes go (a sandbox has the devices that its engine gives it, and a character device 0:0 would be a
    whiteout), and so do attributes that overlayfs would take for its own.

    Returns:
        Bytes on disk, each hard-linked file counted once.
    """
    used = _inspect(folder, os.lstat(folder), set())
    seen: set[tuple[int, int]] = set()
    for parent, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
                os.unlink(name, dir_fd=descriptor)
            else:
                used += _inspect(os.path.join(parent, name), found, seen)
    return used


def _inspect(path: str, found: os.stat_result, seen: set[tuple[int, int]]) -> int:
    with contextlib.suppress(OSError):
        for attribute in os.listxattr(path, follow_symlinks=False):
            if attribute.startswith(_FORGED):
                os.removexattr(path, attribute, follow_symlinks=False)
    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
        key = (found.st_dev, found.st_ino)
        if key in seen:
            return 0
        seen.add(key)
    return found.st_blocks * 512


def shift(folder: str, *owners: str) -> None:
    """Give every file to the next id, owner and group.

    In an unprivileged user's namespace the image's root is then the first subordinate id, which is the sandboxes'
    root, and no longer the user.

    Args:
        folder: The unpacked files.
        owners: ``NAME=ID`` for what is to belong to somebody else; the user could not say so before.
    """
    _shift(folder, os.lstat(folder), None)
    seen: set[tuple[int, int]] = set()
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            key = (found.st_dev, found.st_ino)
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                if key in seen:
                    continue
                seen.add(key)
            _shift(name, found, descriptor)
    for owner in owners:
        name, _, number = owner.partition("=")
        os.chown(os.path.join(folder, name), int(number) + 1, int(number) + 1, follow_symlinks=False)


def _shift(name: str, found: os.stat_result, descriptor: int | None) -> None:
    os.chown(name, found.st_uid + 1, found.st_gid + 1, dir_fd=descriptor, follow_symlinks=False)
    if found.st_mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(found.st_mode):
        # A new owner costs a file these bits.
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=descriptor)


def measure(folder: str, enough: int) -> int:
    """Bytes on disk in a folder that still grows, or a number beyond ``enough`` as soon as that is certain."""
    used = 0
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                used += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
        if used > enough:
            break
    return used


def remove(folder: str) -> None:
    """Remove a tree whatever the modes of its folders are. Harmless where it, or a part of it, is gone already."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _empty(descriptor)
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder)


def _empty(top: int) -> None:
    # Depth is the image's choice, so it must not cost descriptors or stack: each folder is moved up to the top once
    # it is met, and emptied there.
    serial = 0
    while entries := os.listdir(top):
        for name in entries:
            try:
                os.unlink(name, dir_fd=top)
            except IsADirectoryError:
                serial = _lift(top, name, serial)
            except FileNotFoundError:
                continue


def _lift(top: int, name: str, serial: int) -> int:
    """Empty a folder of all but folders, which are moved up to ``top``; then remove it."""
    try:
        os.chmod(name, 0o700, dir_fd=top)
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    except FileNotFoundError:
        return serial
    try:
        for inner in os.listdir(descriptor):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.unlink(inner, dir_fd=descriptor)
                except IsADirectoryError:
                    os.chmod(inner, 0o700, dir_fd=descriptor)
                    serial += 1
                    os.rename(inner, f".removing-{os.getpid()}-{serial}", src_dir_fd=descriptor, dst_dir_fd=top)
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=top)
    return serial


def _main(arguments: list[str]) -> None:
    action, folder, *more = arguments
    if action == "tidy":
        sys.stdout.write(f"{tidy(folder)}\n")
    elif action == "shift":
        shift(folder, *more)
    else:
        remove(folder)


if __name__ == "__main__":
    _main(sys.argv[1:])
