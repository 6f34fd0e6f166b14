"""The gateway of an embedded host: on a loopback port of its own, opened when the first link is made.

The same tokens, origins and rules as a server's, signed with a key that nobody keeps. A sandbox that its user has
stopped is not started for a visitor.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Final

import attrs
import h11
import httpx
import trio

from sandboxrt.actors import sole_error
from sandboxrt.gateway.front import Front, GoneError
from sandboxrt.gateway.gateway import Gateway, GatewaySettings, Sandboxes
from sandboxrt.gateway.links import FixedKeys, Links
from sandboxrt.http_pool import http_connections
from sandboxrt.protocol.service_urls import ServiceSite, Unknown
from sandboxrt.protocol.tokens import TokenKey

__all__ = ["LocalServices"]

_log = logging.getLogger("sandboxrt.gateway")

_MAX_HEAD_BYTES: Final = 32 * 1024
_MAX_CONNECTIONS: Final = 512
_READ_BYTES: Final = 64 * 1024
_IDLE_S: Final = 75.0
_HEAD_S: Final = 10.0
_STALL_S: Final = 60.0
_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.define(eq=False)
class LocalServices:
    """What an embedded client's services need. Made by :meth:`open`."""

    _sandboxes: Sandboxes
    _nursery: trio.Nursery
    _opening: trio.Lock = attrs.field(factory=trio.Lock)
    _links: Links | None = None
    _connections: httpx.AsyncHTTPTransport | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, sandboxes: Sandboxes) -> AsyncIterator[LocalServices]:
        """Services for the length of the block; nothing is opened before it is needed."""
        async with trio.open_nursery() as nursery:
            services = cls(sandboxes, nursery)
            try:
                yield services
            finally:
                nursery.cancel_scope.cancel()
                if services._connections is not None:
                    with trio.CancelScope(shield=True):
                        await services._connections.aclose()

    async def links(self) -> Links:
        """What makes links; the first one opens the port.

        Raises:
            OSError: No port is to be had.
        """
        async with self._opening:
            if self._links is None:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                port = listeners[0].socket.getsockname()[1]
                site = ServiceSite(base_url=f"http://127.0.0.1:{port}", domain="localhost", port=port)
                keys = FixedKeys(TokenKey(secrets.token_hex(6), secrets.token_bytes(32)))
                gateway = Gateway(self._sandboxes, site, keys, GatewaySettings(wakes=False))
                self._nursery.start_soon(trio.serve_listeners, _Listener(gateway).serve, listeners)
                self._links = Links(site, keys)
            return self._links

    async def connections(self) -> httpx.AsyncBaseTransport:
        """What carries this client's own requests."""
        async with self._opening:
            if self._connections is None:
                tls = await trio.to_thread.run_sync(httpx.create_ssl_context)
                self._connections = http_connections(tls)
            return self._connections


class _Listener:
    """Serves connections, each to its end."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._open = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Never raises but when cancelled."""
        if self._open >= _MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            await self._serve(stream)
        except* (*_BROKEN, GoneError, trio.TooSlowError):
            pass
        except* Exception as group:  # noqa: BLE001  one connection's trouble is nobody else's
            _log.warning("a connection to a service ended with an error", exc_info=sole_error(group))
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        wire = _Wire(stream)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        front = Front(connection, wire.receive, wire.send, wire.end, stream.socket.getpeername()[0])
        goes_on = True
        while goes_on:
            if not connection.trailing_data[0]:
                with trio.fail_after(_IDLE_S):
                    connection.receive_data(await wire.receive())
            with trio.fail_after(_HEAD_S):
                request = await front.event(_HEAD_S)
            if not isinstance(request, h11.Request):
                return
            target = self._gateway.target_of(request) or Unknown()
            goes_on = await self._gateway.serve(front, request, target)
        await wire.end()


@attrs.frozen
class _Wire:
    """A visitor's bytes, with the bounds that a server's connections have."""

    stream: trio.SocketStream
    sending: trio.Lock = attrs.field(factory=trio.Lock)
    """Two tasks of an exchange send: one takes the request in and invites its body, the other brings out the answer."""

    async def receive(self) -> bytes:
        """The next ones; none when it is gone."""
        try:
            return bytes(await self.stream.receive_some(_READ_BYTES))
        except _BROKEN:
            return b""

    async def end(self) -> None:
        """Tell it that there will be none any more."""
        with contextlib.suppress(*_BROKEN):
            await self.stream.send_eof()

    async def send(self, data: bytes) -> None:
        """Send some. Raises ``GoneError``."""
        try:
            with trio.fail_after(_STALL_S):
                async with self.sending:
                    await self.stream.send_all(data)
        except (*_BROKEN, trio.TooSlowError):
            raise GoneError from None
