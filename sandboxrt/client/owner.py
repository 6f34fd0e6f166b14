"""The nursery of an open client, as the objects it hands out see it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import attrs
import trio

from sandboxrt.client.transport.base import Transport

__all__ = ["Owner"]


@attrs.define(eq=False)
class Owner:
    """Owns the tasks that outlive a call of the client, such as a detach after ``break``."""

    transport: Transport
    _nursery: trio.Nursery
    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)
    _pid: int = attrs.field(factory=os.getpid)
    _closed: bool = False

    def post(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work``, which must not raise, in the nursery. From any thread, ``__del__`` too; nothing once closed."""
        if self._closed or os.getpid() != self._pid:
            return
        try:
            self._token.run_sync_soon(self.start, work)
        except trio.RunFinishedError:
            pass  # the run is over, and with it everything that the work was about

    @property
    def closed(self) -> bool:
        """Whether it takes no more work."""
        return self._closed

    def close(self) -> None:
        """Take no more work."""
        self._closed = True

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """The same at once; on the trio thread only."""
        if not self._closed:
            self._nursery.start_soon(work)
