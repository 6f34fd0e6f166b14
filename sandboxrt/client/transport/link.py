"""One attachment to a command on a server, over as many WebSockets as it takes.

A link is an actor: a task in its transport's nursery that owns the reconnect loop. It keeps what has to outlive a
connection (how far the output was received, the input that was not acknowledged, a wish to kill), and speaks to the
session through a memory channel. For the session there is one attachment that goes on, or an error for good.

A lost connection to a command that runs is made again: at once when the server said that it restarts (1001), else
with growing delays; a silent command is never given up as long as the server takes the link back. A start is
repeated under the same command id, which attaches where the first one arrived. Likewise a start over a socket that
served another command before and turns out to be dead: it is repeated over a new one, at once, and that is no loss.

A user who reads no output holds up the socket and nothing else. The socket is made anew every half minute then:
the server drops peers that take nothing, and an attached command must not count as idle.

Source: protocol.md §4.5, §4.6.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import attrs
import trio

from sandboxrt.actors import raising_plainly
from sandboxrt.client.transport.input import InputLog
from sandboxrt.client.transport.websocket import Socket, TooBigMessageError
from sandboxrt.errors import (
    CommandInterruptedError,
    ResourceNotFoundError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxOperationError,
    SandboxRetryableConnectionError,
    SandboxServerReloadError,
)
from sandboxrt.protocol.backoff import MAX_LOSSES, MAX_START_RETRIES, reattach_delay, start_delay
from sandboxrt.protocol.exec import (
    COMMAND_TOO_LONG,
    ClientFrame,
    CloseStdin,
    ErrorFrame,
    Execute,
    Exit,
    Input,
    InputAck,
    Kill,
    Output,
    Reconnect,
    Resize,
    ServerFrame,
    Signal,
    Started,
    StreamName,
)
from sandboxrt.protocol.exec_wire import WireError, decode_server, encode_client

__all__ = ["CommandLink", "Dial", "NotStartedError"]

STEADY_S = 10.0
"""How long a connection without any progress must have lasted for its loss to count as the first of a row."""
_BUFFERED_CHARACTERS = 1024**2
_BUFFERED_FOR_INPUT = 64 * 1024**2
"""More while input waits for its acknowledgement, which comes behind the output; who reads none still has a bound."""
_STALL_S = 30.0
_SIGNALS = 64
_ANSWER_S = 2.0
"""How long a server may be silent after ``reconnect`` until that counts as attached."""
_DOUBT_S = 2.0
"""How long a socket that was kept may be silent after ``execute`` until the server is asked whether it lives."""
_PROBE_S = 5.0

_log = logging.getLogger("sandboxrt.client")

_Job: TypeAlias = Callable[[Socket], Awaitable[None]]
Dial = Callable[[bool], AbstractAsyncContextManager[Socket]]
"""A WebSocket to the command's sandbox; whether it has to be one that served no command before."""


class NotStartedError(SandboxConnectionError):
    """No connection came about over which a command could have been started."""


class _StaleError(Exception):
    """The socket of an earlier command was of no use."""


class _StalledError(Exception):
    """The user takes no output; the connection is to be made anew."""


