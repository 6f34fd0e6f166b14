"""Callers on an asyncio loop: what the generated classes of ``sandboxrt.aio`` are made of."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import attrs
import trio

from sandboxrt.bridge.call import BATCH, SETTLE_S, Batch, Call, Message, Outcome
from sandboxrt.bridge.entry import Entry
from sandboxrt.bridge.portal import Portal
from sandboxrt.errors import ClientClosedError

__all__ = ["AsyncioClient", "AsyncioFacade", "call"]

T = TypeVar("T")
Inner = TypeVar("Inner")


async def call(portal: Portal, work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work`` on the trio thread and wait for it; callbacks run on the caller's loop, in the caller's context.

    Cancellation: cancels it and waits until it has cleaned up (``SETTLE_S`` at most), whatever cancels the task again
    meanwhile.

    Raises:
        ClientClosedError: The client is closed, or belongs to another process.
        RuntimeError: The caller is not a task of an asyncio loop.
    """
    return await _call(portal, work, portal.submit)


async def _call(portal: Portal, work: Callable[[], Awaitable[T]], submit: Callable[[Call[Any]], None]) -> T:
    caller: _Caller = _Caller(_running_loop())
    runtime = portal.runtime()
    pending = Call(work, caller.post)
    try:
        submit(pending)
        outcome = await caller.outcome
    except asyncio.CancelledError:
        await _interrupt(portal, pending, caller)
        raise
    except BaseException:
        # The loop ends without its tasks (GeneratorExit): nobody can wait, but what was made is still discarded.
        with contextlib.suppress(ClientClosedError):
            portal.interrupt(pending)
        raise
    finally:
        runtime.forget(pending)
    return outcome.unwrap()  # type: ignore[no-any-return]


async def _interrupt(portal: Portal, pending: Call[Any], caller: _Caller) -> None:
    with contextlib.suppress(ClientClosedError):
        portal.interrupt(pending)
        deadline = caller.loop.time() + SETTLE_S
        while not caller.settled.done() and (left := deadline - caller.loop.time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):  # the first one is raised when this is over
                await asyncio.wait({caller.settled}, timeout=left)


@attrs.define(eq=False)
class _Caller:
    """The loop's end of a call."""

    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[Outcome[Any]] = attrs.field(init=False)
    settled: asyncio.Future[None] = attrs.field(init=False)
    _context: contextvars.Context = attrs.field(factory=contextvars.copy_context)

    def __attrs_post_init__(self) -> None:
        self.outcome = self.loop.create_future()
        self.settled = self.loop.create_future()

    def post(self, message: Message) -> None:
        """From the trio thread. Raises ``RuntimeError`` when the loop is closed."""
        self.loop.call_soon_threadsafe(self._receive, message, context=self._context)

    def _receive(self, message: Message) -> None:
        if isinstance(message, Batch):
            message.run()
        elif isinstance(message, Outcome):
            if not self.outcome.done():
                self.outcome.set_result(message)
        elif not self.settled.done():
            self.settled.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        use = (
            "under trio use `from sandboxrt import AsyncSandboxClient`"
            if trio.lowlevel.in_trio_task()
            else "in blocking code use `from sandboxrt import SandboxClient`"
        )
        raise RuntimeError(f"sandboxrt.aio runs on asyncio, and no asyncio loop is running here; {use}") from None


class AsyncioFacade(Generic[Inner]):
    """An object of the trio client in the hands of asyncio code. Tasks of any loop may use it."""

    _inner: Inner
    _portal: Portal
    _entry: Entry[Any] | None = None

    @classmethod
    def _of(cls, inner: Inner, portal: Portal) -> Self:
        self = cls.__new__(cls)
        self._inner, self._portal = inner, portal
        return self

    def __repr__(self) -> str:
        return repr(self._inner)

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        return await call(self._portal, work)

    async def _enter(self, manager: AbstractAsyncContextManager[T, Any]) -> T:
        if self._entry is not None:
            raise RuntimeError(f"{self!r} is in an async with block already")
        entry, portal = Entry(manager), self._portal
        self._entry = await call(portal, lambda: portal.enter(entry))
        return entry.value

    async def _next(self, take: Callable[[], T | None], fill: Callable[[int], Awaitable[None]]) -> T:
        """The next item: what is there already costs no way to the trio thread."""
        if (item := take()) is None:
            await self._call(lambda: fill(BATCH))
            item = take()
        if item is None:
            raise StopAsyncIteration
        return item

    async def _exit(self, error: BaseException | None) -> bool:
        entry, self._entry = self._entry, None
        if entry is None or self._portal.ended:
            return False  # the client's end was this block's end too; after a fork it is the parent's affair
        left = entry
        try:
            return await call(self._portal, lambda: left.leave(error))
        except ClientClosedError:
            return False


class AsyncioClient(AsyncioFacade[Inner]):
    """A client in the hands of asyncio code: opened by its first use, with or without ``async with``."""

    async def __aenter__(self) -> Self:
        await call(self._portal, _nothing)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close(exc)

    async def aclose(self) -> None:
        """Close the client: calls under way elsewhere end with ``ClientClosedError``, sandboxes are deleted.

        Without it, that happens when the last object of the client is dropped, or when the program ends. Idempotent.

        Cancellation: is raised when the deletion is done.
        """
        await self._close(None)

    async def _close(self, error: BaseException | None) -> None:
        portal = self._portal
        if not portal.ended and not portal.close_unopened():
            with contextlib.suppress(ClientClosedError):  # closed already, by the end of the program
                await _call(portal, lambda: portal.close(error), portal.submit_close)


async def _nothing() -> None:
    pass
