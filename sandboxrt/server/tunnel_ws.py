"""A tunnel's WebSocket: binary messages are the session, as official clients speak it.

Our own client asks, with a header of the upgrade, that its session outlive the socket; such sessions are kept here for
a while after a socket broke, under a name that only their client knows, and go on over the next one.

Source: protocol.md §5; the header is ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sandboxrt.actors import raising_plainly
from sandboxrt.errors import ValidationError
from sandboxrt.host.tunnel import Tunnel
from sandboxrt.protocol.resume import RESUME_HEADER, Resume, Resumed, ResumeError
from sandboxrt.server.replies import BusyError
from sandboxrt.tunnels.mux import Wire, WireClosedError
from sandboxrt.tunnels.resuming import ResumeSettings, ResumingWire

__all__ = ["TunnelSocketSettings", "TunnelSockets"]

_NORMAL = 1000
_RESTART = 1012

Opener = Callable[[str, Wire], Awaitable[Tunnel]]


@attrs.frozen(kw_only=True)
class TunnelSocketSettings:
    """The bounds of tunnels' sockets.

    Attributes:
        max_tunnels: Of one sandbox at once, those that wait for their client to come back included.
        resume: Those of sessions that outlive their socket.
        close_s: How long it may take to answer the closing.
    """

    max_tunnels: int = 64
    resume: ResumeSettings = attrs.field(factory=ResumeSettings)
    close_s: float = 5.0


@attrs.frozen
class _Kept:
    wire: ResumingWire
    tunnel: Tunnel


@attrs.frozen
class _Connection:
    """A WebSocket as tunnels see it; that a peer takes what it is sent is seen to by the connection beneath."""

    websocket: WebSocket

    async def send(self, message: bytes | str) -> None:
        try:
            if isinstance(message, str):
                await self.websocket.send_text(message)
            else:
                await self.websocket.send_bytes(message)
        except (RuntimeError, WebSocketDisconnect) as error:
            raise WireClosedError("the connection broke") from error

    async def receive(self) -> bytes | str:
        message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WireClosedError("the client went away")
        data = message.get("bytes")
        return data if data is not None else message.get("text") or ""


@attrs.frozen
class _PlainWire:
    """One WebSocket that is the whole wire, as for clients who ask for nothing else."""

    connection: _Connection
    accepted: trio.Event = attrs.field(factory=trio.Event)

    async def send(self, frames: list[bytes]) -> None:
        await self.accepted.wait()
        for frame in frames:
            await self.connection.send(frame)

    async def receive(self) -> bytes:
        await self.accepted.wait()
        message = await self.connection.receive()
        return message.encode() if isinstance(message, str) else message

    def takes(self, n_bytes: int) -> bool:
        """Never: who is cancelled while it sends would end the session of all."""
        return False


class TunnelSockets:
    """The tunnels of a server.

    Args:
        open_tunnel: Starts one into a sandbox.
        settings: The bounds.
        stopping: Set when the server stops: sockets then end so that clients come back.
    """

    def __init__(self, open_tunnel: Opener, settings: TunnelSocketSettings, stopping: trio.Event) -> None:
        self._open = open_tunnel
        self._settings = settings
        self._stopping = stopping
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._plain: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._kept)} kept sessions>"

    async def serve(self, websocket: WebSocket, sandbox: str) -> None:
        """Accept a socket and serve it until it, its tunnel, or the server ends.

        Raises:
            SandboxClientError: What the client is told instead; nothing was accepted.
        """
        asked = websocket.headers.get(RESUME_HEADER)
        connection = _Connection(websocket)
        try:
            resume = None if asked is None else Resume.decode(asked)
        except ResumeError as error:
            raise ValidationError(str(error), RESUME_HEADER) from error
        with raising_plainly():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_stop, nursery.cancel_scope)
                if resume is None:
                    await self._serve_plain(connection, sandbox)
                else:
                    await self._serve_resuming(connection, sandbox, resume)
                nursery.cancel_scope.cancel()
        await self._close(websocket)

    async def _watch_stop(self, scope: trio.CancelScope) -> None:
        await self._stopping.wait()
        scope.cancel()

    async def _serve_plain(self, connection: _Connection, sandbox: str) -> None:
        self._check_room(sandbox)
        self._plain[sandbox] = self._plain.get(sandbox, 0) + 1
        try:
            # First the tunnel: a sandbox that cannot have one is refused with words, before anything is accepted.
            wire = _PlainWire(connection)
            tunnel = await self._open(sandbox, wire)
            try:
                await connection.websocket.accept()
                wire.accepted.set()
                await tunnel.ended.wait()
            finally:
                tunnel.end()
        finally:
            self._plain[sandbox] -= 1
            if not self._plain[sandbox]:
                del self._plain[sandbox]

    async def _serve_resuming(self, connection: _Connection, sandbox: str, asked: Resume) -> None:
        kept = self._kept.get((sandbox, asked.stream))
        known = kept is not None
        if kept is None:
            if asked.received:
                # It is gone; the client learns that before it sends anything, and begins another one.
                await self._accept(connection, Resumed(known=False))
                return
            self._check_room(sandbox)
            wire = ResumingWire(self._settings.resume)
            kept = _Kept(wire, await self._open(sandbox, wire))
            self._keep((sandbox, asked.stream), kept)
        try:
            async with kept.wire.turn() as received:
                await self._accept(connection, Resumed(known, received))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_with, kept, nursery.cancel_scope)
                    await kept.wire.carry(connection, asked.received)
                    nursery.cancel_scope.cancel()
        except WireClosedError:
            await self._accept(connection, Resumed(known=False))

    def _keep(self, key: tuple[str, str], kept: _Kept) -> None:
        self._kept[key] = kept

        def forget() -> None:
            if self._kept.get(key) is kept:
                del self._kept[key]

        kept.tunnel.on_end = forget
        if kept.tunnel.ended.is_set():
            forget()

    async def _accept(self, connection: _Connection, answer: Resumed) -> None:
        if connection.websocket.application_state is WebSocketState.CONNECTING:
            headers = [(RESUME_HEADER.encode(), answer.encode().encode())]
            await connection.websocket.accept(headers=headers)

    async def _end_with(self, kept: _Kept, scope: trio.CancelScope) -> None:
        """Once the session is over and its last words are sent, the socket has nothing left to carry."""
        await kept.tunnel.ended.wait()
        await kept.wire.flush()
        scope.cancel()

    async def _close(self, websocket: WebSocket) -> None:
        if websocket.application_state is not WebSocketState.CONNECTED:
            return
        with trio.move_on_after(self._settings.close_s):
            try:
                await websocket.close(_RESTART if self._stopping.is_set() else _NORMAL)
            except (RuntimeError, WebSocketDisconnect):
                pass  # the client was faster

    def _check_room(self, sandbox: str) -> None:
        kept = sum(where == sandbox for where, _ in self._kept)
        if kept + self._plain.get(sandbox, 0) >= self._settings.max_tunnels:
            raise BusyError(f"The sandbox has {self._settings.max_tunnels} tunnels, which is its limit; close some")
