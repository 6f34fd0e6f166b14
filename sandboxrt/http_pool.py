"""The connections that HTTP requests go over: httpx's own, kept in a pool of ours, read in larger pieces.

httpcore's pool looks at every waiting request and every connection whenever one of them changes, which stops the loop
for many seconds when a thousand requests come at once. Here at most as many requests are let in as there may be
connections, first come first served, and whoever is let in takes the connection used last or makes one.

What is read at once decides what a download costs: each piece passes through five layers. httpx asks for 64 KiB.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Final, Self

import attrs
import httpcore
import httpx
import trio

__all__ = ["URGENT", "http_connections"]

URGENT: Final = "sandboxrt.urgent"
"""Set among a request's extensions, it goes ahead of all that waits: for what keeps sandboxes alive."""

_ORDINARY: Final = 248
_URGENT: Final = 8
_KEPT: Final = 64
_KEPT_S: Final = 30.0
_READ_BYTES: Final = 512 * 1024
_WRITE_BYTES: Final = 64 * 1024
"""What has to be taken within one ``write`` timeout, so that this bounds a standstill and not a slow line."""
_PROBES: Final = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 15),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 30_000),
)
"""A network that swallows everything is noticed by the kernel within half a minute, whatever a call's own limit is."""
_OPTIONS: Final = tuple(
    (level, getattr(socket, name), value) for level, name, value in _PROBES if hasattr(socket, name)
)


def http_connections(tls: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    """A transport for ``httpx.AsyncClient``; trio only. A request's ``pool`` timeout bounds its wait to be let in."""
    transport = httpx.AsyncHTTPTransport(verify=tls)
    # httpx has no parameter for it; everything else of the transport (errors, streams) is to stay its own.
    transport._pool = _Pool(tls)  # type: ignore[assignment]
    return transport


@attrs.define(eq=False)
class _Pool:
    """Connections between two requests, and the two lanes that requests wait in."""

    _tls: ssl.SSLContext
    _ordinary: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_ORDINARY))
    _urgent: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_URGENT))
    _kept: dict[httpcore.AsyncHTTPConnection, httpcore.Origin] = attrs.field(factory=dict)
    """In the order in which they were used."""
    _backend: httpcore.AsyncNetworkBackend = attrs.field(factory=lambda: _Backend(httpcore.TrioBackend()))

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        lane = self._urgent if request.extensions.get(URGENT) else self._ordinary
        timeout = request.extensions.get("timeout", {}).get("pool")
        place = object()
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                await lane.acquire_on_behalf_of(place)
        except trio.TooSlowError:
            raise httpcore.PoolTimeout(f"{_ORDINARY} requests were under way for {timeout:g} s") from None
        connection: httpcore.AsyncHTTPConnection | None = None
        try:
            while True:
                connection = await self._take(request.url.origin)
                try:
                    response = await connection.handle_async_request(request)
                    break
                except httpcore.ConnectionNotAvailable:
                    await _close(connection)
        except BaseException:
            if connection is not None:
                await _close(connection)
            lane.release_on_behalf_of(place)
            raise
        body = _Body(self, connection, response.stream, lane, place)
        return httpcore.Response(
            response.status, headers=response.headers, content=body, extensions=response.extensions
        )

    async def give_back(self, connection: httpcore.AsyncHTTPConnection, origin: httpcore.Origin) -> None:
        """Keep a connection where that can be, and no more than may be kept."""
        if not connection.is_idle():
            await _close(connection)
            return
        self._kept[connection] = origin
        while len(self._kept) > _KEPT:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            await _close(oldest)

    async def _take(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        for connection in [kept for kept, its in reversed(self._kept.items()) if its == origin]:
            # Another task may have taken it while one that had ended was closed.
            if self._kept.pop(connection, None) is None:
                continue
            if connection.is_available() and not connection.has_expired():
                return connection
            await _close(connection)
        return httpcore.AsyncHTTPConnection(
            origin,
            ssl_context=self._tls,
            keepalive_expiry=_KEPT_S,
            network_backend=self._backend,
            socket_options=_OPTIONS,
        )

    async def aclose(self) -> None:
        while self._kept:
            connection, _ = self._kept.popitem()
            await _close(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


@attrs.define(eq=False)
class _Body:
    """A response's content; closing it gives the connection back and lets the next request in."""

    _pool: _Pool
    _connection: httpcore.AsyncHTTPConnection
    _stream: Any
    _lane: trio.CapacityLimiter
    _place: object
    _closed: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._stream:
                yield piece
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            with trio.CancelScope(shield=True):
                await self._stream.aclose()
                await self._pool.give_back(self._connection, self._connection._origin)
        finally:
            self._lane.release_on_behalf_of(self._place)


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    with trio.CancelScope(shield=True):
        await connection.aclose()


@attrs.frozen
class _Backend(httpcore.AsyncNetworkBackend):
    _inner: httpcore.AsyncNetworkBackend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


@attrs.frozen
class _Stream(httpcore.AsyncNetworkStream):
    _inner: httpcore.AsyncNetworkStream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max(max_bytes, _READ_BYTES), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if timeout is None or len(buffer) <= _WRITE_BYTES:
            await self._inner.write(buffer, timeout)
            return
        view = memoryview(buffer)
        for start in range(0, len(view), _WRITE_BYTES):
            await self._inner.write(view[start : start + _WRITE_BYTES], timeout)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
