"""What a scripted peer does with a WebSocket, as values: each step is one thing, right or wrong, that servers do.

A script is a sequence of steps. After its last one the peer reads, answers pings and records until the client goes,
so that whoever leaves a socket open is found out.

Source: protocol.md §4; RFC 6455.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket as sockets
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import attrs
import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

__all__ = [
    "Accept",
    "ClientGoneError",
    "Close",
    "Delay",
    "Do",
    "Drop",
    "Expect",
    "PeerSocket",
    "Refuse",
    "Send",
    "SendRaw",
    "Started",
    "Step",
    "StopReading",
]

_READ_BYTES = 64 * 1024
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class ClientGoneError(Exception):
    """The client ended the connection, or this side did."""


@attrs.define(eq=False)
class PeerSocket:
    """One WebSocket that a client opened, or tried to.

    Attributes:
        path: What was asked for.
        headers: The upgrade's; names in lower case.
        frames: What the client sent, parsed, in order.
        close_code: What the client closed with, if it did.
        open: Whether the TCP connection is there.
    """

    path: str
    headers: Mapping[str, str]
    _stream: trio.SocketStream
    _note: Callable[[], None]
    frames: list[dict[str, Any]] = attrs.field(factory=list)
    close_code: int | None = None
    open: bool = True
    _unread: deque[dict[str, Any]] = attrs.field(factory=deque)
    _text: list[str] = attrs.field(factory=list)
    _wire: Connection | None = None

    @property
    def command_id(self) -> str:
        """The id in the client's first frame."""
        return str(self.frames[0].get("command_id", ""))

    async def receive(self) -> dict[str, Any]:
        """The client's next frame. Raises ``ClientGoneError``."""
        while not self._unread:
            await self._read()
        return self._unread.popleft()

    async def stay(self) -> None:
        """Read until the client goes, which is the only way out: by ``ClientGoneError``."""
        while True:
            await self._read()

    async def send(self, **fields: Any) -> None:
        """Send a text frame."""
        await self.write(self.encode(TextMessage(json.dumps(fields))))

    def encode(self, event: Event) -> bytes:
        """An event's bytes.

        Raises:
            RuntimeError: The script sends a frame where there is no WebSocket (any more).
        """
        if self._wire is None:
            raise RuntimeError("the script sends a frame before it accepts the WebSocket")
        return self._wire.send(event)

    async def write(self, data: bytes, cut_after: int | None = None, *, reset: bool = True) -> None:
        """Send bytes as they are; with ``cut_after`` only so many, and then end the TCP connection."""
        try:
            await self._stream.send_all(data if cut_after is None else data[:cut_after])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ClientGoneError from None
        if cut_after is not None:
            await self.drop(reset=reset)

    async def drop(self, *, reset: bool) -> None:
        """End the TCP connection: with a reset, or politely. Raises ``ClientGoneError``, as there is no client now."""
        if reset:
            self._stream.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self._stream)
        raise ClientGoneError

    async def accept(self, cut_after: int | None = None, *, reset: bool = True) -> None:
        """Answer the handshake."""
        await self.write(Accept.answer(self.headers.get("sec-websocket-key", "")), cut_after, reset=reset)
        self._wire = Connection(ConnectionType.SERVER)

    async def _read(self) -> None:
        try:
            data = await self._stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            raise ClientGoneError
        if self._wire is None:
            return
        self._wire.receive_data(bytes(data))
        for event in self._wire.events():
            await self._take(self._wire, event)
        self._note()

    async def _take(self, wire: Connection, event: Event) -> None:
        match event:
            case TextMessage():
                self._text.append(event.data)
                if event.message_finished:
                    frame = json.loads("".join(self._text))
                    self._text.clear()
                    self.frames.append(frame)
                    self._unread.append(frame)
            case BytesMessage():
                raise AssertionError("a client of command sessions sent a binary message")
            case Ping():
                await self.write(wire.send(event.response()))
            case CloseConnection():
                self.close_code = event.code
                if wire.state is ConnectionState.REMOTE_CLOSING:
                    await self.write(wire.send(event.response()))
                await self.drop(reset=False)


