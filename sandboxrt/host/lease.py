"""A lease on a sandbox: its owner says again and again that it lives, or the sandbox goes.

Source: ours.
"""

from __future__ import annotations

import attrs
import trio

from sandboxrt.host.lifetime import stood_still

__all__ = ["Lease"]

_LOOKS = 4
"""How often in a round it is looked whether the host stands still: a pause may end just before the lease does."""


@attrs.define(eq=False)
class Lease:
    """Ends ``seconds`` after the last renewal; on the clock of the run."""

    seconds: int
    _until: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """The owner lives."""
        self._until = trio.current_time() + self.seconds

    async def wait_ended(self) -> None:
        """Wait until nobody has renewed it in time. Time in which the host itself stood still does not count.

        After such a pause there is a whole round again, as after a restart: its owner could not renew it, and may need
        to notice first.
        """
        while (now := trio.current_time()) < self._until:
            due = min(self._until, now + self.seconds / _LOOKS)
            await trio.sleep_until(due)
            if stood_still(due, trio.current_time()):
                self.renew()
