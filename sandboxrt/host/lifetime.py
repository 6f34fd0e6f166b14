"""When a sandbox is deleted by itself: the deadline as a pure function of what was recorded.

Source: protocol.md §2.3 (TTL rule and TTL semantics of the seed).
"""

from __future__ import annotations

import math

from sandboxrt.errors import ValidationError

__all__ = ["check_ttl", "expiry", "expiry_at_rest"]


def expiry(
    *, created_at: float, last_active_at: float, busy: bool, ttl_seconds: int | None, idle_ttl_seconds: int | None
) -> float:
    """When the sandbox has to go, on the clock of the given times; infinite when nothing limits its life.

    Args:
        created_at: When it was made.
        last_active_at: When a command, file operation or connection to a port last began or ended.
        busy: Whether one is going on: the idle limit then does not count.
        ttl_seconds: Longest life; ``None`` or 0 = no limit.
        idle_ttl_seconds: Longest time without activity, likewise.
    """
    absolute = created_at + ttl_seconds if ttl_seconds else math.inf
    idle = last_active_at + idle_ttl_seconds if idle_ttl_seconds and not busy else math.inf
    return min(absolute, idle)


def expiry_at_rest(
    *, created_at: float, stopped_at: float | None, ttl_seconds: int | None, delete_after_stop_seconds: int | None
) -> float:
    """The same for a sandbox that is stopped; its idle time does not count.

    Args:
        created_at: When it was made.
        stopped_at: When it was stopped, where that is known.
        ttl_seconds: Longest life; ``None`` or 0 = no limit.
        delete_after_stop_seconds: Longest time in this state, likewise.
    """
    absolute = created_at + ttl_seconds if ttl_seconds else math.inf
    known = stopped_at is not None and delete_after_stop_seconds
    return min(absolute, stopped_at + delete_after_stop_seconds if known else math.inf)  # type: ignore[operator]


def check_ttl(field: str, value: int | None) -> None:
    """Refuse a TTL that the protocol does not know.

    Raises:
        ValidationError: It is negative or no multiple of 60.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0 or value % 60):
        raise ValidationError(f"{field} must be 0 or a multiple of 60 seconds, not {value!r}", field)
