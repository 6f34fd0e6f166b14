"""A context manager that is open for a caller on another thread or loop."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import attrs
import trio

from sandboxrt.bridge.call import DISCARD_S, Outcome
from sandboxrt.bridge.runtime import unwrap

__all__ = ["Entry", "leave"]

T = TypeVar("T")


@attrs.define(eq=False)
class Entry(Generic[T]):
    """A context manager that one task enters and leaves, because trio's scopes must be left by who entered them."""

    manager: AbstractAsyncContextManager[T, Any]
    _value: T | None = None
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _leaving: trio.Event = attrs.field(factory=trio.Event)
    _left: trio.Event = attrs.field(factory=trio.Event)
    _error: BaseException | None = None
    _outcome: Outcome[bool] = attrs.field(factory=lambda: Outcome(False))

    @property
    def value(self) -> T:
        """What entering gave."""
        return self._value  # type: ignore[return-value]

    async def enter(self, nursery: trio.Nursery) -> Entry[T]:
        """Enter the manager in a task of ``nursery``."""
        await nursery.start(self._host)
        return self

    async def leave(self, error: BaseException | None) -> bool:
        """Leave it, with the error that its block raised; whether that error was swallowed.

        Cancellation: goes to the manager's own exit, and is then waited for.
        """
        self._error = error
        self._leaving.set()
        try:
            await self._left.wait()
        except trio.Cancelled:
            self._scope.cancel()
            with trio.move_on_after(DISCARD_S, shield=True):
                await self._left.wait()
            raise
        return self._outcome.unwrap()

    async def _discard(self) -> None:
        await self.leave(None)

    async def _host(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                self._value = await self.manager.__aenter__()
                task_status.started()
                try:
                    await self._leaving.wait()
                except trio.Cancelled as error:
                    await leave(self.manager, error)
                    raise
                self._outcome = await leave(self.manager, self._error)
        finally:
            self._left.set()


async def leave(manager: AbstractAsyncContextManager[Any, Any], error: BaseException | None) -> Outcome[bool]:
    """Leave ``manager`` as a block would that raised ``error``. Raises nothing but ``Cancelled``."""
    traceback = None if error is None else error.__traceback__
    try:
        return Outcome(bool(await manager.__aexit__(None if error is None else type(error), error, traceback)))
    except trio.Cancelled:
        raise
    except BaseException as raised:  # noqa: BLE001 - the caller's
        if error is not None and unwrap(raised) is error:
            error.__traceback__ = traceback  # it passed through a nursery; what it met there helps nobody
            return Outcome(False)
        return Outcome(None, unwrap(raised))
