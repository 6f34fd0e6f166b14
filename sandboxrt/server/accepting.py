"""Accepting connections, also when there is no descriptor for one more.

Then a connection would stand in the kernel's queue until its peer gives up, and the loop that accepts would fail again
and again. One descriptor is kept in reserve: it takes such a connection, which is turned away in words.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final

import trio

__all__ = ["accept_all"]

_log = logging.getLogger("sandboxrt.server")
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S: Final = 0.05
_TELL_EVERY_S: Final = 10.0

Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def accept_all(listener: trio.SocketListener, serve: Handler, turn_away: Handler, nursery: trio.Nursery) -> None:
    """Accept for ever.

    Args:
        listener: Where connections come.
        serve: Serves one, as a task of ``nursery``.
        turn_away: Tells one that there is no room for it, soon, and closes it.
        nursery: Owns the connections.
    """
    reserve = _Reserve()
    told_at = float("-inf")
    try:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                if trio.current_time() >= told_at + _TELL_EVERY_S:
                    told_at = trio.current_time()
                    _log.error(
                        "connections are turned away: %s; raise the limit of open files", os.strerror(error.errno)
                    )
                await _take_with(reserve, listener, turn_away)
                await trio.sleep(_PAUSE_S)
            else:
                nursery.start_soon(serve, stream)
    finally:
        reserve.release()


async def _take_with(reserve: _Reserve, listener: trio.SocketListener, turn_away: Handler) -> None:
    reserve.release()
    try:
        with trio.move_on_after(_PAUSE_S):
            try:
                stream = await listener.accept()
            except OSError:
                return  # somebody else had use for it
            with trio.CancelScope(shield=True):
                await turn_away(stream)
    finally:
        reserve.take()


class _Reserve:
    """A descriptor that is good for nothing but to be given back."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.take()

    def take(self) -> None:
        """Have one, where there is one to have."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return

    def release(self) -> None:
        """Give it back. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
