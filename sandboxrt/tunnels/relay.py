"""Copies between two streams, both ways, until both ways have ended: what a tunnel does for each connection."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from sandboxrt.sockets import send_at_once
from sandboxrt.tunnels.mux import MuxStream

__all__ = ["Relay", "abort_socket"]

_CHUNK_BYTES = 256 * 1024
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
_AT_ONCE = struct.pack("ii", 1, 0)


@attrs.define(eq=False)
class Relay:
    """Two streams that are to be one.

    Each way ends by itself: its end is passed on, and the other way goes on. When a stream breaks, so does the relay;
    but what a program has said before it closed its end still arrives, though nobody there listens any more.

    Attributes:
        one: A stream; its user closes it.
        other: Likewise.
        half_open_s: How long nothing may come when one way has ended: not everyone ends the other one, ever.
        said_all: Whether ``one`` has ended its way.
    """

    one: trio.abc.HalfCloseableStream
    other: trio.abc.HalfCloseableStream
    half_open_s: float = 600.0
    said_all: bool = False
    _ended: int = 0
    _whole: bool = True
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> bool:
        """Copy until both ways have ended; whether both were copied whole.

        Cancellation: Ends it; what was read and not yet written is lost.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, self.other, self.one)
                await self._copy(self.one, self.other)
        return self._whole and not self._scope.cancelled_caught

    async def _copy(self, source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream) -> None:
        receive, send = self._receiver(source, sink), _sender(sink)
        try:
            while data := await receive(_CHUNK_BYTES):
                if self._ended:
                    self._postpone_end()
                try:
                    await send(data)
                except _BROKEN:
                    self._whole = False
                    await self._swallow(source)
                    break
        except _BROKEN:
            self._whole = False
            self._scope.cancel()
            return
        if source is self.one:
            self.said_all = True
        if self._whole:
            with contextlib.suppress(*_BROKEN):
                await sink.send_eof()
        self._ended += 1
        self._postpone_end()

    def _receiver(
        self, source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream
    ) -> Callable[[int], Awaitable[bytes | bytearray]]:
        """How to read a stream. What goes through a tunnel in small pieces pays for each layer, and each task."""
        there: trio.socket.SocketType | None = getattr(sink, "socket", None)
        if isinstance(source, MuxStream) and there is not None:
            return partial(source.receive_past, partial(self._pass_on, there))
        return _receiver(source)

    def _pass_on(self, there: trio.socket.SocketType, data: bytes) -> int:
        if self._ended:
            self._postpone_end()
        return send_at_once(there, data)

    async def _swallow(self, source: trio.abc.HalfCloseableStream) -> None:
        """Take what nobody wants any more, while the other way may still have something to say."""
        if self._ended:
            self._scope.cancel()
        self._ended += 1
        while await source.receive_some(_CHUNK_BYTES):
            pass

    def _postpone_end(self) -> None:
        self._scope.deadline = trio.current_time() + self.half_open_s if self._ended < 2 else math.inf


def _receiver(stream: trio.abc.HalfCloseableStream) -> Callable[[int], Awaitable[bytes | bytearray]]:
    """How to read a stream: a socket straight."""
    sock: trio.socket.SocketType | None = getattr(stream, "socket", None)
    if sock is None:
        return stream.receive_some

    async def receive(max_bytes: int) -> bytes:
        try:
            return await sock.recv(max_bytes)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    return receive


def _sender(stream: trio.abc.HalfCloseableStream) -> Callable[[bytes | bytearray], Awaitable[None]]:
    """How to write to a stream, likewise."""
    sock: trio.socket.SocketType | None = getattr(stream, "socket", None)
    if sock is None:
        return stream.send_all

    async def send(data: bytes | bytearray) -> None:
        try:
            sent = await sock.send(data)
            while sent < len(data):
                sent += await sock.send(memoryview(data)[sent:])
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    return send


def abort_socket(sock: trio.socket.SocketType) -> None:
    """Close a TCP connection so that the other side does not take what it has for all there is."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    sock.close()
