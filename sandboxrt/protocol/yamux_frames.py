"""Frames of yamux version 0: a header of twelve bytes, and data behind it in one kind of frame.

Source: protocol.md §5.1 and the yamux specification it restates.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final

import attrs

__all__ = [
    "INITIAL_WINDOW_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_FRAME_DATA_BYTES",
    "Flag",
    "Frame",
    "FrameReader",
    "GoAwayCode",
    "Kind",
    "YamuxError",
    "data_frame",
]

INITIAL_WINDOW_BYTES: Final = 256 * 1024
"""What each side may send on a new stream before it is granted more."""
_HEADER: Final = struct.Struct("!BBHII")
MAX_FRAME_BYTES: Final = 64 * 1024
"""How long a frame of ours is at most, so that streams take turns and every peer takes it as one message."""
MAX_FRAME_DATA_BYTES: Final = MAX_FRAME_BYTES - _HEADER.size
"""How much data is in such a frame."""
_VERSION: Final = 0
_KINDS: Final = 4


class YamuxError(Exception):
    """The peer broke a rule of the protocol. The session is over."""


class Kind(enum.IntEnum):
    """What a frame is."""

    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


class Flag(enum.IntFlag):
    """What a frame says about its stream."""

    NONE = 0
    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class GoAwayCode(enum.IntEnum):
    """Why a side ends the session."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


@attrs.frozen
class Frame:
    """One frame.

    Attributes:
        kind: What it is.
        flags: What it says about its stream.
        stream_id: The stream; 0 for pings and the end of the session.
        value: The window's growth in bytes, the ping's number or the reason for the end; of data, its length.
        data: The data, in frames that have any.
    """

    kind: Kind
    flags: Flag
    stream_id: int
    value: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """The bytes of this frame."""
        value = len(self.data) if self.kind is Kind.DATA else self.value
        return _HEADER.pack(_VERSION, self.kind, self.flags, self.stream_id, value) + self.data


def data_frame(stream_id: int, data: bytes | bytearray | memoryview) -> bytes:
    """The bytes of a frame with data and no flags; the data is copied once."""
    return b"".join((_HEADER.pack(_VERSION, Kind.DATA, 0, stream_id, len(data)), data))


@attrs.define
class FrameReader:
    """Finds frames in bytes that come in pieces of any size.

    Args:
        max_data_bytes: The longest data frame that is taken; a longer one is an error before its data is read.
    """

    max_data_bytes: int
    _buffer: bytearray = attrs.field(factory=bytearray)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """The frames that are complete with ``data``. The iterator must be exhausted.

        Raises:
            YamuxError: What follows is no frame of this version.
        """
        # Mostly a message is a frame, and then its data is copied once.
        source: bytes | bytearray
        if self._buffer or not isinstance(data, bytes):
            self._buffer += data
            source = self._buffer
        else:
            source = data
        at = 0
        try:
            while len(source) - at >= _HEADER.size:
                version, kind, flags, stream_id, value = _HEADER.unpack_from(source, at)
                length = self._data_length(version, kind, value)
                end = at + _HEADER.size + length
                if len(source) < end:
                    return
                content = bytes(memoryview(source)[at + _HEADER.size : end]) if length else b""
                at = end
                yield Frame(Kind(kind), Flag(flags & 0xF), stream_id, value, content)
        finally:
            if source is self._buffer:
                del self._buffer[:at]
            else:
                self._buffer += memoryview(source)[at:]

    def _data_length(self, version: int, kind: int, value: int) -> int:
        if version != _VERSION:
            raise YamuxError(f"frame of version {version}, not {_VERSION}")
        if kind >= _KINDS:
            raise YamuxError(f"frame of unknown kind {kind}")
        if kind != Kind.DATA:
            return 0
        if value > self.max_data_bytes:
            raise YamuxError(f"data frame of {value} bytes, more than any window of {self.max_data_bytes}")
        return value
