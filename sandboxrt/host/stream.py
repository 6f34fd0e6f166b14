"""One output stream of a command: from the pipe through the sanitiser into the replay buffer and its spill file."""

from __future__ import annotations

from collections.abc import Callable

import trio

from sandboxrt.host.replay import ReplayBudget
from sandboxrt.host.spill import SpillFile
from sandboxrt.protocol.output import MAX_READ_BYTES, ReplayBuffer, SpillRead, Utf8Sanitiser

__all__ = ["OutputStream"]

_READ_BYTES = 256 * 1024


class OutputStream:
    """What a command has written to one stream so far, and whether more can come.

    Args:
        buffer: Keeps the output.
        spill: Takes what the buffer does not keep in memory.
        on_change: Called after each piece and at the end.
        budget: Shared by the streams of a host.
    """

    def __init__(
        self, buffer: ReplayBuffer, spill: SpillFile, on_change: Callable[[], None], budget: ReplayBudget | None = None
    ) -> None:
        self._buffer = buffer
        self._budget = budget or ReplayBudget()
        self._share = self._budget.join(self)
        self._spilling = trio.Lock()
        self._spill = spill
        self._on_change = on_change
        self._sanitiser = Utf8Sanitiser()
        self._keep = True
        self.ended: bool = False
        """Whether the last holder of the pipe's other end has closed it."""
        self.reading: bool = False
        """Whether the pump waits for the pipe, everything taken so far being in the buffer."""
        self.received_bytes: int = 0
        """Raw bytes taken from the pipe."""

    @property
    def end(self) -> int:
        """Offset behind the last byte."""
        return self._buffer.end

    @property
    def first(self) -> int:
        """The first offset that can still be read."""
        return self._buffer.first

    @property
    def memory_used_bytes(self) -> int:
        """How much of it is in memory."""
        return self._buffer.memory_used_bytes

    async def pump(self, source: trio.abc.ReceiveStream) -> None:
        """Take everything from ``source`` until it ends. Readers never slow it down; the spill file may."""
        try:
            while True:
                self.reading = True
                data = await source.receive_some(_READ_BYTES)
                self.reading = False
                if not data:
                    break
                self.received_bytes += len(data)
                await self._add(self._sanitiser.feed(data if type(data) is bytes else bytes(data)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.reading = False
        await self._add(self._sanitiser.finish())
        self.mark_ended()

    def mark_ended(self) -> None:
        """Nothing more can come."""
        self.ended = True
        self._on_change()

    async def read(self, offset: int, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Whole characters from ``offset``; empty when there is nothing there yet. Waits only for the spill file.

        Raises:
            LostOutputError: The bytes there are gone.
            InvalidOffsetError: The offset is beyond the end or inside a character.
        """
        answer = self._buffer.read(offset, max_bytes)
        if isinstance(answer, SpillRead):
            return self._buffer.accept(answer, await self._spill.read(answer.pieces))
        return answer

    def forget(self) -> None:
        """Keep nothing from now on, but go on taking what comes, so that its writer lives."""
        self._keep = False

    async def aclose(self) -> None:
        """Free the spill file; what is in memory stays readable."""
        await self._spill.aclose()

    async def _add(self, clean: bytes) -> None:
        if not clean or not self._keep:
            return
        self._buffer.append(clean)
        self._share.resize(self._buffer.memory_used_bytes)
        self._on_change()
        await self.spill()
        if self._budget.used_bytes > self._budget.limit_bytes:
            await self._budget.relieve()

    async def spill(self, keep_bytes: int | None = None) -> None:
        """Move the oldest output to the spill file until the rest is within bounds.

        Args:
            keep_bytes: How much may stay in memory; the stream's own bound where left out.

        Cancellation: what was moved is moved.
        """
        if not self._buffer.wants_spill(keep_bytes):
            return
        async with self._spilling:
            while (plan := self._buffer.plan_spill(keep_bytes=keep_bytes)) is not None:
                try:
                    await self._spill.write(plan.pieces)
                except OSError:
                    # The command goes on; what could not be kept is a recorded loss.
                    self._buffer.spill_failed()
                    await self._spill.aclose()
                else:
                    self._buffer.spill_done(plan)
                self._share.resize(self._buffer.memory_used_bytes)
        self._share.resize(self._buffer.memory_used_bytes)
