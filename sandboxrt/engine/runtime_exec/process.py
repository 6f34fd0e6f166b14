"""A program started by a relay: its streams, its signals, its end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal

import attrs
import trio

from sandboxrt.engine.base import CommandGroup, ExitStatus
from sandboxrt.engine.init.wire import InitProtocolError
from sandboxrt.engine.runtime_exec.frames import Frame, FrameKind
from sandboxrt.engine.runtime_exec.relay import Relay

__all__ = ["ExecProcess", "RelayInput", "RelayOutput", "Session"]

_OUTPUT_WINDOW_BYTES = 1 << 20
_CLEANUP_S = 10.0
_END_OF_INPUT = b"\x04"
_STDOUT, _STDERR = 0, 1


class RelayOutput(trio.abc.ReceiveStream):
    """One stream of output. It ends when the last process that has it open is gone."""

    def __init__(self, relay: Relay, stream: int) -> None:
        """The stream with that number of a relay; it may send a window's bytes from now on."""
        self._relay = relay
        self._stream = stream
        self._data = bytearray()
        self._has_ended = False
        self._is_closed = False
        self._changed = trio.Event()
        self._expected = _OUTPUT_WINDOW_BYTES
        self._unreturned = 0
        relay.order(FrameKind.CREDIT, stream, _OUTPUT_WINDOW_BYTES)

    def feed(self, data: bytes) -> None:
        """Take what the relay sent.

        Raises:
            InitProtocolError: It is more than there was credit for.
        """
        self._expected -= len(data)
        if self._expected < 0:
            raise InitProtocolError("more output than was asked for")
        if not self._is_closed:
            self._data += data
            self._wake()

    def end(self) -> None:
        """Nothing will come any more."""
        self._has_ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some output, or nothing at the end.

        Raises:
            trio.ClosedResourceError: It was closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._is_closed:
                raise trio.ClosedResourceError("the stream was closed")
            if self._data:
                break
            if self._has_ended:
                return b""
            await self._changed.wait()
        count = len(self._data) if max_bytes is None else min(max_bytes, len(self._data))
        found = bytes(memoryview(self._data)[:count])
        del self._data[:count]
        self._unreturned += count
        if self._unreturned >= _OUTPUT_WINDOW_BYTES // 4 and not self._has_ended:
            with contextlib.suppress(BufferError):
                self._relay.order(FrameKind.CREDIT, self._stream, self._unreturned)
                self._expected += self._unreturned
                self._unreturned = 0
        return found

    async def aclose(self) -> None:
        """Close it: a program that writes on gets SIGPIPE."""
        if not self._is_closed:
            self._is_closed = True
            self._data.clear()
            self._wake()
            if not self._has_ended:
                with contextlib.suppress(BufferError):
                    self._relay.order(FrameKind.DROP, self._stream)
        await trio.lowlevel.checkpoint()


