"""How many descriptors this process may have open.

Login shells and service managers give 1,024, for the sake of programs that use ``select``, and a hard limit far above.
Every connection, command and sandbox takes some, so a host takes what it may have. Sandboxes keep limits of their own.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final

__all__ = ["open_limit", "raise_limit"]

_ENOUGH: Final = 512 * 1024
"""More serves nobody, and some programs that are started close every descriptor up to the limit, one by one."""


def raise_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one; never lowers it. The limit from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return open_limit()


def open_limit() -> int:
    """How many descriptors this process may have open; a large number where nothing limits it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft
