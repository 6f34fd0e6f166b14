"""A TCP tunnel: a port on this machine whose connections lead to a port inside a sandbox.

The tunnel's task lives in the client's nursery and owns all else: the listener, the way to the sandbox, and a task for
each connection. Each direction of a connection ends by itself, so a program that sends, says that it is done and then
reads gets the whole answer.

Source: protocol.md §5.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Self

import trio

from sandboxrt.actors import sole_error
from sandboxrt.client.owner import Owner
from sandboxrt.client.transport.base import Dialer
from sandboxrt.errors import ClientClosedError, SandboxClientError, TunnelError
from sandboxrt.tunnels.relay import Relay, abort_socket

__all__ = ["AsyncTunnel", "AsyncTunnelOpening"]

_log = logging.getLogger("sandboxrt.client")

_HOST: Final = "127.0.0.1"
_BACKLOG: Final = 128
_MAX_CONNECTIONS: Final = 1024
_MAX_ERRORS: Final = 100
_GRACE_S: Final = 0.25
_PORTS: Final = range(1, 65536)


class AsyncTunnel:
    """An open tunnel; closed by leaving its block, by ``close`` or ``aclose``, or with its client.

    Source: protocol.md §5.3, §7.7. That ``local_port`` is free to choose, half-closed connections, and errors that can
    be seen are ours.
    """

    def __init__(
        self,
        owner: Owner,
        way: Callable[[], AbstractAsyncContextManager[Dialer]],
        remote_port: int,
        local_port: int,
        probe: bool,
    ) -> None:
        self._owner = owner
        self._way = way
        self._remote_port = remote_port
        self._local_port = local_port
        self._probe = probe
        self._errors: deque[SandboxClientError] = deque(maxlen=_MAX_ERRORS)
        self._scope = trio.CancelScope()
        self._leaving = trio.Event()
        self._ready = trio.Event()
        self._ended = trio.Event()
        self._failure: Exception | None = None
        self._relays = 0
        self._idle = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        state = "closed" if self._leaving.is_set() or self._ended.is_set() else "open"
        return f"<{type(self).__name__} {_HOST}:{self._local_port} to port {self._remote_port}, {state}>"

    @property
    def local_port(self) -> int:
        """The port on 127.0.0.1 that it listens on."""
        return self._local_port

    @property
    def remote_port(self) -> int:
        """The port inside the sandbox that connections lead to."""
        return self._remote_port

    @property
    def errors(self) -> tuple[SandboxClientError, ...]:
        """Why connections could not be made, the last hundred, oldest first.

        Such as ``TunnelConnectionRefusedError``; the program that connected saw its connection closed.
        """
        return tuple(self._errors)

    def close(self) -> None:
        """Have it closed: no more connections, and those that there are end within a moment. Does not wait."""
        self._owner.post(self.aclose)

    async def aclose(self) -> None:
        """Close it: no more connections, and those that there are end within a moment. Idempotent.

        Cancellation: It is closed nevertheless; only the waiting ends.
        """
        self._leaving.set()
        if not self._ready.is_set():
            self._scope.cancel()
        await self._ended.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await self.aclose()

    async def _discard(self) -> None:
        """End it: the call that opened it was interrupted before it could hand it out."""
        await self.aclose()

    # -- its task ----------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Start the task and wait until connections are taken. Cancellation: atomic."""
        if self._owner.closed:
            raise ClientClosedError("the client is closed")
        self._owner.start(self._run)
        try:
            await self._ready.wait()
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.aclose()
            raise
        if self._failure is not None:
            raise self._failure
        if self._ended.is_set():
            raise ClientClosedError("the client was closed while the tunnel was opened")

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._serve()
        except Exception as caught:  # noqa: BLE001  raised where the tunnel was asked for; nobody else's affair
            self._failure = sole_error(caught)
            if self._ready.is_set():
                _log.error("the tunnel on port %d failed", self._local_port, exc_info=self._failure)
        finally:
            self._ended.set()
            self._ready.set()

    async def _serve(self) -> None:
        async with await _listen(self._local_port) as listener:
            self._local_port = listener.socket.getsockname()[1]
            async with self._way() as dialer:
                if self._probe:
                    await (await dialer.dial()).aclose()
                await self._take_connections(dialer, listener)

    async def _take_connections(self, dialer: Dialer, listener: trio.SocketListener) -> None:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:

                async def connected(stream: trio.SocketStream) -> None:
                    await self._relay(dialer, stream)

                async def accept() -> None:
                    await trio.serve_listeners(connected, [listener], handler_nursery=connections)

                accepting.start_soon(accept)
                self._ready.set()
                await self._leaving.wait()
                accepting.cancel_scope.cancel()
            await listener.aclose()
            with trio.move_on_after(_GRACE_S):
                while self._relays:
                    await self._idle.park()
            connections.cancel_scope.cancel()

    async def _relay(self, dialer: Dialer, stream: trio.SocketStream) -> None:
        self._relays += 1
        whole = False
        try:
            if self._relays > _MAX_CONNECTIONS:
                raise TunnelError(f"tunnel: {_MAX_CONNECTIONS} connections are open, which is the limit")
            async with await dialer.dial() as inside:
                whole = await Relay(stream, inside).run()
        except SandboxClientError as error:
            self._errors.append(error)
        finally:
            self._relays -= 1
            self._idle.unpark_all()
            if whole:
                stream.socket.close()
            else:
                # What came through is not all there is, and the program here must not take it for that.
                abort_socket(stream.socket)


class AsyncTunnelOpening:
    """A tunnel to be: ``await`` it, or enter it, and it is opened.

    ``async with sandbox.tunnel(...) as tunnel`` and ``async with await sandbox.tunnel(...) as tunnel`` do the same.
    """

    def __init__(self, create: Callable[[], Awaitable[AsyncTunnel]]) -> None:
        self._create = create
        self._tunnel: AsyncTunnel | None = None

    def __await__(self) -> Generator[Any, Any, AsyncTunnel]:
        return self._create().__await__()

    async def __aenter__(self) -> AsyncTunnel:
        self._tunnel = await self._create()
        return self._tunnel

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tunnel is not None:
            await self._tunnel.__aexit__(exc_type, exc, traceback)


def open_tunnel(
    owner: Owner,
    way: Callable[[], AbstractAsyncContextManager[Dialer]],
    remote_port: int,
    local_port: int,
    probe: bool,
) -> AsyncTunnelOpening:
    """A tunnel to be.

    Raises:
        ValueError: A port that is none.
    """
    check_port("remote_port", remote_port)
    if local_port != 0 or isinstance(local_port, bool):
        check_port("local_port", local_port)

    async def create() -> AsyncTunnel:
        tunnel = AsyncTunnel(owner, way, remote_port, local_port, probe)
        await tunnel._open()
        return tunnel

    return AsyncTunnelOpening(create)


def check_port(name: str, port: int) -> None:
    """Refuse what is no port. Raises ``ValueError``."""
    if isinstance(port, bool) or not isinstance(port, int) or port not in _PORTS:
        raise ValueError(f"{name} must be a port, 1 to 65535, not {port!r}")


async def _listen(port: int) -> trio.SocketListener:
    sock = trio.socket.socket()
    try:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        await sock.bind((_HOST, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                error.errno, f"Port {port} is already in use by another program; choose another local_port, or 0"
            ) from error
        raise OSError(error.errno, f"Cannot listen on port {port}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)
