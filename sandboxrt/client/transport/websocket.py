"""One WebSocket to a server's data plane: text messages both ways, and every way to fail as an error of ours.

The TCP connection is ours, not trio-websocket's, which leaves one open whose server closed the WebSocket first.

Source: protocol.md §1.4 (limits), §4.5 and §4.6 (what closings and refusals mean).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeAlias, cast
from urllib.parse import urlsplit

import attrs
import trio
import trio_websocket
from h11 import LocalProtocolError as H11Error
from wsproto.utilities import LocalProtocolError as WebSocketError

from sandboxrt.actors import raising_plainly
from sandboxrt.client.transport.replies import socket_error
from sandboxrt.errors import (
    ResourceNotFoundError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
    SandboxRetryableConnectionError,
    SandboxServerReloadError,
)
from sandboxrt.protocol.backoff import retry_after
from sandboxrt.protocol.rest_errors import parse_error
from sandboxrt.sockets import send_at_once

__all__ = ["Socket", "SocketLimits", "TooBigMessageError", "open_socket", "socket_url"]

_Stream: TypeAlias = trio.SocketStream | trio.SSLStream[trio.SocketStream]

_HTTP = b"HTTP/"
_GOING_AWAY = 1001
_TOO_BIG = 1009
_RETRIED_REFUSALS = frozenset({429, 500, 502, 503, 504})
_RECEIVE_BYTES = 256 * 1024
_QUEUED_MESSAGES = 4
_SMALL_BYTES = 16 * 1024
_MAX_CLOSE_S = 10.0
"""The goodbye is shielded, so it has a bound even where its limit is taken away."""

# Refused handshakes and broken connections are told to the caller; the library's own words about them are not needed.
logging.getLogger("trio-websocket").setLevel(logging.CRITICAL)


class TooBigMessageError(SandboxConnectionError):
    """A message was longer than the server takes; the connection is closed."""


@attrs.frozen(kw_only=True)
class SocketLimits:
    """Seconds (``math.inf`` = no limit), and bytes.

    Attributes:
        open_s: For the connection and its handshake.
        close_s: For the peer to answer the closing; never more than 10.
        ping_s: Between pings.
        pong_s: For the answer to one; a peer that takes longer is gone.
        budget_s: For a start, or a first attachment, with all its attempts.
        message_bytes: The longest message that is taken.
    """

    open_s: float = 30.0
    close_s: float = 0.5
    ping_s: float = 30.0
    pong_s: float = 60.0
    budget_s: float = 120.0
    message_bytes: int = 64 * 1024**2


@attrs.define(eq=False)
class Socket:
    """An open WebSocket.

    Attributes:
        used: Whether a command was served over it before.
    """

    _connection: trio_websocket.WebSocketConnection
    _limits: SocketLimits
    _reader: _Handshake
    used: bool = False
    _under_way: int = 0
    """How many messages are being sent, or were cut short."""
    _offered_s: float | None = None

    def header(self, name: str) -> str | None:
        """A header of the answer to the upgrade."""
        wanted = name.lower().encode()
        found = [bytes(text) for key, text in self._connection.handshake_headers if bytes(key).lower() == wanted]
        return found[-1].decode("latin-1") if found else None

    async def send(self, message: str | bytes) -> None:
        """Send a message. Raises ``SandboxConnectionError`` when the peer is gone.

        Cancellation: part of the message may have been sent; nothing else can be then.
        """
        self._under_way += 1
        try:
            await self._connection.send_message(message)
        except trio_websocket.ConnectionClosed as closed:
            raise _lost(closed) from None
        self._under_way -= 1

    def offer(self, seconds: float) -> None:
        """The server waits so long for the first frame of another command."""
        self._offered_s = seconds

    def take_offer(self) -> float | None:
        """What was offered, once: how long it may be kept. From now on it counts as used."""
        offered_s, self._offered_s = self._offered_s, None
        self.used = True
        return offered_s

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known, and all that was begun to be sent was sent."""
        return not self._under_way and self._connection.closed is None and not self._reader.reader_ended

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Have it called, once, when nothing more can come."""
        self._reader.on_end = callback
        if self._reader.reader_ended:
            callback()

    async def receive(self) -> str | bytes:
        """The next message. Raises ``SandboxConnectionError`` when the peer is gone. Cancellation: atomic."""
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed as closed:
            raise _lost(closed) from None

    @property
    def quiet_s(self) -> float:
        """How long the peer may be silent until it should be asked whether it lives."""
        return self._limits.ping_s

    async def watch(self) -> None:
        """Ping the peer for as long as it answers. Raises ``SandboxConnectionError`` when it does not."""
        while True:
            await self.probe(self._limits.pong_s)
            await trio.sleep(self._limits.ping_s)

    async def probe(self, limit_s: float) -> None:
        """Ping the peer. Raises ``SandboxConnectionError`` when it does not answer in time."""
        self._under_way += 1
        try:
            with trio.fail_after(limit_s):
                await self._connection.ping()
        except trio.TooSlowError:
            raise SandboxConnectionError(f"The server answered no ping in {limit_s:g} s") from None
        except trio_websocket.ConnectionClosed as closed:
            raise _lost(closed) from None
        self._under_way -= 1

    async def close(self) -> None:
        """Say goodbye and wait a moment for the answer. Never raises."""
        with trio.move_on_after(min(self._limits.close_s, _MAX_CLOSE_S), shield=True):
            await self._connection.aclose()


def socket_url(http_url: str) -> str:
    """The WebSocket's URL for one that begins with ``http``."""
    scheme, separator, rest = http_url.partition("://")
    return {"http": "ws", "https": "wss"}.get(scheme, scheme) + separator + rest


