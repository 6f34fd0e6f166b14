"""One relay: a process of the runtime's ``exec`` on the host, and the frames to and from what it started inside."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import SpawnFailedError
from sandboxrt.engine.init.wire import InitProtocolError
from sandboxrt.engine.launch.program import reap, spawn_launcher
from sandboxrt.engine.runtime_exec.frames import (
    HEADER_BYTES,
    INPUT_WINDOW_BYTES,
    MAX_PAYLOAD_BYTES,
    Frame,
    FrameKind,
    FrameReader,
)

__all__ = ["STDIO_FD", "Relay", "RuntimeExec"]

STDIO_FD = 3
"""Number of the descriptor that the launcher makes standard input and output of the runtime's exec."""
_UCRED = struct.Struct("=iII")
_RECEIVE_BYTES = 1 << 18
_HELLO_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 5.0
_MAX_QUEUED_ORDERS = 4096
_MAX_WORDS_BYTES = 1 << 16


@attrs.frozen
class RuntimeExec:
    """How relays are started.

    Attributes:
        launcher: The launcher's program.
        words: Its instructions, which end with the runtime's ``exec`` of the relay.
        detached: The runtime's process ends when the relay has started, instead of with it.
    """

    launcher: Path
    words: tuple[str, ...]
    detached: bool = False


