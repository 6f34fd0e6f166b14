"""A command's output as its readers see it: valid UTF-8, addressed by byte offset, kept within bounds.

Raw bytes go through a :class:`Utf8Sanitiser` (offsets count the text that is sent, so bytes that are not UTF-8 become
U+FFFD *before* they are counted) into a :class:`ReplayBuffer`. The buffer keeps the newest bytes in memory; when they
are too many it says which of the oldest should be written where in a spill file of fixed size, used as a ring, and
which are lost. Whoever owns the file does the writing and reading and tells the buffer how it went.

Source: protocol.md §4.3; the spill file and the errors for gaps are ours.
"""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections import deque

import attrs

__all__ = [
    "LONG_READ_BYTES",
    "MAX_READ_BYTES",
    "InvalidOffsetError",
    "LostOutputError",
    "ReplayBuffer",
    "SpillRead",
    "SpillWrite",
    "Utf8Sanitiser",
]

MAX_READ_BYTES = 64 * 1024
"""The most that one read returns, so that a frame stays small after JSON escaping (protocol.md §1.4)."""

LONG_READ_BYTES = 256 * 1024
"""The same for readers without such bounds: each frame costs both sides as much as some hundred kilobytes of it."""

_SEGMENT_BYTES = 64 * 1024
_MAX_CHARACTER_BYTES = 4


class Utf8Sanitiser:
    """Makes valid UTF-8 of any bytes, as ``bytes.decode(errors="replace")`` does, however they are cut into pieces."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """The text that is certain once ``data`` has come; an incomplete character at the end is held back."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if data.isascii():
            return data
        try:
            _, used = codecs.utf_8_decode(data, "strict", False)
            clean = data if used == len(data) else data[:used]
        except UnicodeDecodeError:
            text, used = codecs.utf_8_decode(data, "replace", False)
            clean = text.encode()
        self._tail = data[used:]
        return clean

    def finish(self) -> bytes:
        """What is left at the end of the stream: nothing, or U+FFFD for an incomplete character."""
        tail, self._tail = self._tail, b""
        return tail.decode(errors="replace").encode() if tail else b""


class LostOutputError(Exception):
    """The bytes at ``offset`` are gone; ``first_offset`` is the first that is still there."""

    def __init__(self, offset: int, first_offset: int) -> None:
        super().__init__(f"output at byte {offset} is gone; the first byte kept is {first_offset}")
        self.offset = offset
        self.first_offset = first_offset


class InvalidOffsetError(Exception):
    """An offset lies beyond the end of the stream, is negative, or is inside a character."""


@attrs.frozen
class SpillWrite:
    """Bytes to write to the spill file: ``pieces`` are (position in the file, bytes), at most two of them."""

    pieces: tuple[tuple[int, bytes], ...]
    size: int


@attrs.frozen
class SpillRead:
    """Bytes to read from the spill file: ``pieces`` are (position, length), at most two. Answers offset ``offset``."""

    offset: int
    pieces: tuple[tuple[int, int], ...]


