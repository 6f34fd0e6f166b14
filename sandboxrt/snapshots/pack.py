"""Writes a layer folder as the tar of an OCI image's layer: overlayfs's marks become those of the specification.

Runs as a program (``python pack.py FOLDER AT BLOBS SHIFT [MASK]``), so that it can be killed at any moment, and in the
user namespace of an unprivileged user, where the files of a layer have owners that only that namespace can act for. So
it imports nothing but the standard library.

Source: the OCI image specification, image layer filesystem changeset; SCHILY.xattr records as container tools use them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from typing import IO, Final

__all__ = ["pack"]

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_OPAQUE_MARKS: Final = ("trusted.overlay.opaque", "user.overlay.opaque")
_KEPT: Final = ("user.", "security.capability", "system.posix_acl_")
_CHUNK: Final = 1024 * 1024


class _Digesting:
    """A file that knows the digest of what was written into it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


class _Packer:
    """One layer on its way into a tar."""

    def __init__(self, tar: tarfile.TarFile, shift: int, hidden: set[str], *, is_mask: bool) -> None:
        self._tar = tar
        self._shift = shift
        self._hidden = hidden
        self._is_mask = is_mask
        self._first: dict[tuple[int, int], str] = {}

    def folder(self, folder: str, at: str) -> None:
        """A folder whose content appears at ``at``; parents come before what is in them."""
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            parts = [part for part in at.split("/") if part]
            for depth in range(1, len(parts)):
                self._tar.addfile(_plain_folder("/".join(parts[:depth])))
            self._walk(top, "", "/".join(parts))
        finally:
            os.close(top)

    def _walk(self, top: int, start: str, prefix: str) -> None:
        # By names relative to the top: the layer is nobody's to change, and a name too long for that is told.
        pending = [start]
        while pending:
            relative = pending.pop()
            name = "/".join(part for part in (prefix, relative) if part)
            descriptor = os.open(relative or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            try:
                self._add_folder(descriptor, name)
                inner = []
                for entry in sorted(os.listdir(descriptor)):
                    below = f"{relative}/{entry}" if relative else entry
                    if below in self._hidden:
                        continue
                    found = os.stat(entry, dir_fd=descriptor, follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        inner.append(below)
                    else:
                        self._add(descriptor, entry, found, f"{name}/{entry}" if name else entry, name)
                pending += reversed(inner)
            finally:
                os.close(descriptor)

    def _add_folder(self, descriptor: int, name: str) -> None:
        info = self._info(name or ".", os.fstat(descriptor), tarfile.DIRTYPE)
        info.pax_headers = _attributes(descriptor)
        self._tar.addfile(info)
        if not self._is_mask and _is_opaque(descriptor):
            self._mark(f"{name}/{_OPAQUE}" if name else _OPAQUE)

    def _add(self, folder: int, entry: str, found: os.stat_result, name: str, parent: str) -> None:
        mode = found.st_mode
        if stat.S_ISCHR(mode) and found.st_rdev == 0:
            if not self._is_mask:
                self._mark(f"{parent}/{_WHITEOUT}{entry}" if parent else f"{_WHITEOUT}{entry}")
            return
        if stat.S_ISSOCK(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            return
        if entry.startswith(_WHITEOUT):
            raise ValueError(f"{name}: names that begin with {_WHITEOUT} have a meaning of their own in images")
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and key in self._first:
            info = self._info(name, found, tarfile.LNKTYPE)
            info.linkname = self._first[key]
            self._tar.addfile(info)
            return
        if found.st_nlink > 1:
            self._first[key] = name
        if stat.S_ISLNK(mode):
            info = self._info(name, found, tarfile.SYMTYPE)
            info.linkname = os.readlink(entry, dir_fd=folder)
            self._tar.addfile(info)
        elif stat.S_ISFIFO(mode):
            self._tar.addfile(self._info(name, found, tarfile.FIFOTYPE))
        else:
            self._add_file(folder, entry, name)

    def _add_file(self, folder: int, entry: str, name: str) -> None:
        descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            info = self._info(name, found, tarfile.REGTYPE)
            info.size = found.st_size
            info.pax_headers = _attributes(descriptor)
            self._tar.addfile(info, file)

    def _info(self, name: str, found: os.stat_result, kind: bytes) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.mode = stat.S_IMODE(found.st_mode)
        info.uid, info.gid = max(0, found.st_uid - self._shift), max(0, found.st_gid - self._shift)
        info.mtime = found.st_mtime_ns // 10**9
        return info

    def _mark(self, name: str) -> None:
        info = tarfile.TarInfo(name)
        info.mode = 0o600
        self._tar.addfile(info)


def _plain_folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _attributes(descriptor: int) -> dict[str, str]:
    found = {}
    for name in os.listxattr(descriptor):
        if name.startswith(_KEPT) and not name.startswith("user.overlay."):
            found[f"SCHILY.xattr.{name}"] = os.getxattr(descriptor, name).decode("utf-8", "surrogateescape")
    return found


def _is_opaque(descriptor: int) -> bool:
    names = os.listxattr(descriptor)
    return any(mark in names and os.getxattr(descriptor, mark) == b"y" for mark in _OPAQUE_MARKS)


def _hidden_by(mask: str) -> Iterator[str]:
    """What a mask takes out of sight, relative to its top."""
    for folder, folders, files in os.walk(mask):
        for name in files:
            found = os.lstat(os.path.join(folder, name))
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                yield os.path.relpath(os.path.join(folder, name), mask)
        for name in tuple(folders):
            path = os.path.join(folder, name)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _is_opaque(descriptor):
                    folders.remove(name)
                    yield os.path.relpath(path, mask)
            finally:
                os.close(descriptor)


def pack(folder: str, at: str, blobs: str, shift: int = 0, mask: str = "") -> tuple[str, int]:
    """Write a layer into the folder ``blobs``, under its digest, uncompressed. Returns the digest and the size.

    Args:
        folder: The layer.
        at: Where its content appears, e.g. ``/`` or ``/usr``.
        blobs: Where the tar goes.
        shift: What the owners on disk are higher than those in the layer.
        mask: A layer over it whose marks are carried out here, so that what it hides does not leave the machine; the
            folder itself where the layer is that mask.

    Raises:
        OSError: It cannot be read, or the disk is full.
        ValueError: A name in it cannot be in an image.
    """
    is_mask = bool(mask) and os.path.samefile(folder, mask)
    hidden = set(_hidden_by(mask)) if mask and not is_mask else set()
    draft = os.path.join(blobs, f".layer-{os.getpid()}")
    with open(draft, "wb", buffering=_CHUNK) as file:
        out = _Digesting(file)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK) as tar:  # type: ignore[call-overload]
            _Packer(tar, shift, hidden, is_mask=is_mask).folder(folder, at)
    digest = out.sha256.hexdigest()
    os.rename(draft, os.path.join(blobs, digest))
    return f"sha256:{digest}", out.size


def _main(arguments: list[str]) -> None:
    folder, at, blobs, shift, *mask = arguments
    digest, size = pack(folder, at, blobs, int(shift), *mask)
    sys.stdout.write(json.dumps({"digest": digest, "size": size}) + "\n")


if __name__ == "__main__":
    try:
        _main(sys.argv[1:])
    except (OSError, ValueError) as _error:
        sys.exit(str(_error))
