"""The fake engine's pipes and terminals: bounded, with holders that are counted, as the kernel's are."""

from __future__ import annotations

import errno
from collections.abc import Callable

import trio

__all__ = ["Pipe", "PipeReader", "PipeWriter", "Terminal"]

_CAPACITY_BYTES = 64 * 1024


class Pipe:
    """Bytes in flight. It ends for its readers when the last writer has let go, and breaks for its writers likewise."""

    def __init__(self) -> None:
        self.writers: int = 0
        self.readable: bool = True
        self._data = bytearray()
        self._changed = trio.lowlevel.ParkingLot()

    def hold(self) -> None:
        """One more writer."""
        self.writers += 1

    def release(self) -> None:
        """One writer less."""
        self.writers -= 1
        self._changed.unpark_all()

    def close_reader(self) -> None:
        """Nobody reads any more."""
        self.readable = False
        self._data.clear()
        self._changed.unpark_all()

    async def write(self, data: bytes) -> None:
        """Put ``data`` in, waiting for room.

        Raises:
            BrokenPipeError: Nobody reads.
        """
        rest = memoryview(data)
        while True:
            if not self.readable:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            room = _CAPACITY_BYTES - len(self._data)
            if room:
                self._data += rest[:room]
                rest = rest[room:]
                self._changed.unpark_all()
            if not rest:
                break
            await self._changed.park()
        await trio.lowlevel.checkpoint()

    async def read(self, max_bytes: int) -> bytes:
        """Up to ``max_bytes``; empty at the end."""
        await trio.lowlevel.checkpoint()
        while not self._data:
            if not self.readable:
                raise trio.ClosedResourceError
            if self.writers <= 0:
                return b""
            await self._changed.park()
        piece = bytes(self._data[:max_bytes])
        del self._data[:max_bytes]
        self._changed.unpark_all()
        return piece

    async def read_line(self) -> bytes:
        """Up to and including a newline; what there is at the end."""
        while b"\n" not in self._data and self.writers > 0 and len(self._data) < _CAPACITY_BYTES:
            await self._changed.park()
        end = self._data.find(b"\n") + 1 or len(self._data)
        return await self.read(end) if end else b""


class PipeReader(trio.abc.ReceiveStream):
    """The host's end of a pipe that a command writes to."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to ``max_bytes``; empty at the end."""
        return await self._pipe.read(max_bytes or _CAPACITY_BYTES)

    async def aclose(self) -> None:
        """Break the pipe for its writers."""
        self._pipe.close_reader()
        await trio.lowlevel.checkpoint()


class PipeWriter(trio.abc.SendStream):
    """The host's end of a pipe that a command reads from; the only holder of its writing side."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._closed = False
        pipe.hold()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything."""
        if self._closed:
            raise trio.ClosedResourceError
        try:
            await self._pipe.write(bytes(data))
        except BrokenPipeError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: writing says itself when it must wait."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End of input."""
        if not self._closed:
            self._closed = True
            self._pipe.release()
        await trio.lowlevel.checkpoint()


class Terminal(trio.abc.SendStream):
    """A terminal in cooked mode: echoes, knows ^C and ^D, shows newlines as CR LF."""

    def __init__(self, size: tuple[int, int], interrupt: Callable[[], None]) -> None:
        self.size = size
        self.input: Pipe = Pipe()
        self.screen: Pipe = Pipe()
        self._interrupt = interrupt
        self._hung_up = False
        self.input.hold()

    async def show(self, data: bytes) -> None:
        """Write to the screen as a program does."""
        await self.screen.write(data.replace(b"\n", b"\r\n"))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Type."""
        if self._hung_up or not self.screen.writers:
            raise trio.BrokenResourceError
        for byte in bytes(data):
            if byte == 0x03:
                await self.show(b"^C")
                self._interrupt()
            elif byte == 0x04:
                self._end_input()
            else:
                typed = b"\n" if byte == 0x0D else bytes([byte])
                await self.show(typed)
                if self.input.writers:
                    await self.input.write(typed)

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Hang up."""
        self._hung_up = True
        self._end_input()
        await trio.lowlevel.checkpoint()

    def _end_input(self) -> None:
        if self.input.writers:
            self.input.release()
