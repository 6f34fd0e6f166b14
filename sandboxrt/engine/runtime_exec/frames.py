"""The frames between the host and a relay inside a container (``init/relay.h`` has the other half). Pure."""

from __future__ import annotations

import enum
import struct

import attrs

from sandboxrt.engine.init.wire import InitProtocolError

__all__ = ["HEADER_BYTES", "INPUT_WINDOW_BYTES", "MAX_PAYLOAD_BYTES", "Frame", "FrameKind", "FrameReader"]

_HEADER = struct.Struct("=IIii")
HEADER_BYTES = _HEADER.size
MAX_PAYLOAD_BYTES = 1 << 16
INPUT_WINDOW_BYTES = 1 << 18
"""What a relay holds for a program that does not read; the host sends no more than that beyond what was taken."""


class FrameKind(enum.IntEnum):
    """What a frame says; ``a`` and ``b`` in brackets. The first nine go inside, the others come out."""

    INPUT = 1
    INPUT_END = 2
    CREDIT = 3
    """(stream, bytes that may come)"""
    SIGNAL = 4
    """(number)"""
    RESIZE = 5
    """(columns, rows)"""
    READ = 6
    """(bytes), payload: the offset"""
    COMMIT = 7
    DROP = 8
    """(stream that nobody wants any more)"""
    HELLO = 16
    STARTED = 17
    """(process id inside)"""
    FAILED = 18
    """(stage, errno)"""
    EXITED = 19
    """(wait status)"""
    OUTPUT = 20
    """(stream)"""
    OUTPUT_END = 21
    """(stream)"""
    TAKEN = 22
    """(nothing, bytes of input that went on)"""
    INPUT_GONE = 23
    FILE = 24
    """payload: size and modification time"""
    DATA = 25
    DONE = 26


_FROM_INSIDE = frozenset(range(FrameKind.HELLO, FrameKind.DONE + 1))


@attrs.frozen
class Frame:
    """One frame, of either direction."""

    kind: FrameKind
    a: int = 0
    b: int = 0
    payload: bytes = b""

    def pack(self) -> bytes:
        """The frame's bytes."""
        return _HEADER.pack(self.kind, len(self.payload), self.a, self.b) + self.payload


@attrs.define
class FrameReader:
    """Cuts what comes out of a container into frames, and believes neither kind nor length."""

    _buffer: bytearray = attrs.field(factory=bytearray, init=False)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with ``data``.

        Raises:
            InitProtocolError: A frame of an unknown kind, or one that is too long.
        """
        self._buffer += data
        found = []
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            kind, length, a, b = _HEADER.unpack_from(self._buffer, start)
            if kind not in _FROM_INSIDE or length > MAX_PAYLOAD_BYTES:
                raise InitProtocolError(f"an impossible frame (kind {kind}, {length} bytes)")
            end = start + HEADER_BYTES + length
            if len(self._buffer) < end:
                break
            found.append(Frame(FrameKind(kind), a, b, bytes(self._buffer[start + HEADER_BYTES : end])))
            start = end
        del self._buffer[:start]
        return found
