"""The way of input to a command: bounded, in order, and harmless once the command does not want it any more."""

from __future__ import annotations

import trio

__all__ = ["StdinPipe"]

_PIECE_BYTES = 16 * 1024
_PIECES = 16
_END_OF_TRANSMISSION = b"\x04"


class StdinPipe:
    """A bounded queue of input (256 KiB) in front of a command's standard input.

    It exists before the command runs, so that input and its end can be sent at once and arrive in order.
    """

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes | None](_PIECES)

    async def write(self, text: str) -> None:
        """Queue ``text``; waits while the queue is full. Dropped once the command's end of input was reached.

        Cancellation: What was queued stays queued, the rest is not sent.
        """
        data = text.encode("utf-8", "replace")
        for start in range(0, len(data), _PIECE_BYTES):
            await self._put(data[start : start + _PIECE_BYTES])

    async def end(self) -> None:
        """Queue the end of input. Idempotent."""
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
