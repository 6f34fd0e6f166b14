"""Cancellation in the middle of whatever goes on in a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

__all__ = ["CancelAt"]


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task takes: the caller's own, and the actors' that work for it."""

    def __init__(self, step: int) -> None:
        self.scope = trio.CancelScope()
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self.scope.cancel()

    async def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Run ``work`` in the scope; the steps count from now on."""
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                await work()
        finally:
            trio.lowlevel.remove_instrument(self)
