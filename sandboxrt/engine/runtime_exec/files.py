"""Reads and replaces files through a relay: opened and written inside, by the user concerned."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import attrs
import trio

from sandboxrt.engine.base import FileError, FileErrorKind, FileStat, Identity, SpawnFailedError
from sandboxrt.engine.init.files import file_failure
from sandboxrt.engine.init.wire import InitProtocolError, Request, RequestKind, Stage, pack_strings
from sandboxrt.engine.runtime_exec.frames import MAX_PAYLOAD_BYTES, Frame, FrameKind
from sandboxrt.engine.runtime_exec.relay import Relay

if TYPE_CHECKING:
    from sandboxrt.engine.runtime_exec.channel import ExecChannel

__all__ = ["RelayFile", "open_file", "replace_file"]

_FACTS = struct.Struct("=qq")
_STAGES = frozenset(int(stage) for stage in Stage)


@attrs.define(eq=False)
class _Job:
    """What a relay says about a file.

    Attributes:
        answers: Frames that nobody has taken yet.
        owed: How many of them belong to reads that were given up.
    """

    relay: Relay
    answers: deque[Frame] = attrs.field(factory=deque, init=False)
    owed: int = attrs.field(default=0, init=False)
    _asked: int = attrs.field(default=0, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self) -> None:
        """Serve the relay until its end."""
        try:
            await self.relay.serve(self._dispatch)
        finally:
            self._changed.set()
            await self.relay.aclose()

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind is FrameKind.FAILED and not (frame.a in _STAGES and 0 <= frame.b < 4096):
            raise InitProtocolError("a failure of an unknown kind")
        if frame.kind not in (
            FrameKind.FILE,
            FrameKind.STARTED,
            FrameKind.DATA,
            FrameKind.FAILED,
            FrameKind.DONE,
        ):
            raise InitProtocolError(f"an unexpected {frame.kind.name} frame")
        if len(self.answers) >= self._asked:
            raise InitProtocolError("an answer that nobody asked for")
        if self.owed:
            self.owed -= 1
            self._asked -= 1
            return
        self.answers.append(frame)
        self._changed.set()
        self._changed = trio.Event()

    def expect(self) -> None:
        """One more answer may come."""
        self._asked += 1

    async def answer(self) -> Frame | None:
        """The next one, or ``None`` at the end. Cancelled means: it will be thrown away."""
        try:
            await trio.lowlevel.checkpoint()
            while not self.answers and not self.relay.has_ended:
                await self._changed.wait()
        except trio.Cancelled:
            if self.answers:
                self.answers.popleft()
                self._asked -= 1
            else:
                self.owed += 1
            raise
        if not self.answers:
            return None
        self._asked -= 1
        return self.answers.popleft()

    def take_failure(self) -> tuple[int, int] | None:
        """The failure that was reported meanwhile."""
        return next(((each.a, each.b) for each in self.answers if each.kind is FrameKind.FAILED), None)


@attrs.define(eq=False)
class RelayFile:
    """A regular file that a relay has open; see :class:`~sandboxrt.engine.base.OpenFile`."""

    path: str
    stat: FileStat
    _job: _Job
    _reading: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    async def read(self, offset: int, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` from ``offset``; empty at the end.

        Raises:
            FileError: The read failed.
            trio.ClosedResourceError: It was closed.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("the file was closed")
        async with self._reading:
            count = min(max_bytes, MAX_PAYLOAD_BYTES)
            try:
                self._job.relay.order(FrameKind.READ, count, payload=offset.to_bytes(8, "little", signed=True))
            except BufferError as error:
                raise FileError(FileErrorKind.OTHER, self.path, str(error)) from error
            self._job.expect()
            frame = await self._job.answer()
        if frame is None or frame.kind is FrameKind.FAILED:
            raise file_failure(_record(frame), self.path)
        if frame.kind is not FrameKind.DATA or len(frame.payload) > count:
            raise FileError(FileErrorKind.OTHER, self.path, "the relay broke its protocol")
        return frame.payload

    async def aclose(self) -> None:
        """Close it. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await self._job.relay.aclose()
        await trio.lowlevel.cancel_shielded_checkpoint()


async def open_file(channel: ExecChannel, path: str, identity: Identity) -> RelayFile:
    """Open a file for reading; :meth:`ExecChannel.open_file` has the contract."""
    job = await _start(channel, RequestKind.OPEN, path, identity)
    try:
        frame = await job.answer()
        if frame is None or frame.kind is not FrameKind.FILE or len(frame.payload) != _FACTS.size:
            raise file_failure(_record(frame), path)
    except BaseException:
        await job.relay.aclose()
        raise
    return RelayFile(path, FileStat(*_FACTS.unpack(frame.payload)), job)


async def replace_file(channel: ExecChannel, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
    """Put ``content`` in the place of a file; :meth:`ExecChannel.replace_file` has the contract."""
    job = await _start(channel, RequestKind.REPLACE, path, identity)
    try:
        frame = await job.answer()
        if frame is None or frame.kind is not FrameKind.STARTED:
            raise file_failure(_record(frame), path)
        job.expect()
        try:
            async for chunk in content:
                await job.relay.send_input(chunk)
            job.relay.order(FrameKind.COMMIT)
        except (BrokenPipeError, BufferError):
            raise file_failure(job.take_failure(), path) from None
        frame = await job.answer()
        if frame is None or frame.kind is not FrameKind.DONE:
            raise file_failure(_record(frame), path)
    finally:
        # Waits for the relay, which has removed its temporary file by then.
        await job.relay.aclose()


def _record(frame: Frame | None) -> tuple[int, int] | None:
    return (frame.a, frame.b) if frame is not None and frame.kind is FrameKind.FAILED else None


async def _start(channel: ExecChannel, kind: RequestKind, path: str, identity: Identity) -> _Job:
    if not path.startswith("/"):
        raise ValueError(f"the path must be absolute: {path!r}")
    strings = pack_strings((path,))
    request = Request(kind=kind, job_id=1, identity=identity, flags=channel.request_flags, strings_bytes=len(strings))
    try:
        relay = await channel.start_relay()
    except SpawnFailedError as error:
        raise FileError(FileErrorKind.OTHER, path, str(error) or os.strerror(error.errno)) from error
    job = _Job(relay)
    job.expect()
    channel.serve_in_background(job.run)
    relay.post(request.pack() + strings)
    return job
