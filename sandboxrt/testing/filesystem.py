"""The fake engine's file system: a tree in memory with modes, owners, symbolic links and a size limit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NoReturn, TypeAlias

import attrs

from sandboxrt.engine.base import FileError, FileErrorKind, Identity

__all__ = ["Device", "File", "Folder", "Link", "MemoryFileSystem"]

_MAX_LINKS = 40
_MAX_NAME_BYTES = 255
_READ, _WRITE, _ENTER = 4, 2, 1


@attrs.define
class File:
    """A regular file."""

    data: bytearray = attrs.field(factory=bytearray)
    mode: int = 0o644
    owner: Identity = attrs.field(factory=Identity)
    mtime_ns: int = 0


@attrs.define
class Folder:
    """A folder."""

    entries: dict[str, Entry] = attrs.field(factory=dict)
    mode: int = 0o755
    owner: Identity = attrs.field(factory=Identity)


@attrs.define
class Link:
    """A symbolic link."""

    target: str
    mode: int = 0o777
    owner: Identity = attrs.field(factory=Identity)


@attrs.define
class Device:
    """Anything else that a path can name: ``/dev/null`` and the like."""

    mode: int = 0o666
    owner: Identity = attrs.field(factory=Identity)


Entry: TypeAlias = File | Folder | Link | Device


class MemoryFileSystem:
    """The tree of one fake container.

    Args:
        capacity_bytes: How much the files may hold together; ``None`` = no limit.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.root: Folder = Folder()
        self._capacity_bytes = capacity_bytes
        self.used_bytes: int = 0
        self._writes = 0

    def look_up(self, path: str, identity: Identity, *, follow: bool = True) -> Entry:
        """What ``path`` names.

        Raises:
            FileError: With the reason.
        """
        parent, name = self._parent(path, identity, follow=follow)
        if not name:
            return parent
        entry = parent.entries.get(name)
        if entry is None:
            _fail(FileErrorKind.NOT_FOUND, path)
        return entry

    def enter(self, path: str, identity: Identity) -> Folder:
        """The folder at ``path``, for working in.

        Raises:
            FileError: With the reason.
        """
        entry = self.look_up(path, identity)
        if not isinstance(entry, Folder):
            _fail(FileErrorKind.NOT_A_DIRECTORY, path)
        _check(entry, identity, _ENTER, path)
        return entry

    def read(self, path: str, identity: Identity) -> File:
        """The regular file at ``path``, readable by ``identity``.

        Raises:
            FileError: With the reason.
        """
        entry = self.look_up(path, identity)
        if isinstance(entry, Folder):
            _fail(FileErrorKind.IS_DIRECTORY, path)
        if not isinstance(entry, File):
            _fail(FileErrorKind.NOT_REGULAR, path)
        _check(entry, identity, _READ, path)
        return entry

    def write(self, path: str, data: bytes, identity: Identity, *, append: bool = False, parents: bool = False) -> None:
        """Make a regular file contain ``data``, or have it at its end; the path's parents too, if wished.

        Raises:
            FileError: With the reason; nothing was changed but the parents.
        """
        if parents:
            self.make_folder(path.rsplit("/", 1)[0] or "/", identity)
        parent, name = self._parent(path, identity)
        entry = parent.entries.get(name) if name else parent
        if isinstance(entry, Folder):
            _fail(FileErrorKind.IS_DIRECTORY, path)
        if isinstance(entry, Device):
            if parents:
                _fail(FileErrorKind.NOT_REGULAR, path)
            return
        if entry is None:
            _check(parent, identity, _WRITE, path)
            entry = File(owner=identity)
        else:
            _check(entry, identity, _WRITE, path)
        assert isinstance(entry, File)
        growth = len(data) - (0 if append else len(entry.data))
        if self._capacity_bytes is not None and self.used_bytes + growth > self._capacity_bytes:
            _fail(FileErrorKind.NO_SPACE, path)
        self.used_bytes += growth
        entry.data = entry.data + data if append else bytearray(data)
        # A second for each write, so that whoever compares times sees the order and every change.
        self._writes += 1
        entry.mtime_ns = self._writes * 10**9
        parent.entries[name] = entry

    def make_folder(self, path: str, identity: Identity) -> None:
        """Make a folder and its parents where they are missing.

        Raises:
            FileError: With the reason.
        """
        at = ""
        for name in _names(path):
            at = f"{at}/{name}"
            parent, last = self._parent(at, identity)
            entry = parent.entries.get(last) if last else parent
            if entry is None:
                _check(parent, identity, _WRITE, path)
                parent.entries[last] = Folder(owner=identity)
            elif not isinstance(entry, Folder):
                _fail(FileErrorKind.NOT_A_DIRECTORY, path)

    def remove(self, path: str, identity: Identity) -> None:
        """Remove what is not a folder.

        Raises:
            FileError: With the reason.
        """
        parent, name = self._parent(path, identity, follow=False)
        entry = parent.entries.get(name)
        if entry is None:
            _fail(FileErrorKind.NOT_FOUND, path)
        if isinstance(entry, Folder):
            _fail(FileErrorKind.IS_DIRECTORY, path)
        _check(parent, identity, _WRITE, path)
        if isinstance(entry, File):
            self.used_bytes -= len(entry.data)
        del parent.entries[name]

    def copy(self, capacity_bytes: int | None = None, *, without: str | None = None) -> MemoryFileSystem:
        """The same tree once more, of which nothing is shared, with room for ``capacity_bytes`` of new data.

        Args:
            capacity_bytes: Likewise; ``None`` = no limit.
            without: A folder whose content is left out.
        """
        other = MemoryFileSystem()
        other.root = copy.deepcopy(self.root)
        if without is not None:
            other.enter(without, Identity()).entries.clear()
        other.used_bytes = sum(len(entry.data) for entry in other._entries() if isinstance(entry, File))
        other._capacity_bytes = None if capacity_bytes is None else other.used_bytes + capacity_bytes
        other._writes = self._writes
        return other

    def count_files(self) -> int:
        """How many there are of what is no folder."""
        return sum(1 for _ in self._entries())

    def _entries(self) -> Iterator[File | Link | Device]:
        folders = [self.root]
        while folders:
            for entry in folders.pop().entries.values():
                if isinstance(entry, Folder):
                    folders.append(entry)
                else:
                    yield entry

    def place(self, path: str, entry: Entry) -> None:
        """Put an entry at ``path`` as root, parents included: for setting a scene."""
        self.make_folder(path.rsplit("/", 1)[0] or "/", Identity())
        parent, name = self._parent(path, Identity(), follow=False)
        if isinstance(entry, File):
            self.used_bytes += len(entry.data)
        parent.entries[name] = entry

    def _parent(self, path: str, identity: Identity, *, follow: bool = True) -> tuple[Folder, str]:
        """The folder that holds the last component, and its name there; links on the way are followed."""
        trail = [self.root]
        names = _names(path)[::-1]
        links = 0
        while names:
            name = names.pop()
            folder = trail[-1]
            _check(folder, identity, _ENTER, path)
            if len(name.encode()) > _MAX_NAME_BYTES:
                _fail(FileErrorKind.NAME_TOO_LONG, path)
            if name == "..":
                trail = trail[:-1] or [self.root]
                continue
            entry = folder.entries.get(name)
            if isinstance(entry, Link) and (names or follow):
                links += 1
                if links > _MAX_LINKS:
                    _fail(FileErrorKind.LOOP, path)
                names.extend(_names(entry.target)[::-1])
                if entry.target.startswith("/"):
                    trail = [self.root]
                continue
            if not names:
                return folder, name
            if entry is None:
                _fail(FileErrorKind.NOT_FOUND, path)
            if not isinstance(entry, Folder):
                _fail(FileErrorKind.NOT_A_DIRECTORY, path)
            trail.append(entry)
        return trail[-1], ""


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _check(entry: Entry, identity: Identity, wanted: int, path: str) -> None:
    if identity.uid == 0:
        return
    if entry.owner.uid == identity.uid:
        granted = entry.mode >> 6
    elif entry.owner.gid in (identity.gid, *identity.groups):
        granted = entry.mode >> 3
    else:
        granted = entry.mode
    if not granted & wanted:
        _fail(FileErrorKind.PERMISSION, path)


def _fail(kind: FileErrorKind, path: str) -> NoReturn:
    raise FileError(kind, path)
