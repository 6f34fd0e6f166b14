"""A server that misbehaves on request: layers around the real one, told what to do by ``POST /_faults``.

* ``{"handshake": {"status": 503, "times": 3}}``: so many WebSocket handshakes for commands are refused.
* ``{"socket": {"after_bytes": 100, "close": 1011, "times": 1}}``: a command's socket is closed with that code once so
  many bytes of frames were sent to the client; the next frame is not. For ``"abort"`` :class:`Proxy` resets the TCP
  connection after exactly so many bytes behind the handshake's answer.
* ``{"drop_tunnels": true}``: every tunnel's socket is closed with 1011, now.
* ``{"forget": true}``: no faults, nothing seen. ``{"seen": true}``: the paths asked for, and how many cuts were made.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import attrs
import trio

__all__ = ["Faults", "Proxy"]

Message: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class _CutError(Exception):
    """The socket is to end here."""


@attrs.define
class Faults:
    """The layer. One for a server; scenarios must not overlap."""

    app: App
    handshake: dict[str, Any] = attrs.field(factory=dict)
    socket: dict[str, Any] = attrs.field(factory=dict)
    paths: list[str] = attrs.field(factory=list)
    cuts: int = 0
    tunnels: set[trio.CancelScope] = attrs.field(factory=set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/_faults":
            await self._control(receive, send)
            return
        self.paths.append(scope["path"])
        del self.paths[:-1000]
        if scope["type"] == "websocket" and scope["path"].endswith("/execute/ws"):
            await self._socket(scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"].endswith("/tunnel"):
            await self._tunnel(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _control(self, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        order = json.loads(body)
        if order.get("forget"):
            self.handshake, self.socket, self.cuts = {}, {}, 0
            self.paths.clear()
        if order.get("drop_tunnels"):
            for tunnel in self.tunnels:
                tunnel.cancel()
        self.handshake = order.get("handshake", self.handshake)
        self.socket = order.get("socket", self.socket)
        answer = json.dumps({"paths": self.paths, "cuts": self.cuts}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _tunnel(self, scope: Any, receive: Any, send: Any) -> None:
        with trio.CancelScope() as tunnel:
            self.tunnels.add(tunnel)
            try:
                await self.app(scope, receive, send)
            finally:
                self.tunnels.discard(tunnel)
        if tunnel.cancelled_caught:
            await send({"type": "websocket.close", "code": 1011})

    async def _socket(self, scope: Any, receive: Any, send: Any) -> None:
        if self.handshake.get("times", 0) > 0:
            self.handshake["times"] -= 1
            await receive()
            body = json.dumps({"detail": {"error": "ServiceUnavailable", "message": "told to refuse"}}).encode()
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"0")]
            await send(
                {"type": "websocket.http.response.start", "status": self.handshake["status"], "headers": headers}
            )
            await send({"type": "websocket.http.response.body", "body": body})
            return
        if self.socket.get("times", 0) <= 0 or self.socket["close"] == "abort":
            await self.app(scope, receive, send)
            return
        self.socket["times"] -= 1
        await self._cut(scope, receive, send, self.socket["after_bytes"], self.socket["close"])

    async def _cut(self, scope: Any, receive: Any, send: Any, after_bytes: int, how: int) -> None:
        sent = 0

        async def counting(message: Message) -> None:
            nonlocal sent
            if message["type"] == "websocket.send":
                if sent >= after_bytes:
                    raise _CutError
                sent += len((message.get("text") or "").encode())
            await send(message)

        try:
            await self.app(scope, receive, counting)
        except* _CutError:
            pass
        self.cuts += 1
        await send({"type": "websocket.close", "code": how})


@attrs.define
class Proxy:
    """Passes TCP connections on to the server, and cuts those of commands where :class:`Faults` says."""

    faults: Faults
    port: int

    async def serve(self, client: trio.SocketStream) -> None:
        """One connection, until either side ends it. Never raises."""
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with (
                client,
                await trio.open_tcp_stream("127.0.0.1", self.port) as server,
                trio.open_nursery() as nursery,
            ):
                head = await client.receive_some(65536)
                await server.send_all(head)
                limit = self._limit(head)
                nursery.start_soon(self._copy, client, server, None, nursery.cancel_scope)
                nursery.start_soon(self._copy, server, client, limit, nursery.cancel_scope)

    def _limit(self, head: bytes) -> int | None:
        """How many bytes may follow the answer to this handshake before the cut, if one is due."""
        wanted = self.faults.socket
        if b"/execute/ws" not in head.split(b"\r\n", 1)[0]:
            return None
        if wanted.get("close") != "abort" or wanted["times"] <= 0:
            return None
        wanted["times"] -= 1
        return int(wanted["after_bytes"])

    async def _copy(
        self, source: trio.SocketStream, target: trio.SocketStream, limit: int | None, scope: trio.CancelScope
    ) -> None:
        seen = b""
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                if limit is None:
                    await target.send_all(data)
                    continue
                seen += data
                end = seen.find(b"\r\n\r\n")
                over = len(seen) - (end + 4 + limit) if end >= 0 else -1
                await target.send_all(data[: len(data) - over] if over > 0 else data)
                if over > 0:
                    self.faults.cuts += 1
                    # Closing with zero linger resets the connection, as a cable that is cut does to the next packet.
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        scope.cancel()
