"""What the trio thread does for one client: opens it at the first call, runs the calls, closes it.

All state lives on the trio thread, so nothing here needs a lock. A portal's tasks are its own nursery's, and that
nursery is inside of the client's block: closing a client ends the calls that are under way in it.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import attrs
import trio

from sandboxrt.bridge.call import Call, Outcome, blame
from sandboxrt.bridge.entry import Entry, leave
from sandboxrt.bridge.runtime import CLOSE_S, EXITING, Runtime, current_runtime
from sandboxrt.errors import ClientClosedError, SandboxClientError

__all__ = ["Portal"]

T = TypeVar("T")

_FORKED = (
    "this client was opened before os.fork() and belongs to the parent process; "
    "make a new client in this process, and leave the parent's alone"
)


class _State(enum.Enum):
    NEW = enum.auto()
    OPENING = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


@attrs.define(eq=False)
class _Session:
    """The trio side of a portal."""

    manager: AbstractAsyncContextManager[Any, Any]
    runtime: Runtime | None = None
    state: _State = _State.NEW
    nursery: trio.Nursery | None = None
    _waiting: list[Call[Any]] = attrs.field(factory=list)
    _opening: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _closing: trio.Event = attrs.field(factory=trio.Event)
    _closed: trio.Event = attrs.field(factory=trio.Event)
    _error: BaseException | None = None
    _outcome: Outcome[bool] = attrs.field(factory=lambda: Outcome(False))

    def admit(self, call: Call[Any]) -> None:
        """Start a call, opening the client first if need be."""
        if call.interrupted:
            return
        if self.state is _State.OPEN and not self._closing.is_set():
            assert self.nursery is not None
            call.start(self.nursery)
        elif self.state in (_State.OPEN, _State.CLOSED):
            call.fail(self._closed_error())
        else:
            self._waiting.append(call)
            if self.state is _State.NEW:
                self.state = _State.OPENING
                self._start_main()

    def interrupt(self, call: Call[Any]) -> None:
        """Interrupt a call; when nobody else waits for the client to open, that too."""
        if call in self._waiting:
            call.interrupted = True
            if all(waiting.interrupted for waiting in self._waiting):
                self._opening.cancel()
            else:
                self._waiting.remove(call)
                call.fail(ClientClosedError("the call was interrupted"))
        else:
            call.interrupt()

    async def close(self, error: BaseException | None) -> bool:
        """Close the client, as a block does that raised ``error``. Idempotent."""
        if self.state is _State.NEW:
            self.state = _State.CLOSED
        if self.state is _State.CLOSED:
            return False
        self._error = error
        self._closing.set()
        if self.state is _State.OPENING:
            self._opening.cancel()
        with trio.move_on_after(CLOSE_S, shield=True):
            await self._closed.wait()
            return self._outcome.unwrap()
        raise SandboxClientError(f"the client was not closed within {CLOSE_S:g} s; it goes on in the background")

    async def finish(self) -> None:
        """Close the client because the interpreter exits."""
        self._closing.set()
        if self.state is _State.OPENING:
            self._opening.cancel()
        await self._closed.wait()

    def _closed_error(self) -> ClientClosedError:
        error = ClientClosedError("the client is closed; make a new one")
        error.__cause__ = self._outcome.error
        return error

    def _start_main(self) -> None:
        assert self.runtime is not None and self.runtime.nursery is not None
        self._opening = trio.CancelScope()
        if self.runtime.usable:
            self.runtime.owned.append(self)
            self.runtime.nursery.start_soon(self._main)
        else:
            self._end(_State.CLOSED, ClientClosedError(EXITING))

    async def _main(self) -> None:
        """Own the client: open it, run the calls, close it, all in this task."""
        failure: BaseException | None = None
        try:
            with self._opening:  # cancelled while it opens, never later
                try:
                    await self.manager.__aenter__()
                except BaseException as error:
                    if (failure := blame(error)) is None:
                        raise
                else:
                    if self._opening.cancel_called:
                        await leave(self.manager, None)
                    else:
                        self.state = _State.OPEN
                        await self._serve()
        except BaseException:
            self._end(_State.CLOSED, self._closed_error())
            raise
        if failure is not None:
            self._end(_State.NEW, failure)
        elif self.state is _State.OPENING:
            self._not_opened()
        else:
            self._end(_State.CLOSED, self._closed_error())

    async def _serve(self) -> None:
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as self.nursery:
                waiting, self._waiting = self._waiting, []
                for call in waiting:
                    if call.interrupted:
                        call.fail(ClientClosedError("the call was interrupted"))
                    else:
                        call.start(self.nursery)
                await self._closing.wait()
                self.nursery.cancel_scope.cancel()
        except BaseException as error:  # noqa: BLE001 - the client's own failure, or the end of the run
            failure = error
        self._outcome = await leave(self.manager, failure or self._error)
        if failure is not None and blame(failure) is None and self._outcome.error is None:
            raise failure

    def _not_opened(self) -> None:
        """Every caller that waited has gone; those that came since want it opened again."""
        waiting, self._waiting = self._waiting, []
        self._end(_State.NEW, self._closed_error())
        for call in waiting:
            if call.interrupted:
                call.fail(ClientClosedError("the call was interrupted"))
            else:
                self.admit(call)

    def _end(self, state: _State, error: BaseException) -> None:
        """Be closed, or new again after an opening that came to nothing; who waits for it is told ``error``."""
        self.state = _State.CLOSED if self._closing.is_set() else state
        self.nursery = None
        if self.runtime is not None and self in self.runtime.owned:
            self.runtime.owned.remove(self)
        if self.state is _State.CLOSED:
            self._closed.set()
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call.fail(error)


class Portal:
    """The way from other threads to a client on the trio thread. Every object of one client shares it.

    The client is opened by the first call, and closed by :meth:`close`, with the last object that has the portal, or
    at the exit of the interpreter.
    """

    def __init__(self, manager: AbstractAsyncContextManager[Any, Any]) -> None:
        self._session = _Session(manager)

    def submit(self, call: Call[Any]) -> None:
        """Start a call.

        Raises:
            ClientClosedError: The client belongs to another process, or the interpreter is exiting.
        """
        self._send(call, lambda session=self._session: session.admit(call))  # type: ignore[misc]

    def submit_close(self, call: Call[bool]) -> None:
        """Start a call that :meth:`close` made, outside of the client that it closes."""
        runtime = self.runtime()

        def start() -> None:
            assert runtime.nursery is not None
            call.start(runtime.nursery)

        self._send(call, start)

    def interrupt(self, call: Call[Any]) -> None:
        """Interrupt a call. From any thread.

        Raises:
            ClientClosedError: The run has ended, and the call with it.
        """
        session = self._session
        self.runtime().post(lambda: session.interrupt(call))

    async def close(self, error: BaseException | None) -> bool:
        """Close the client; whether it swallowed ``error``. On the trio thread, in a call of ``submit_close``."""
        return await self._session.close(error)

    async def enter(self, entry: Entry[T]) -> Entry[T]:
        """Enter a context manager of the client's. On the trio thread, in a call of ``submit``."""
        assert self._session.nursery is not None
        return await entry.enter(self._session.nursery)

    @property
    def ended(self) -> bool:
        """Whether there is nothing to leave any more: the run is over, or it is the parent's and this is a fork."""
        runtime = self._session.runtime
        return runtime is not None and not runtime.usable

    def close_unopened(self) -> bool:
        """Close it if it was never used; whether that was so."""
        if self._session.runtime is None:
            self._session.state = _State.CLOSED
        return self._session.runtime is None

    def runtime(self) -> Runtime:
        """The run that serves it.

        Raises:
            ClientClosedError: The client belongs to another process, or the interpreter is exiting.
        """
        runtime = self._session.runtime
        if runtime is None:
            runtime = self._session.runtime = current_runtime()
        if runtime.pid != os.getpid():
            raise ClientClosedError(_FORKED)
        return runtime

    def _send(self, call: Call[Any], start: Callable[[], None]) -> None:
        runtime = self.runtime()
        runtime.expect(call)
        runtime.post(start)

    def __del__(self) -> None:
        session = self._session
        runtime = session.runtime
        if runtime is not None and runtime.usable:
            with contextlib.suppress(ClientClosedError):
                runtime.post(session._closing.set)