class RelayInput(trio.abc.SendStream):
    """Standard input of a program, or what is typed into its terminal; closing that types the end of input."""

    def __init__(self, relay: Relay, *, is_terminal: bool) -> None:
        """The input of a relay's program."""
        self._relay = relay
        self._is_terminal = is_terminal
        self._is_closed = False
        self._sending = trio.Lock()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; waits while the program does not read.

        Raises:
            trio.BrokenResourceError: Nobody reads any more.
            trio.ClosedResourceError: It was closed.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("the stream was closed")
        async with self._sending:
            try:
                await self._relay.send_input(data)
            except (BrokenPipeError, BufferError) as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the program takes more."""
        await self._relay.wait_input_room()

    async def aclose(self) -> None:
        """End the input. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            with contextlib.suppress(BufferError):
                if self._is_terminal:
                    with trio.move_on_after(0), contextlib.suppress(OSError):
                        await self._relay.send_input(_END_OF_INPUT)
                else:
                    self._relay.order(FrameKind.INPUT_END)
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class Session:
    """What a relay says about the program it starts.

    Attributes:
        started: Set when the program was executed, or could not be.
        pid: Its id inside, once it was executed.
        failure: Why it could not be.
        exited: Set when the leader was reaped, or nothing more will be heard of it.
        status: How it ended.
    """

    relay: Relay
    outputs: tuple[RelayOutput, ...]
    started: trio.Event = attrs.field(factory=trio.Event, init=False)
    pid: int | None = attrs.field(default=None, init=False)
    failure: tuple[int, int] | None = attrs.field(default=None, init=False)
    exited: trio.Event = attrs.field(factory=trio.Event, init=False)
    status: ExitStatus | None = attrs.field(default=None, init=False)

    def dispatch(self, frame: Frame) -> None:
        """Note what one frame says.

        Raises:
            InitProtocolError: It says what it cannot say now.
        """
        match frame.kind:
            case FrameKind.OUTPUT if 0 <= frame.a < len(self.outputs):
                self.outputs[frame.a].feed(frame.payload)
            case FrameKind.OUTPUT_END if 0 <= frame.a < len(self.outputs):
                self.outputs[frame.a].end()
            case FrameKind.STARTED if not self.started.is_set() and frame.a > 0:
                self.pid = frame.a
                self.started.set()
            case FrameKind.FAILED if not self.started.is_set():
                self.failure = (frame.a, frame.b)
                self.started.set()
            case FrameKind.EXITED if self.status is None:
                self.status = _exit_status(frame.a)
                self.exited.set()
            case _:
                raise InitProtocolError(f"an unexpected {frame.kind.name} frame")

    async def run(self) -> None:
        """Serve the relay until its end, and mark everything that did not end before as ended."""
        try:
            await self.relay.serve(self.dispatch)
        finally:
            self.started.set()
            if self.status is None:
                self.status = ExitStatus(signal=9)
            self.exited.set()
            for output in self.outputs:
                output.end()
            await self.relay.aclose()


def _exit_status(status: int) -> ExitStatus:
    if os.WIFEXITED(status):
        return ExitStatus(code=os.WEXITSTATUS(status))
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=os.WTERMSIG(status))
    raise InitProtocolError(f"an exit with the impossible status {status:#x}")


@attrs.define(eq=False)
class ExecProcess:
    """A program started by the runtime's exec; see :class:`~sandboxrt.engine.base.Process`."""

    pid: int
    stdin: RelayInput | None
    stdout: RelayOutput
    stderr: RelayOutput | None
    _session: Session
    _group: CommandGroup | None
    _is_closed: bool = False

    async def wait(self) -> ExitStatus:
        """Wait until the leader was reaped. If the whole container died first: signal 9."""
        await self._session.exited.wait()
        assert self._session.status is not None
        return self._session.status

    async def wait_tree(self) -> None:
        """Wait until no process of the tree is left; without a group, until the leader is gone."""
        await self._session.exited.wait()
        if self._group is not None:
            await self._group.wait_empty()

    async def signal(self, signum: int) -> None:
        """Send a signal to every process of the group; without one, to the leader's process group while it lives.

        Raises:
            OSError: ``EAGAIN``: the relay was stopped from inside and takes no orders.
        """
        # The relay is in the group as well. It takes no signal, but nothing can refuse to be stopped.
        if self._group is not None and signum != signal.SIGSTOP:
            await self._group.signal(signum)
            return
        try:
            self._session.relay.order(FrameKind.SIGNAL, signum)
        except BufferError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        await trio.lowlevel.checkpoint()

    async def kill_tree(self) -> None:
        """SIGKILL for the group; without one, for the leader's process group while it lives. Idempotent."""
        if self._group is not None:
            await self._group.kill()
        else:
            await self.signal(signal.SIGKILL)

    async def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size; nothing without one."""
        if self.stderr is None:
            with contextlib.suppress(BufferError):
                self._session.relay.order(FrameKind.RESIZE, columns, rows)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Kill what is left of the tree, close the streams, free the group. Idempotent. Shielded, bounded.

        Raises:
            RuntimeError: Its processes did not end in time; the group is left to the container.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with trio.move_on_after(_CLEANUP_S, shield=True) as scope:
            try:
                with contextlib.suppress(OSError):
                    await self.kill_tree()
            finally:
                for stream in (self.stdin, self.stdout, self.stderr):
                    if stream is not None:
                        await stream.aclose()
                await self._session.relay.aclose()
            await self._session.exited.wait()
            if self._group is not None:
                await self._group.wait_empty()
                await self._group.remove()
        if scope.cancelled_caught:
            raise RuntimeError(f"the processes of command {self.pid} did not end within {_CLEANUP_S:g} s")
