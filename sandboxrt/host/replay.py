"""How much replayable output all commands of a host may keep in memory together.

Each stream has a bound of its own; with many streams, those bounds together are more than a machine has. When the sum
is too much, whoever added to it has the streams that hold most moved to their spill files, down to an equal share. So
a few streams may use all of it, and no stream is ever without its newest output in memory.
"""

from __future__ import annotations

import weakref
from typing import Protocol

import attrs

__all__ = ["ReplayBudget", "ReplayShare", "Spilling"]

_LEAST_BYTES = 64 * 1024
"""What a stream may keep whatever the others do: its newest segment, which is still being filled."""


class Spilling(Protocol):
    """A stream that can move what it holds from memory to its spill file."""

    async def spill(self, keep_bytes: int) -> None:
        """Keep no more than about ``keep_bytes`` in memory."""
        ...


@attrs.define(eq=False)
class ReplayShare:
    """What one stream holds; it ends with the stream."""

    _budget: ReplayBudget
    _stream: weakref.ref[Spilling]
    size: int = 0

    @property
    def stream(self) -> Spilling | None:
        """Whose it is, while it is there."""
        return self._stream()

    def resize(self, size: int) -> None:
        """The stream holds so many bytes now."""
        self._budget.used_bytes += size - self.size
        self.size = size


@attrs.define(eq=False)
class ReplayBudget:
    """The budget of a host.

    Attributes:
        limit_bytes: For all streams together; each may have one piece of output and one segment beyond it.
        used_bytes: What they hold.
    """

    limit_bytes: int = 256 * 1024**2
    used_bytes: int = 0
    _shares: set[ReplayShare] = attrs.field(factory=set)

    def join(self, stream: Spilling) -> ReplayShare:
        """A share for a new stream. It is given back when nobody has the stream any more."""
        share = ReplayShare(self, weakref.ref(stream))
        self._shares.add(share)
        weakref.finalize(stream, self._leave, share).atexit = False
        return share

    async def relieve(self) -> None:
        """Move output to spill files until the sum is within the limit, or nothing more can be moved.

        Cancellation: what was moved is moved.
        """
        keep = max(_LEAST_BYTES, self.limit_bytes // max(1, len(self._shares)))
        while self.used_bytes > self.limit_bytes:
            # A copy: the collector may end a stream, and so its share, at any moment.
            largest = max(list(self._shares), key=lambda share: share.size, default=None)
            if largest is None or largest.size <= keep or (stream := largest.stream) is None:
                return
            before = largest.size
            await stream.spill(keep)
            if largest.size >= before:
                return

    def _leave(self, share: ReplayShare) -> None:
        share.resize(0)
        self._shares.discard(share)
