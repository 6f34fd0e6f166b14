"""The client's end of one command: attached or not, where it has read to, and how it ended.

Attach and detach (design.md §5), as one rule: *using* a command attaches, *letting go* of it detaches. A session is
attached from its start on; ``detach``, or the end of whoever iterated, lets go; the next use attaches again at the
offsets read so far. What was received and not yet taken stays in ``_ready``, so a detach loses nothing.

Everything runs on the trio thread except ``take``, ``taken_offset`` and ``release``, which any thread may call.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping
from typing import Literal, TypeVar

import attrs
import trio

from sandboxrt.client.owner import Owner
from sandboxrt.client.transport.base import Attachment
from sandboxrt.errors import (
    CommandInterruptedError,
    CommandNotFoundError,
    CommandTimeoutError,
    HostDiskFullError,
    OutputLostError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxOperationError,
    SandboxServerReloadError,
)
from sandboxrt.models import ExecutionResult, OutputChunk
from sandboxrt.protocol.backoff import MAX_LOSSES, reattach_delay
from sandboxrt.protocol.exec import (
    ClientFrame,
    ErrorFrame,
    Execute,
    Exit,
    Kill,
    Output,
    Reconnect,
    ServerFrame,
    Started,
    StreamName,
)
from sandboxrt.protocol.rest import SandboxInfo
from sandboxrt.protocol.rest_errors import HOST_DISK_FULL

__all__ = ["CommandSession", "new_command_id"]

ABORT_S = 5.0
"""How long an abandoned command may take to die before the client stops waiting for that."""

_Lost = TypeVar("_Lost", bound=SandboxOperationError | SandboxConnectionError)
_GONE = (SandboxClientError, trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError)


def new_command_id() -> str:
    """An id that no other client makes, so that a repeated start attaches instead of starting twice."""
    return uuid.uuid4().hex


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@attrs.define(eq=False)
class CommandSession:
    """One command as its client sees it; several tasks may use it, one of them receives at a time."""

    owner: Owner
    sandbox: SandboxInfo
    command_id: str
    timeout_s: float | None = None
    kill_on_disconnect: bool = False
    headers: Mapping[str, str] | None = None
    """Those of the call that made it, for each attachment that it makes."""
    pid: int | None = None
    detachments: int = 0
    """How often ``detach`` was called; whoever iterates stops when it changes."""
    _received: dict[StreamName, int] = attrs.field(factory=lambda: {"stdout": 0, "stderr": 0})
    _taken: dict[StreamName, int] = attrs.field(factory=lambda: {"stdout": 0, "stderr": 0})
    _text: dict[StreamName, list[str]] = attrs.field(factory=lambda: {"stdout": [], "stderr": []})
    _ready: deque[tuple[OutputChunk, int]] = attrs.field(factory=deque)
    _attachment: Attachment | None = None
    _attaching: trio.Lock = attrs.field(factory=trio.Lock)
    _receiving: trio.Lock = attrs.field(factory=trio.Lock)
    _receive_scope: trio.CancelScope | None = None
    _released: bool = False
    _losses: int = 0
    _end: ExecutionResult | Exception | None = None

    @classmethod
    async def start(
        cls, owner: Owner, sandbox: SandboxInfo, execute: Execute, headers: Mapping[str, str] | None = None
    ) -> CommandSession:
        """Start a command and attach to it.

        Raises:
            SandboxClientError: It was not started, for the reason given.

        Cancellation: atomic; a command that was started meanwhile is ended again (shielded, at most ``ABORT_S``).
        """
        assert execute.command_id is not None
        session = cls(
            owner,
            sandbox,
            execute.command_id,
            timeout_s=execute.timeout_s or None,
            kill_on_disconnect=execute.kill_on_disconnect,
            headers=headers,
        )
        try:
            await session._attach(execute)
        except SandboxClientError:
            raise
        except BaseException:
            await session.abort()
            raise
        return session

    @classmethod
    async def reconnect(
        cls,
        owner: Owner,
        sandbox: SandboxInfo,
        command_id: str,
        stdout_offset: int,
        stderr_offset: int,
        headers: Mapping[str, str] | None = None,
    ) -> CommandSession:
        """Attach to a command that was started before.

        Raises:
            CommandNotFoundError: It expired, never existed, or belongs to another process.
            OutputLostError: The host no longer has output that far back.
        """
        session = cls(owner, sandbox, command_id, headers=headers)
        for place in (session._received, session._taken):
            place["stdout"], place["stderr"] = stdout_offset, stderr_offset
        await session._ensure_attached()
        if isinstance(session._end, OutputLostError):
            raise session._end
        return session

    # -- output ------------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the end of the command was received."""
        return self._end is not None

    def take(self) -> OutputChunk | None:
        """The next chunk that is here already, or ``None``. From any thread."""
        try:
            chunk, end = self._ready.popleft()
        except IndexError:
            return None
        self._taken[chunk.stream] = end
        return chunk

    def taken_offset(self, stream: StreamName) -> int:
        """How far the user has read ``stream``, in bytes. From any thread."""
        return self._taken[stream]

    async def fill(self, chunks: int = 1) -> None:
        """Wait until a chunk is ready, the end is known, or ``detach`` was called.

        Args:
            chunks: Take in up to so many, as far as they are there already.

        Raises:
            SandboxClientError: The connection is lost for good, or the command cannot be found any more.

        Cancellation: atomic.
        """
        try:
            self._receiving.acquire_nowait()
        except trio.WouldBlock:
            await self._receiving.acquire()
        try:
            detachments = self.detachments
            while not self._ready and self._end is None and detachments == self.detachments:
                await self._receive()
            if chunks > 1:
                await self._receive_more(chunks, detachments)
        finally:
            self._receiving.release()

    async def _receive_more(self, chunks: int, detachments: int) -> None:
        def wanted() -> bool:
            attached = self._attachment is not None and detachments == self.detachments
            return attached and self._end is None and len(self._ready) < chunks

        ready = 0
        while wanted() and len(self._ready) > ready:
            ready = len(self._ready)
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time()  # ends the first receive that yields or waits
                while wanted():
                    await self._receive()

    async def result(self) -> ExecutionResult:
        """Receive the rest and return the whole; the same answer, or error, each time.

        Raises:
            CommandTimeoutError: With the output until then.
            SandboxOperationError: The command ended without an exit, for the reason given.
        """
        while self._end is None:
            self._drop_ready()
            await self.fill()
        self._drop_ready()
        if isinstance(self._end, Exception):
            raise self._end
        return self._end

    def raise_failure(self) -> None:
        """Raise the error that ended the command, if one did and all output before it was taken."""
        if not self._ready and isinstance(self._end, Exception):
            raise self._end

    def _drop_ready(self) -> None:
        self._ready.clear()
        self._taken.update(self._received)

    async def _receive(self) -> None:
        try:
            attachment = await self._ensure_attached()
            if self._end is None:
                with trio.CancelScope() as self._receive_scope:
                    self._take_in(await attachment.receive())
        except (SandboxConnectionError, trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError) as error:
            await self._lost(error)
            return
        except CommandInterruptedError as error:
            self._end = self._with_output(error)
        finally:
            self._receive_scope = None
        if self._end is not None:
            await self._close_attachment()

    def _take_in(self, frame: ServerFrame) -> None:
        match frame:
            case Output():
                self._losses = 0
                self._take_in_output(frame)
            case Started():
                self._losses = 0
                self.pid = frame.pid or self.pid
            case Exit():
                stdout, stderr = self._texts()
                self._end = ExecutionResult(
                    stdout, stderr, frame.exit_code, oom_killed=frame.oom_killed, reason=frame.reason
                )
            case ErrorFrame():
                self._end = self._failure(frame, "command")

    def _take_in_output(self, frame: Output) -> None:
        expected, data = self._received[frame.stream], frame.data
        if frame.offset > expected:
            self._end = _lost_output(frame.stream, expected, frame.offset)
            return
        if frame.offset < expected:
            # The other side repeats itself after a re-attach in the middle of a chunk; every byte counts once.
            data = data.encode()[expected - frame.offset :].decode(errors="replace")
        if data:
            end = expected + _utf8_length(data)
            self._received[frame.stream] = end
            self._text[frame.stream].append(data)
            self._ready.append((OutputChunk(frame.stream, data, expected), end))

    def _texts(self) -> tuple[str, str]:
        for stream, parts in self._text.items():
            self._text[stream] = ["".join(parts)]
        return self._text["stdout"][0], self._text["stderr"][0]

    def _failure(self, frame: ErrorFrame, operation: str) -> SandboxOperationError:
        return self._with_output(self._plain_failure(frame, operation))

    def _with_output(self, error: _Lost) -> _Lost:
        error.stdout, error.stderr = self._texts()
        return error

    def _plain_failure(self, frame: ErrorFrame, operation: str) -> SandboxOperationError:
        match frame.error_type:
            case "CommandTimeout":
                return CommandTimeoutError(frame.error, self.timeout_s)
            case "CommandInterrupted" | "SandboxStopped" | "SandboxDeleted" | "SandboxDied":
                return CommandInterruptedError(frame.error, operation, frame.error_type)
            case "CommandNotFound" | "SessionExpired":
                return CommandNotFoundError(frame.error, operation, frame.error_type)
            case "ReadOffsetUnavailable" if frame.stream is not None and frame.first_offset is not None:
                return _lost_output(frame.stream, self._received[frame.stream], frame.first_offset)
            case error_type if error_type == HOST_DISK_FULL:
                return HostDiskFullError(frame.error, operation=operation)
            case _:
                return SandboxOperationError(frame.error, operation, frame.error_type)

    # -- orders ------------------------------------------------------------------------------------------------------

    async def send(self, frame: ClientFrame) -> None:
        """Send a frame, attaching first where needed; nothing when the command is known to have ended.

        Raises:
            CommandNotFoundError: It expired, or belongs to another process.
            SandboxConnectionError: The connection is lost and could not be made again.
        """
        while self._end is None:
            try:
                attachment = await self._ensure_attached()
                if self._end is None:
                    await attachment.send(frame)
                return
            except (SandboxConnectionError, trio.ClosedResourceError, trio.BrokenResourceError) as error:
                await self._lost(error)

    async def abort(self) -> None:
        """End the command because nobody wants it any more; shielded, at most ``ABORT_S``; never raises."""
        with trio.move_on_after(ABORT_S, shield=True):
            try:
                if self._end is None:
                    attachment = await self._ensure_attached()
                    await attachment.send(Kill())
                    while not isinstance(await attachment.receive(), Exit | ErrorFrame):
                        pass
            except _GONE:
                pass  # gone is what was wanted
            await self._close_attachment()

    # -- attach and detach -------------------------------------------------------------------------------------------

    async def detach(self) -> None:
        """Let go now: the idle time of the command starts, or it is killed where ``kill_on_disconnect`` says so.

        Cancellation: shielded, at most ``ABORT_S``.
        """
        self.detachments += 1
        if self._receive_scope is not None:
            self._receive_scope.cancel()
        with trio.move_on_after(ABORT_S, shield=True):
            async with self._attaching:
                self._released = False
                await self._close_attachment()

    def release(self) -> None:
        """Let go soon, unless somebody uses it again before. From any thread and from ``__del__``."""
        if self._end is None and self._attachment is not None:
            self._released = True
            self.owner.post(self._detach_released)

    async def _detach_released(self) -> None:
        if self._released and not self._receiving.locked():
            async with self._attaching:
                if self._released:
                    self._released = False
                    await self._close_attachment()

    async def _ensure_attached(self) -> Attachment:
        if self._attachment is not None and not self._released:
            return self._attachment
        async with self._attaching:
            if self._released:
                self._released = False
                if self.kill_on_disconnect:
                    await self._close_attachment()
            if self._attachment is None:
                await self._attach(Reconnect(self.command_id, self._received["stdout"], self._received["stderr"]))
            assert self._attachment is not None
            return self._attachment

    async def _attach(self, first: Execute | Reconnect) -> None:
        operation = "command" if isinstance(first, Execute) else "reconnect"
        attachment = await self.owner.transport.with_headers(self.headers).attach(self.sandbox, first)
        try:
            frame = await attachment.receive()
            match frame:
                case Started():
                    self.pid = frame.pid or None
                    # Servers of the first generation take no id from the client.
                    self.command_id = frame.command_id or self.command_id
                case ErrorFrame(error_type="CommandTimeout" | "ReadOffsetUnavailable") if operation == "reconnect":
                    # The command's own end, not a failure to attach to it.
                    self._end = self._failure(frame, operation)
                case ErrorFrame():
                    raise self._failure(frame, operation)
                case _:
                    got = type(frame).__name__.lower()
                    raise SandboxOperationError(f"expected 'started', got '{got}'", operation)
        except BaseException as error:
            with trio.move_on_after(ABORT_S, shield=True):
                await attachment.aclose()
            if isinstance(error, trio.EndOfChannel):
                raise SandboxConnectionError("the session ended before it was started") from error
            raise
        self._attachment = attachment

    async def _close_attachment(self) -> None:
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            await attachment.aclose()

    async def _lost(self, error: Exception) -> None:
        """Prepare another attempt after a lost attachment, or give up."""
        await self._close_attachment()
        if self.owner.transport.mode == "remote" and isinstance(error, SandboxConnectionError):
            raise self._with_output(error)  # the transport has tried again for as long as that was right
        self._losses += 1
        if self._losses > MAX_LOSSES:
            message = f"lost the connection to command {self.command_id} {self._losses} times in succession, giving up"
            raise self._with_output(SandboxConnectionError(message)) from error
        if not isinstance(error, SandboxServerReloadError):
            await trio.sleep(reattach_delay(self._losses))


def _lost_output(stream: Literal["stdout", "stderr"], requested: int, first: int) -> OutputLostError:
    return OutputLostError(
        f"{stream} from byte {requested} to {first} is gone; reconnect with {stream}_offset={first} to go on after it",
        stream=stream,
        requested_offset=requested,
        first_offset=first,
    )
