"""Time limits of tests, multiplied where machines are slow: ``SANDBOXRT_TEST_STRETCH=10``, e.g. in emulation.

A time limit only says when something that hangs is given up; no assertion is about how long something takes.
``tests/stretching.py`` multiplies the limits that pytest, trio and processes are given.
"""

from __future__ import annotations

import os

__all__ = ["FACTOR", "VARIABLE", "stretched"]

VARIABLE = "SANDBOXRT_TEST_STRETCH"
FACTOR = float(os.environ.get(VARIABLE, "").strip() or 1)


def stretched(seconds: float) -> float:
    """A time limit of a test's, for this machine."""
    return seconds * FACTOR