@attrs.define(eq=False)
class Relay:
    """A started relay. Made by :meth:`start`; whoever made it runs :meth:`serve` and closes it.

    Attributes:
        host_pid: The relay's process on the host, by the kernel's word; the sandbox's kernel where it has its own.
        host_uid: Its user on the host.
    """

    _sock: socket.socket
    _pid: int
    _pidfd: int
    _words: int
    host_pid: int = 0
    host_uid: int = 0
    _own_pidfd: int | None = attrs.field(default=None, init=False)
    _orders: deque[bytes] = attrs.field(factory=deque, init=False)
    _has_orders: trio.Event = attrs.field(factory=trio.Event, init=False)
    _credit: int = attrs.field(default=INPUT_WINDOW_BYTES, init=False)
    _credit_changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _input_gone: bool = attrs.field(default=False, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _reader: FrameReader = attrs.field(factory=FrameReader, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)
    _freed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _is_reaped: bool = attrs.field(default=False, init=False)

    # -- life ------------------------------------------------------------------------------------------------------

    @classmethod
    async def start(cls, exec_: RuntimeExec) -> Relay:
        """Start one, and wait until it speaks.

        Raises:
            SpawnFailedError: The runtime could not start it, with the runtime's own words; or the container is dead.

        Cancellation: atomic.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        words, error_output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with theirs:
                ours.setblocking(False)
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                fds: Mapping[int, int] = {STDIO_FD: theirs.fileno(), STDIO_FD + 1: theirs.fileno()}
                pid = spawn_launcher(exec_.launcher, exec_.words, fds, error_output)
        except OSError as error:
            ours.close()
            os.close(words)
            raise SpawnFailedError(f"the runtime could not be started: {error}", error.errno or 0) from error
        finally:
            os.close(error_output)
        relay = cls(ours, pid, os.pidfd_open(pid), words)
        try:
            await relay._hello()
            if exec_.detached:
                relay._own_pidfd = os.pidfd_open(relay.host_pid)
        except ProcessLookupError as error:
            await relay.aclose()
            raise SpawnFailedError("the relay ended at once", errno.ESRCH) from error
        except BaseException:
            await relay.aclose()
            raise
        return relay

    async def _hello(self) -> None:
        """The first frame, and who sent it."""
        with trio.move_on_after(_HELLO_TIMEOUT_S):
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                data, ancillary, _, _ = self._sock.recvmsg(_RECEIVE_BYTES, socket.CMSG_SPACE(_UCRED.size))
                for level, kind, content in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(content) == _UCRED.size:
                        self.host_pid, self.host_uid, _ = _UCRED.unpack(content)
                if not data:
                    break
                frames = self._parse(data)
                if frames:
                    if len(frames) != 1 or frames[0].kind is not FrameKind.HELLO:
                        raise SpawnFailedError("the relay broke its protocol", errno.EPROTO)
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
                    return
        reason = await self._end() or "it said nothing"
        # Whatever the words: no process came to be. A container at its limit of processes says it with EAGAIN.
        full = "esource temporarily unavailable" in reason
        raise SpawnFailedError(f"the runtime started no process: {reason}", errno.EAGAIN if full else errno.ESRCH)

    def _parse(self, data: bytes) -> list[Frame]:
        try:
            return self._reader.feed(data)
        except InitProtocolError as error:
            raise SpawnFailedError(f"the relay broke its protocol: {error}", errno.EPROTO) from error

    async def serve(self, dispatch: Callable[[Frame], None]) -> None:
        """Carry frames both ways until the relay has ended. ``dispatch`` gets what is not about input's credit.

        Never raises for what the container does. What ``dispatch`` raises as InitProtocolError ends the relay. At the
        end it is closed.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_orders)
                await self._receive_frames(dispatch)
                nursery.cancel_scope.cancel()
        finally:
            self._ended.set()
            self._wake_senders()
            self.close()

    async def _receive_frames(self, dispatch: Callable[[Frame], None]) -> None:
        while True:
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
                if not data:
                    return
                for frame in self._reader.feed(data):
                    if frame.kind is FrameKind.TAKEN:
                        self._take_back(frame.b)
                    elif frame.kind is FrameKind.INPUT_GONE:
                        self._input_gone = True
                        self._wake_senders()
                    else:
                        dispatch(frame)
                await trio.lowlevel.checkpoint()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(self._sock)
                except trio.ClosedResourceError:
                    return
            except (OSError, InitProtocolError):
                return

    async def _send_orders(self) -> None:
        while True:
            await self._has_orders.wait()
            while self._orders:
                view = memoryview(self._orders.popleft())
                while view:
                    try:
                        view = view[self._sock.send(view, socket.MSG_NOSIGNAL) :]
                    except BlockingIOError:
                        try:
                            await trio.lowlevel.wait_writable(self._sock)
                        except trio.ClosedResourceError:
                            return
                    except OSError:
                        return
            self._has_orders = trio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether no frame will come any more."""
        return self._ended.is_set()

    def close(self) -> None:
        """Let the relay, and the program's process group with it, end."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def aclose(self) -> None:
        """:meth:`close`, and wait for the runtime's process, which is killed when it takes long. Idempotent."""
        if self._is_closed:
            with trio.CancelScope(shield=True):
                await self._freed.wait()
            return
        self._is_closed = True
        self.close()
        await self._end()
        os.close(self._words)
        for pidfd in self._pidfds():
            os.close(pidfd)
        self._freed.set()

    def _pidfds(self) -> tuple[int, ...]:
        return (self._pidfd,) if self._own_pidfd is None else (self._pidfd, self._own_pidfd)

    async def _end(self) -> str:
        """Wait for the runtime's exec; returns what it said on standard error."""
        with trio.CancelScope(shield=True):
            for pidfd in self._pidfds():
                with trio.move_on_after(_END_TIMEOUT_S) as scope:
                    await trio.lowlevel.wait_readable(pidfd)
                # Only our own child: the other number was learned from a process that could be gone and replaced.
                if scope.cancelled_caught and pidfd == self._pidfd:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    with trio.move_on_after(_END_TIMEOUT_S):
                        await trio.lowlevel.wait_readable(pidfd)
            if not self._is_reaped:
                self._is_reaped = True
                reap(self._pid)
            with contextlib.suppress(BlockingIOError):
                lines = os.read(self._words, _MAX_WORDS_BYTES).decode(errors="replace").splitlines()
                return "; ".join(line.strip() for line in lines[-3:] if line.strip())
        return ""

    async def connect(self, request: bytes) -> Frame | None:
        """Ask for a connection, instead of serving. Returns the answer, ``None`` at the end."""
        try:
            self._sock.send(request, socket.MSG_NOSIGNAL)  # it is small, and the first that is sent
            answer = b""
            while len(answer) < HEADER_BYTES:  # and no byte more: what follows is the connection's
                await trio.lowlevel.wait_readable(self._sock)
                data = self._sock.recv(HEADER_BYTES - len(answer))
                if not data:
                    return None
                answer += data
        except OSError:
            return None
        return next(iter(self._parse(answer)), None)

    def take_socket(self) -> socket.socket:
        """Disown the socket: from now on it is the connection that the relay made."""
        sock = self._sock
        self._sock = socket.socket()
        self._sock.close()
        return sock

    async def wait_end(self) -> None:
        """Wait for the end of the runtime's exec, and free what belongs to it."""
        try:
            for pidfd in self._pidfds():
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            await self.aclose()

    # -- orders ----------------------------------------------------------------------------------------------------

    def post(self, data: bytes) -> None:
        """Queue bytes that go inside in order. Nothing after the end.

        Raises:
            BufferError: The relay has not taken thousands of earlier ones: it was stopped from inside.
        """
        if self.has_ended:
            return
        if len(self._orders) >= _MAX_QUEUED_ORDERS:
            raise BufferError("the relay inside the container takes no orders")
        self._orders.append(data)
        self._has_orders.set()

    def order(self, kind: FrameKind, a: int = 0, b: int = 0, payload: bytes = b"") -> None:
        """Queue one frame; see :meth:`post`."""
        self.post(Frame(kind, a, b, payload).pack())

    async def send_input(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes of input as the relay has room for them.

        Raises:
            BrokenPipeError: Nobody inside reads it any more.

        Cancellation: a part may have been sent.
        """
        view = memoryview(data)
        await trio.lowlevel.checkpoint()
        while view:
            if self._input_gone or self.has_ended:
                raise BrokenPipeError(errno.EPIPE, "nobody reads the input any more")
            count = min(len(view), self._credit, MAX_PAYLOAD_BYTES)
            if count == 0:
                await self._credit_changed.wait()
                continue
            self._credit -= count
            self.order(FrameKind.INPUT, payload=bytes(view[:count]))
            view = view[count:]

    async def wait_input_room(self) -> None:
        """Wait until some input can be sent, or never."""
        await trio.lowlevel.checkpoint()
        while not (self._credit or self._input_gone or self.has_ended):
            await self._credit_changed.wait()

    async def wait_input_taken(self) -> None:
        """Wait until the relay has passed on all input, or never will."""
        await trio.lowlevel.checkpoint()
        while not (self._credit == INPUT_WINDOW_BYTES or self._input_gone or self.has_ended):
            await self._credit_changed.wait()

    def _take_back(self, count: int) -> None:
        if not 0 < count <= INPUT_WINDOW_BYTES - self._credit:
            raise InitProtocolError("input was taken that was never sent")
        self._credit += count
        self._wake_senders()

    def _wake_senders(self) -> None:
        self._credit_changed.set()
        self._credit_changed = trio.Event()
