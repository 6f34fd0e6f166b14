"""The ``find`` of the fake engine, as far as the host needs it: listings, and files with some text in them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

from sandboxrt.engine.base import FileError, Identity
from sandboxrt.testing.filesystem import Device, Entry, File, Folder, Link, MemoryFileSystem

__all__ = ["find"]

_LISTING = "%y/%s/%T@/%p\\0"
_KINDS = {File: "f", Folder: "d", Link: "l", Device: "c"}


def find(files: MemoryFileSystem, cwd: str, identity: Identity, words: Sequence[str]) -> Iterator[bytes]:
    """What ``find -H START [-mindepth N] [-maxdepth N] ACTION`` prints.

    ACTION is ``-printf`` with nothing or with the listing that the host asks for, or ``-type f -exec grep -lsF -e TEXT
    {} +``. What may not be entered or read is passed over, as the host throws error messages away.
    """
    start = words[1]
    least, most = (int(words[words.index(name) + 1]) if name in words else None for name in ("-mindepth", "-maxdepth"))
    needle = words[words.index("-e") + 1].encode() if "-e" in words else None
    for path, depth, entry in _walk(files, cwd, identity, start, 0, most):
        if depth < (least or 0):
            continue
        if needle is None and _LISTING in words:
            size = len(entry.data) if isinstance(entry, File) else 4096
            mtime = entry.mtime_ns // 10**9 if isinstance(entry, File) else 0
            yield f"{_KINDS[type(entry)]}/{size}/{mtime}.0/{path}\0".encode()
        elif needle is not None and isinstance(entry, File) and needle in _content(files, cwd, identity, path):
            yield f"{path}\n".encode()


def _walk(
    files: MemoryFileSystem, cwd: str, identity: Identity, path: str, depth: int, most: int | None
) -> Iterator[tuple[str, int, Entry]]:
    try:
        entry = files.look_up(posixpath.join(cwd, path), identity, follow=depth == 0)
    except FileError:
        return
    yield path, depth, entry
    if not isinstance(entry, Folder) or (most is not None and depth >= most):
        return
    for name in sorted(entry.entries):
        yield from _walk(files, cwd, identity, f"{path}/{name}", depth + 1, most)


def _content(files: MemoryFileSystem, cwd: str, identity: Identity, path: str) -> bytes:
    try:
        return bytes(files.read(posixpath.join(cwd, path), identity).data)
    except FileError:
        return b""
