"""One reader of a command: a place in each of its streams, and the way for its words to the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio

from sandboxrt.protocol.exec import (
    ClientFrame,
    CloseStdin,
    ErrorFrame,
    Execute,
    Input,
    InputAck,
    Kill,
    Output,
    Reconnect,
    Resize,
    ServerFrame,
    Signal,
    Started,
    StreamName,
)
from sandboxrt.protocol.output import LONG_READ_BYTES, MAX_READ_BYTES, InvalidOffsetError, LostOutputError

if TYPE_CHECKING:
    from sandboxrt.host.command import Command

__all__ = ["AnyAttachment", "CommandAttachment", "RefusedAttachment"]

_FRAMES_IN_A_ROW = 4


class CommandAttachment:
    """Reads a command's output at its own pace; implements ``client.transport.base.Attachment``.

    There is no queue between a command and its readers: each reads from the replay buffer at its own offsets, so a
    slow one delays nobody and costs no memory. A reader that was attached when the command ended sees the output up
    to that moment and then the end; one that attaches later sees what has come since as well.
    """

    def __init__(
        self, command: Command, stdout_offset: int = 0, stderr_offset: int = 0, input_id: str | None = None
    ) -> None:
        self._command = command
        self._input_id = input_id
        self._acknowledged = 0
        self._offsets: dict[StreamName, int] = {"stdout": stdout_offset, "stderr": stderr_offset}
        self._limits: dict[StreamName, int] | None = None
        self._turn: StreamName = "stdout"
        self._started = False
        self._done = False
        self._closed = False
        self._receiving = False
        self._in_a_row = 0
        if command.outcome is not None:
            self._limits = command.ends

    def __repr__(self) -> str:
        state = "closed" if self._closed else "done" if self._done else "attached"
        return f"<{type(self).__name__} to {self._command.id!r} {state} at {self._offsets}>"

    async def receive(self) -> ServerFrame:
        """The next frame: ``Started`` or ``ErrorFrame`` first, nothing after ``Exit`` or ``ErrorFrame``.

        Raises:
            trio.EndOfChannel: After the last frame.
            trio.ClosedResourceError: This attachment was closed.
            trio.BusyResourceError: Another task is receiving from it.

        Cancellation: No frame is lost.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this attachment")
        self._receiving = True
        try:
            await self._yield_sometimes()
            while True:
                if self._closed:
                    raise trio.ClosedResourceError
                if self._done:
                    raise trio.EndOfChannel
                frame = await self._next()
                if frame is not None:
                    return frame
                await self._command.changed.park()
                self._in_a_row = 0
        finally:
            self._receiving = False

    async def send(self, frame: ClientFrame) -> None:
        """Send a frame after the first one.

        ``Kill`` takes effect even if the attachment is closed right behind it. ``Input`` waits while the command does
        not read; once it has closed its standard input or ended, input is dropped, as a pipe's writer would find.

        Raises:
            trio.ClosedResourceError: This attachment was closed.
            InputGapError: Numbered input is missing before this piece of it.
            ValueError: ``Execute`` and ``Reconnect`` are first frames only.
        """
        if self._closed:
            raise trio.ClosedResourceError
        match frame:
            case Kill():
                self._command.kill()
                await trio.lowlevel.checkpoint()
            case Signal(signum):
                await self._command.send_signal(signum)
            case Input(data, offset):
                await self._command.stdin.write(data, self._input_id, offset)
            case CloseStdin():
                await self._command.stdin.end()
            case Resize(columns, rows):
                await self._command.resize(columns, rows)
            case Execute() | Reconnect():
                raise ValueError(f"{type(frame).__name__} can only be the first frame of an attachment")

    async def aclose(self) -> None:
        """Detach. Idempotent, and done before it waits for anything."""
        if not self._closed:
            self._closed = True
            self._command.detached()
            self._command.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    async def _yield_sometimes(self) -> None:
        """Let others run after some frames that were there at once: a turn of the scheduler costs as much as one."""
        self._in_a_row += 1
        if self._in_a_row < _FRAMES_IN_A_ROW:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()

    async def _next(self) -> ServerFrame | None:
        command = self._command
        if not self._started and command.pid is not None:
            self._started = True
            return Started(command.id, command.pid, self._acknowledge())
        if self._started:
            if self._input_id is not None and command.stdin.taken(self._input_id) != self._acknowledged:
                return InputAck(self._acknowledge() or 0)
            try:
                output = await self._next_output()
            except LostOutputError as error:
                self._done = True
                return _gap(self._turn, error)
            except InvalidOffsetError as error:
                self._done = True
                return ErrorFrame(f"{self._turn}: {error}", "InvalidOffset", stream=self._turn)
            if output is not None:
                return output
        if command.outcome is not None:
            self._done = True
            return command.outcome
        return None

    def _acknowledge(self) -> int | None:
        if self._input_id is None:
            return None
        self._acknowledged = self._command.stdin.taken(self._input_id)
        return self._acknowledged

    async def _next_output(self) -> Output | None:
        if self._limits is None and self._command.outcome is not None:
            self._limits = self._command.ends_at_outcome
        for _ in range(2):
            self._turn = "stderr" if self._turn == "stdout" else "stdout"
            stream = self._command.streams[self._turn]
            offset = self._offsets[self._turn]
            # Who names its input is a client of ours, which takes long frames; others have bounds of their own.
            room = MAX_READ_BYTES if self._input_id is None else LONG_READ_BYTES
            if self._limits is not None and offset <= self._limits[self._turn]:
                room = min(room, self._limits[self._turn] - offset)
                if not room:
                    continue
            data = await stream.read(offset, room)
            if data:
                self._offsets[self._turn] = offset + len(data)
                return Output(self._turn, str(data, "utf-8"), offset)
        return None


class RefusedAttachment:
    """An attachment to nothing: one ``ErrorFrame``, then the end."""

    def __init__(self, error: ErrorFrame) -> None:
        self._error: ErrorFrame | None = error

    async def receive(self) -> ServerFrame:
        """The error, once.

        Raises:
            trio.EndOfChannel: After it.
        """
        await trio.lowlevel.checkpoint()
        error, self._error = self._error, None
        if error is None:
            raise trio.EndOfChannel
        return error

    async def send(self, frame: ClientFrame) -> None:
        """Go nowhere."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Nothing to detach from."""
        await trio.lowlevel.checkpoint()


AnyAttachment: TypeAlias = CommandAttachment | RefusedAttachment


def _gap(stream: StreamName, error: LostOutputError) -> ErrorFrame:
    return ErrorFrame(
        f"Output of {stream} from byte {error.offset} on is gone: the command wrote more than is kept for replay. "
        f"The first byte still there is {error.first_offset}; reconnect with that offset to go on knowingly",
        "ReadOffsetUnavailable",
        stream=stream,
        first_offset=error.first_offset,
    )
