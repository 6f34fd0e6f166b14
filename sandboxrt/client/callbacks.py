"""Where a user's callbacks run: here and now, or wherever a façade's caller waits for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeAlias

__all__ = ["CallbackRunner", "OutputCallback", "callback_runner", "run_callbacks"]

OutputCallback: TypeAlias = Callable[[str], object]
"""Called with each piece of text of one stream, in order."""

CallbackRunner: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a function somewhere and raises what it raises."""

callback_runner: ContextVar[CallbackRunner | None] = ContextVar("sandboxrt_callback_runner", default=None)
"""Set by ``bridge`` in the tasks that serve a caller on another thread or loop, whose callbacks belong there."""


async def run_callbacks(batch: Callable[[], None]) -> None:
    """Run ``batch``, a function that calls callbacks of the user.

    Raises:
        BaseException: Whatever a callback raised.
    """
    runner = callback_runner.get()
    if runner is None:
        batch()
    else:
        await runner(batch)
