"""How long to wait before trying again, as functions of what happened. The randomness is the caller's.

Source: protocol.md §1.3 (requests), §4.5 (attachments), §4.6 (starts).
"""

from __future__ import annotations

__all__ = [
    "MAX_LOSSES",
    "MAX_START_RETRIES",
    "RETRIED_STATUSES",
    "reattach_delay",
    "request_delay",
    "retry_after",
    "start_delay",
]

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
"""What a server answers when the same request may succeed later."""
MAX_LOSSES = 5
"""How many connections to a command may be lost in succession, without any success in between."""
MAX_START_RETRIES = 5
"""How often the start of a command is tried again."""

_LONGEST_REQUEST_S = 10.0
_FIRST_S, _LONGEST_S = 0.5, 8.0
_LONGEST_RETRY_AFTER_S = 300.0


def request_delay(attempt: int, jitter: float, status: int | None = None, after: str | None = None) -> float:
    """Seconds before an HTTP request is sent again.

    Args:
        attempt: The number of the attempt that failed, from 0 on.
        jitter: 0 to 1.
        status: What was answered; ``None`` when nobody answered.
        after: The answer's ``Retry-After``.
    """
    if status == 429:
        asked = retry_after(after)
        return min((1.0 if asked is None else asked) * 2.0**attempt + jitter, _LONGEST_RETRY_AFTER_S)
    return min(2.0**attempt + jitter, _LONGEST_REQUEST_S)


def retry_after(text: str | None) -> float | None:
    """``Retry-After`` as seconds from 0 to five minutes; ``None`` when there is none, or a date."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S) if seconds == seconds else None


def reattach_delay(losses: int) -> float:
    """Seconds before the attachment to a command is made again, after so many losses in succession."""
    return min(_FIRST_S * 2.0 ** (max(losses, 1) - 1), _LONGEST_S)


def start_delay(failures: int, jitter: float, asked: float | None = None) -> float:
    """Seconds before a start is tried again, after so many failures; ``asked`` is what the server wants."""
    return (0.8 + 0.2 * jitter) * reattach_delay(failures) if asked is None else asked
