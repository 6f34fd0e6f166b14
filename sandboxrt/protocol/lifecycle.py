"""The life of one command as a state machine: facts and the clock in, orders and the next deadline out.

What is decided here and nowhere else: when a command is asked to end, when it is killed, when its end may be reported,
and when a finished one is forgotten. Nothing waits and nothing reads a clock; the caller says what time it is.

Source: protocol.md §4.4, design.md §5.
"""

from __future__ import annotations

import enum
import math

import attrs

__all__ = ["DEFAULT_IDLE_TIMEOUT_S", "DEFAULT_TTL_S", "Cause", "CommandLifecycle", "Order"]

DEFAULT_IDLE_TIMEOUT_S = 300.0
DEFAULT_TTL_S = 600.0


class Cause(enum.Enum):
    """Why the host ended a command. A command that ends by itself has none."""

    TIMEOUT = "timeout"
    KILL = "kill"
    IDLE = "idle"
    DISCONNECT = "disconnect"


class Order(enum.Enum):
    """What the caller has to do now."""

    TERMINATE = "terminate"
    """Send SIGTERM to the tree."""
    KILL = "kill"
    """Send SIGKILL to the tree."""
    GIVE_UP = "give-up"
    """SIGKILL had no effect in time: report what is known."""
    FORGET = "forget"
    """Drop the finished session."""


@attrs.define
class CommandLifecycle:
    """The timers and facts of one command.

    Attributes:
        started_at: When the program was started, in seconds on the caller's clock.
        timeout_s: Wall-clock limit; 0 or less = none.
        idle_timeout_s: Limit without any attachment; less than 0 = never, 0 = the default.
        ttl_s: How long a finished command stays; less than 0 = for ever, 0 = the default.
        kill_on_disconnect: Kill when the last attachment goes.
        term_grace_s: Between SIGTERM and SIGKILL after a timeout.
        kill_grace_s: How long SIGKILL may take before the end is reported regardless.
    """

    started_at: float
    timeout_s: float = 60
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    ttl_s: float = DEFAULT_TTL_S
    kill_on_disconnect: bool = False
    term_grace_s: float = 2.0
    kill_grace_s: float = 10.0

    attached: int = attrs.field(default=0, init=False)
    cause: Cause | None = attrs.field(default=None, init=False)
    leader_exited: bool = attrs.field(default=False, init=False)
    tree_empty: bool = attrs.field(default=False, init=False)
    finished_at: float | None = attrs.field(default=None, init=False)
    killed: bool = attrs.field(default=False, init=False)
    gave_up: bool = attrs.field(default=False, init=False)
    _unattached_since: float = attrs.field(init=False)
    _escalate_at: float = attrs.field(default=math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        self.idle_timeout_s = self.idle_timeout_s or DEFAULT_IDLE_TIMEOUT_S
        self.ttl_s = self.ttl_s or DEFAULT_TTL_S
        self._unattached_since = self.started_at

    @property
    def deadline(self) -> float:
        """When :meth:`tick` wants to be called next; infinite when only a fact can change anything."""
        if self.finished_at is not None:
            return self.finished_at + self.ttl_s if self.ttl_s > 0 else math.inf
        if self.gave_up or self.may_report or self.tree_empty:
            return math.inf
        if self.cause is not None:
            return self._escalate_at
        return min(self._timeout_at, self._idle_at)

    @property
    def may_report(self) -> bool:
        """Whether the end may be told: the leader is reaped and, if the host ended the command, its tree is gone."""
        return self.gave_up or (self.leader_exited and (self.cause is None or self.tree_empty))

    def attach(self) -> None:
        """One more reader; the idle timer stops."""
        self.attached += 1

    def detach(self, now: float) -> Order | None:
        """One reader less; behind the last one the idle timer starts anew."""
        assert self.attached > 0
        self.attached -= 1
        if self.attached:
            return None
        self._unattached_since = now
        if self.kill_on_disconnect and not self.leader_exited:
            return self.kill(now, Cause.DISCONNECT)
        return None

    def kill(self, now: float, cause: Cause = Cause.KILL) -> Order | None:
        """The tree has to go at once, also what a finished leader left behind."""
        if self.tree_empty or self.killed:
            return None
        if self.cause is None and not self.leader_exited:
            self.cause = cause
        self.killed = True
        self._escalate_at = now + self.kill_grace_s
        return Order.KILL

    def tick(self, now: float) -> Order | None:
        """The clock says ``now``: what is due?"""
        if now < self.deadline:
            return None
        if self.finished_at is not None:
            return Order.FORGET
        if self.killed:
            self.gave_up = True
            return Order.GIVE_UP
        if self.cause is not None:
            return self.kill(now)
        if now >= self._timeout_at:
            self.cause = Cause.TIMEOUT
            self._escalate_at = now + self.term_grace_s
            return Order.TERMINATE
        return self.kill(now, Cause.IDLE)

    def finish(self, now: float) -> None:
        """The end was reported: the TTL begins."""
        self.finished_at = now

    @property
    def _timeout_at(self) -> float:
        return self.started_at + self.timeout_s if self.timeout_s > 0 else math.inf

    @property
    def _idle_at(self) -> float:
        if self.attached or self.idle_timeout_s < 0:
            return math.inf
        return self._unattached_since + self.idle_timeout_s
