"""The limits of command sockets that the environment sets, as official clients read them.

Source: protocol.md §1.4.
"""

from __future__ import annotations

import logging
import math
import os

from sandboxrt.client.transport.websocket import SocketLimits

__all__ = ["socket_limits"]

_PREFIXES = ("LANGSMITH_SANDBOX_WS_TIMEOUT_", "LANGCHAIN_SANDBOX_WS_TIMEOUT_")

_log = logging.getLogger("sandboxrt.client")


def socket_limits() -> SocketLimits:
    """The limits with what ``LANGSMITH_SANDBOX_WS_TIMEOUT_*`` say, in seconds; 0 or less = none.

    What is no number is ignored with a warning.
    """
    usual = SocketLimits()
    return SocketLimits(
        open_s=_seconds("OPEN", usual.open_s),
        close_s=_seconds("CLOSE", usual.close_s),
        ping_s=_seconds("PING_INTERVAL", usual.ping_s),
        pong_s=_seconds("PING", usual.pong_s),
        budget_s=_seconds("CONNECT_BUDGET", usual.budget_s),
    )


def _seconds(name: str, usual: float) -> float:
    for variable in (prefix + name for prefix in _PREFIXES):
        text = os.environ.get(variable, "").strip()
        if not text:
            continue
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not math.isnan(seconds):
            return seconds if seconds > 0 else math.inf
        _log.warning("%s=%r is no number of seconds; the default counts", variable, text)
        return usual
    return usual
