"""When a sandbox ends by itself, and how: a pure function of what was recorded.

Source: protocol.md §2.3 (TTL rule and TTL semantics of both generations), §10.12.
"""

from __future__ import annotations

import enum
import math
from datetime import datetime

from sandboxrt.errors import ValidationError

__all__ = ["MAX_TTL_S", "Ending", "age_s", "check_ttl", "expiry_at_rest", "next_end", "stood_still"]

MAX_TTL_S = 10 * 366 * 86_400
"""About ten years; 0 is what means for ever."""


_STALL_S = 1.0


def stood_still(due: float, now: float) -> bool:
    """Whether a timer that was due is late by so much that the host itself stood still (stopped, suspended, starved).

    Nobody could renew or use anything meanwhile, however much they wanted to; what they sent is still to be read.
    """
    return now - due > _STALL_S


class Ending(enum.Enum):
    """What happens to a sandbox whose time has come."""

    STOP = "stop"
    DELETE = "delete"


def next_end(
    *,
    created_at: float,
    last_active_at: float,
    busy: bool,
    ttl_seconds: int | None,
    idle_ttl_seconds: int | None,
    delete_after_stop_seconds: int | None = None,
) -> tuple[float, Ending]:
    """When something happens to a sandbox that runs, on the clock of the given times, and what.

    The time is infinite when nothing limits its life. Idleness deletes, unless somebody said what is to happen after a
    stop: then it stops.

    Args:
        created_at: When it was made.
        last_active_at: When a command, file operation or connection to a port last began or ended.
        busy: Whether one is going on: the idle limit then does not count.
        ttl_seconds: Longest life; ``None`` or 0 = no limit.
        idle_ttl_seconds: Longest time without activity, likewise.
        delete_after_stop_seconds: Longest time that it may be stopped; 0 = no limit, ``None`` = nobody said.
    """
    absolute = created_at + ttl_seconds if ttl_seconds else math.inf
    idle = last_active_at + idle_ttl_seconds if idle_ttl_seconds and not busy else math.inf
    if idle < absolute and delete_after_stop_seconds is not None:
        return idle, Ending.STOP
    return min(absolute, idle), Ending.DELETE


def expiry_at_rest(
    *,
    created_at: float,
    stopped_at: float | None,
    ttl_seconds: int | None,
    delete_after_stop_seconds: int | None,
    last_active_at: float | None = None,
    idle_ttl_seconds: int | None = None,
) -> float:
    """When a sandbox that is stopped has to go.

    Args:
        created_at: When it was made.
        stopped_at: When it was stopped, where that is known.
        ttl_seconds: Longest life; ``None`` or 0 = no limit.
        delete_after_stop_seconds: Longest time in this state; 0 = no limit, ``None`` = nobody said.
        last_active_at: When it was last active, if it stopped with its host and nobody asked for that: its idle time
            goes on. ``None`` where it does not count.
        idle_ttl_seconds: Longest time without activity, where idleness deletes.
    """
    absolute = created_at + ttl_seconds if ttl_seconds else math.inf
    stopped = idle = math.inf
    if stopped_at is not None and delete_after_stop_seconds:
        stopped = stopped_at + delete_after_stop_seconds
    if last_active_at is not None and idle_ttl_seconds and delete_after_stop_seconds is None:
        idle = last_active_at + idle_ttl_seconds
    return min(absolute, stopped, idle)


def age_s(stamp: str, now: datetime) -> float:
    """How long ago a recorded time is. A clock that was set back since makes it now, never a time to come."""
    return max(0.0, (now - datetime.fromisoformat(stamp)).total_seconds())


def check_ttl(field: str, value: int | None) -> None:
    """Refuse a TTL that the protocol does not know.

    Raises:
        ValidationError: It is negative, no multiple of 60, or more than about ten years.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value % 60:
        raise ValidationError(f"{field} must be 0 or a multiple of 60 seconds, not {value!r}", field)
    if value > MAX_TTL_S:
        raise ValidationError(f"{field} must be at most {MAX_TTL_S} seconds, not {value}; 0 = no limit", field)
