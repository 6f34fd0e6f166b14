"""The host's side of a container whose jobs are started by the runtime's own exec."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from sandboxrt.engine.base import CommandGroup, Identity, OpenFile, ProcessSpec, SpawnFailedError
from sandboxrt.engine.init.gate import IdMap
from sandboxrt.engine.init.process import exec_failure, join_group, pack_process
from sandboxrt.engine.init.wire import Request, RequestFlag, RequestKind, Stage
from sandboxrt.engine.runtime_exec import files
from sandboxrt.engine.runtime_exec.frames import FrameKind
from sandboxrt.engine.runtime_exec.process import ExecProcess, RelayInput, RelayOutput, Session
from sandboxrt.engine.runtime_exec.relay import Relay, RuntimeExec

__all__ = ["ExecChannel"]

_CLEANUP_S = 5.0
_MAX_STARTS = 8
_STAGES = frozenset(int(stage) for stage in Stage)


class ExecChannel:
    """Starts jobs in one container by the runtime's exec.

    Owner: whoever runs :meth:`serve` in a nursery of its own; it ends by itself when the container's first process is
    gone, and after :meth:`close`. Everything else can be called from any task of the same run while it runs.
    """

    def __init__(self, exec_: RuntimeExec, hold: socket.socket, first_process: int, ids: IdMap) -> None:
        """Own what keeps the container alive.

        Args:
            exec_: How relays are started.
            hold: The first process waits on its other end, and exits when this is closed. Ours from now on.
            first_process: A descriptor of the first process on the host. Ours from now on.
            ids: How the container's users appear on the host.
        """
        self._exec = exec_
        self._hold = hold
        self._first_process = first_process
        self._ids = ids
        self._nursery: trio.Nursery | None = None
        # Each start is a process of the runtime on the host, which may be big: no more than that at once.
        self._starts = trio.CapacityLimiter(_MAX_STARTS)
        self._dead = trio.Event()
        self._reason: str | None = None

    def __repr__(self) -> str:
        return f"<ExecChannel {f'dead: {self._reason}' if self._reason else 'alive'}>"

    # -- life ------------------------------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the tasks of all jobs, until the first process is gone. Never raises for what the container does.

        Cancellation: ends the channel, and with it the container.
        """
        reason = "the container's first process ended"
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.lowlevel.wait_readable(self._first_process)
                self._end(reason)
                # Jobs see the end of their relays now; what is left of them are the runtime's own processes.
                nursery.cancel_scope.deadline = trio.current_time() + _CLEANUP_S
        except trio.Cancelled:
            reason = "its owner was cancelled"
            raise
        finally:
            self._end(reason)
            os.close(self._first_process)

    def _end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        self._hold.close()
        self._dead.set()

    @property
    def is_dead(self) -> bool:
        """Whether the first process is gone, or told to go."""
        return self._reason is not None

    async def wait_dead(self) -> str:
        """Wait until the first process is gone; returns a sentence that says why."""
        await self._dead.wait()
        assert self._reason is not None
        return self._reason

    def close(self, reason: str = "closed by its owner") -> None:
        """Let the first process exit, whereupon its kernel ends everything inside. Idempotent."""
        self._end(reason)

    # -- jobs ------------------------------------------------------------------------------------------------------

    async def spawn(self, spec: ProcessSpec, group: CommandGroup | None) -> ExecProcess:
        """Start a program; when this returns, it was executed. The contract of ``InitChannel.spawn``.

        Raises:
            SpawnFailedError: No process could be made, or the container is dying.
            ExecFailedError: Working directory, identity, terminal or program were wrong.
            ValueError: An argument holds a NUL, a variable's name an ``=``, or there are too many groups.

        Cancellation: atomic.
        """
        try:
            return await self._spawn(spec, group)
        except BaseException:
            if group is not None:
                # What cannot be removed goes with the container; the reason for the failure must not be lost over it.
                with trio.move_on_after(_CLEANUP_S, shield=True), contextlib.suppress(OSError):
                    await group.remove()
            raise

    async def _spawn(self, spec: ProcessSpec, group: CommandGroup | None) -> ExecProcess:
        strings = pack_process(spec)
        request = Request(
            kind=RequestKind.SPAWN,
            job_id=1,
            identity=spec.identity,
            flags=self.request_flags | (RequestFlag.PTY if spec.pty else 0),
            argument_count=len(spec.argv),
            environment_count=len(spec.env),
            strings_bytes=len(strings),
            terminal=spec.pty or (0, 0),
            argument=int(spec.stdin),
        )
        packed = request.pack() + strings
        relay = await self.start_relay()
        joined: CommandGroup | None = None
        try:
            if group is not None:
                await self._join(group, relay)
                joined = group
            relay.post(packed)
            outputs = tuple(RelayOutput(relay, stream) for stream in range(1 if spec.pty else 2))
            session = Session(relay, outputs)
            self.serve_in_background(session.run)
            await session.started.wait()
            if session.failure is not None:
                raise exec_failure(_checked(session.failure), spec)
            if session.pid is None:
                raise SpawnFailedError("the process was killed before it ran", errno.ESRCH)
        except BaseException:
            with trio.move_on_after(_CLEANUP_S, shield=True):
                if joined is not None:
                    await joined.kill()
                await relay.aclose()
                if joined is not None:
                    await joined.wait_empty()
            raise
        stdin = RelayInput(relay, is_terminal=spec.pty is not None) if spec.stdin or spec.pty else None
        return ExecProcess(session.pid, stdin, outputs[0], None if spec.pty else outputs[1], session, group)

    async def _join(self, group: CommandGroup, relay: Relay) -> None:
        if relay.host_pid <= 0 or not self._ids.owns(relay.host_uid):
            raise SpawnFailedError("the relay has an identity of the host", errno.EPROTO)
        try:
            await join_group(group, relay.host_pid)
        except OSError as error:
            message = f"the process could not be put into its group: {error}"
            raise SpawnFailedError(message, error.errno or 0) from error

    async def open_file(self, path: str, identity: Identity) -> OpenFile:
        """Open a regular file inside for reading. ``path`` is absolute.

        Raises:
            FileError: With the reason.

        Cancellation: atomic.
        """
        return await files.open_file(self, path, identity)

    async def replace_file(self, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
        """Put ``content`` in the place of an absolute ``path`` inside, at once; parents are made.

        Raises:
            FileError: With the reason; the old content is still there.

        Cancellation: the old content or the new, never a mixture.
        """
        await files.replace_file(self, path, content, identity)

    async def connect(self, port: int) -> trio.SocketStream:
        """Connect to a TCP port on the container's loopback, IPv4 then IPv6, through a relay of its own.

        Raises:
            ConnectionRefusedError: Nothing listens there.
            OSError: Any other reason.

        Cancellation: atomic.
        """
        request = Request(kind=RequestKind.SOCKET, job_id=1, argument=port)
        try:
            relay = await self.start_relay()
        except SpawnFailedError as error:
            raise OSError(error.errno or errno.ESHUTDOWN, str(error)) from error
        try:
            frame = await relay.connect(request.pack())
            if frame is None or frame.kind is not FrameKind.STARTED:
                code = errno.ESHUTDOWN if frame is None else frame.b
                raise OSError(code, os.strerror(code))
            sock = relay.take_socket()
        except BaseException:
            await relay.aclose()
            raise
        self.serve_in_background(relay.wait_end)
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    # -- for files.py ----------------------------------------------------------------------------------------------

    @property
    def request_flags(self) -> RequestFlag:
        """What every request has from this container."""
        return RequestFlag(0) if self._ids.can_set_groups else RequestFlag.KEEP_GROUPS

    async def start_relay(self) -> Relay:
        """A relay that has said hello.

        Raises:
            SpawnFailedError: There is none to be had.

        Cancellation: atomic.
        """
        async with self._starts:
            if self._reason is not None:
                raise SpawnFailedError(f"the container is dead: {self._reason}", errno.ESRCH)
            return await Relay.start(self._exec)

    def serve_in_background(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run a job's task until the container's end at most."""
        if self._nursery is None:
            raise RuntimeError("the channel must be served before it is used")
        self._nursery.start_soon(run)


def _checked(failure: tuple[int, int]) -> tuple[int, int]:
    stage, code = failure
    return failure if stage in _STAGES and 0 <= code < 4096 else (int(Stage.FORK), errno.EPROTO)
