"""The fake engine's ports: what listens on them, and what it does with each connection."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import trio

__all__ = ["HABITS", "Habit", "Ports"]

Habit: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]
"""What a listener does with one connection."""


class Ports:
    """The ports of one container, each with the nursery of what listens there."""

    def __init__(self) -> None:
        self._listeners: dict[int, tuple[trio.Nursery, Habit]] = {}

    @contextlib.asynccontextmanager
    async def listening(self, port: int, habit: Habit) -> AsyncIterator[None]:
        """Listen for the length of the block; leaving it breaks the connections.

        Raises:
            OSError: Something listens there already.
        """
        if port in self._listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        async with trio.open_nursery() as nursery:
            self._listeners[port] = nursery, habit
            try:
                yield
            finally:
                del self._listeners[port]
                nursery.cancel_scope.cancel()

    def connect(self, port: int) -> trio.SocketStream:
        """Our end of a new connection.

        Raises:
            ConnectionRefusedError: Nothing listens there.
        """
        if port not in self._listeners:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        nursery, habit = self._listeners[port]
        ours, theirs = trio.socket.socketpair()
        nursery.start_soon(_serve, trio.SocketStream(theirs), habit)
        return trio.SocketStream(ours)


async def _serve(stream: trio.SocketStream, habit: Habit) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await habit(stream)


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def _reverse(stream: trio.SocketStream) -> None:
    data = b"".join([bytes(piece) async for piece in stream])
    await stream.send_all(data[::-1])


async def _mute(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def _flood(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(bytes(64 * 1024))


async def _head(stream: trio.SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (data := await stream.receive_some()):
        head += data
    return head


async def _upgrade(stream: trio.SocketStream) -> None:
    _, _, more = (await _head(stream)).partition(b"\r\n\r\n")
    await stream.send_all(b"HTTP/1.1 101 Go on\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nwelcome" + more)
    await _echo(stream)


async def _http(stream: trio.SocketStream) -> None:
    head = await _head(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


async def _early(stream: trio.SocketStream) -> None:
    await stream.receive_some(16)
    await stream.send_all(b"HTTP/1.0 413 Too much\r\n\r\nno more, thank you")


HABITS: Mapping[str, Habit] = MappingProxyType(
    {
        "echo": _echo,
        "reverse": _reverse,
        "mute": _mute,
        "flood": _flood,
        "http": _http,
        "early": _early,
        "upgrade": _upgrade,
    }
)
