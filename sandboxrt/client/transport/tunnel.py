"""A tunnel's way to a server: a session of streams over a WebSocket that is made anew whenever it breaks.

With a server of our kind the session outlives its sockets: connections through the tunnel notice a pause. With others
it ends with its socket, as with the official clients: connections break, and the next ones go over a new session.

Source: protocol.md §5; the header that asks for the first kind is ours.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias

import attrs
import trio

from sandboxrt.actors import raising_plainly
from sandboxrt.client.transport.websocket import Socket
from sandboxrt.errors import (
    SandboxClientError,
    SandboxConnectionError,
    TunnelConnectionRefusedError,
    TunnelError,
    TunnelPortNotAllowedError,
    TunnelUnsupportedVersionError,
)
from sandboxrt.protocol.backoff import reattach_delay
from sandboxrt.protocol.resume import RESUME_HEADER, Resume, Resumed, ResumeError
from sandboxrt.protocol.tunnel import ConnectHeader, TunnelStatus
from sandboxrt.tunnels.mux import Mux, MuxStream, Wire, WireClosedError
from sandboxrt.tunnels.resuming import ResumingWire

__all__ = ["TunnelLink"]

_DIAL_S: Final = 30.0
"""How long a connection through the tunnel may take to be made, a new session included."""
_GOODBYE_S: Final = 1.0

OpenSocket: TypeAlias = Callable[[Mapping[str, str]], AbstractAsyncContextManager[Socket]]


@attrs.frozen
class _Connection:
    """A client's WebSocket as wires see it; also the whole wire, for servers that know of nothing else."""

    socket: Socket

    async def receive(self) -> bytes | str:
        try:
            return await self.socket.receive()
        except SandboxConnectionError as error:
            raise WireClosedError(str(error)) from error

    async def send(self, message: bytes | str) -> None:
        try:
            await self.socket.send(message)
        except SandboxConnectionError as error:
            raise WireClosedError(str(error)) from error


@attrs.frozen
class _PlainWire:
    connection: _Connection

    async def send(self, frames: list[bytes]) -> None:
        for frame in frames:
            await self.connection.send(frame)

    async def receive(self) -> bytes:
        message = await self.connection.receive()
        return message.encode() if isinstance(message, str) else message

    def takes(self, n_bytes: int) -> bool:
        """Never: who is cancelled while it sends would end the session of all."""
        return False


def _nothing() -> None:
    pass


