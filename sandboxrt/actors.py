"""Supervision: what happens when a task that serves others fails.

A failure of one actor ends that actor, is told to whoever waits for it, and reaches nobody else. Whether it is started
again is data, a :class:`RestartPolicy`, decided by a pure function and waited for here.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import attrs
import trio

__all__ = ["NEVER", "RestartBudget", "RestartPolicy", "raising_plainly", "sole_error", "supervise"]


@attrs.frozen
class RestartPolicy:
    """How often an actor may be started again.

    Attributes:
        max_restarts: At most so many restarts ...
        within_s: ... in any period of so many seconds; one more failure is final.
        delay_s: Pause before each restart.
    """

    max_restarts: int = 0
    within_s: float = 60.0
    delay_s: float = 0.1


NEVER = RestartPolicy()


class RestartBudget:
    """Counts an actor's failures against its policy."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._restarts: deque[float] = deque()

    def spend(self, now: float) -> float | None:
        """The pause before the next restart, or ``None`` when the budget is used up."""
        while self._restarts and self._restarts[0] <= now - self._policy.within_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._policy.max_restarts:
            return None
        self._restarts.append(now)
        return self._policy.delay_s


async def supervise(
    actor: Callable[[], Awaitable[None]],
    on_failure: Callable[[Exception], None],
    policy: RestartPolicy = NEVER,
) -> None:
    """Run ``actor``; when it fails and may not be started again, tell ``on_failure`` and return.

    Args:
        actor: Returns when its work is done.
        on_failure: Gets the final failure, never an exception group of one. Must not fail itself.
        policy: How often to start it again.

    Cancellation: goes through to the actor; it is no failure.
    """
    budget = RestartBudget(policy)
    while True:
        try:
            await actor()
        except Exception as error:  # noqa: BLE001  the boundary that keeps a failure from its siblings
            delay_s = budget.spend(trio.current_time())
            if delay_s is None:
                on_failure(sole_error(error))
                return
            await trio.sleep(delay_s)
        else:
            return


def sole_error(error: Exception) -> Exception:
    """``error``, or the one inside it if it is an exception group of one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def raising_plainly() -> Iterator[None]:
    """Raise the one exception in a group by itself: around a nursery whose own tasks never raise."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
