"""The classes of ``sandboxrt.client.tunnel``, on asyncio.

Generated from sandboxrt/client/tunnel.py by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

from sandboxrt.bridge.loops import AsyncioFacade
from sandboxrt.client import tunnel as _trio_tunnel
from sandboxrt.errors import SandboxClientError

__all__ = ["AsyncTunnel", "AsyncTunnelOpening"]


class AsyncTunnel(AsyncioFacade[_trio_tunnel.AsyncTunnel]):
    """An open tunnel; closed by leaving its block, by ``close`` or ``aclose``, or with its client.

    Source: protocol.md §5.3, §7.7. That ``local_port`` is free to choose, half-closed connections, and errors that can
    be seen are ours.
    """

    @property
    def local_port(self) -> int:
        """The port on 127.0.0.1 that it listens on."""
        return self._inner.local_port

    @property
    def remote_port(self) -> int:
        """The port inside the sandbox that connections lead to."""
        return self._inner.remote_port

    @property
    def errors(self) -> tuple[SandboxClientError, ...]:
        """Why connections could not be made, the last hundred, oldest first.

        Such as ``TunnelConnectionRefusedError``; the program that connected saw its connection closed.
        """
        return self._inner.errors

    def close(self) -> None:
        """Have it closed: no more connections, and those that there are end within a moment. Does not wait."""
        self._inner.close()

    async def aclose(self) -> None:
        """Close it: no more connections, and those that there are end within a moment. Idempotent.

        Cancellation: It is closed nevertheless; only the waiting ends.
        """
        await self._call(self._inner.aclose)

    async def __aenter__(self) -> Self:
        await self._enter(self._inner)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(exc)


class AsyncTunnelOpening(AsyncioFacade[_trio_tunnel.AsyncTunnelOpening]):
    """A tunnel to be: ``await`` it, or enter it, and it is opened.

    ``async with sandbox.tunnel(...) as tunnel`` and ``async with await sandbox.tunnel(...) as tunnel`` do the same.
    """

    def __await__(self) -> Generator[Any, Any, AsyncTunnel]:
        return self._awaited().__await__()

    async def _awaited(self) -> AsyncTunnel:
        return AsyncTunnel._of(await self._call(lambda: self._inner), self._portal)

    async def __aenter__(self) -> AsyncTunnel:
        return AsyncTunnel._of(await self._enter(self._inner), self._portal)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(exc)
