"""The way of input to a command: bounded, in order, and harmless once the command does not want it any more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import trio

__all__ = ["InputGapError", "StdinPipe"]

_PIECE_BYTES = 16 * 1024
_PIECES = 16
_WRITERS = 256
_END_OF_TRANSMISSION = b"\x04"


class InputGapError(Exception):
    """Numbered input that does not join on to what was taken before; ``expected`` is the offset that would."""

    def __init__(self, offset: int, expected: int) -> None:
        super().__init__(
            f"Input from byte {offset} on came, but only {expected} bytes before it: send from byte {expected} on"
        )
        self.offset = offset
        self.expected = expected


class StdinPipe:
    """A bounded queue of input (256 KiB) in front of a command's standard input.

    It exists before the command runs, so that input and its end can be sent at once and arrive in order. What one
    call writes is not mixed with what another writes.

    Args:
        on_taken: Called whenever more of some numbered input was taken.
    """

    def __init__(self, on_taken: Callable[[], None] = lambda: None) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes | None](_PIECES)
        self._turn = trio.Lock()
        self._taken: OrderedDict[str, int] = OrderedDict()
        self._on_taken = on_taken

    def taken(self, input_id: str) -> int:
        """How many bytes of the input of that name were taken."""
        return self._taken.get(input_id, 0)

    async def write(self, text: str, input_id: str | None = None, offset: int | None = None) -> None:
        """Queue ``text``; waits while the queue is full. Dropped once the command's end of input was reached.

        Args:
            text: The input.
            input_id: Whose it is; the 256 most recent ones are remembered.
            offset: Position of its first byte in all input of that name; what was taken before is left out.

        Raises:
            InputGapError: Input of that name is missing before ``offset``; nothing was queued.

        Cancellation: What was queued stays queued (and counts as taken), the rest is not sent.
        """
        data = text.encode("utf-8", "replace")
        async with self._turn:
            if input_id is None or offset is None:
                for start in range(0, len(data), _PIECE_BYTES):
                    await self._put(data[start : start + _PIECE_BYTES])
                return
            taken = self.taken(input_id)
            if offset > taken:
                raise InputGapError(offset, taken)
            for start in range(taken - offset, len(data), _PIECE_BYTES):
                piece = data[start : start + _PIECE_BYTES]
                await self._put(piece)
                self._note_taken(input_id, offset + start + len(piece))

    async def end(self) -> None:
        """Queue the end of input. Idempotent."""
        async with self._turn:
            await self._put(None)

    async def pump(self, sink: trio.abc.SendStream | None, *, terminal: bool = False) -> None:
        """Carry the queue to ``sink`` until the end of input or until nobody reads there any more."""
        try:
            with self._receive:
                if sink is None:
                    return
                async for piece in self._receive:
                    if piece is not None:
                        await sink.send_all(piece)
                    elif terminal:
                        # Closing a terminal would hang it up; its line discipline takes this for the end of input.
                        await sink.send_all(_END_OF_TRANSMISSION)
                    else:
                        await sink.aclose()
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def close(self) -> None:
        """Drop what is queued and everything to come."""
        self._receive.close()

    async def _put(self, piece: bytes | None) -> None:
        try:
            await self._send.send(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.lowlevel.checkpoint()

    def _note_taken(self, input_id: str, offset: int) -> None:
        self._taken[input_id] = offset
        self._taken.move_to_end(input_id)
        if len(self._taken) > _WRITERS:
            self._taken.popitem(last=False)
        self._on_taken()
