"""The connections that HTTP requests go over: httpx's own, but that they are read in larger pieces.

What is read at once decides what a download costs: each piece passes through five layers. httpx asks for 64 KiB.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, Final

import attrs
import httpcore
import httpx

__all__ = ["http_connections"]

_READ_BYTES: Final = 512 * 1024


def http_connections(limits: httpx.Limits, tls: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    """A transport for ``httpx.AsyncClient``; trio only."""
    transport = httpx.AsyncHTTPTransport(limits=limits, verify=tls)
    # httpx has no parameter for it; everything else of the transport (errors, streams) is to stay its own.
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=tls,
        max_connections=limits.max_connections,
        max_keepalive_connections=limits.max_keepalive_connections,
        keepalive_expiry=limits.keepalive_expiry,
        network_backend=_Backend(httpcore.TrioBackend()),
    )
    return transport


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
        await self._inner.write(buffer, timeout)

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
