"""Callers that block: what the generated classes of ``sandboxrt.sync`` are made of."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import trio

from sandboxrt.bridge.call import BATCH, SETTLE_S, Batch, Call, Message, Outcome, Settled
from sandboxrt.bridge.entry import Entry
from sandboxrt.bridge.portal import Portal
from sandboxrt.errors import ClientClosedError

__all__ = ["BlockingClient", "BlockingFacade", "call"]

T = TypeVar("T")
Inner = TypeVar("Inner")


def call(portal: Portal, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` on the trio thread and wait for it, running callbacks here meanwhile.

    Whatever interrupts the wait (Ctrl-C, another signal handler's exception) cancels it, waits until it has cleaned up
    (``SETTLE_S`` at most; a second Ctrl-C ends that wait), and is then raised.

    Raises:
        ClientClosedError: The client is closed, or belongs to another process.
        RuntimeError: The caller is a trio task.
    """
    return _call(portal, work, portal.submit)


def _call(portal: Portal, work: Callable[[], Awaitable[T]], submit: Callable[[Call[Any]], None]) -> T:
    _refuse_trio()
    runtime = portal.runtime()
    box: queue.SimpleQueue[Message] = queue.SimpleQueue()
    pending = Call(work, box.put)
    try:
        submit(pending)
        while not isinstance(message := box.get(), Outcome):
            if isinstance(message, Batch):
                message.run()
    except BaseException:
        _interrupt(portal, pending, box)
        raise
    finally:
        runtime.forget(pending)
    return message.unwrap()  # type: ignore[no-any-return]


def _interrupt(portal: Portal, pending: Call[Any], box: queue.SimpleQueue[Message]) -> None:
    with contextlib.suppress(ClientClosedError, queue.Empty):
        portal.interrupt(pending)
        deadline = time.monotonic() + SETTLE_S
        while not isinstance(box.get(timeout=max(0.0, deadline - time.monotonic())), Settled):
            pass


def _refuse_trio() -> None:
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "this is sandboxrt's blocking client, called from a trio task that it would hold up with all others; "
            "under trio use `from sandboxrt import AsyncSandboxClient`"
        )


class BlockingFacade(Generic[Inner]):
    """An object of the trio client in the hands of blocking code. Any thread may use it."""

    _inner: Inner
    _portal: Portal
    _entry: Entry[Any] | None = None

    @classmethod
    def _of(cls, inner: Inner, portal: Portal) -> Self:
        self = cls.__new__(cls)
        self._inner, self._portal = inner, portal
        return self

    def __repr__(self) -> str:
        return repr(self._inner).replace(type(self._inner).__name__, type(self).__name__, 1)

    def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        return call(self._portal, work)

    def _enter(self, manager: AbstractAsyncContextManager[T, Any]) -> T:
        if self._entry is not None:
            raise RuntimeError(f"{self!r} is in a with block already")
        entry, portal = Entry(manager), self._portal
        self._entry = call(portal, lambda: portal.enter(entry))
        return entry.value

    def _next(self, take: Callable[[], T | None], fill: Callable[[int], Awaitable[None]]) -> T:
        """The next item: what is there already costs no way to the trio thread."""
        if (item := take()) is None:
            self._call(lambda: fill(BATCH))
            item = take()
        if item is None:
            raise StopIteration
        return item

    def _exit(self, error: BaseException | None) -> bool:
        entry, self._entry = self._entry, None
        if entry is None or self._portal.ended:
            return False  # the client's end was this block's end too; after a fork it is the parent's affair
        left = entry
        try:
            return call(self._portal, lambda: left.leave(error))
        except ClientClosedError:
            return False


class BlockingClient(BlockingFacade[Inner]):
    """A client in the hands of blocking code: opened by its first use, with or without ``with``."""

    def __enter__(self) -> Self:
        call(self._portal, _nothing)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(exc)

    def close(self) -> None:
        """Close the client: calls under way in other threads end with ``ClientClosedError``, sandboxes are deleted.

        Without it, that happens when the last object of the client is dropped, or when the program ends. Idempotent.

        Interruption: Ctrl-C is raised when the deletion is done.
        """
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        portal = self._portal
        if not portal.ended and not portal.close_unopened():
            with contextlib.suppress(ClientClosedError):  # closed already, by the end of the program
                _call(portal, lambda: portal.close(error), portal.submit_close)


async def _nothing() -> None:
    pass
