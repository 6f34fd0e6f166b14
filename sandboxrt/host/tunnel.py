"""The tunnel actor: one session of streams, each of which is connected to a port inside a sandbox.

Its task is :meth:`Tunnel.run`, in the sandbox's nursery: a tunnel ends with its sandbox, whatever carries it. Each
stream has a task of its own in the tunnel's nursery; what goes wrong with one ends that one.

Source: protocol.md §5.2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import attrs
import trio

from sandboxrt.errors import SandboxClientError, TunnelPortNotAllowedError
from sandboxrt.host.connections import PortStream
from sandboxrt.protocol.tunnel import HEADER_BYTES, ConnectHeader, TunnelStatus
from sandboxrt.tunnels.mux import Mux, MuxSettings, MuxStream, Wire
from sandboxrt.tunnels.relay import Relay
from sandboxrt.tunnels.resuming import ResumingWire

__all__ = ["Tunnel", "TunnelSettings"]

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.frozen(kw_only=True)
class TunnelSettings:
    """The bounds of one tunnel.

    Attributes:
        mux: Those of its streams.
        header_s: How long a stream may take to say where to.
    """

    mux: MuxSettings = attrs.field(factory=MuxSettings)
    header_s: float = 10.0


class Tunnel:
    """One tunnel into a sandbox.

    Args:
        wire: What carries it; its user closes it.
        connect: Connects to a port inside.
        settings: The bounds.

    Attributes:
        ended: Set once it is over.
        on_end: Called then.
    """

    def __init__(
        self, wire: Wire, connect: Callable[[int], Awaitable[PortStream]], settings: TunnelSettings | None = None
    ) -> None:
        self.ended: trio.Event = trio.Event()
        self.on_end: Callable[[], object] = _nothing
        self._wire = wire
        self._connect = connect
        self._settings = settings or TunnelSettings()
        self._scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'over' if self.ended.is_set() else 'open'}>"

    def end(self) -> None:
        """End it, without a word to the peer. Never waits; ``ended`` tells when it is done."""
        self._scope.cancel()

    async def run(self) -> None:
        """Serve until the session ends, however it does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    mux = Mux(
                        "server",
                        self._wire,
                        self._settings.mux,
                        accept=lambda stream: nursery.start_soon(self._serve, stream),
                    )
                    if isinstance(self._wire, ResumingWire):
                        nursery.start_soon(self._wire.expire)
                    await mux.run()
                    nursery.cancel_scope.cancel()
        finally:
            self.ended.set()
            self.on_end()

    async def _serve(self, stream: MuxStream) -> None:
        try:
            with contextlib.suppress(*_BROKEN):
                inside = await self._answer(stream)
                if inside is not None:
                    async with inside:
                        await Relay(stream, inside).run()
        finally:
            stream.reset()

    async def _answer(self, stream: MuxStream) -> PortStream | None:
        """Connect to where the stream wants to, and say how that went."""
        header = await self._header(stream)
        if header is None:
            return None
        if not header.supported:
            await self._refuse(stream, TunnelStatus.UNSUPPORTED_VERSION)
            return None
        try:
            inside = await self._connect(header.port)
        except (TunnelPortNotAllowedError, ValueError):
            await self._refuse(stream, TunnelStatus.PORT_NOT_ALLOWED)
            return None
        except SandboxClientError:
            await self._refuse(stream, TunnelStatus.CONNECTION_REFUSED)
            return None
        try:
            await stream.send_all(bytes([TunnelStatus.CONNECTED]))
        except BaseException:
            inside.abort()
            raise
        return inside

    async def _header(self, stream: MuxStream) -> ConnectHeader | None:
        data = b""
        with trio.move_on_after(self._settings.header_s):
            while len(data) < HEADER_BYTES:
                more = await stream.receive_some(HEADER_BYTES - len(data))
                if not more:
                    return None
                data += more
            return ConnectHeader.decode(data)
        return None

    async def _refuse(self, stream: MuxStream, status: TunnelStatus) -> None:
        await stream.send_all(bytes([status]))
        await stream.send_eof()
        # A reset right behind it could overtake what the peer has not read: let it close first, if it ever does.
        with trio.move_on_after(self._settings.header_s):
            while await stream.receive_some():
                pass


def _nothing() -> None:
    pass
