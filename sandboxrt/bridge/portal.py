"""What the trio thread does for one client: opens it at the first call, runs the calls, closes it.

All state lives on the trio thread, so nothing here needs a lock. A portal's tasks are its own nursery's, and that
nursery is inside of the client's block: closing a client ends the calls that are under way in it.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio

from sandboxrt.bridge.runtime import CLOSE_S, Runtime, current_runtime, unwrap
from sandboxrt.client.callbacks import callback_runner
from sandboxrt.errors import ClientClosedError, SandboxClientError

__all__ = ["BATCH", "SETTLE_S", "Batch", "Call", "Entry", "Message", "Outcome", "Portal", "Settled"]

T = TypeVar("T")

BATCH = 16
"""How many items of an iteration one call brings over, where they are there already."""
DISCARD_S = 30.0
"""How long the removal of a result may take that nobody was there to receive."""
SETTLE_S = 45.0
"""How long an interrupted caller waits for the clean-up of its call before it goes on without it."""

_FORKED = (
    "this client was opened before os.fork() and belongs to the parent process; "
    "make a new client in this process, and leave the parent's alone"
)


@attrs.frozen
class Outcome(Generic[T]):
    """How a call ended."""

    value: T | None
    error: BaseException | None = None

    def unwrap(self) -> T:
        """The value. Raises the error."""
        if self.error is not None:
            error = self.error
            try:
                raise error
            finally:
                del error  # its traceback has this frame
        return self.value  # type: ignore[return-value]


@attrs.frozen
class Batch:
    """Callbacks of the user to be run where the caller is."""

    _function: Callable[[], None]
    _reply: Callable[[BaseException | None], None]

    def run(self) -> None:
        """Run them, and report to the trio thread. Never raises."""
        error: BaseException | None = None
        try:
            self._function()
        except BaseException as raised:  # noqa: BLE001 - goes back to the call, which ends with it
            error = raised
        self._reply(error)


@attrs.frozen
class Settled:
    """An interrupted call has ended, and whatever it had made is gone."""


Message: TypeAlias = Outcome[Any] | Batch | Settled


@attrs.define(eq=False)
class Call(Generic[T]):
    """One call: a task of the trio thread, with a cancel scope of its own.

    ``post`` hands a message to the caller, from the trio thread; it raises ``RuntimeError`` when nobody is there to
    take it. After ``interrupt`` the caller gets one ``Settled``, whatever it got before.
    """

    _work: Callable[[], Awaitable[T]] | None
    _post: Callable[[Message], object]
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _nursery: trio.Nursery | None = None
    _outcome: Outcome[T] | None = None
    interrupted: bool = False

    def start(self, nursery: trio.Nursery) -> None:
        """Run it as a task of ``nursery``."""
        self._nursery = nursery
        try:
            nursery.start_soon(self._run)
        except RuntimeError:  # closed to new tasks
            self.fail(ClientClosedError("the client is closed"))

    def fail(self, error: BaseException) -> None:
        """End it without having run."""
        self._work = None
        if self._outcome is None:
            self._outcome = Outcome(None, error)
            self._deliver(self._outcome)
        if self.interrupted:
            self._deliver(Settled())

    def interrupt(self) -> None:
        """Cancel it; what it has made already is discarded. On the trio thread."""
        if self.interrupted:
            return
        self.interrupted = True
        if self._nursery is None:
            self.fail(ClientClosedError("the call was interrupted"))
        elif self._outcome is None:
            self._scope.cancel()
        else:
            try:
                self._nursery.start_soon(self._settle)
            except RuntimeError:  # the client is closed, and with it went whatever there was
                self._deliver(Settled())

    async def _run(self) -> None:
        callback_runner.set(self._run_callbacks)
        assert self._work is not None
        work, self._work = self._work, None  # what it holds must not live longer than the call
        outcome: Outcome[T] = Outcome(None, ClientClosedError("the call was interrupted"))
        try:
            with self._scope:
                outcome = Outcome(await work())
        except BaseException as error:  # noqa: BLE001 - the caller's
            outcome = Outcome(
                None, _blame(error) or ClientClosedError("the client was closed while this call was under way")
            )
        del work
        self._outcome = outcome
        if not self.interrupted and not self._deliver(outcome):
            self.interrupted = True
        if self.interrupted:
            await self._settle()

    async def _settle(self) -> None:
        assert self._outcome is not None
        discard = getattr(self._outcome.value, "_discard", None)
        if discard is not None:
            with trio.move_on_after(DISCARD_S, shield=True), contextlib.suppress(Exception):
                await discard()
        self._deliver(Settled())

    def _deliver(self, message: Message) -> bool:
        try:
            self._post(message)
        except RuntimeError:
            return False
        return True

    async def _run_callbacks(self, function: Callable[[], None]) -> None:
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        raised: BaseException | None = None

        def reply(error: BaseException | None) -> None:
            nonlocal raised
            raised = error
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        if not self._deliver(Batch(function, reply)):
            raise ClientClosedError("the caller's event loop is closed")
        await done.wait()
        if raised is not None:
            raise raised


@attrs.define(eq=False)
class Entry(Generic[T]):
    """A context manager that one task enters and leaves, because trio's scopes must be left by who entered them."""

    manager: AbstractAsyncContextManager[T, Any]
    _value: T | None = None
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _leaving: trio.Event = attrs.field(factory=trio.Event)
    _left: trio.Event = attrs.field(factory=trio.Event)
    _error: BaseException | None = None
    _outcome: Outcome[bool] = Outcome(False)

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
                    await _exit(self.manager, error)
                    raise
                self._outcome = await _exit(self.manager, self._error)
        finally:
            self._left.set()