class Step(Protocol):
    """One thing to do with a WebSocket."""

    async def play(self, socket: PeerSocket) -> None:
        """Do it. ``ClientGoneError`` ends the script."""
        ...


@attrs.frozen
class Accept:
    """Answer the handshake, or only its first ``cut_after`` bytes before the TCP connection ends."""

    cut_after: int | None = None
    reset: bool = True

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        await socket.accept(self.cut_after, reset=self.reset)

    @staticmethod
    def answer(key: str) -> bytes:
        """The answer to a handshake with that key."""
        digest = hashlib.sha1(key.encode() + _ACCEPT_GUID, usedforsecurity=False).digest()
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )


@attrs.frozen
class Refuse:
    """Answer the handshake with a status, headers and a body (anything but text becomes JSON)."""

    status: int
    body: object = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        body = self.body if isinstance(self.body, str) else json.dumps(self.body)
        lines = [f"HTTP/1.1 {self.status} Refused", f"Content-Length: {len(body.encode())}"]
        lines += [f"{name}: {text}" for name, text in self.headers.items()]
        await socket.write("\r\n".join([*lines, "", body]).encode())


@attrs.frozen
class Send:
    """Send a text frame: an object as JSON, or text as it is; or only its first ``cut_after`` bytes."""

    frame: Mapping[str, Any] | str
    cut_after: int | None = None
    reset: bool = True

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        text = self.frame if isinstance(self.frame, str) else json.dumps(self.frame)
        await socket.write(socket.encode(TextMessage(text)), self.cut_after, reset=self.reset)


@attrs.frozen
class SendRaw:
    """Send bytes as they are: before ``Accept``, instead of HTTP; after it, instead of frames."""

    data: bytes

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        await socket.write(self.data)


@attrs.frozen
class Started:
    """Wait for the client's first frame and answer ``started``, with its id unless another is given.

    ``first`` is the type that the frame has to have; ``ext`` goes into the answer.
    """

    first: str = "execute"
    command_id: str | None = None
    ext: Mapping[str, Any] | None = None
    pid: int = 7

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        await Expect(self.first).play(socket)
        more = {} if self.ext is None else {"ext": dict(self.ext)}
        await socket.send(type="started", command_id=self.command_id or socket.command_id, pid=self.pid, **more)


@attrs.frozen
class Expect:
    """Wait for a frame of the client; it has to be of that type, and to have those fields."""

    kind: str
    fields: Mapping[str, Any] = attrs.field(factory=dict)

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        frame = await socket.receive()
        found = {name: frame.get(name) for name in self.fields}
        if frame.get("type") != self.kind or found != dict(self.fields):
            raise AssertionError(f"the script expected {self.kind} {dict(self.fields)}, the client sent {frame}")


@attrs.frozen
class Close:
    """Close the WebSocket with a code (``None``: without one) and wait for the client to go."""

    code: int | None = 1000
    reason: str | None = None

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        if self.code is None:
            socket.encode(CloseConnection(1000))  # for the state alone
            await socket.write(b"\x88\x00")
        else:
            await socket.write(socket.encode(CloseConnection(self.code, self.reason)))


@attrs.frozen
class Drop:
    """End the TCP connection: with a reset, or politely."""

    reset: bool = True

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        await socket.drop(reset=self.reset)


@attrs.frozen
class StopReading:
    """Leave what the client sends unread for so long."""

    seconds: float

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        await trio.sleep(self.seconds)


@attrs.frozen
class Delay:
    """Say nothing for so long; what the client sends is read, and pings are answered."""

    seconds: float

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        with trio.move_on_after(self.seconds):
            await socket.stay()


@attrs.frozen
class Do:
    """Whatever a function does with the socket."""

    function: Callable[[PeerSocket], Awaitable[None]]

    async def play(self, socket: PeerSocket) -> None:
        """See ``Step``."""
        await self.function(socket)
