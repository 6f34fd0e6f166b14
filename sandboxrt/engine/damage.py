"""Disks that were not unmounted properly, or lost something: repaired as far as possible, else read without a mount.

``e2fsck -p`` repairs what needs no decision. What it leaves is decided as ``e2fsck -y`` does, so that its sandbox
starts, and everything that this overwrites is kept beside the image first: ``e2undo`` takes it back. What cannot be
repaired either stays as it is, and its files can be taken out one by one.

Reading a damaged file system resolves its names, and what they are may be chance, or what somebody inside once wrote
into a block. So it is not done by the host's root but by the sandbox's, whose id owns nothing on the host but the
folder that the files go to; a name that leads elsewhere leads to where that user may not write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import attrs

from sandboxrt.engine.disk import find_tool, in_thread, run_tool
from sandboxrt.engine.ext4 import BLOCK_BYTES
from sandboxrt.errors import ResourceCreationError, SandboxOperationError

__all__ = ["UNDO", "Rescued", "ensure_clean", "rescue"]

_log = logging.getLogger("sandboxrt.engine")

UNDO: Final = "before-repair.e2undo"
"""In a sandbox's folder: what its disk was before the latest repair that took decisions; ``e2undo`` reads it."""
_FSCK_TIMEOUT_S, _RESCUE_TIMEOUT_S = 600, 3600
_SUPERBLOCK_AT = 1024
_STATE_AT, _STATE_CLEAN, _STATE_ERRORS = 0x3A, 1, 2
_REPAIRED: Final = (0, 1)
_UNREADABLE: Final = 8
_COPIES: Final = (None, 32768, 98304)
"""Blocks of the superblock's copies that disks of 4 KiB blocks have, after the first one, which needs no number."""
_WRITTEN: Final = "upper"


async def ensure_clean(image: Path) -> None:
    """Repair the file system of a disk that was not unmounted properly (the host crashed); quick when it was.

    Raises:
        ResourceCreationError: It cannot be repaired; it is as it was, for ``sandboxrt rescue``.
    """
    await in_thread(lambda: _ensure_clean(image))


def _ensure_clean(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        state = int.from_bytes(os.pread(fd, 2, _SUPERBLOCK_AT + _STATE_AT), "little")
    finally:
        os.close(fd)
    if state & _STATE_CLEAN and not state & _STATE_ERRORS:
        return
    if run_tool(["e2fsck", "-p", str(image)], _FSCK_TIMEOUT_S).returncode in _REPAIRED:
        return
    undo = image.with_name(UNDO)
    for copy in _COPIES:
        undo.unlink(missing_ok=True)
        # With an undo file, it does not look for a copy by itself.
        words = [] if copy is None else ["-b", str(copy), "-B", str(BLOCK_BYTES)]
        done = run_tool(["e2fsck", "-y", "-f", *words, "-z", str(undo), str(image)], _FSCK_TIMEOUT_S)
        if done.returncode != _UNREADABLE:
            break
    if done.returncode in _REPAIRED and _has_its_files(image):
        _log.error(
            "the disk %s was damaged and is repaired; files may be missing or in lost+found. `e2undo %s %s` takes the"
            " repair back. e2fsck said: %s",
            image,
            undo,
            image,
            done.stdout.strip()[-2000:],
        )
        return
    if undo.exists():
        run_tool(["e2undo", str(undo), str(image)], _FSCK_TIMEOUT_S)
    raise ResourceCreationError(
        f"the disk {image} is damaged and e2fsck cannot repair it; `sandboxrt rescue` takes its files out:"
        f" {done.stdout.strip()[-400:]}",
        "sandbox",
        "Disk",
    )


def _has_its_files(image: Path) -> bool:
    """Whether what was written is where a sandbox looks for it: a repair may have moved all of it to lost+found."""
    return "Type: directory" in run_tool(["debugfs", "-R", f"stat /{_WRITTEN}", str(image)], _FSCK_TIMEOUT_S).stdout


@attrs.frozen
class Rescued:
    """What was taken from a disk.

    Attributes:
        files: How many files, folders aside.
        size_bytes: What they hold.
        said: What could not be read, as the tool said it; empty when all was.
    """

    files: int
    size_bytes: int
    said: str = ""


def rescue(image: Path, target: Path, owner: int) -> Rescued:
    """Copy what a sandbox wrote from its disk, damaged or not, without mounting or changing it. Blocking.

    Args:
        image: The disk; nothing runs on it.
        target: The folder to make: ``files`` in it has what was changed since the snapshot, ``tmp`` its ``/tmp``.
        owner: The id of the sandbox's root on the host, as whom the disk is read. Files end as the caller's.

    Raises:
        FileExistsError: The target exists.
        SandboxOperationError: Nothing could be read; the message has the reason.
        OSError: The target cannot be made or written.
    """
    program = find_tool("debugfs")
    target.mkdir(mode=0o700, parents=True)
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    found = os.fstat(fd)
    try:
        os.chown(target, owner, owner)
        # The file's owner alone may open it again by its descriptor.
        os.chown(fd, owner, -1)
        for copy in _COPIES:
            superblock = () if copy is None else ("-b", str(BLOCK_BYTES), "-s", str(copy))
            said = ""
            for folder in (_WRITTEN, "tmp"):
                words = ["-c", "-n", *superblock, "-R", f"rdump /{folder} .", f"/proc/self/fd/{fd}"]
                done = subprocess.run(
                    [program, *words],
                    cwd=target,
                    user=owner,
                    group=owner,
                    extra_groups=(),
                    pass_fds=(fd,),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=_RESCUE_TIMEOUT_S,
                    check=False,
                )
                said += "".join(line for line in done.stdout.splitlines(True) if not _is_noise(line))
            if (target / _WRITTEN).is_dir():
                break
        else:
            raise SandboxOperationError(f"nothing can be read of {image}: {said.strip()[-400:]}", "read", "Disk")
    finally:
        os.chown(fd, found.st_uid, -1)
        os.close(fd)
        _take(target)
    _lay_out(target)
    return _count(target, said.strip())


def _is_noise(line: str) -> bool:
    """Its version, and that it may not give away what it copied."""
    return line.startswith("debugfs 1.") or "while changing ownership of" in line


def _take(target: Path) -> None:
    """Give everything to the caller, with modes that let it be read; links are not followed."""
    uid, gid = os.geteuid(), os.getegid()
    for folder, folders, files in os.walk(target):
        os.chmod(folder, 0o700)
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                os.chown(path, uid, gid, follow_symlinks=False)
    os.chown(target, uid, gid)


def _lay_out(target: Path) -> None:
    """From a folder for each place of layers (``@``, ``@usr``) to one tree, ``files``."""
    made = target / "files"
    upper = target / _WRITTEN
    root = upper / "@"
    root.rename(made) if root.is_dir() and not root.is_symlink() else made.mkdir()
    for folder in sorted(upper.iterdir()):
        place = made.joinpath(*folder.name.strip("@").split("@"))
        if not place.exists() and not place.is_symlink() and place.parent.is_dir() and not place.parent.is_symlink():
            folder.rename(place)
        else:
            folder.rename(target / folder.name)
    shutil.rmtree(upper)


def _count(target: Path, said: str) -> Rescued:
    files = size = 0
    for folder, _, names in os.walk(target):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_size
                files += 1
    return Rescued(files, size, said)
