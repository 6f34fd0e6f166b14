"""Blocking work beside the trio thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

__all__ = ["run_blocking"]

T = TypeVar("T")


async def run_blocking(limiter: trio.CapacityLimiter | None, function: Callable[[], T]) -> T:
    """Run ``function`` in a worker thread, or right here when the interpreter exits and starts no more threads.

    Args:
        limiter: Bounds the threads; trio's own where left out.
        function: What to run.

    Cancellation: before the start only.
    """
    started = False

    def call() -> T:
        nonlocal started
        started = True
        return function()

    try:
        return await trio.to_thread.run_sync(call, limiter=limiter)
    except RuntimeError:
        # Python 3.12 refuses new threads once the interpreter shuts down. What is left to do then is the clean-up of
        # this process, and blocking its last task for a moment harms nobody.
        if started:
            raise
        return function()
