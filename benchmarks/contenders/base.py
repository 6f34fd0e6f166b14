"""What a benchmark asks of a contender.

Every duration is taken by the contender itself, from just before its first action to the moment named, so that no
benchmark's own plumbing is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

__all__ = ["Contender", "Idle", "Living"]


@attrs.frozen
class Idle:
    """Sandboxes that do nothing: the processes that are there for them, the one that drives them left out."""

    count: int
    pids: Sequence[int]


class Living(Protocol):
    """One running sandbox."""

    def round_trip(self) -> float:
        """Run ``echo ok`` and have its output and exit code: seconds."""
        ...

    def stream(self, command: str, expected_bytes: int) -> float:
        """Run a shell command and receive all its output piece by piece: seconds. Fails on another length."""
        ...


class Contender(Protocol):
    """One way to have sandboxes on this machine."""

    @property
    def name(self) -> str:
        """As the table names it."""
        ...

    def first_output(self) -> float:
        """Make a sandbox whose command prints ``ok``, wait for the first byte: seconds. The rest is untimed."""
        ...

    def living(self) -> AbstractContextManager[Living]:
        """A running sandbox for round trips and streams."""
        ...

    def burst(self, count: int, concurrency: int) -> float:
        """Make ``count`` sandboxes at once, run ``echo ok`` in each, remove them all: seconds."""
        ...

    def idle(self, count: int) -> AbstractContextManager[Idle]:
        """Keep ``count`` idle sandboxes."""
        ...
