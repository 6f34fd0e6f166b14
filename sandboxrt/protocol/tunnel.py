"""What a tunnel's stream begins with: the port that is wanted, and a byte that says how that went.

Source: protocol.md §5.2.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import attrs

__all__ = ["HEADER_BYTES", "ConnectHeader", "TunnelStatus"]

_HEADER: Final = struct.Struct("!BH")
HEADER_BYTES: Final = _HEADER.size
_VERSION: Final = 1


class TunnelStatus(enum.IntEnum):
    """The one byte that answers a connect header."""

    CONNECTED = 0
    PORT_NOT_ALLOWED = 1
    CONNECTION_REFUSED = 2
    UNSUPPORTED_VERSION = 3


@attrs.frozen
class ConnectHeader:
    """The first three bytes of a stream: the version, and the port to connect to inside the sandbox."""

    port: int
    version: int = _VERSION

    @property
    def supported(self) -> bool:
        """Whether this side speaks the version."""
        return self.version == _VERSION

    def encode(self) -> bytes:
        """The three bytes."""
        return _HEADER.pack(self.version, self.port)

    @classmethod
    def decode(cls, data: bytes) -> ConnectHeader:
        """From the first three bytes of a stream, which must be there."""
        version, port = _HEADER.unpack_from(data)
        return cls(port, version)