@contextlib.asynccontextmanager
async def open_socket(
    url: str, headers: Mapping[str, str], limits: SocketLimits, tls: ssl.SSLContext
) -> AsyncIterator[Socket]:
    """A WebSocket for the length of the block.

    Raises:
        SandboxRetryableConnectionError: It cannot be opened now; ``retry_after`` has what the server asks for.
        SandboxConnectionError: It cannot be opened.
        ResourceNotFoundError: The sandbox is gone.
        SandboxNotReadyError: It is not ready.
        SandboxAuthenticationError: The key was refused.
    """
    stream = await _connect(url, limits, tls)
    try:
        with raising_plainly():
            async with trio.open_nursery() as nursery:
                socket = await _shake_hands(nursery, stream, url, headers, limits)
                try:
                    yield socket
                finally:
                    await socket.close()
                    nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


async def _connect(url: str, limits: SocketLimits, tls: ssl.SSLContext) -> _Stream:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        with trio.fail_after(limits.open_s if limits.open_s > 0 else math.inf):
            plain = await _open_tcp(host, parts.port or (443 if parts.scheme == "wss" else 80))
            if parts.scheme != "wss":
                return plain
            stream = trio.SSLStream(plain, tls, server_hostname=host, https_compatible=True)
            try:
                await stream.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(plain)
                raise
            return stream
    except trio.TooSlowError:
        raise SandboxConnectTimeoutError(f"Failed to connect to sandbox: no answer in {limits.open_s:g} s") from None
    except (OSError, ValueError, trio.BrokenResourceError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise SandboxConnectionError(f"Cannot trust the server: {cause} ({url})") from error
        why = str(error) or str(cause) or type(error).__name__
        raise SandboxConnectTimeoutError(f"Failed to connect to sandbox: {why}") from error


async def _open_tcp(host: str, port: int) -> trio.SocketStream:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return await trio.open_tcp_stream(host, port)
    # An address needs no names looked up and no race between families.
    socket = trio.socket.socket(trio.socket.AF_INET if version == 4 else trio.socket.AF_INET6)
    try:
        await socket.connect((host, port))
    except BaseException:
        socket.close()
        raise
    return trio.SocketStream(socket)


class _Handshake:
    """Starts the library's reader in a nursery, so that whatever ends it ends the wait for the handshake too.

    By itself the library waits for ever when the connection breaks meanwhile, and raises a refusal in the nursery.
    """

    def __init__(self, nursery: trio.Nursery, deadline: float) -> None:
        self.scope = trio.CancelScope(deadline=deadline)
        self.error: Exception | None = None
        self.reader_ended = False
        self.on_end: Callable[[], None] | None = None
        self._nursery = nursery

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._read, reader)

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except (trio_websocket.HandshakeError, trio_websocket.ConnectionClosed, H11Error, WebSocketError) as error:
            # The last two: on what is no HTTP at all the library tries to answer, as no client may.
            self.error = error
        finally:
            self.reader_ended = True
            self.scope.cancel()
            if self.on_end is not None:
                self.on_end()


