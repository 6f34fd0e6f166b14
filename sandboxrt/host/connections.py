"""Connections to ports inside a sandbox: which may be made, how many, and that none outlives what it leads to.

Whoever asks gets a stream, and owns it. While it is open the sandbox counts as active; when the sandbox stops, dies or
is deleted, the stream breaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs
import trio

from sandboxrt.engine.base import Container, Feature
from sandboxrt.errors import (
    SandboxNotReadyError,
    SandboxOperationError,
    TunnelConnectionRefusedError,
    TunnelPortNotAllowedError,
)

__all__ = ["ConnectionSettings", "Connections", "PortRules", "PortStream"]

_PORTS = range(1, 65536)


@attrs.frozen
class PortRules:
    """Which ports inside may be reached.

    Attributes:
        ranges: First and last port of each range; every port by default.
    """

    ranges: tuple[tuple[int, int], ...] = ((1, 65535),)

    def __attrs_post_init__(self) -> None:
        for first, last in self.ranges:
            if first not in _PORTS or last not in _PORTS or first > last:
                raise ValueError(f"{first}-{last} is no range of ports; they are 1 to 65535")

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges) or "none"

    @classmethod
    def parse(cls, text: str) -> PortRules:
        """From ``"5432,8000-8999"``; ``"none"`` allows no port.

        Raises:
            ValueError: It is not written like that.
        """
        if text.strip() == "none":
            return cls(())
        ranges: list[tuple[int, int]] = []
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            if not part.isascii() or not first.isdecimal() or (dash and not last.isdecimal()):
                raise ValueError(f"{text!r} names no ports; write them like 5432,8000-8999, or none")
            ranges.append((int(first), int(last or first)))
        return cls(tuple(ranges))

    def allow(self, port: int) -> bool:
        """Whether that port may be reached."""
        return any(first <= port <= last for first, last in self.ranges)


@attrs.frozen(kw_only=True)
class ConnectionSettings:
    """The bounds of the connections to one sandbox's ports.

    Attributes:
        ports: Which ports may be reached.
        connect_s: How long a program inside may take to accept.
        max_open: Connections at once.
    """

    ports: PortRules = attrs.field(factory=PortRules)
    connect_s: float = 10.0
    max_open: int = 2048


class PortStream(trio.abc.HalfCloseableStream):
    """A connection to a port inside. Closing it, or the end of its sandbox, ends it both ways.

    Attributes:
        port: The port.
    """

    def __init__(self, stream: trio.SocketStream, port: int, closed: Callable[[PortStream], None]) -> None:
        self.port = port
        self._stream = stream
        self._closed = closed

    @property
    def socket(self) -> trio.socket.SocketType:
        """Its socket, for those who move much data; closing is done here."""
        return self._stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As that of ``trio.SocketStream``."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As that of ``trio.SocketStream``."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """As that of ``trio.SocketStream``."""
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As that of ``trio.SocketStream``."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close it. Idempotent; never waits for the other side."""
        self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """The same at once; who reads or writes it then gets ``ClosedResourceError``."""
        self._stream.socket.close()
        self._closed(self)


class Connections:
    """The open connections to one sandbox's ports.

    Args:
        settings: Their bounds.
        on_change: Called when one begins or ends: the sandbox is active then.
    """

    def __init__(self, settings: ConnectionSettings, on_change: Callable[[], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._open: set[PortStream] = set()
        self._opening = 0
        self._over = False

    def __len__(self) -> int:
        return len(self._open) + self._opening

    async def connect(self, container: Container, port: int) -> PortStream:
        """A connection to a port on the loopback inside, IPv4 or IPv6. The caller closes it.

        Raises:
            ValueError: That is no port.
            TunnelPortNotAllowedError: The host's rules exclude it.
            TunnelConnectionRefusedError: Nothing listens there, or what listens does not accept.
            SandboxOperationError: There are too many, the runtime has no ports, or the container cannot make one.
            SandboxNotReadyError: The sandbox ended meanwhile.

        Cancellation: atomic.
        """
        self._check(container, port)
        self._opening += 1
        self._on_change()
        try:
            stream = await self._dial(container, port)
            if self._over:
                stream.socket.close()
                raise SandboxNotReadyError(f"The sandbox ended while port {port} was being connected to")
            opened = PortStream(stream, port, self._forget)
            self._open.add(opened)
            return opened
        finally:
            self._opening -= 1
            self._on_change()

    def close(self) -> None:
        """End them all; no new ones are made."""
        self._over = True
        for stream in tuple(self._open):
            stream.abort()

    def _check(self, container: Container, port: int) -> None:
        if isinstance(port, bool) or not isinstance(port, int) or port not in _PORTS:
            raise ValueError(f"a port must be 1 to 65535, not {port!r}")
        settings = self._settings
        if not settings.ports.allow(port):
            raise TunnelPortNotAllowedError(
                f"Port {port} may not be reached here; the host allows {settings.ports}", port=port
            )
        if Feature.PORTS not in container.features:
            raise SandboxOperationError(
                "Ports inside cannot be reached with this sandbox's runtime", "connect", "Unsupported"
            )
        if len(self) >= settings.max_open:
            raise SandboxOperationError(
                f"The sandbox has {settings.max_open} connections to its ports, which is its limit; close some",
                "connect",
                "TooManyConnections",
            )

    async def _dial(self, container: Container, port: int) -> trio.SocketStream:
        try:
            with trio.fail_after(self._settings.connect_s):
                return await container.connect(port)
        except ConnectionRefusedError as error:
            raise TunnelConnectionRefusedError(f"Nothing listens on port {port} inside", port=port) from error
        except trio.TooSlowError:
            raise TunnelConnectionRefusedError(
                f"What listens on port {port} inside accepted nothing in {self._settings.connect_s:g} s", port=port
            ) from None
        except (OSError, trio.BrokenResourceError) as error:
            if self._over:
                raise SandboxNotReadyError(f"The sandbox ended while port {port} was being connected to") from error
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise SandboxOperationError(f"Cannot connect to port {port} inside: {why}", "connect", "OSError") from error

    def _forget(self, stream: PortStream) -> None:
        if stream in self._open:
            self._open.remove(stream)
            self._on_change()
