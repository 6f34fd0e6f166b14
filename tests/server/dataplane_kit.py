"""The data plane on real sockets: the guarded Hypercorn on loopback, a host behind it, and a bare peer in front."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import httpx
import trio
import trio_websocket
from starlette.applications import Starlette

from sandboxrt.host.host import Host
from sandboxrt.server.dataplane import DataPlane, DataPlaneSettings
from sandboxrt.server.guarded import ConnectionLimits, serve_connections

BOX = "/box/{sandbox}"


@attrs.define
class Peer:
    """One socket, spoken to in JSON objects."""

    socket: trio_websocket.WebSocketConnection

    async def send(self, **fields: Any) -> None:
        await self.socket.send_message(json.dumps(fields))

    async def execute(self, command: str, **fields: Any) -> None:
        await self.send(type="execute", command=command, **fields)

    async def receive(self) -> dict[str, Any]:
        with trio.fail_after(20):
            message = await self.socket.get_message()
        assert isinstance(message, str)
        assert len(message.encode()) < 2**20
        return json.loads(message)

    async def to_close(self) -> tuple[list[dict[str, Any]], int]:
        """The frames until the socket is closed, and the code that it was closed with."""
        frames = []
        while True:
            try:
                frames.append(await self.receive())
            except trio_websocket.ConnectionClosed as closed:
                assert closed.reason is not None
                return frames, closed.reason.code


@attrs.frozen
class Served:
    """A served data plane."""

    host: Host
    plane: DataPlane
    port: int
    http: httpx.AsyncClient

    @asynccontextmanager
    async def connect(self, sandbox: str = "box") -> AsyncIterator[Peer]:
        # trio-websocket leaves a TCP connection open whose server closed the WebSocket first.
        async with self.raw(sandbox) as (_, peer):
            yield peer
            await peer.socket.aclose()

    @asynccontextmanager
    async def raw(self, sandbox: str = "box") -> AsyncIterator[tuple[trio.SocketStream, Peer]]:
        """A WebSocket whose TCP connection the caller may mistreat."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        try:
            async with trio.open_nursery() as nursery:
                connection = await trio_websocket.wrap_client_stream(
                    nursery, stream, "127.0.0.1", f"/box/{sandbox}/execute/ws", receive_buffer_size=2**18
                )
                yield stream, Peer(connection)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            await trio.aclose_forcefully(stream)


def text_of(frames: list[dict[str, Any]], stream: str = "stdout", start: int = 0) -> str:
    """The text of one stream, its offsets checked."""
    parts, offset = [], start
    for frame in frames:
        if frame["type"] == stream:
            assert frame["offset"] == offset
            assert len(frame["data"].encode()) <= 65536
            offset += len(frame["data"].encode())
            parts.append(frame["data"])
    return "".join(parts)


@asynccontextmanager
async def serve(
    host: Host, settings: DataPlaneSettings | None = None, *, send_stall_s: float = 60.0
) -> AsyncIterator[Served]:
    """Serve a host's sandboxes at ``/box/NAME/...``, without keys or tenants."""

    async def resolve(connection: Any) -> str:
        return (await host.get_sandbox(connection.path_params["sandbox"])).id

    plane = DataPlane(host, resolve, settings or DataPlaneSettings())
    app = Starlette(routes=plane.routes(BOX))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    limits = ConnectionLimits(drain_s=1.0, send_stall_s=send_stall_s)
    async with (
        trio.open_nursery() as nursery,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http,
    ):
        await nursery.start(partial(serve_connections, app, listeners, stopping=plane.stopping, limits=limits))
        yield Served(host, plane, port, http)
        plane.stopping.set()