async def _shake_hands(
    nursery: trio.Nursery, stream: _Stream, url: str, headers: Mapping[str, str], limits: SocketLimits
) -> Socket:
    parts = urlsplit(url)
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    watched = _Watched(stream)
    handshake = _Handshake(nursery, trio.current_time() + limits.open_s if limits.open_s > 0 else math.inf)
    connection: trio_websocket.WebSocketConnection | None = None
    with handshake.scope:
        connection = await trio_websocket.wrap_client_stream(
            cast("trio.Nursery", handshake),
            cast("_Stream", watched),
            parts.netloc.rpartition("@")[2],
            resource,
            extra_headers=[(name.encode(), text.encode()) for name, text in headers.items()],
            message_queue_size=_QUEUED_MESSAGES,
            max_message_size=limits.message_bytes,
            receive_buffer_size=_RECEIVE_BYTES,
        )
    if isinstance(handshake.error, trio_websocket.ConnectionRejected):
        raise _refused(handshake.error)
    if connection is not None:
        return Socket(connection, limits, handshake)
    if not handshake.reader_ended:
        raise SandboxConnectTimeoutError(f"The server opened no WebSocket in {limits.open_s:g} s")
    if _HTTP.startswith(watched.head[: len(_HTTP)]):
        raise SandboxRetryableConnectionError("The connection broke before the WebSocket was open")
    raise SandboxConnectionError(f"The server does not speak HTTP, let alone WebSocket, at {url}")


class _Watched(trio.abc.Stream):
    """A stream that keeps the first bytes that came: broken HTTP is worth another try, what is none is not."""

    def __init__(self, stream: _Stream) -> None:
        self.head = b""
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        if len(self.head) < len(_HTTP):
            self.head += bytes(data[: len(_HTTP)])
        return bytes(data) if isinstance(data, bytearray) else data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if isinstance(self._stream, trio.SocketStream) and len(data) <= _SMALL_BYTES:
            # The library lets others run before each message, which is enough.
            data = memoryview(data)[send_at_once(self._stream.socket, data) :]
            if not data:
                return
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _refused(refusal: trio_websocket.ConnectionRejected) -> SandboxClientError:
    status = refusal.status_code
    headers = {bytes(name).lower(): bytes(text) for name, text in refusal.headers or ()}
    try:
        body = json.loads(bytes(refusal.body or b""))
    except ValueError:
        body = None
    final = socket_error(status, body)
    if final is not None:
        if isinstance(final, ResourceNotFoundError):
            final.resource_type = "sandbox"
        return final
    said = parse_error(body, "").message
    text = f"WebSocket upgrade rejected by server (HTTP {status})" + (f": {said}" if said else "")
    if status in _RETRIED_REFUSALS:
        after = headers.get(b"retry-after")
        return SandboxRetryableConnectionError(text, retry_after(None if after is None else after.decode("latin-1")))
    if status == 404 and not said:
        text = "The server does not support WebSocket command execution (HTTP 404)"
    return SandboxConnectionError(text)


def _lost(closed: trio_websocket.ConnectionClosed) -> SandboxConnectionError:
    reason = closed.reason
    code = None if reason is None else reason.code
    if code == _GOING_AWAY:
        return SandboxServerReloadError("The server is restarting (WebSocket closed with 1001)")
    if code == _TOO_BIG:
        return TooBigMessageError("The server takes no message of that length (WebSocket closed with 1009)")
    return SandboxConnectionError(f"The WebSocket was closed with {code}" if code else "The connection broke")
