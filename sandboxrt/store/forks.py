"""Descriptors whose locks must end with this process: a forked child shares what is open, and would keep them."""

from __future__ import annotations

import contextlib
import os
from typing import Final

__all__ = ["keep_from_children", "now_closed"]

_held: Final[set[int]] = set()


def keep_from_children(descriptor: int) -> None:
    """Close it in every child that is forked from now on."""
    _held.add(descriptor)


def now_closed(descriptor: int) -> None:
    """It is about to be closed here; its number may be another's afterwards."""
    _held.discard(descriptor)


def _close_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