def _blame(error: BaseException) -> BaseException | None:
    """What really went wrong, without groups of one; ``None`` if all there is to it is a cancellation."""
    if isinstance(error, BaseExceptionGroup):
        rest = error.split(trio.Cancelled)[1]
        return None if rest is None else unwrap(rest)
    return None if isinstance(error, trio.Cancelled) else error


async def _exit(manager: AbstractAsyncContextManager[Any, Any], error: BaseException | None) -> Outcome[bool]:
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
    _outcome: Outcome[bool] = Outcome(False)

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

    def _closed_error(self) -> ClientClosedError:
        error = ClientClosedError("the client is closed; make a new one")
        error.__cause__ = self._outcome.error
        return error

    def _start_main(self) -> None:
        assert self.runtime is not None and self.runtime.nursery is not None
        self._opening = trio.CancelScope()
        try:
            self.runtime.nursery.start_soon(self._main)
        except RuntimeError:  # the interpreter is exiting
            self._end(_State.CLOSED, ClientClosedError("the interpreter is exiting"))

    async def _main(self) -> None:
        """Own the client: open it, run the calls, close it, all in this task."""
        failure: BaseException | None = None
        try:
            with self._opening:  # cancelled while it opens, never later
                try:
                    await self.manager.__aenter__()
                except BaseException as error:
                    if (failure := _blame(error)) is None:
                        raise
                else:
                    if self._opening.cancel_called:
                        await _exit(self.manager, None)
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
        self._outcome = await _exit(self.manager, failure or self._error)
        if failure is not None and _blame(failure) is None and self._outcome.error is None:
            raise failure

    def _not_opened(self) -> None:
        """Every caller that waited has gone; those that came since want it opened again."""
        waiting, self._waiting = self._waiting, []
        if self._closing.is_set():
            self._end(_State.CLOSED, self._closed_error())
        else:
            self.state = _State.NEW
        for call in waiting:
            if call.interrupted:
                call.fail(ClientClosedError("the call was interrupted"))
            else:
                self.admit(call)

    def _end(self, state: _State, error: BaseException) -> None:
        self.state = state
        self.nursery = None
        if state is _State.CLOSED:
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
