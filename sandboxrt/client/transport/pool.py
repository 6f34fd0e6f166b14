"""Command sockets that are kept open for the next command, where the server offers that.

Each socket has a task of its own in the pool's nursery. A command borrows one, a resting one where there is one; it is
kept afterwards only when the command's exit came over it, the server waits for another command, and nothing was cut
short. Sockets rest for less time than the server waits, and for no other sandbox, key or headers than they were made
for.

Source: ours; the extension of ``protocol/exec_wire.py``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias

import attrs
import trio

from sandboxrt.client.transport.websocket import Socket
from sandboxrt.errors import SandboxClientError, SandboxConnectionError

__all__ = ["SocketPool", "place_of"]

_MAX_RESTING: Final = 256
_MAX_REST_S: Final = 30.0
_PART: Final = 0.5
"""The part of the server's time that a socket rests: what is sent at its end must still arrive in time."""

Place: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
Open: TypeAlias = Callable[[], AbstractAsyncContextManager[Socket]]


def place_of(url: str, headers: Mapping[str, str]) -> Place:
    """Which sockets may stand for one another: those to the same place with the same credentials."""
    return url, tuple(sorted(headers.items()))


@attrs.define(eq=False)
class _Owned:
    """A socket, and the task that owns it."""

    place: Place
    open: Open
    socket: Socket | None = None
    error: SandboxClientError | None = None
    opened: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)
    """Set when it is to be closed."""
    closed: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    patience: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """How long it may rest."""


@attrs.define(eq=False)
class SocketPool:
    """The sockets of a transport. Leaving :meth:`opened` closes them."""

    _nursery: trio.Nursery
    _resting: dict[Place, list[_Owned]] = attrs.field(factory=dict)
    _number: int = 0
    _closing: bool = False

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls) -> AsyncIterator[SocketPool]:
        """A pool for the length of the block; nobody may borrow from it any more when it ends."""
        async with trio.open_nursery() as nursery:
            pool = cls(nursery)
            try:
                yield pool
            finally:
                pool.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self._number} sockets at rest>"

    def close(self) -> None:
        """Have the resting sockets closed, and keep no more. Never waits."""
        self._closing = True
        for owned in [owned for some in self._resting.values() for owned in some]:
            owned.over.set()

    @contextlib.asynccontextmanager
    async def borrow(self, place: Place, open_socket: Open, *, fresh: bool) -> AsyncIterator[Socket]:
        """A socket for the length of the block; ``fresh``: one that no command has used.

        Raises:
            SandboxConnectionError: None can be opened.
        """
        owned = None if fresh else self._take(place)
        if owned is None:
            owned = await self._open(place, open_socket)
        assert owned.socket is not None
        try:
            yield owned.socket
        finally:
            if not self._keep(owned):
                owned.over.set()
                with trio.CancelScope(shield=True):  # bounded by the socket's own goodbye
                    await owned.closed.wait()

    async def _open(self, place: Place, open_socket: Open) -> _Owned:
        owned = _Owned(place, open_socket)
        self._nursery.start_soon(self._own, owned)
        try:
            await owned.opened.wait()
        except BaseException:
            owned.scope.cancel()
            with trio.CancelScope(shield=True):
                await owned.closed.wait()
            raise
        if owned.error is not None:
            raise owned.error
        return owned

    async def _own(self, owned: _Owned) -> None:
        try:
            with owned.scope:
                async with owned.open() as socket:
                    owned.socket = socket
                    socket.when_ended(owned.over.set)
                    owned.opened.set()
                    with owned.patience:
                        await owned.over.wait()
                    self._forget(owned)
        except SandboxClientError as error:
            owned.error = error
        except Exception as error:  # noqa: BLE001  one socket's failure is nobody else's
            owned.error = SandboxConnectionError(f"The connection failed: {error!r}")
            owned.error.__cause__ = error
        finally:
            self._forget(owned)
            owned.closed.set()
            owned.opened.set()

    def _take(self, place: Place) -> _Owned | None:
        while some := self._resting.get(place):
            owned = some[-1]
            self._forget(owned)
            if owned.socket is not None and owned.socket.usable and not self._is_over(owned):
                owned.patience.deadline = math.inf
                return owned
            owned.over.set()
        return None

    @staticmethod
    def _is_over(owned: _Owned) -> bool:
        return owned.over.is_set() or owned.patience.cancel_called or owned.closed.is_set()

    def _keep(self, owned: _Owned) -> bool:
        socket = owned.socket
        if socket is None or self._closing or self._number >= _MAX_RESTING or self._is_over(owned):
            return False
        offered_s = socket.take_offer()
        if offered_s is None or not socket.usable:
            return False
        owned.patience.deadline = trio.current_time() + min(offered_s * _PART, _MAX_REST_S)
        self._resting.setdefault(owned.place, []).append(owned)
        self._number += 1
        return True

    def _forget(self, owned: _Owned) -> None:
        some = self._resting.get(owned.place, [])
        if owned in some:
            some.remove(owned)
            self._number -= 1
            if not some:
                del self._resting[owned.place]