@attrs.define(eq=False)
class CommandLink:
    """See the module. ``run`` is its life; the other methods are the session's."""

    _dial: Dial
    _first: Execute | Reconnect
    _budget_s: float
    """How long a start, or a first attachment, may be tried."""
    _command_id: str = ""
    _offsets: dict[StreamName, int] = attrs.field(factory=dict)
    _input: InputLog = attrs.field(factory=InputLog)
    _orders: deque[ClientFrame] = attrs.field(factory=lambda: deque(maxlen=_SIGNALS))
    _kill: bool = False
    _kill_sent: bool = False
    _resize: Resize | None = None
    _resize_sent: bool = True
    _said: bool = False
    """Whether a first frame was ever sent."""
    _started: bool = False
    _finished: bool = False
    """Whether the command's last frame came."""
    _fresh: bool = False
    """Whether a socket that was kept has failed."""
    _held: Exit | None = None
    """The exit, as long as its socket is not kept yet: the session's next command shall find it."""
    _losses: int = 0
    _unsteady: int = 0
    _connected_at: float = 0.0
    _waiting_to_give: int = 0
    _buffered: int = 0
    _error: SandboxClientError | None = None
    _hire: Callable[[_Job], None] | None = None
    """Starts a task that lives as long as the connection."""
    _speaks: bool = False
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _ended: trio.Event = attrs.field(factory=trio.Event)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _room: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _deliver: trio.MemorySendChannel[ServerFrame] = attrs.field(init=False)
    _frames: trio.MemoryReceiveChannel[ServerFrame] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Bounded by ``_pass_on``, which counts characters, not frames.
        self._deliver, self._frames = trio.open_memory_channel[ServerFrame](math.inf)
        self._first = attrs.evolve(self._first, input_id=secrets.token_hex(16), reuse=True)
        if isinstance(self._first, Reconnect):
            self._offsets |= {"stdout": self._first.stdout_offset, "stderr": self._first.stderr_offset}
        else:
            self._offsets |= {"stdout": 0, "stderr": 0}
        self._command_id = self._first.command_id or ""

    # -- the session's side ------------------------------------------------------------------------------------------

    async def receive(self) -> ServerFrame:
        """The next frame. Raises as ``Attachment.receive``. Cancellation: atomic."""
        try:
            frame = self._frames.receive_nowait()
        except trio.WouldBlock:
            try:
                frame = await self._frames.receive()
            except trio.EndOfChannel:
                if self._error is not None:
                    raise _again(self._error) from self._error
                raise
        except trio.EndOfChannel:
            if self._error is not None:
                raise _again(self._error) from self._error
            raise
        if isinstance(frame, Output):
            self._buffered -= len(frame.data)
            self._room.unpark_all()
        return frame

    async def send(self, frame: ClientFrame) -> None:
        """Send a frame, as soon as there is a connection. Raises as ``Attachment.send``.

        Cancellation: it may be sent nevertheless; of input, the pieces before a point.
        """
        match frame:
            case Input(data, _):
                for piece in InputLog.split(data):
                    await self._until(lambda: not self._input.full)
                    self._input.add(piece)
                    end = self._input.given
                    await self._flush(lambda end=end: self._input.sent >= end)  # type: ignore[misc]
            case CloseStdin():
                self._input.close()
                await self._flush(lambda: self._input.close_sent)
            case Kill():
                self._kill = True
                await self._flush(lambda: self._kill_sent)
            case Resize():
                self._resize, self._resize_sent = frame, False
                await self._flush(lambda: self._resize_sent)
            case Signal() if not self._input.numbered:
                raise SandboxOperationError("This server takes no signals; `kill` is possible", "signal")
            case Signal():
                self._orders.append(frame)
                await self._flush(lambda: frame not in self._orders)
            case _:
                raise ValueError(f"{type(frame).__name__} is only a first frame")

    async def ready(self) -> None:
        """Wait for the first frame to be there. Raises what hinders it, ``NotStartedError`` among others."""
        while not self._started and not self._ended.is_set():
            await self._changed.park()
        if not self._started and self._error is not None:
            raise _again(self._error) from self._error

    async def aclose(self) -> None:
        """Detach. Idempotent."""
        self._frames.close()
        if self._finished:
            return  # the goodbye goes on by itself, and that is bounded
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def _flush(self, done: Callable[[], bool]) -> None:
        self._wake_speaker()
        await self._until(done)

    def _wake_speaker(self) -> None:
        if self._hire is not None and not self._speaks and self._has_news():
            self._speaks = True
            self._hire(self._speak)
        self._changed.unpark_all()

    async def _until(self, done: Callable[[], bool]) -> None:
        """Wait for the link to have done something; more output than usual is taken in meanwhile."""
        self._waiting_to_give += 1
        self._room.unpark_all()
        try:
            while not done():
                if self._ended.is_set():
                    if self._error is not None:
                        raise _again(self._error) from self._error
                    return  # the command has ended: nobody reads its input
                await self._changed.park()
        finally:
            self._waiting_to_give -= 1

    # -- the actor ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until the command's last frame, the end of all patience, or ``aclose``; never raises."""
        try:
            with self._scope:
                await self._live()
        except SandboxClientError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  one command's failure must not reach the others
            if not self._scope.cancel_called:
                _log.exception("the attachment to command %s failed", self._command_id)
                self._error = SandboxConnectionError(f"The attachment failed: {error!r}")
                self._error.__cause__ = error
        finally:
            self._deliver.close()
            self._ended.set()
            self._changed.unpark_all()

    async def _live(self) -> None:
        begun = trio.current_time()
        while not self._finished:
            try:
                with trio.CancelScope(deadline=math.inf if self._started else begun + self._budget_s) as budget:
                    await self._connect(budget)
                if budget.cancelled_caught:
                    raise self._in_vain(SandboxConnectionError(f"No command socket in {self._budget_s:g} s"))
                continue
            except (_StalledError, _StaleError):
                continue
            except ResourceNotFoundError as error:
                if not self._started:
                    raise
                message = f"Command {self._command_id} ended with its sandbox: {error}"
                raise CommandInterruptedError(message, "command", "SandboxDeleted") from error
            except SandboxConnectionError as error:
                if budget.cancelled_caught:
                    raise
                delay = self._patience(error)
            await trio.sleep(delay)

    async def _connect(self, budget: trio.CancelScope) -> None:
        """One connection, from its beginning to its end."""
        greeting = self._greeting()
        async with self._dial(self._fresh or isinstance(greeting, Reconnect)) as socket:
            self._said = True
            try:
                await socket.send(encode_client(greeting))
                await self._receive_answer(socket)
            except SandboxConnectionError as error:
                if not socket.used:
                    raise
                self._fresh = True
                raise _StaleError from error
            budget.deadline = math.inf
            if not self._finished:
                await self._converse(socket)
            if self._held is not None and self._held.reuse_s is not None:
                socket.offer(self._held.reuse_s)

        if self._held is not None:
            self._pass_on_nowait(self._held)

    def _greeting(self) -> Execute | Reconnect:
        if isinstance(self._first, Execute) and not self._started:
            return self._first
        assert self._first.input_id is not None
        stdout, stderr = self._offsets["stdout"], self._offsets["stderr"]
        return Reconnect(self._command_id, stdout, stderr, self._first.input_id, reuse=True)

    async def _receive_answer(self, socket: Socket) -> None:
        """Take the answer to the first frame. Some servers say nothing to ``reconnect`` until there is output."""
        executing = isinstance(self._first, Execute) and not self._started
        frame: ServerFrame | None = None
        with trio.move_on_after(math.inf if executing else _ANSWER_S):
            frame = await (self._answer_of_used(socket) if socket.used else self._next(socket))
        self._connected_at = trio.current_time()
        self._kill_sent, self._resize_sent = False, self._resize is None
        self._input.resume(frame.input_offset if isinstance(frame, Started) else None)
        if executing and not isinstance(frame, Started | ErrorFrame):
            raise SandboxOperationError(f"Expected 'started' message, got '{type(frame).__name__.lower()}'", "command")
        if isinstance(frame, Started) and (executing or not self._command_id):
            self._command_id = frame.command_id or self._command_id
        if frame is None:
            self._pass_started()
        else:
            await self._take(frame)

    async def _answer_of_used(self, socket: Socket) -> ServerFrame:
        """The first answer over a socket that another command left; whatever is odd means that it is of no use."""
        frame: ServerFrame | None = None
        with trio.move_on_after(_DOUBT_S):
            frame = await self._next(socket)
        if frame is None:
            frame = await self._answer_of_living(socket)
        right = isinstance(frame, ErrorFrame) or (isinstance(frame, Started) and frame.command_id == self._command_id)
        if not right:
            raise SandboxConnectionError("The socket carries frames of another command")
        return frame

    async def _answer_of_living(self, socket: Socket) -> ServerFrame:
        """A start may take its time, but a server that lives answers pings meanwhile."""
        errors: list[SandboxConnectionError] = []
        frame: ServerFrame | None = None
        with raising_plainly():
            async with trio.open_nursery() as nursery:

                async def probe() -> None:
                    try:
                        await socket.probe(_PROBE_S)
                    except SandboxConnectionError as error:
                        errors.append(error)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(probe)
                frame = await self._next(socket)
                nursery.cancel_scope.cancel()
        if frame is None:
            raise errors[0] if errors else SandboxConnectionError("The server did not answer")
        return frame

    async def _converse(self, socket: Socket) -> None:
        """Listen; speak and ping in tasks of their own, which most commands end without a need for."""
        errors: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def note(job: _Job) -> None:
                try:
                    await job(socket)
                except (SandboxClientError, _StalledError) as error:
                    errors.append(error)
                nursery.cancel_scope.cancel()

            self._hire = lambda job: nursery.start_soon(note, job)
            self._speaks = False
            try:
                self._wake_speaker()
                await note(self._listen)
            finally:
                self._hire = None
        # What the server said counts more than that it went.
        errors.sort(key=lambda error: isinstance(error, SandboxConnectionError))
        if errors and not self._finished:
            raise errors[0]

    # -- from the server ---------------------------------------------------------------------------------------------

    async def _listen(self, socket: Socket) -> None:
        watched = False
        while not self._finished:
            with trio.move_on_after(math.inf if watched else socket.quiet_s) as scope:
                frame = await self._next(socket)
            if scope.cancelled_caught:
                watched = True
                assert self._hire is not None
                self._hire(Socket.watch)
            else:
                await self._take(frame)

    async def _take(self, frame: ServerFrame) -> None:
        match frame:
            case InputAck(offset):
                self._losses = self._unsteady = 0
                self._input.acknowledge(offset)
                self._changed.unpark_all()
            case Started():
                self._take_started(frame)
            case Output():
                end = frame.offset + (len(frame.data) if frame.data.isascii() else len(frame.data.encode()))
                self._offsets[frame.stream] = max(self._offsets[frame.stream], end)
                self._losses = self._unsteady = 0
                await self._pass_on(frame)
            case Exit() | ErrorFrame():
                self._finished = True
                if isinstance(frame, Exit):
                    self._pass_started()
                if isinstance(frame, Exit) and frame.reuse_s is not None and not self._kill:
                    self._held = frame
                else:
                    self._pass_on_nowait(frame)

    def _take_started(self, frame: Started) -> None:
        if frame.command_id and frame.command_id != self._command_id:
            raise SandboxConnectionError(f"The server attached to {frame.command_id!r} instead of {self._command_id!r}")
        self._losses = 0
        if frame.input_offset is not None and not self._input.numbered:
            self._input.resume(frame.input_offset)
            self._wake_speaker()
        self._pass_started(frame)

    async def _next(self, socket: Socket) -> ServerFrame:
        while True:
            message = await socket.receive()
            if not isinstance(message, str):
                raise SandboxOperationError("The server sent a binary frame, which has no meaning here", "command")
            try:
                frame = decode_server(message)
            except WireError as error:
                raise SandboxOperationError(str(error), "command", error.error_type) from error
            if frame is not None:
                return frame

    async def _pass_on(self, frame: Output) -> None:
        self._pass_started()
        stalled = False
        if not self._has_room():
            with trio.move_on_after(_STALL_S) as scope:
                while not self._has_room():
                    await self._room.park()
            stalled = scope.cancelled_caught
        self._buffered += len(frame.data)
        self._pass_on_nowait(frame)
        if stalled:
            raise _StalledError

    def _has_room(self) -> bool:
        return self._buffered < (_BUFFERED_FOR_INPUT if self._waiting_to_give else _BUFFERED_CHARACTERS)

    def _pass_started(self, frame: Started | None = None) -> None:
        """Tell the session, once, that it is attached; a server that does not say so has shown it."""
        if not self._started:
            self._started = True
            self._pass_on_nowait(frame or Started(self._command_id, 0))
            self._changed.unpark_all()

    def _pass_on_nowait(self, frame: ServerFrame) -> None:
        self._started = True
        try:
            self._deliver.send_nowait(frame)
        except trio.BrokenResourceError:
            self._scope.cancel()  # the session let go meanwhile

    # -- to the server -----------------------------------------------------------------------------------------------

    async def _speak(self, socket: Socket) -> None:
        while True:
            frame = self._due()
            if frame is None:
                self._changed.unpark_all()  # whoever waits for it to be sent
                await self._changed.park()
            else:
                await socket.send(encode_client(frame))

    def _has_news(self) -> bool:
        kill, resize = self._kill and not self._kill_sent, self._resize is not None and not self._resize_sent
        return kill or resize or bool(self._orders) or self._input.pending

    def _due(self) -> ClientFrame | None:
        """What is to be sent next; it counts as sent."""
        if self._kill and not self._kill_sent:
            self._kill_sent = True
            return Kill()
        if self._resize is not None and not self._resize_sent:
            self._resize_sent = True
            return self._resize
        if self._orders:
            return self._orders.popleft()
        piece = self._input.take()
        if piece is not None:
            return Input(*piece)
        return CloseStdin() if self._input.take_close() else None

    # -- losses ------------------------------------------------------------------------------------------------------

    def _patience(self, error: SandboxConnectionError) -> float:
        """How long to wait before the next attempt; raises when there shall be none."""
        if isinstance(error, TooBigMessageError) and not self._started:
            raise SandboxOperationError(COMMAND_TOO_LONG, "command", "CommandError") from error
        self._losses += 1
        if not self._started:
            retryable = isinstance(error, SandboxRetryableConnectionError) or self._said
            if not retryable or self._losses > MAX_START_RETRIES:
                raise self._in_vain(error)
            asked = error.retry_after if isinstance(error, SandboxRetryableConnectionError) else None
            return start_delay(self._losses, random.random(), asked)  # noqa: S311  spread only
        if self._losses > MAX_LOSSES:
            raise SandboxConnectionError(
                f"lost the connection to command {self._command_id} {self._losses} times in succession, giving up; "
                f"the last time: {error}"
            ) from error
        steady = trio.current_time() - self._connected_at >= STEADY_S
        self._unsteady = 1 if steady else self._unsteady + 1
        if isinstance(error, SandboxServerReloadError) and self._unsteady == 1:
            return 0.0
        return reattach_delay(max(self._losses, self._unsteady))

    def _in_vain(self, error: SandboxConnectionError) -> SandboxConnectionError:
        """The error of a first attachment that did not come about."""
        if self._said:
            return error
        found = NotStartedError(str(error))
        found.__cause__ = error
        return found


def _again(error: SandboxClientError) -> SandboxClientError:
    """A copy to raise, so that each traceback is its own."""
    copy = type(error).__new__(type(error))
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    return copy
