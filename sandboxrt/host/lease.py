"""A lease on a sandbox: its owner says again and again that it lives, or the sandbox goes.

Source: ours.
"""

from __future__ import annotations

import attrs
import trio

__all__ = ["Lease"]


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
        """Wait until nobody has renewed it in time."""
        while trio.current_time() < self._until:  # noqa: ASYNC110  renewals move the time, and happen all the time
            await trio.sleep_until(self._until)
