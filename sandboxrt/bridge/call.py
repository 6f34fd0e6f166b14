"""One call of a caller on another thread or loop, as a task of the trio thread."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio

from sandboxrt.bridge.runtime import unwrap
from sandboxrt.client.callbacks import callback_runner
from sandboxrt.errors import ClientClosedError

__all__ = ["BATCH", "DISCARD_S", "SETTLE_S", "Batch", "Call", "Message", "Outcome", "Settled", "blame"]

T = TypeVar("T")

BATCH = 16
"""How many items of an iteration one call brings over, where they are there already."""
DISCARD_S = 30.0
"""How long the removal of a result may take that nobody was there to receive."""
SETTLE_S = 45.0
"""How long an interrupted caller waits for the clean-up of its call before it goes on without it."""


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
            self.fail(ClientClosedError("the client is closed; make a new one"))

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
                None, blame(error) or ClientClosedError("the client was closed while this call was under way")
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


def blame(error: BaseException) -> BaseException | None:
    """What really went wrong, without groups of one; ``None`` if all there is to it is a cancellation."""
    if isinstance(error, BaseExceptionGroup):
        rest = error.split(trio.Cancelled)[1]
        return None if rest is None else unwrap(rest)
    return None if isinstance(error, trio.Cancelled) else error
