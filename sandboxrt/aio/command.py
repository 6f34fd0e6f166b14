"""The classes of ``sandboxrt.client.command``, on asyncio.

Generated from sandboxrt/client/command.py by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from sandboxrt.bridge.loops import AsyncioFacade
from sandboxrt.client import command as _trio_command
from sandboxrt.client.deferred import Deferred
from sandboxrt.models import ExecutionResult, OutputChunk

__all__ = ["AsyncCommandHandle", "AsyncOutputIterator"]


class AsyncOutputIterator(AsyncioFacade[_trio_command.AsyncOutputIterator]):
    """One loop over the output of a command. Made by iterating an :class:`AsyncCommandHandle`.

    Letting go of it before the end detaches: by ``aclose``, or by dropping the last reference to it, which is what
    ``break``, ``return`` and an exception do to the iterator of an ``async for`` (at once on CPython, where objects
    die with their last reference; whenever the collector finds it elsewhere: use ``aclose`` or ``detach`` there).
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputChunk:
        """The next chunk.

        Raises:
            OutputLostError: Output at the next offset is gone.
            CommandTimeoutError: The command ran longer than its ``timeout``; has the output until then.
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        return await self._next(self._inner._take, self._inner._fill)

    async def aclose(self) -> None:
        """End the iteration and detach. Idempotent; nothing when the command has ended."""
        await self._call(self._inner.aclose)


class AsyncCommandHandle(AsyncioFacade[_trio_command.AsyncCommandHandle]):
    """A command started with ``wait=False``, or found again with ``reconnect``.

    *Using* it attaches, *letting go* of it detaches. It is attached when you get it. Leaving a loop over it early
    (:class:`AsyncOutputIterator`), ``detach``, leaving ``async with handle`` and dropping the handle itself detach:
    then the command's ``idle_timeout`` starts to count, or the command is killed if it was started with
    ``kill_on_disconnect=True``. A later loop, ``result``, ``send_input`` or ``kill`` attaches again by itself, and
    goes on exactly where the last loop stopped.

    The text of all output received by this handle is kept in memory, because ``result`` returns it whole.
    One task at a time should take output (a loop or ``result``); everything else may be called from others meanwhile.

    Source: protocol.md §7.5; attach and detach are ours (design.md §5).
    """

    @property
    def command_id(self) -> str:
        """The command's id, for ``sandbox.reconnect``."""
        return self._inner.command_id

    @property
    def pid(self) -> int | None:
        """Process id of the command's leader as seen inside the sandbox."""
        return self._inner.pid

    @property
    def last_stdout_offset(self) -> int:
        """How far standard output has been read, in bytes of its UTF-8 text."""
        return self._inner.last_stdout_offset

    @property
    def last_stderr_offset(self) -> int:
        """How far standard error has been read, in bytes of its UTF-8 text."""
        return self._inner.last_stderr_offset

    @property
    def result(self) -> Awaitable[ExecutionResult]:
        """Await it for the command's end: takes the rest of the output and returns all that this handle received.

        The same answer each time, from any number of tasks.

        Raises:
            CommandTimeoutError: The command ran longer than its ``timeout``; has the output until then.
            OutputLostError: Output is gone that was not read in time.
            CommandNotFoundError: The session expired before its end was read.
            SandboxOperationError: The command ended without an exit code, for the reason given.

        Cancellation: the command goes on; await again.
        """
        return Deferred(lambda: self._call(lambda: self._inner.result))

    def __aiter__(self) -> AsyncOutputIterator:
        return AsyncOutputIterator._of(self._inner.__aiter__(), self._portal)

    async def kill(self) -> None:
        """Kill the command's whole process tree. ``result`` then gives its exit code (137).

        Nothing when it has ended already.

        Raises:
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        await self._call(self._inner.kill)

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the command's process group. Nothing when it has ended already.

        Args:
            signum: 1 to 64, e.g. ``signal.SIGINT``.

        Raises:
            ValueError: No such signal.
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        await self._call(lambda: self._inner.send_signal(signum))

    async def send_input(self, data: str) -> None:
        """Write text to the command's standard input (its terminal under ``pty``). Nothing when it has ended already.

        Raises:
            SandboxOperationError: The input was closed, by ``close_input`` here or at the start.
            CommandNotFoundError: The session expired.
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        await self._call(lambda: self._inner.send_input(data))

    async def close_input(self) -> None:
        """Give the command end of input. Idempotent; nothing under ``pty`` (send Ctrl-D there)."""
        await self._call(self._inner.close_input)

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the command that its terminal has a new size. Nothing without ``pty``.

        Raises:
            ValueError: A number outside 1 to 65535.
        """
        await self._call(lambda: self._inner.resize(columns, rows))

    async def detach(self) -> None:
        """Let go of the command: ``idle_timeout`` starts, or it is killed where ``kill_on_disconnect`` says so.

        Loops over this handle end; output not yet read stays readable.
        """
        await self._call(self._inner.detach)

    async def reconnect(self) -> AsyncCommandHandle:
        """A new handle on the same command, from the offsets that this one has read to.

        Raises:
            CommandNotFoundError: The session expired, or the command belongs to another process.
        """
        return AsyncCommandHandle._of(await self._call(self._inner.reconnect), self._portal)

    async def __aenter__(self) -> Self:
        await self._enter(self._inner)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(exc)
