"""Clients whose every connection goes through a proxy that cuts it at random places."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import trio

from sandboxrt import AsyncSandboxClient
from tests.conformance.served_kit import served

__all__ = ["CUTS", "CuttingProxy", "proxied"]

CUTS = 500


@attrs.define
class CuttingProxy:
    """Passes connections on, and cuts them at random places after random amounts, until it has made all its cuts."""

    port: int
    random: random.Random
    mean_bytes: int
    cuts: int = 0
    armed: bool = False

    async def serve(self, client: trio.SocketStream) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with client, await trio.open_tcp_stream("127.0.0.1", self.port) as server:
                # One of the two directions is cut, whichever comes first.
                down = self.random.expovariate(1 / self.mean_bytes)
                up = self.random.expovariate(1 / (self.mean_bytes / 8))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, client, server, up, nursery.cancel_scope)
                    nursery.start_soon(self._copy, server, client, down, nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, target: trio.SocketStream, limit: float, scope: trio.CancelScope
    ) -> None:
        left = int(limit)
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                cut = self.armed and self.cuts < CUTS and len(data) > left
                await target.send_all(data[:left] if cut else data)
                left -= len(data)
                if cut:
                    self.cuts += 1
                    for stream in (source, target):
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        scope.cancel()


@contextlib.asynccontextmanager
async def proxied(state_dir: Path, mean_bytes: int) -> AsyncIterator[tuple[AsyncSandboxClient, CuttingProxy]]:
    """A client whose every connection goes through the proxy."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with served(state_dir, public_url=url) as (server, config), trio.open_nursery() as nursery:
        proxy = CuttingProxy(server.port, random.Random(20_261_124), mean_bytes)
        nursery.start_soon(partial(trio.serve_listeners, proxy.serve, listeners))
        async with AsyncSandboxClient(api_endpoint=f"{url}/v2/sandboxes", api_key=config.api_key) as client:
            yield client, proxy
        nursery.cancel_scope.cancel()
