"""The thread that runs trio for callers that do not: one a process, from first use until the interpreter exits."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import trio

from sandboxrt.errors import ClientClosedError

__all__ = ["CLOSE_S", "EXITING", "Owned", "Pending", "Runtime", "current_runtime", "unwrap"]

CLOSE_S = 60.0
"""How long the end of a client may take before its caller goes on without it."""
FINISH_S = 45.0
"""How long the clients that are open at exit may take to close one after another, before they are cancelled."""

_FAILED = "sandboxrt's thread has failed, for the reason on standard error; make a new client"
EXITING = "the interpreter is exiting, and every sandbox of this process was deleted"


class Pending(Protocol):
    """Somebody waits for this; when the run ends first, they are told."""

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits. From any thread."""
        ...


class Owned(Protocol):
    """A client of the run, which the run closes before it ends."""

    async def finish(self) -> None:
        """Close it. Never raises but ``Cancelled``."""
        ...


class Runtime:
    """A trio run in a daemon thread. Belongs to the process that started it.

    Attributes:
        pid: That process.
        nursery: Owns the clients' tasks.
        owned: The clients that are open, in that order.
    """

    def __init__(self) -> None:
        self.pid: int = os.getpid()
        self.nursery: trio.Nursery | None = None
        self.owned: list[Owned] = []
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop = trio.Event()
        self._ready = threading.Event()
        self._ended = False
        self._pending: set[Pending] = set()
        self._thread = threading.Thread(target=self._run, name="sandboxrt", daemon=True)

    @property
    def usable(self) -> bool:
        """Whether it takes work in this process."""
        return not self._ended and not self._stop.is_set() and self.pid == os.getpid()

    def start(self) -> None:
        """Start the thread, and wait until it takes work."""
        self._thread.start()
        self._ready.wait()

    def expect(self, pending: Pending) -> None:
        """Fail ``pending`` if the run ends before :meth:`forget`. From any thread."""
        self._pending.add(pending)

    def forget(self, pending: Pending) -> None:
        """It has its answer. From any thread."""
        self._pending.discard(pending)

    def post(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the run, soon and in order. From any thread, signal handler and ``__del__``.

        Raises:
            ClientClosedError: The run has ended.
        """
        try:
            if self._token is None:
                raise trio.RunFinishedError
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            raise self._end_error() from None

    def close(self) -> None:
        """End the run: what is open is closed, every sandbox deleted. Starts no thread; waits ``CLOSE_S`` at most."""
        if self.pid != os.getpid() or self._ended:
            return
        try:
            self.post(self._stop.set)
        except ClientClosedError:
            return
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        finally:
            self._ended = True
            self._ready.set()
            for pending in list(self._pending):
                pending.fail(self._end_error())

    def _end_error(self) -> ClientClosedError:
        return ClientClosedError(EXITING if self._stop.is_set() else _FAILED)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await self._stop.wait()
            with trio.move_on_after(FINISH_S):
                while self.owned:
                    await self.owned[-1].finish()  # newest first: it may use what an older one has
            nursery.cancel_scope.cancel()


_lock = threading.Lock()
_runtime: Runtime | None = None
_exiting = False


def current_runtime() -> Runtime:
    """This process's run, started at the first call.

    Raises:
        ClientClosedError: The interpreter is exiting.
    """
    global _runtime
    runtime = _runtime
    if runtime is not None and runtime.usable:
        return runtime
    with _lock:
        if _exiting:
            raise ClientClosedError(EXITING)
        if _runtime is None or not _runtime.usable:
            fresh = Runtime()
            fresh.start()
            _runtime = fresh
            _also_at_exit_of_multiprocessing()
        return _runtime


def unwrap(error: BaseException) -> BaseException:
    """The one error in groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _at_exit() -> None:
    global _exiting
    _exiting = True
    if _runtime is not None:
        _runtime.close()


def _also_at_exit_of_multiprocessing() -> None:
    """Its children end by ``os._exit``, which no atexit handler sees; they run finalizers of their own."""
    multiprocessing, util = sys.modules.get("multiprocessing"), sys.modules.get("multiprocessing.util")
    if multiprocessing is not None and util is not None and multiprocessing.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=10)


def _after_fork() -> None:
    # The thread stayed behind in the parent, and so may whoever held the lock.
    global _lock, _runtime
    _lock = threading.Lock()
    _runtime = None


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
