"""How much one key may ask for at once: requests a second, and requests and sockets under way.

Source: ours; the answers are those of protocol.md §2.9.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from sandboxrt.server.replies import BusyError

__all__ = ["Admission", "KeyLimits", "Turnstile"]

_REMEMBERED: Final = 8192


@attrs.frozen(kw_only=True)
class KeyLimits:
    """What one key may do.

    Attributes:
        requests_per_s: Requests a second in the long run.
        burst: Requests at once after a pause.
        max_open: Requests and WebSockets under way.
    """

    requests_per_s: float = 500.0
    burst: int = 1000
    max_open: int = 2048


class Turnstile:
    """Lets requests of a key in, or tells them when to come again."""

    def __init__(self, limits: KeyLimits) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Turnstile with {self._open.total()} requests under way>"

    @contextmanager
    def admit(self, key: str) -> Iterator[Admission]:
        """Count a request for the length of the block.

        Raises:
            TooFastError: It came too early, or too many are under way.
        """
        admission = Admission(self, key)
        admission.enter()
        try:
            yield admission
        finally:
            admission.leave()

    def enter(self, key: str) -> None:
        """Count a request. Raises as :meth:`admit`."""
        self._take(key)
        if self._open[key] >= self._limits.max_open:
            raise TooFastError(f"This key has {self._limits.max_open} requests under way, which is its limit", 1)
        self._open[key] += 1

    def leave(self, key: str) -> None:
        """Count one less."""
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _take(self, key: str) -> None:
        limits, now = self._limits, trio.current_time()
        left, at = self._buckets.pop(key, (float(limits.burst), now))
        left = min(float(limits.burst), left + (now - at) * limits.requests_per_s)
        self._buckets[key] = (max(left - 1, 0.0) if left >= 1 else left, now)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        if left < 1:
            wait_s = max(1, math.ceil((1 - left) / limits.requests_per_s))
            raise TooFastError(f"This key may ask {limits.requests_per_s:g} times a second; it asks faster", wait_s)


@attrs.define
class Admission:
    """A request's place among those of its key; it may be left, and asked for again."""

    _turnstile: Turnstile
    _key: str
    _inside: bool = False

    def enter(self) -> None:
        """Be counted. Raises as :meth:`Turnstile.admit`."""
        if not self._inside:
            self._turnstile.enter(self._key)
            self._inside = True

    def leave(self) -> None:
        """Be counted no more. Idempotent."""
        if self._inside:
            self._inside = False
            self._turnstile.leave(self._key)


class TooFastError(BusyError):
    """Too many requests; ``retry_after_s`` says when another may come."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
