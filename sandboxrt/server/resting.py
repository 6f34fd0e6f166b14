"""Command sockets that rest between two commands: how many may, and what they let go of meanwhile.

A socket that rests counts neither as a command of its sandbox nor as a request of its key, and keeps no sandbox from
being idle. Before it serves another command it is let in again as a new one would be; where that fails it is closed,
and its client hears the reason from the handshake of the next.

Source: ours; the extension of ``protocol/exec_wire.py``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import attrs

__all__ = ["Rest", "RestingSettings", "RestingSockets"]


@attrs.frozen(kw_only=True)
class RestingSettings:
    """How sockets may rest.

    Attributes:
        idle_s: For how long at most.
        max_sockets: How many at once; one more is closed after its command, as usual.
        max_per_key: Of one key, likewise.
    """

    idle_s: float = 30.0
    max_sockets: int = 1024
    max_per_key: int = 256


class RestingSockets:
    """Counts the sockets that rest."""

    def __init__(self, settings: RestingSettings) -> None:
        self.settings: RestingSettings = settings
        self._resting: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._resting.total()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self)} of them>"

    @contextlib.contextmanager
    def one(self, key: str) -> Iterator[bool]:
        """Whether there is room for one more of a key; it is counted for the length of the block then."""
        room = len(self) < self.settings.max_sockets and self._resting[key] < self.settings.max_per_key
        if not room:
            yield False
            return
        self._resting[key] += 1
        try:
            yield True
        finally:
            self._resting[key] -= 1
            if not self._resting[key]:
                del self._resting[key]


@attrs.frozen
class Rest:
    """What one socket needs to rest.

    Attributes:
        sockets: Who counts.
        key: Whose it is.
        let_go: Gives back what only a socket with a command holds.
        resume: Takes it again; raises ``SandboxClientError`` when that cannot be.
        wait_ended: Waits until nothing runs in its sandbox any more, so that it is of no more use.
    """

    sockets: RestingSockets
    key: str
    let_go: Callable[[], None]
    resume: Callable[[], Awaitable[None]]
    wait_ended: Callable[[], Awaitable[None]]

    @contextlib.contextmanager
    def resting(self) -> Iterator[float | None]:
        """Rest for the length of the block, which is at most so many seconds; ``None``: there is no room."""
        with self.sockets.one(self.key) as room:
            if room:
                self.let_go()
            yield self.sockets.settings.idle_s if room else None
