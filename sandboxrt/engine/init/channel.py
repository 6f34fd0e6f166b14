"""The host's side of a container's first process: one control socket, and a gate for each job."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from sandboxrt.engine.base import CommandGroup, ExitStatus, Identity, OpenFile, ProcessSpec, SpawnFailedError
from sandboxrt.engine.init import files, process
from sandboxrt.engine.init.fds import FdSet, check_tcp_socket
from sandboxrt.engine.init.gate import IdMap, Message, RecordSocket
from sandboxrt.engine.init.wire import (
    InitProtocolError,
    Record,
    RecordKind,
    Request,
    RequestFlag,
    RequestKind,
    Stage,
    sealed_memfd,
)

__all__ = ["InitChannel", "Job"]

_FILE_THREADS = 4
_STAGES = frozenset(int(stage) for stage in Stage)


@attrs.define(eq=False)
class Job:
    """A spawned leader, from the request until it was reaped.

    Attributes:
        status: How it ended, once ``exited`` is set.
    """

    id: int
    exited: trio.Event = attrs.field(factory=trio.Event, init=False)
    status: ExitStatus | None = attrs.field(default=None, init=False)

    def end(self, status: ExitStatus) -> None:
        """Record the exit, once."""
        if self.status is None:
            self.status = status
            self.exited.set()


class InitChannel:
    """The host's end of the control socket of one container.

    Owner: whoever runs :meth:`serve` in a nursery of its own; it ends by itself when the container's first process is
    gone, and after :meth:`close`. Everything else can be called from any task of the same run while it runs.
    """

    def __init__(self, control: socket.socket, ids: IdMap, *, oom_score_adj: int = 0) -> None:
        """Own ``control``, the host's end of a SEQPACKET socket pair.

        Args:
            control: It is closed with this object.
            ids: How the container's users appear on the host.
            oom_score_adj: What commands are started with, so that the kernel takes them before others.
        """
        self._control = RecordSocket(control)
        self._ids = ids
        self._oom_score_adj = oom_score_adj
        self._job_ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._dead = trio.Event()
        self._reason: str | None = None
        self.file_limiter: trio.CapacityLimiter = trio.CapacityLimiter(_FILE_THREADS)

    def __repr__(self) -> str:
        state = f"dead: {self._reason}" if self._reason else f"{len(self._jobs)} jobs"
        return f"<InitChannel {state}>"

    @property
    def ids(self) -> IdMap:
        """How the container's users appear on the host."""
        return self._ids

    @property
    def is_dead(self) -> bool:
        """Whether the first process is gone, or no longer believed."""
        return self._reason is not None

    # -- life ------------------------------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what the first process reports, until it is gone. ``started()`` means: it is ready for jobs.

        Never raises for what the container does: a violation of the protocol ends the channel, and the container
        counts as dead (:meth:`wait_dead` says why).

        Cancellation: ends the channel, and with it the container.
        """
        reason = "the container's first process ended"
        try:
            await self._read_records(task_status)
        except InitProtocolError as error:
            reason = f"the container broke the protocol of its first process: {error}"
        except trio.ClosedResourceError:
            reason = "closed by its owner"
        except OSError as error:
            reason = f"the container's socket failed: {error}"
        except trio.Cancelled:
            reason = "its owner was cancelled"
            raise
        finally:
            self._end(reason)

    async def _read_records(self, task_status: trio.TaskStatus[None]) -> None:
        is_ready = False
        while (message := await self._control.receive()) is not None:
            if message.fd is not None:
                os.close(message.fd)
                raise InitProtocolError("a descriptor on the control socket")
            record = message.record
            if record.kind is RecordKind.READY and not is_ready:
                is_ready = True
                task_status.started()
            elif record.kind is RecordKind.EXITED and (job := self._jobs.pop(record.job_id, None)) is not None:
                job.end(_exit_status(record.a))
            else:
                raise InitProtocolError(f"an unexpected {record.kind.name} record")

    def _end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
        self._control.close()
        for job in self._jobs.values():
            job.end(ExitStatus(signal=9))
        self._jobs.clear()
        self._dead.set()

    async def wait_dead(self) -> str:
        """Wait until the first process is gone, or no longer believed; returns a sentence that says why."""
        await self._dead.wait()
        assert self._reason is not None
        return self._reason

    def close(self, reason: str = "closed by its owner") -> None:
        """Close the control socket: the first process exits, and the kernel ends everything inside. Idempotent."""
        self._end(reason)

    async def aclose(self) -> None:
        """:meth:`close` as a coroutine."""
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    # -- jobs ------------------------------------------------------------------------------------------------------

    async def spawn(self, spec: ProcessSpec, group: CommandGroup | None) -> process.InitProcess:
        """Start a program; when this returns, it was executed.

        Args:
            spec: What to start.
            group: Where to put it before it runs. Owned from now on: removed with the process, and when this raises.

        Raises:
            SpawnFailedError: No process could be made, or the container is dying.
            ExecFailedError: Working directory, identity, terminal or program were wrong.
            ValueError: An argument holds a NUL, a variable's name an ``=``, or there are too many groups.

        Cancellation: atomic.
        """
        return await process.spawn(self, spec, group)

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
        """Connect to a TCP port on the container's loopback, IPv4 then IPv6.

        Raises:
            ConnectionRefusedError: Nothing listens there.
            OSError: Any other reason.

        Cancellation: atomic.
        """
        try:
            return await self._connect(socket.AF_INET, "127.0.0.1", port)
        except OSError as first:
            try:
                return await self._connect(socket.AF_INET6, "::1", port)
            except OSError:
                raise first from None

    async def _connect(self, family: int, address: str, port: int) -> trio.SocketStream:
        request = Request(kind=RequestKind.SOCKET, job_id=self.next_job_id(), argument=family)
        try:
            async with self.job(request, ()) as gate:
                message = await self.answer(gate, RecordKind.SOCKET, with_fd=True)
            if message is None or message.record.kind is RecordKind.FAILED:
                code = message.record.b if message else errno.ESHUTDOWN
                raise OSError(code, os.strerror(code))
            assert message.fd is not None
            plain = self._check_socket(message.fd, family)
        except SpawnFailedError as error:
            raise OSError(error.errno or errno.ESHUTDOWN, str(error)) from error
        sock = trio.socket.from_stdlib_socket(plain)
        try:
            await sock.connect((address, port))
            return trio.SocketStream(sock)
        except BaseException:
            sock.close()
            raise

    def _check_socket(self, fd: int, family: int) -> socket.socket:
        try:
            plain = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise self.violation(error) from error
        try:
            check_tcp_socket(plain, family)
        except InitProtocolError as error:
            plain.close()
            raise self.violation(error) from error
        return plain

    async def signal(self, job: Job, signum: int) -> None:
        """Send a signal to the process group of a leader that was not reaped yet; harmless afterwards."""
        if job.status is None and self._reason is None:
            try:
                await self._control.send(
                    Request(kind=RequestKind.SIGNAL, job_id=job.id, argument=signum).pack(),
                )
            except (OSError, trio.ClosedResourceError):
                return  # the container is on its way out, and everything in it

    # -- for process.py and files.py -------------------------------------------------------------------------------

    def new_job(self) -> Job:
        """A job whose exit will be reported, from now until then."""
        job = Job(next(self._job_ids))
        self._jobs[job.id] = job
        return job

    def forget(self, job: Job) -> None:
        """No exit will come for this job: it was never started."""
        self._jobs.pop(job.id, None)
        job.end(ExitStatus(signal=9))

    def next_job_id(self) -> int:
        """An id for a job whose exit is not reported."""
        return next(self._job_ids)

    def base_request(self) -> tuple[RequestFlag, int]:
        """What every request has from this container: flags and oom_score_adj."""
        flags = RequestFlag(0) if self._ids.can_set_groups else RequestFlag.KEEP_GROUPS
        return flags, self._oom_score_adj

    @asynccontextmanager
    async def job(self, request: Request, fds: tuple[int, ...], strings: bytes = b"") -> AsyncIterator[RecordSocket]:
        """Send a request with a fresh gate, its strings and ``fds``; the gate is closed with the block.

        Raises:
            SpawnFailedError: The container is dead or dying, or this process has no descriptors left.
        """
        if self._reason is not None:
            raise SpawnFailedError(f"the container is dead: {self._reason}", errno.ESRCH)
        with FdSet() as owned:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                gate = RecordSocket(ours, with_credentials=True)
            except OSError as error:
                raise SpawnFailedError(f"no socket could be made: {error}", error.errno or 0) from error
            try:
                with theirs:
                    try:
                        passed = (owned.add(sealed_memfd(strings)),) if strings else ()
                        await self._control.send(request.pack(), (theirs.fileno(), *passed, *fds))
                    except OSError as error:
                        raise SpawnFailedError(f"the container takes no jobs: {error}", error.errno or 0) from error
                    except trio.ClosedResourceError:
                        raise SpawnFailedError("the container was closed", errno.ESRCH) from None
                    for fd in passed:
                        owned.close(fd)
                yield gate
            finally:
                gate.close()

    async def answer(self, gate: RecordSocket, kind: RecordKind, *, with_fd: bool = False) -> Message | None:
        """The next record on a gate: of ``kind``, or a failure, or ``None`` at the end.

        Raises:
            SpawnFailedError: It was something else (``EPROTO``): the channel is closed.
        """
        try:
            message = await gate.receive()
            if message is not None:
                self._check_answer(message, kind, with_fd)
            return message
        except InitProtocolError as error:
            raise self.violation(error) from error

    def _check_answer(self, message: Message, kind: RecordKind, with_fd: bool) -> None:
        record = message.record
        expects_fd = with_fd and record.kind is kind
        if record.kind not in (kind, RecordKind.FAILED) or (message.fd is not None) != expects_fd:
            if message.fd is not None:
                os.close(message.fd)
            raise InitProtocolError(f"an unexpected {record.kind.name} record on a gate")
        if record.kind is RecordKind.FAILED and (record.a not in _STAGES or not 0 <= record.b < 4096):
            raise InitProtocolError("a failure of an unknown kind")

    def violation(self, error: Exception) -> SpawnFailedError:
        """Close the channel because of what came out of it; returns the error to raise."""
        self.close(f"the container broke the protocol of its first process: {error}")
        return SpawnFailedError(f"the container broke the protocol: {error}", errno.EPROTO)

    def release_record(self, job_id: int) -> bytes:
        """What lets a waiting child go on."""
        return Record(RecordKind.RELEASE, job_id).pack()


def _exit_status(status: int) -> ExitStatus:
    if os.WIFEXITED(status):
        return ExitStatus(code=os.WEXITSTATUS(status))
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=os.WTERMSIG(status))
    raise InitProtocolError(f"an exit with the impossible status {status:#x}")