class ReplayBuffer:
    """The replayable part of one stream.

    ``first <= spilled <= end``: bytes from ``first`` to ``spilled`` are in the spill file, from there to ``end`` in
    memory; what was before ``first`` is lost. Offsets never restart.

    Args:
        memory_bytes: How much may stay in memory once :meth:`plan_spill` was answered.
        spill_bytes: Size of the spill file; 0 = none, what leaves memory is lost.
    """

    __slots__ = (
        "_first",
        "_memory_bytes",
        "_segments",
        "_spill_bytes",
        "_spilled",
        "_spilled_starts",
        "_starts",
        "_tail",
        "end",
    )

    def __init__(self, memory_bytes: int = 16 * 1024**2, spill_bytes: int = 1024**3) -> None:
        self._memory_bytes = memory_bytes
        self._spill_bytes = spill_bytes
        self._starts: list[int] = []
        self._segments: list[bytes] = []
        self._tail = bytearray()
        self._first = 0
        self._spilled = 0
        self._spilled_starts: deque[int] = deque()
        self.end: int = 0
        """Offset behind the last byte."""

    @property
    def first(self) -> int:
        """The first offset that is still there."""
        return self._first

    @property
    def memory_start(self) -> int:
        """The first offset that is in memory."""
        return self._spilled

    @property
    def memory_used_bytes(self) -> int:
        """How much is in memory."""
        return self.end - self._spilled

    def append(self, clean: bytes) -> None:
        """Add text that a :class:`Utf8Sanitiser` has passed (whole characters)."""
        if len(clean) >= _SEGMENT_BYTES // 2:
            self._seal_tail()
            self._starts.append(self.end)
            self._segments.append(clean)
            self.end += len(clean)
            return
        self._tail += clean
        self.end += len(clean)
        if len(self._tail) >= _SEGMENT_BYTES:
            self._seal_tail()

    def read(self, offset: int, max_bytes: int = MAX_READ_BYTES) -> bytes | SpillRead:
        """Whole characters from ``offset`` on, at most ``max_bytes``; empty at the end.

        Args:
            offset: Where to begin.
            max_bytes: At least 4, so that any character fits.

        Returns:
            The bytes, or what to read from the spill file; hand what was read to :meth:`accept`.

        Raises:
            LostOutputError: ``offset`` is before the first byte kept.
            InvalidOffsetError: ``offset`` is beyond the end or inside a character.
        """
        if offset < 0 or offset > self.end:
            raise InvalidOffsetError(f"offset {offset} is outside of the output, which has {self.end} bytes")
        if offset < self._first:
            raise LostOutputError(offset, self._first)
        if offset < self._spilled:
            size = min(max_bytes, self._spilled - offset)
            return SpillRead(offset, tuple(self._ring(offset, size)))
        return _whole_characters(self._from_memory(offset, max_bytes), offset)

    def accept(self, asked: SpillRead, data: bytes) -> bytes:
        """Whole characters out of what the spill file gave for ``asked``.

        Raises:
            LostOutputError: The place was overwritten or given up while it was read.
            InvalidOffsetError: The offset is inside a character.
        """
        if asked.offset < self._first:
            raise LostOutputError(asked.offset, self._first)
        expected = sum(size for _, size in asked.pieces)
        if len(data) != expected:
            self.spill_failed()
            raise LostOutputError(asked.offset, self._first)
        return _whole_characters(data, asked.offset)

    def wants_spill(self, keep_bytes: int | None = None) -> bool:
        """Whether more is in memory than may stay; ``keep_bytes`` may say less than the buffer's own bound."""
        return self.end - self._spilled > self._kept(keep_bytes)

    def _kept(self, keep_bytes: int | None) -> int:
        return self._memory_bytes if keep_bytes is None else min(keep_bytes, self._memory_bytes)

    def plan_spill(self, at_most_bytes: int = 1024**2, *, keep_bytes: int | None = None) -> SpillWrite | None:
        """What has to leave memory now, oldest first, or ``None``; ``keep_bytes`` as for :meth:`wants_spill`.

        What the write will overwrite counts as lost from this moment. Answer with :meth:`spill_done` or
        :meth:`spill_failed` before asking again.
        """
        kept = self._kept(keep_bytes)
        if self.end - self._spilled <= kept:
            return None
        if not self._segments:
            self._seal_tail()
        chosen: list[bytes] = []
        size = 0
        limit = min(at_most_bytes, self._spill_bytes // 2)
        for segment in self._segments:
            if chosen and (size + len(segment) > limit or self.end - self._spilled - size <= kept):
                break
            chosen.append(segment)
            size += len(segment)
        if size > self._spill_bytes:
            self._forget_oldest(kept)
            return None
        self._make_room(size)
        data = b"".join(chosen)
        pieces = []
        used = 0
        for position, length in self._ring(self._spilled, size):
            pieces.append((position, data[used : used + length]))
            used += length
        return SpillWrite(tuple(pieces), size)

    def spill_done(self, write: SpillWrite) -> None:
        """The planned bytes are in the file: drop them from memory."""
        if self._spill_bytes:
            self._drop(write.size)

    def spill_failed(self) -> None:
        """The file cannot be used (any more): what it held is lost, and so is what leaves memory from now on."""
        self._lose_spilled()
        self._spill_bytes = 0

    def clear(self) -> None:
        """Forget everything; only ``end`` stays."""
        self._seal_tail()
        self._drop(self.end - self._spilled)
        self._lose_spilled()

    def _seal_tail(self) -> None:
        if self._tail:
            self._starts.append(self.end - len(self._tail))
            self._segments.append(bytes(self._tail))
            self._tail.clear()

    def _from_memory(self, offset: int, max_bytes: int) -> bytes:
        tail_start = self.end - len(self._tail)
        if offset >= tail_start:
            return bytes(self._tail[offset - tail_start : offset - tail_start + max_bytes])
        index = bisect_right(self._starts, offset) - 1
        skip = offset - self._starts[index]
        piece = self._segments[index][skip : skip + max_bytes]
        if len(piece) == max_bytes:
            return piece
        pieces = [piece]
        room = max_bytes - len(piece)
        while room and index + 1 < len(self._segments):
            index += 1
            piece = self._segments[index][:room]
            pieces.append(piece)
            room -= len(piece)
        if room and self._tail:
            pieces.append(bytes(self._tail[:room]))
        return b"".join(pieces) if len(pieces) > 1 else pieces[0]

    def _ring(self, offset: int, size: int) -> list[tuple[int, int]]:
        position = offset % self._spill_bytes
        before_wrap = min(size, self._spill_bytes - position)
        pieces = [(position, before_wrap)]
        if before_wrap < size:
            pieces.append((0, size - before_wrap))
        return pieces

    def _forget_oldest(self, kept: int) -> None:
        size = 0
        for segment in self._segments:
            if self.end - self._spilled - size <= kept:
                break
            size += len(segment)
        self._drop(size)
        self._lose_spilled()

    def _lose_spilled(self) -> None:
        self._first = self._spilled
        self._spilled_starts.clear()

    def _make_room(self, size: int) -> None:
        # Whole segments are lost, so that the first offset kept is never inside a character.
        oldest_kept = self._spilled + size - self._spill_bytes
        while self._spilled_starts and self._first < oldest_kept:
            self._spilled_starts.popleft()
            self._first = self._spilled_starts[0] if self._spilled_starts else self._spilled

    def _drop(self, size: int) -> None:
        count = 0
        dropped = 0
        while dropped < size:
            self._spilled_starts.append(self._starts[count])
            dropped += len(self._segments[count])
            count += 1
        assert dropped == size, "what leaves memory is whole segments"
        del self._segments[:count], self._starts[:count]
        self._spilled += size


def _whole_characters(data: bytes, offset: int) -> bytes:
    """``data`` (a part of valid UTF-8) without the incomplete character at its end."""
    if not data or data.isascii():
        return data
    if data[0] & 0xC0 == 0x80:
        raise InvalidOffsetError(f"offset {offset} is inside a character")
    for back in range(1, min(_MAX_CHARACTER_BYTES, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data if needed == back else data[:-back]
        if byte < 0x80:
            break
    return data
