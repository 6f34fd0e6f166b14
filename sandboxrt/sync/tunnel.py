"""The classes of ``sandboxrt.client.tunnel``, blocking.

Generated from sandboxrt/client/tunnel.py by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from sandboxrt.bridge.blocking import BlockingFacade
from sandboxrt.client import tunnel as _trio_tunnel
from sandboxrt.errors import SandboxClientError

__all__ = ["Tunnel"]


class Tunnel(BlockingFacade[_trio_tunnel.AsyncTunnel]):
    """An open tunnel; closed by leaving its block, by ``close`` or ``close``, or with its client.

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
        """Close it: no more connections, and those that there are end within a moment. Idempotent.

        Interruption: It is closed nevertheless; only the waiting ends.
        """
        self._call(self._inner.aclose)

    def __enter__(self) -> Self:
        self._enter(self._inner)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(exc)
