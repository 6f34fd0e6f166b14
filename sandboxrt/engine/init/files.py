"""Reads and replaces files inside a container, with the rights and through the eyes of a user inside."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from sandboxrt.engine.base import FileError, FileErrorKind, FileStat, Identity, SpawnFailedError
from sandboxrt.engine.init.fds import FdSet, check_regular_file
from sandboxrt.engine.init.gate import Message, RecordSocket
from sandboxrt.engine.init.wire import InitProtocolError, Record, RecordKind, Request, RequestKind, Stage, pack_strings
from sandboxrt.threads import run_blocking

if TYPE_CHECKING:
    from sandboxrt.engine.init.channel import InitChannel

__all__ = ["InitOpenFile", "file_error", "file_failure", "open_file", "replace_file"]

_CLEANUP_S = 5.0
_KINDS = {
    errno.ENOENT: FileErrorKind.NOT_FOUND,
    errno.EISDIR: FileErrorKind.IS_DIRECTORY,
    errno.ENOTDIR: FileErrorKind.NOT_A_DIRECTORY,
    errno.EACCES: FileErrorKind.PERMISSION,
    errno.EPERM: FileErrorKind.PERMISSION,
    errno.ENOSPC: FileErrorKind.NO_SPACE,
    errno.EDQUOT: FileErrorKind.NO_SPACE,
    errno.EROFS: FileErrorKind.READ_ONLY,
    errno.ENAMETOOLONG: FileErrorKind.NAME_TOO_LONG,
    errno.ELOOP: FileErrorKind.LOOP,
}


@attrs.define(eq=False)
class InitOpenFile:
    """A regular file opened inside; see :class:`~sandboxrt.engine.base.OpenFile`."""

    path: str
    stat: FileStat
    _fd: int
    _limiter: trio.CapacityLimiter
    _readers: int = attrs.field(default=0, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    async def read(self, offset: int, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` from ``offset``; empty at the end.

        Raises:
            FileError: The read failed.
            trio.ClosedResourceError: It was closed.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("the file was closed")
        self._readers += 1
        try:
            return await run_blocking(self._limiter, lambda: os.pread(self._fd, max_bytes, offset))
        except OSError as error:
            raise file_error(self.path, error.errno or 0) from error
        finally:
            self._readers -= 1
            self._close_if_unused()

    async def aclose(self) -> None:
        """Close it, once reads that are under way are done. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._close_if_unused()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _close_if_unused(self) -> None:
        # A number that is closed while a thread reads from it could be another file by then.
        if self._is_closed and self._readers == 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def open_file(channel: InitChannel, path: str, identity: Identity) -> InitOpenFile:
    """Open a file for reading; :meth:`InitChannel.open_file` has the contract."""
    request, strings = _request(channel, RequestKind.OPEN, path, identity)
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        async with channel.job(request, (), strings) as gate:
            message = await channel.answer(gate, RecordKind.FILE, with_fd=True)
        fd = _take_file(channel, message, path, writable=False)
    except SpawnFailedError as error:
        raise FileError(FileErrorKind.OTHER, path, str(error)) from error
    found = os.fstat(fd)
    stat = FileStat(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return InitOpenFile(path, stat, fd, channel.file_limiter)


async def replace_file(channel: InitChannel, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
    """Put ``content`` in the place of a file; :meth:`InitChannel.replace_file` has the contract."""
    request, strings = _request(channel, RequestKind.REPLACE, path, identity)
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        with FdSet() as fds:
            async with channel.job(request, (), strings) as gate:
                try:
                    message = await channel.answer(gate, RecordKind.FILE, with_fd=True)
                    fd = fds.add(_take_file(channel, message, path, writable=True))
                    await _write(fd, path, content, channel.file_limiter)
                    fds.close(fd)
                    await gate.send(Record(RecordKind.COMMIT, request.job_id).pack())
                    message = await channel.answer(gate, RecordKind.DONE)
                    if message is None or message.record.kind is not RecordKind.DONE:
                        raise _failure(message, path)
                except BaseException:
                    with trio.move_on_after(_CLEANUP_S, shield=True):
                        await _abandon(channel, gate)
                    raise
    except SpawnFailedError as error:
        raise FileError(FileErrorKind.OTHER, path, str(error)) from error
    except (BrokenPipeError, trio.ClosedResourceError) as error:
        raise FileError(FileErrorKind.OTHER, path, "the container ended") from error


async def _write(fd: int, path: str, content: AsyncIterator[bytes], limiter: trio.CapacityLimiter) -> None:
    async for chunk in content:
        try:
            await run_blocking(limiter, partial(_write_all, fd, chunk))
        except OSError as error:
            raise file_error(path, error.errno or 0) from error


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


async def _abandon(channel: InitChannel, gate: RecordSocket) -> None:
    """Tell the child that nothing will come, and wait until it has removed its temporary file."""
    gate.end_sending()
    if channel.is_dead:
        return
    try:
        while (message := await gate.receive()) is not None:
            if message.fd is not None:
                os.close(message.fd)
    except InitProtocolError as error:
        channel.violation(error)


def _request(channel: InitChannel, kind: RequestKind, path: str, identity: Identity) -> tuple[Request, bytes]:
    if not path.startswith("/"):
        raise ValueError(f"the path must be absolute: {path!r}")
    strings = pack_strings((path,))
    flags, oom_score_adj = channel.base_request()
    request = Request(
        kind=kind,
        job_id=channel.next_job_id(),
        identity=identity,
        flags=flags,
        strings_bytes=len(strings),
        oom_score_adj=oom_score_adj,
    )
    return request, strings


def _take_file(channel: InitChannel, message: Message | None, path: str, *, writable: bool) -> int:
    if message is None or message.record.kind is RecordKind.FAILED:
        raise _failure(message, path)
    assert message.fd is not None
    try:
        check_regular_file(message.fd, writable=writable)
    except InitProtocolError as error:
        os.close(message.fd)
        raise channel.violation(error) from error
    return message.fd


def _failure(message: Message | None, path: str) -> FileError:
    return file_failure(None if message is None else (message.record.a, message.record.b), path)


def file_failure(record: tuple[int, int] | None, path: str) -> FileError:
    """The error for a stage and an errno that a file operation was reported to have failed with."""
    if record is None:
        return FileError(FileErrorKind.OTHER, path, "the process that worked on it was killed")
    if record[0] == Stage.FILE_TYPE and record[1] != errno.EISDIR:
        return FileError(FileErrorKind.NOT_REGULAR, path)
    return file_error(path, record[1])


def file_error(path: str, code: int) -> FileError:
    """The error for an errno."""
    return FileError(_KINDS.get(code, FileErrorKind.OTHER), path, os.strerror(code))
