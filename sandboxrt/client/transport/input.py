"""The input of one command on its way to a server: numbered, kept until it is acknowledged, sent again where it is due.

Source: the extension of ``protocol/exec_wire.py``; servers without it get input as it comes, once.
"""

from __future__ import annotations

from collections import deque

import attrs

__all__ = ["WINDOW_BYTES", "InputLog"]

WINDOW_BYTES = 256 * 1024
"""How much input may be under way; more waits."""
_PIECE_CHARACTERS = 64 * 1024


@attrs.define
class _Piece:
    offset: int
    data: str
    size: int


@attrs.define
class InputLog:
    """What the user gave, in pieces, and how far each side is.

    Attributes:
        numbered: Whether the server numbers input; known once it has said so.
    """

    numbered: bool = False
    _pieces: deque[_Piece] = attrs.field(factory=deque)
    _given: int = 0
    _acknowledged: int = 0
    _next: int = 0
    """Index into ``_pieces`` of what is to be sent next."""
    _closing: bool = False
    _close_sent: bool = False

    @property
    def full(self) -> bool:
        """Whether more has to wait."""
        return bool(self._pieces) and self._given - self._acknowledged >= WINDOW_BYTES

    @property
    def given(self) -> int:
        """How many bytes the user gave."""
        return self._given

    @property
    def sent(self) -> int:
        """How many bytes were sent, once at least."""
        return self._pieces[self._next].offset if self._next < len(self._pieces) else self._given

    @property
    def close_sent(self) -> bool:
        """Whether the end of input was sent."""
        return self._close_sent

    @property
    def pending(self) -> bool:
        """Whether something is to be sent now."""
        return self._next < len(self._pieces) or (self._closing and not self._close_sent)

    @staticmethod
    def split(data: str) -> list[str]:
        """Pieces that each fit into a frame."""
        return [data[start : start + _PIECE_CHARACTERS] for start in range(0, len(data), _PIECE_CHARACTERS)]

    def add(self, data: str) -> None:
        """Take a piece."""
        size = len(data) if data.isascii() else len(data.encode())
        self._pieces.append(_Piece(self._given, data, size))
        self._given += size

    def close(self) -> None:
        """No more will come."""
        self._closing = True

    def take(self) -> tuple[str, int | None] | None:
        """The next piece to send with its offset, ``None`` when there is none. Without numbering it is forgotten."""
        if self._next >= len(self._pieces):
            return None
        piece = self._pieces[self._next]
        if self.numbered:
            self._next += 1
            return piece.data, piece.offset
        self._pieces.popleft()
        self._acknowledged = piece.offset + piece.size
        return piece.data, None

    def take_close(self) -> bool:
        """Whether the end of input is to be sent now; it counts as sent then."""
        if not self._closing or self._close_sent or self._next < len(self._pieces):
            return False
        self._close_sent = True
        return True

    def acknowledge(self, offset: int) -> None:
        """The server has what is before ``offset``; a piece that is there in part is kept whole."""
        self._acknowledged = max(self._acknowledged, min(offset, self._given))
        while self._pieces and self._pieces[0].offset + self._pieces[0].size <= self._acknowledged:
            self._pieces.popleft()
            self._next = max(self._next - 1, 0)

    def resume(self, offset: int | None) -> None:
        """A connection was made: go on from what the server has (``None``: it does not number input)."""
        self.numbered = offset is not None
        if offset is not None:
            self.acknowledge(offset)
        self._next = 0
        self._close_sent = False
