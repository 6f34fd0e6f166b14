"""A running command in the user's hands: its output, its input, its end."""

from __future__ import annotations

import signal
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from sandboxrt.client.deferred import Deferred
from sandboxrt.client.session import CommandSession
from sandboxrt.errors import CommandNotFoundError, SandboxOperationError
from sandboxrt.models import ExecutionResult, OutputChunk
from sandboxrt.protocol.exec import CloseStdin, Input, Kill, Resize, Signal

__all__ = ["AsyncCommandHandle", "AsyncOutputIterator"]


class AsyncOutputIterator:
    """One loop over the output of a command. Made by iterating an :class:`AsyncCommandHandle`.

    Letting go of it before the end detaches: by ``aclose``, or by dropping the last reference to it, which is what
    ``break``, ``return`` and an exception do to the iterator of an ``async for`` (at once on CPython, where objects
    die with their last reference; whenever the collector finds it elsewhere: use ``aclose`` or ``detach`` there).
    """

    def __init__(self, handle: AsyncCommandHandle, session: CommandSession) -> None:
        self._handle = handle  # letting go of a handle detaches too: not while somebody iterates it
        self._session = session
        self._detachments = session.detachments
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputChunk:
        """The next chunk.

        Raises:
            OutputLostError: Output at the next offset is gone.
            CommandTimeoutError: The command ran longer than its ``timeout``; has the output until then.
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        if (chunk := self._take()) is None:
            await self._fill()
            chunk = self._take()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def _take(self) -> OutputChunk | None:
        return None if self._closed or self._detachments != self._session.detachments else self._session.take()

    async def _fill(self, chunks: int = 1) -> None:
        if not self._closed and self._detachments == self._session.detachments:
            await self._session.fill(chunks)
            self._session.raise_failure()

    async def aclose(self) -> None:
        """End the iteration and detach. Idempotent; nothing when the command has ended."""
        if not self._closed:
            self._closed = True
            if not self._session.ended:
                await self._session.detach()

    def __del__(self) -> None:
        if not self._closed and self._detachments == self._session.detachments:
            self._session.release()


class AsyncCommandHandle:
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

    def __init__(self, session: CommandSession, *, stdin_closed: bool, pty: bool) -> None:
        self._session = session
        self._stdin_closed = stdin_closed
        self._pty = pty

    def __repr__(self) -> str:
        state = "ended" if self._session.ended else "running"
        return f"<{type(self).__name__} {self.command_id} pid={self.pid} {state}>"

    @property
    def command_id(self) -> str:
        """The command's id, for ``sandbox.reconnect``."""
        return self._session.command_id

    @property
    def pid(self) -> int | None:
        """Process id of the command's leader as seen inside the sandbox."""
        return self._session.pid

    @property
    def last_stdout_offset(self) -> int:
        """How far standard output has been read, in bytes of its UTF-8 text."""
        return self._session.taken_offset("stdout")

    @property
    def last_stderr_offset(self) -> int:
        """How far standard error has been read, in bytes of its UTF-8 text."""
        return self._session.taken_offset("stderr")

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
        return Deferred(self._session.result)

    def __aiter__(self) -> AsyncOutputIterator:
        return AsyncOutputIterator(self, self._session)

    async def kill(self) -> None:
        """Kill the command's whole process tree. ``result`` then gives its exit code (137).

        Nothing when it has ended already.

        Raises:
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        try:
            await self._session.send(Kill())
        except CommandNotFoundError:
            pass  # expired: it ended long ago

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the command's process group. Nothing when it has ended already.

        Args:
            signum: 1 to 64, e.g. ``signal.SIGINT``.

        Raises:
            ValueError: No such signal.
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        if not 1 <= signum < signal.NSIG:
            raise ValueError(f"no such signal: {signum}")
        await self._session.send(Signal(int(signum)))

    async def send_input(self, data: str) -> None:
        """Write text to the command's standard input (its terminal under ``pty``). Nothing when it has ended already.

        Raises:
            SandboxOperationError: The input was closed, by ``close_input`` here or at the start.
            CommandNotFoundError: The session expired.
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        if self._stdin_closed:
            raise SandboxOperationError("the command's input is closed", "send_input")
        await self._session.send(Input(data))

    async def close_input(self) -> None:
        """Give the command end of input. Idempotent; nothing under ``pty`` (send Ctrl-D there)."""
        if not self._stdin_closed and not self._pty:
            await self._session.send(CloseStdin())
            self._stdin_closed = True

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the command that its terminal has a new size. Nothing without ``pty``.

        Raises:
            ValueError: A number outside 1 to 65535.
        """
        if not (1 <= columns <= 65535 and 1 <= rows <= 65535):
            raise ValueError("columns and rows must be between 1 and 65535")
        if self._pty:
            await self._session.send(Resize(columns, rows))

    async def detach(self) -> None:
        """Let go of the command: ``idle_timeout`` starts, or it is killed where ``kill_on_disconnect`` says so.

        Loops over this handle end; output not yet read stays readable.
        """
        await self._session.detach()

    async def reconnect(self) -> AsyncCommandHandle:
        """A new handle on the same command, from the offsets that this one has read to.

        Raises:
            CommandNotFoundError: The session expired, or the command belongs to another process.
        """
        session = await CommandSession.reconnect(
            self._session.owner,
            self._session.sandbox,
            self.command_id,
            self.last_stdout_offset,
            self.last_stderr_offset,
            self._session.headers,
        )
        return AsyncCommandHandle(session, stdin_closed=self._stdin_closed, pty=self._pty)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.detach()

    async def _discard(self) -> None:
        """End the command: the call that started it was interrupted before it could hand this out."""
        await self._session.abort()

    def __del__(self) -> None:
        self._session.release()
