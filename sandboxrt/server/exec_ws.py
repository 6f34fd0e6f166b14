"""One WebSocket of command execution: frames of one attachment to one command, both ways; then perhaps of another.

Three tasks share a command. One carries the command's frames to the peer; it reads from the replay buffer at its own
offset, so a peer that stops reading delays nobody and costs no memory. One takes the peer's frames and obeys kill,
signals and resizes at once, so that input which the command does not read yet cannot stand in their way. One passes
the input on, at the command's pace. Whatever ends the socket detaches; the command lives on by its own rules.

Source: protocol.md §4.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import attrs
import trio
from starlette.websockets import WebSocket, WebSocketDisconnect

from sandboxrt.actors import raising_plainly
from sandboxrt.errors import SandboxClientError, SandboxNotReadyError, SandboxOperationError
from sandboxrt.host.attachment import AnyAttachment
from sandboxrt.host.stdin import InputGapError
from sandboxrt.protocol.exec import (
    ClientFrame,
    CloseStdin,
    ErrorFrame,
    Execute,
    Exit,
    Input,
    Reconnect,
    ServerFrame,
)
from sandboxrt.protocol.exec_wire import WireError, decode_client, encode_server
from sandboxrt.server.resting import Rest

__all__ = ["InputBudget", "SocketSettings", "serve_socket"]

_NORMAL = 1000
_UNSUPPORTED = 1003
_POLICY = 1008
_INTERNAL = 1011
_RESTART = 1012
_TRY_AGAIN = 1013

_T = TypeVar("_T")
_log = logging.getLogger("sandboxrt.server")


@attrs.frozen(kw_only=True)
class SocketSettings:
    """The bounds of one socket.

    Attributes:
        first_frame_s: How long a new socket may say nothing.
        input_bytes: How much input is taken ahead of the command; reading pauses when there is more.
        input_stall_s: How long the command may leave that much unread before the socket is given up.
        input_grace_s: How long what was sent right before the end of the socket may take to get to the command.
        send_stall_s: How long the peer may take none of what is sent to it.
        close_s: How long the peer may take to answer the closing of the socket.
    """

    first_frame_s: float = 30.0
    input_bytes: int = 8 * 1024**2
    input_stall_s: float = 60.0
    input_grace_s: float = 1.0
    send_stall_s: float = 60.0
    close_s: float = 5.0


@attrs.define
class InputBudget:
    """How much input all sockets together take ahead of their commands, in bytes; each may hold one piece beyond it."""

    total: int = 256 * 1024**2
    used: int = 0


_Attach: TypeAlias = Callable[[Execute | Reconnect], Awaitable[AnyAttachment]]


class _GoneError(Exception):
    """The peer went away."""


@attrs.frozen
class _End:
    """How a socket ends: with this frame, if any, and this code; without a code there is nobody to tell."""

    frame: ServerFrame | None
    close_code: int | None


async def serve_socket(
    websocket: WebSocket,
    attach: _Attach,
    settings: SocketSettings | None = None,
    *,
    stopping: trio.Event | None = None,
    budget: InputBudget | None = None,
    rest: Rest | None = None,
) -> None:
    """Serve an accepted socket until its command has ended, its peer is gone, or one of them broke a rule.

    A peer that asks for it may have another command on the same socket, as far as ``rest`` allows.

    Args:
        websocket: Accepted already.
        attach: Starts a command or attaches to one.
        settings: The bounds.
        stopping: Set when the server stops: the socket is closed with 1012, after which all generations of clients
            attach again.
        budget: Shared by the sockets of one server.
        rest: How it may wait for another command; left out: it may not.

    Cancellation: Detaches; the socket is left to the server to close.
    """
    socket = _Socket(websocket, settings or SocketSettings(), budget or InputBudget())
    try:
        with raising_plainly():
            end = await socket.serve(attach, stopping, rest)
    except _GoneError:
        return
    except WireError as error:
        end = _End(error.frame, error.close_code)
    except SandboxClientError as error:
        end = _End(error_frame(error), _NORMAL)
    except Exception:  # noqa: BLE001  one socket's failure is told to its peer and reaches nobody else
        _log.exception("a command's socket failed in the server")
        end = _End(ErrorFrame("The server failed to serve this socket; reconnect to go on", "InternalError"), _INTERNAL)
    finally:
        socket.forget_input()
    await socket.end(end)


def error_frame(error: SandboxClientError) -> ErrorFrame:
    """What the peer is told about an error of the host."""
    if isinstance(error, SandboxNotReadyError):
        return ErrorFrame(str(error), "NotReady")
    if isinstance(error, SandboxOperationError) and error.error_type:
        return ErrorFrame(str(error.args[0]), error.error_type)
    return ErrorFrame(str(error), "CommandError")


def _weight(frame: Input | CloseStdin) -> int:
    """About how many bytes it takes in memory; more than nothing, so that empty ones count too."""
    return 64 + (len(frame.data) if isinstance(frame, Input) else 0)


class _Socket:
    def __init__(self, websocket: WebSocket, settings: SocketSettings, budget: InputBudget) -> None:
        self._websocket = websocket
        self._settings = settings
        self._budget = budget
        self._extended = False
        self._input: deque[Input | CloseStdin] = deque()
        self._input_bytes = 0
        self._input_busy = False
        self._input_changed = trio.lowlevel.ParkingLot()
        self._outcome: _End | None = None
        self._stopped: _End | None = None
        """How it ends because the server does."""
        self._interruptible: trio.CancelScope | None = None
        """What may be cut short when the server stops: all but a last frame that is being sent."""
        self._rest_scope: trio.CancelScope | None = None
        self._retired: bool | None = None
        """Whether its sandbox ended; ``None`` as long as nobody watches."""
        self._pass_on_soon: Callable[[], None] | None = None

    async def serve(self, attach: _Attach, stopping: trio.Event | None, rest: Rest | None) -> _End:
        first = await self._first_frame()
        async with trio.open_nursery() as nursery:
            if stopping is not None:
                nursery.start_soon(self._watch_server, stopping)
            while True:
                end = await self._serve_command(first, attach)
                if rest is None or self._stopped is not None or not first.reuse or not isinstance(end.frame, Exit):
                    break
                following = await self._rest(end.frame, rest, nursery)
                if isinstance(following, _End):
                    end = following
                    break
                first = following
            nursery.cancel_scope.cancel()
        return end

    async def _serve_command(self, first: Execute | Reconnect, attach: _Attach) -> _End:
        self._extended = first.input_id is not None
        self._outcome = None
        attachment = await attach(first)
        try:
            return await self._converse(attachment)
        finally:
            with trio.CancelScope(shield=True):
                await attachment.aclose()

    async def _watch_server(self, stopping: trio.Event) -> None:
        await stopping.wait()
        self._stopped = _End(None, _RESTART)
        if self._interruptible is not None:
            self._interruptible.cancel()

    async def end(self, end: _End) -> None:
        """Send the last frame, close, and wait a moment for the peer to have read both."""
        if end.close_code is None:
            return
        with contextlib.suppress(_GoneError, RuntimeError, WebSocketDisconnect):
            if end.frame is not None:
                await self._send(end.frame)
            with trio.move_on_after(self._settings.close_s):
                await self._websocket.close(end.close_code)
                # Closing a connection with unread bytes in it would take back what the peer has not read yet.
                while (await self._websocket.receive())["type"] != "websocket.disconnect":
                    pass

    # -- between two commands ----------------------------------------------------------------------------------------

    async def _rest(self, exit_frame: Exit, rest: Rest, nursery: trio.Nursery) -> Execute | Reconnect | _End:
        """Tell the exit and wait for what comes next: the first frame of another command, or the end."""
        self.forget_input()
        if self._retired is None:
            self._retired = False
            nursery.start_soon(self._watch_sandbox, rest)
        with rest.resting() as idle_s:
            if idle_s is None or self._retired:
                return _End(exit_frame, _NORMAL)
            await self._send(attrs.evolve(exit_frame, reuse_s=idle_s))
            first = await self._another_first_frame(idle_s)
        if first is None:
            return self._stopped or _End(None, _NORMAL)
        try:
            await rest.resume()
        except SandboxClientError:
            # The handshake of its next socket tells the client why, in the words that every client knows.
            return _End(None, _TRY_AGAIN)
        # A server that stops starts nothing more: its client was promised that nothing was begun.
        return self._stopped or first

    async def _another_first_frame(self, idle_s: float) -> Execute | Reconnect | None:
        """``None`` when there is none in time, or before the server or the sandbox ended."""
        first: Execute | Reconnect | None = None
        with trio.move_on_after(idle_s) as scope:
            self._rest_scope = self._interruptible = scope
            if self._retired or self._stopped is not None:
                scope.cancel()
            while first is None:
                # What was sent for the command that is over may arrive behind its end.
                frame = await self._receive()
                first = frame if isinstance(frame, Execute | Reconnect) else None
        self._rest_scope = self._interruptible = None
        return first

    async def _watch_sandbox(self, rest: Rest) -> None:
        with contextlib.suppress(SandboxClientError):
            await rest.wait_ended()
        self._retired = True
        if self._rest_scope is not None:
            self._rest_scope.cancel()

    # -- from the peer -----------------------------------------------------------------------------------------------

    async def _first_frame(self) -> Execute | Reconnect:
        with trio.move_on_after(self._settings.first_frame_s):
            while True:
                frame = await self._receive()
                match frame:
                    case Execute() | Reconnect():
                        return frame
                    case CloseStdin() if not self._input:
                        # Some clients send it ahead when their caller closes the input of a handle not attached yet.
                        self._queue(frame)
                    case None | CloseStdin():
                        pass
                    case _:
                        name = type(frame).__name__.lower()
                        raise WireError(f"The first frame must be 'execute' or 'reconnect', not '{name}'")
        raise WireError(
            f"No 'execute' or 'reconnect' came in {self._settings.first_frame_s:g} seconds", close_code=_POLICY
        )

    async def _receive(self) -> ClientFrame | None:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise _GoneError
        text = message.get("text")
        if not isinstance(text, str):
            raise WireError("Frames are text; binary ones have no meaning here", close_code=_UNSUPPORTED)
        return decode_client(text)

    async def _listen(self, attachment: AnyAttachment) -> _End:
        while True:
            try:
                frame = await self._receive()
            except _GoneError:
                await self._input_passed_on()
                raise
            match frame:
                case None:
                    pass
                case Execute() | Reconnect():
                    raise WireError("A socket is for one command: 'execute' or 'reconnect' can only be its first frame")
                case Input() | CloseStdin():
                    await self._have_room()
                    self._queue(frame)
                case _:
                    await attachment.send(frame)

    def _queue(self, frame: Input | CloseStdin) -> None:
        self._input.append(frame)
        self._count(_weight(frame))
        if self._pass_on_soon is not None:
            self._pass_on_soon()
        self._input_changed.unpark_all()

    def _count(self, change: int) -> None:
        self._input_bytes += change
        self._budget.used += change

    def forget_input(self) -> None:
        """Give up what the command has not got yet."""
        self._input.clear()
        self._input_busy = False
        self._count(-self._input_bytes)

    async def _have_room(self) -> None:
        with trio.move_on_after(self._settings.input_stall_s):
            while self._input_bytes >= self._settings.input_bytes or (
                self._input_bytes and self._budget.used >= self._budget.total
            ):
                await self._input_changed.park()
            return
        raise WireError(
            f"The command has not read its input for {self._settings.input_stall_s:g} seconds; reconnect to go on",
            "InputStalled",
            _POLICY,
        )

    # -- to the command ----------------------------------------------------------------------------------------------

    async def _pass_input_on(self, attachment: AnyAttachment) -> _End:
        while True:
            while not self._input:
                await self._input_changed.park()
            frame = self._input.popleft()
            self._input_busy = True
            try:
                await attachment.send(frame)
            except InputGapError as error:
                raise WireError(str(error), "InvalidOffset", _NORMAL) from error
            self._input_busy = False
            self._count(-_weight(frame))
            self._input_changed.unpark_all()

    async def _input_passed_on(self) -> None:
        with trio.move_on_after(self._settings.input_grace_s):
            while self._input or self._input_busy:
                await self._input_changed.park()

    # -- to the peer -------------------------------------------------------------------------------------------------

    async def _tell(self, attachment: AnyAttachment) -> _End:
        while True:
            frame = await attachment.receive()
            if isinstance(frame, Exit | ErrorFrame):
                return _End(frame, _NORMAL)
            await self._send(frame)

    async def _send(self, frame: ServerFrame) -> None:
        try:
            with trio.fail_after(self._settings.send_stall_s):
                await self._websocket.send_text(encode_server(frame, extended=self._extended))
        except (RuntimeError, WebSocketDisconnect, trio.TooSlowError) as error:
            raise _GoneError from error

    # -- all at once -------------------------------------------------------------------------------------------------

    async def _converse(self, attachment: AnyAttachment) -> _End:
        """Serve both directions until one of them has ended."""
        async with trio.open_nursery() as nursery:
            self._interruptible = nursery.cancel_scope
            if self._stopped is not None:
                nursery.cancel_scope.cancel()

            def pass_on_soon() -> None:
                self._pass_on_soon = None  # most commands have no input, and need no task for it
                nursery.start_soon(self._end_with, nursery.cancel_scope, self._pass_input_on, attachment)

            self._pass_on_soon = pass_on_soon
            if self._input:
                pass_on_soon()
            nursery.start_soon(self._end_with, nursery.cancel_scope, self._listen, attachment)
            await self._end_with(nursery.cancel_scope, self._tell, attachment)
        self._interruptible = self._pass_on_soon = None
        end = self._outcome or self._stopped
        assert end is not None
        return end

    async def _end_with(self, scope: trio.CancelScope, job: Callable[[_T], Awaitable[_End]], subject: _T) -> None:
        try:
            end = await job(subject)
        except _GoneError:
            end = _End(None, None)
        except WireError as error:
            end = _End(error.frame, error.close_code)
        if self._outcome is None:
            self._outcome = end
        scope.cancel()