@attrs.define(eq=False)
class TunnelLink:
    """The actor: ``run`` is its life, in a nursery of the tunnel that it is for.

    Attributes:
        open_socket: Opens a WebSocket, with headers of this module's besides.
        port: Where connections go.
        max_reconnects: How often in succession a lost session or socket is made anew; 0 = never.
    """

    open_socket: OpenSocket
    port: int
    max_reconnects: int
    _mux: Mux | None = None
    _error: SandboxClientError | None = None
    _over: bool = False
    _ended: trio.Event = attrs.field(factory=trio.Event)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _started: Callable[[], None] = _nothing

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, open_socket: OpenSocket, port: int, max_reconnects: int) -> AsyncIterator[TunnelLink]:
        """A link whose first session stands, for the length of the block.

        Raises:
            SandboxConnectionError: There is no WebSocket to be had.
        """
        link = cls(open_socket, port, max_reconnects)
        with raising_plainly():
            async with trio.open_nursery() as nursery:
                await nursery.start(link.run)
                try:
                    yield link
                finally:
                    await link._leave()
                    nursery.cancel_scope.cancel()

    async def dial(self) -> trio.abc.HalfCloseableStream:
        """See :class:`~sandboxrt.client.transport.base.Dialer`."""
        with trio.move_on_after(_DIAL_S):
            return await self._dial()
        raise TunnelError(f"tunnel: no connection to port {self.port} in {_DIAL_S:g} s")

    async def _dial(self) -> MuxStream:
        # Nothing waits in between: the session that was found is still there.
        stream = (await self._session()).open()
        try:
            await stream.send_all(ConnectHeader(self.port).encode())
            status = await stream.receive_some(1)
            self._check(status)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            stream.reset()
            raise TunnelError("tunnel: the session broke while the connection was made") from None
        except BaseException:
            stream.reset()
            raise
        return stream

    def _check(self, status: bytes) -> None:
        match status[0] if status else None:
            case TunnelStatus.CONNECTED:
                return
            case TunnelStatus.PORT_NOT_ALLOWED:
                raise TunnelPortNotAllowedError(
                    f"Port {self.port} may not be reached: the server's rules exclude it", port=self.port
                )
            case TunnelStatus.CONNECTION_REFUSED:
                raise TunnelConnectionRefusedError(
                    f"Nothing listens on port {self.port} in the sandbox", port=self.port
                )
            case TunnelStatus.UNSUPPORTED_VERSION:
                raise TunnelUnsupportedVersionError("The server speaks another version of the tunnel protocol")
            case other:
                raise TunnelError(f"tunnel: the server answered {other!r}, which means nothing here")

    async def _session(self) -> Mux:
        """The session that stands now; one is made where there is none."""
        if self._error is not None:
            self._error = None
            self._changed.unpark_all()
        while True:
            if self._mux is not None and not self._mux.over:
                return self._mux
            if self._error is not None:
                raise TunnelError(f"tunnel: {self._error}") from self._error
            await self._changed.park()

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self._changed.park()

    async def _leave(self) -> None:
        """End the session politely, within a moment."""
        self._over = True
        if self._mux is not None:
            self._mux.leave()
            with trio.move_on_after(_GOODBYE_S, shield=True):
                await self._ended.wait()

    # -- the actor ---------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Have a session for as long as one is to be had, then again when somebody asks for one.

        Raises:
            SandboxClientError: Not even the first one is to be had.
        """
        self._started = task_status.started
        try:
            await self._live()
        finally:
            self._ended.set()

    async def _live(self) -> None:
        await self._one_session()
        error: SandboxClientError = SandboxConnectionError("The connection was lost")
        failures = 0
        while not self._over:
            if failures >= self.max_reconnects:
                await self._give_up(error)
                failures = 0
                continue
            await trio.sleep(reattach_delay(failures + 1))
            try:
                await self._one_session()
                failures = 0
            except SandboxClientError as caught:
                error = caught
                failures += 1

    async def _give_up(self, error: SandboxClientError) -> None:
        """Wait until somebody asks again; who waits for a session is told why there is none."""
        self._error = error
        self._changed.unpark_all()
        await self._until(lambda: self._error is None)

    async def _one_session(self) -> None:
        """One session, over one socket or several.

        Raises:
            SandboxClientError: It could not be begun.
        """
        stream = secrets.token_hex(16)
        async with self.open_socket({RESUME_HEADER: Resume(stream).encode()}) as socket:
            answer = socket.header(RESUME_HEADER)
            if answer is None:
                await self._carry(_PlainWire(_Connection(socket)))
                return
            wire = ResumingWire()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_resuming, wire)
                await self._go_over(wire, socket, 0)
                await socket.close()
                await self._go_on(wire, stream)

    async def _run_resuming(self, wire: ResumingWire) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.expire)
            await self._carry(wire)
            with trio.move_on_after(_GOODBYE_S):
                await wire.flush()
            wire.end("the session is over")

    async def _go_over(self, wire: ResumingWire, socket: Socket, peer_received: int) -> None:
        """Carry the session over a socket; what ends that is within the socket, so that it can still be closed."""
        with contextlib.suppress(WireClosedError):
            async with wire.turn():
                await wire.carry(_Connection(socket), peer_received)

    async def _carry(self, wire: Wire) -> None:
        mux = Mux("client", wire)
        self._mux = mux
        self._started()
        self._started = _nothing
        self._changed.unpark_all()
        try:
            await mux.run()
        finally:
            self._mux = None
            self._changed.unpark_all()

    async def _go_on(self, wire: ResumingWire, stream: str) -> None:
        """Give a session another socket whenever one broke, until there is none to be had."""
        failures = 0
        while not wire.over and failures < self.max_reconnects:
            asked = Resume(stream, wire.received)
            try:
                async with self.open_socket({RESUME_HEADER: asked.encode()}) as socket:
                    answer = Resumed.decode(socket.header(RESUME_HEADER) or "")
                    if not answer.known:
                        wire.end("the server does not have the session any more")
                        return
                    failures = 0
                    await self._go_over(wire, socket, answer.received)
            except (SandboxClientError, ResumeError):
                failures += 1
            if not wire.over:
                await trio.sleep(reattach_delay(failures))
        wire.end("the connection was lost")
