"""The captures of one sandbox: one at a time, and none while its container or its files are being taken away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import trio

__all__ = ["Captures"]


@attrs.define(eq=False)
class Captures:
    """Who copies a sandbox's files, and who must wait for that.

    Attributes:
        turn: Held by the one that copies.
    """

    turn: trio.Lock = attrs.field(factory=trio.Lock)
    _scopes: set[trio.CancelScope] = attrs.field(factory=set)

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A capture, for the length of the block, which :meth:`end` cancels; it copies while it has the ``turn``."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)

    async def wait(self) -> None:
        """Wait until none copies."""
        async with self.turn:
            pass

    async def end(self) -> None:
        """Cancel all, and wait until none copies any more."""
        for scope in tuple(self._scopes):
            scope.cancel()
        await self.wait()
