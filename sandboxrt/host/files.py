"""Files of a sandbox, read and written by its host.

The engine resolves paths inside the container and says what went wrong in words of its own; here these become the
public errors.

Source: protocol.md §3.2-3.4; README of the system, "File Operations".
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
from collections.abc import AsyncIterator

import attrs
import trio

from sandboxrt.engine.base import Container, FileError, FileErrorKind, FileStat, Identity, OpenFile
from sandboxrt.errors import SandboxOperationError, ValidationError
from sandboxrt.protocol.wording import file_not_found

__all__ = ["HOME", "SandboxFile", "open_file", "read_file", "resolve_path", "write_file"]

HOME = "/home/user/"
"""What relative paths are relative to."""

_CHUNK_BYTES = 1024**2

_ERRNOS = {
    FileErrorKind.IS_DIRECTORY: errno.EISDIR,
    FileErrorKind.NOT_A_DIRECTORY: errno.ENOTDIR,
    FileErrorKind.PERMISSION: errno.EACCES,
    FileErrorKind.NO_SPACE: errno.ENOSPC,
    FileErrorKind.READ_ONLY: errno.EROFS,
    FileErrorKind.NAME_TOO_LONG: errno.ENAMETOOLONG,
    FileErrorKind.LOOP: errno.ELOOP,
    FileErrorKind.NOT_FOUND: errno.ENOENT,
}
"""Whose words programs look for in messages."""
_REASONS = {
    FileErrorKind.NOT_FOUND: ("NotFound", "does not exist"),
    FileErrorKind.IS_DIRECTORY: ("IsDirectory", "is a folder"),
    FileErrorKind.NOT_A_DIRECTORY: ("NotADirectory", "leads through something that is not a folder"),
    FileErrorKind.NOT_REGULAR: ("NotRegular", "is not a regular file"),
    FileErrorKind.PERMISSION: ("PermissionDenied", "may not be accessed by the sandbox's user"),
    FileErrorKind.NO_SPACE: ("NoSpace", "does not fit on the sandbox's disk"),
    FileErrorKind.READ_ONLY: ("ReadOnly", "is on a read-only file system"),
    FileErrorKind.NAME_TOO_LONG: ("NameTooLong", "has a name that is too long"),
    FileErrorKind.LOOP: ("Loop", "leads through too many symbolic links"),
    FileErrorKind.OTHER: ("OSError", "cannot be accessed"),
}


def resolve_path(path: str) -> str:
    """The absolute path that ``path`` means inside a sandbox.

    Raises:
        ValidationError: It is empty or contains a NUL character.
    """
    if not path:
        raise ValidationError("The path is empty", "path")
    if "\0" in path:
        raise ValidationError("The path contains a NUL character", "path")
    return posixpath.join(HOME, path)


@attrs.frozen
class SandboxFile:
    """A regular file of a sandbox, open for reading until its block ends."""

    path: str
    _file: OpenFile

    @property
    def stat(self) -> FileStat:
        """As of when it was opened."""
        return self._file.stat

    @property
    def etag(self) -> str:
        """A quoted text that is another one whenever the file is another one, or may have been changed."""
        stat = self._file.stat
        return f'"{stat.inode:x}-{stat.size_bytes:x}-{stat.mtime_ns:x}-{stat.ctime_ns:x}"'

    async def read(self, offset: int, max_bytes: int = _CHUNK_BYTES) -> bytes:
        """Up to ``max_bytes`` (a mebibyte) from ``offset``; empty at the end.

        Raises:
            SandboxOperationError: It cannot be read (any more).
        """
        try:
            return await self._file.read(offset, max_bytes)
        except FileError as error:
            raise _public(error, "read", self.path) from error


@contextlib.asynccontextmanager
async def open_file(
    container: Container, sandbox_name: str, path: str, identity: Identity
) -> AsyncIterator[SandboxFile]:
    """A regular file, open for reading; where it is replaced meanwhile, this one stays what it was.

    Raises:
        ResourceNotFoundError: There is no such file (``resource_type="file"``).
        SandboxOperationError: It cannot be read (``operation="read"``, ``error_type`` says why).
        ValidationError: The path is empty or contains a NUL character.
    """
    try:
        file = await container.open_file(resolve_path(path), identity)
    except FileError as error:
        if error.kind is FileErrorKind.NOT_FOUND:
            raise file_not_found(path, sandbox_name) from error
        raise _public(error, "read", path) from error
    try:
        yield SandboxFile(path, file)
    finally:
        with trio.CancelScope(shield=True):
            await file.aclose()


async def read_file(container: Container, sandbox_name: str, path: str, identity: Identity) -> bytes:
    """The whole content of a regular file; errors as :func:`open_file` says."""
    chunks = []
    offset = 0
    async with open_file(container, sandbox_name, path, identity) as file:
        while chunk := await file.read(offset):
            chunks.append(chunk)
            offset += len(chunk)
    return b"".join(chunks)


async def write_file(container: Container, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
    """Make a file have this content, at once; its parents are made where they are missing.

    Raises:
        SandboxOperationError: It cannot be written (``operation="write"``); the old content is still there.
        ValidationError: The path is empty or contains a NUL character.
    """
    resolved = resolve_path(path)
    try:
        await container.replace_file(resolved, content, identity)
    except FileError as error:
        raise _public(error, "write", path) from error


def _public(error: FileError, operation: str, path: str) -> SandboxOperationError:
    error_type, reason = _REASONS[error.kind]
    code = _ERRNOS.get(error.kind)
    detail = error.detail if error.kind is FileErrorKind.OTHER else "" if code is None else os.strerror(code)
    more = f" ({detail})" if detail else ""
    return SandboxOperationError(f"Cannot {operation} '{path}': it {reason}{more}", operation, error_type)
