"""Starts programs through the first process of a container, and owns what belongs to one."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from typing import TYPE_CHECKING

import attrs
import trio

from sandboxrt.engine.base import CommandGroup, ExecFailedError, ExitStatus, ProcessSpec, SpawnFailedError
from sandboxrt.engine.init.fds import FdSet, check_terminal
from sandboxrt.engine.init.gate import RecordSocket
from sandboxrt.engine.init.streams import Pipes, TerminalInput, TerminalOutput, set_terminal_size
from sandboxrt.engine.init.wire import (
    InitProtocolError,
    RecordKind,
    Request,
    RequestFlag,
    RequestKind,
    Stage,
    pack_strings,
)

if TYPE_CHECKING:
    from sandboxrt.engine.init.channel import InitChannel, Job

__all__ = ["InitProcess", "exec_failure", "join_group", "pack_process", "spawn"]

_CLEANUP_S = 5.0
_EXEC_STAGES = {
    Stage.TERMINAL: "terminal",
    Stage.IDENTITY: "identity",
    Stage.CHDIR: "chdir",
    Stage.EXEC: "exec",
}


@attrs.define(eq=False)
class InitProcess:
    """A program started by the container's first process; see :class:`~sandboxrt.engine.base.Process`."""

    pid: int
    stdin: trio.abc.SendStream | None
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream | None
    _channel: InitChannel
    _job: Job
    _group: CommandGroup | None
    _is_closed: bool = False

    async def wait(self) -> ExitStatus:
        """Wait until the leader was reaped. If the whole container died first: signal 9."""
        await self._job.exited.wait()
        assert self._job.status is not None
        return self._job.status

    async def wait_tree(self) -> None:
        """Wait until no process of the tree is left; without a group, until the leader is gone."""
        await self._job.exited.wait()
        if self._group is not None:
            await self._group.wait_empty()

    async def signal(self, signum: int) -> None:
        """Send a signal to every process of the group; without one, to the leader's process group while it lives."""
        if self._group is not None:
            await self._group.signal(signum)
        else:
            await self._channel.signal(self._job, signum)

    async def kill_tree(self) -> None:
        """SIGKILL for the group; without one, for the leader's process group while it lives. Idempotent."""
        if self._group is not None:
            await self._group.kill()
        else:
            await self._channel.signal(self._job, signal.SIGKILL)

    async def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size; nothing without one, or when it was closed."""
        if isinstance(self.stdout, TerminalOutput) and (fd := self.stdout.fileno()) >= 0:
            set_terminal_size(fd, columns, rows)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Kill what is left of the tree, close the streams, free the group. Idempotent. Shielded, 5 s at most.

        Raises:
            RuntimeError: Its processes did not end in that time; the group is left to the container.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with trio.move_on_after(_CLEANUP_S, shield=True) as scope:
            try:
                await self.kill_tree()
            finally:
                await self.stdout.aclose()
                for stream in (self.stdin, self.stderr):
                    if stream is not None:
                        await stream.aclose()
            await self._job.exited.wait()
            if self._group is not None:
                await self._group.wait_empty()
                await self._group.remove()
        if scope.cancelled_caught:
            raise RuntimeError(f"the processes of command {self.pid} did not end within {_CLEANUP_S:g} s")


async def spawn(channel: InitChannel, spec: ProcessSpec, group: CommandGroup | None) -> InitProcess:
    """Start a program; :meth:`InitChannel.spawn` has the contract."""
    try:
        return await _spawn(channel, spec, group)
    except BaseException:
        if group is not None:
            # What cannot be removed goes with the container; the reason for the failure must not be lost over it.
            with trio.move_on_after(_CLEANUP_S, shield=True), contextlib.suppress(OSError):
                await group.remove()
        raise


async def _spawn(channel: InitChannel, spec: ProcessSpec, group: CommandGroup | None) -> InitProcess:
    strings = pack_process(spec)
    await trio.lowlevel.checkpoint_if_cancelled()
    with FdSet() as fds:
        pipes = None if spec.pty else _make_pipes(channel, fds, spec)
        inside = pipes.inside if pipes else ()
        job = channel.new_job()
        is_sent = False
        try:
            async with channel.job(_request(channel, spec, job.id, len(strings)), inside, strings) as gate:
                is_sent = True
                for fd in inside:
                    fds.close(fd)
                joined = None
                try:
                    pid = await _release(channel, job, gate, group, spec)
                    joined = group
                    terminal = await _await_exec(channel, gate, spec, fds)
                except BaseException:
                    with trio.move_on_after(_CLEANUP_S, shield=True):
                        await _undo(channel, job, gate, joined)
                    raise
        finally:
            if not is_sent:
                channel.forget(job)
        return _make_process(pid, fds, pipes, terminal, (channel, job, group))


def pack_process(spec: ProcessSpec) -> bytes:
    """The strings of a request to start a program.

    Raises:
        ValueError: One of them cannot be what it is to be.
    """
    if not spec.argv:
        raise ValueError("argv is empty")
    if not spec.cwd.startswith("/"):
        raise ValueError(f"cwd must be absolute: {spec.cwd!r}")
    if any("=" in name or not name for name in spec.env):
        raise ValueError("a variable's name is empty or holds an '='")
    if spec.pty is not None and not all(0 <= size < 65536 for size in spec.pty):
        raise ValueError(f"a terminal cannot have the size {spec.pty}")
    return pack_strings((spec.cwd, *spec.argv, *(f"{name}={value}" for name, value in spec.env.items())))


def _request(channel: InitChannel, spec: ProcessSpec, job_id: int, strings_bytes: int) -> Request:
    flags, oom_score_adj = channel.base_request()
    return Request(
        kind=RequestKind.SPAWN,
        job_id=job_id,
        identity=spec.identity,
        flags=flags | RequestFlag.PTY if spec.pty else flags,
        argument_count=len(spec.argv),
        environment_count=len(spec.env),
        strings_bytes=strings_bytes,
        oom_score_adj=oom_score_adj,
        terminal=spec.pty or (0, 0),
        argument=int(spec.stdin),
    )


def _make_pipes(channel: InitChannel, fds: FdSet, spec: ProcessSpec) -> Pipes:
    uid, gid = channel.ids.to_host(spec.identity.uid), channel.ids.to_host(spec.identity.gid)
    try:
        return Pipes.make(fds, stdin=spec.stdin, owner=None if uid is None or gid is None else (uid, gid))
    except OSError as error:
        raise SpawnFailedError(f"no pipes could be made: {error}", error.errno or 0) from error


async def _release(
    channel: InitChannel, job: Job, gate: RecordSocket, group: CommandGroup | None, spec: ProcessSpec
) -> int:
    """Learn who the waiting child is, put it into its group, let it go on. Returns its id inside."""
    message = await channel.answer(gate, RecordKind.HELLO)
    if message is None:
        raise SpawnFailedError("the container is dying", errno.ESRCH)
    if message.record.kind is RecordKind.FAILED:
        if message.record.a == Stage.FORK:
            channel.forget(job)
        raise exec_failure((message.record.a, message.record.b), spec)
    sender = message.sender
    if message.record.a <= 0 or sender is None or sender.pid <= 0:
        raise channel.violation(InitProtocolError("a child without an id"))
    if not (channel.ids.owns(sender.uid) and channel.ids.owns(sender.gid)):
        raise channel.violation(InitProtocolError("a child with an identity of the host"))
    try:
        if group is not None:
            await join_group(group, sender.pid)
        await gate.send(channel.release_record(job.id))
    except (OSError, trio.ClosedResourceError) as error:
        code = error.errno if isinstance(error, OSError) else errno.ESRCH
        raise SpawnFailedError(f"the process could not be put into its group: {error}", code or 0) from error
    return message.record.a


async def join_group(group: CommandGroup, host_pid: int) -> None:
    """Put a child that waits to be released into its group.

    Raises:
        OSError: The kernel refused, or the child is gone.
    """
    # The child is alive here, waiting. Were it killed from inside before the group takes its number, and that number
    # used again meanwhile, a stranger would be in the group: then nothing in it may be killed.
    pidfd = os.pidfd_open(host_pid)
    try:
        await group.add(host_pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):
            raise ProcessLookupError(errno.ESRCH, "it died before it was released")
    finally:
        os.close(pidfd)


async def _await_exec(channel: InitChannel, gate: RecordSocket, spec: ProcessSpec, fds: FdSet) -> int | None:
    """Wait until the program was executed. Returns the master of its terminal."""
    terminal = None
    if spec.pty:
        message = await channel.answer(gate, RecordKind.TERMINAL, with_fd=True)
        if message is None:
            raise SpawnFailedError("the process was killed before it ran", errno.ESRCH)
        if message.record.kind is RecordKind.FAILED:
            raise exec_failure((message.record.a, message.record.b), spec)
        assert message.fd is not None
        terminal = fds.add(message.fd)
        try:
            check_terminal(terminal, message.record.a)
        except InitProtocolError as error:
            raise channel.violation(error) from error
        os.set_blocking(terminal, False)
    message = await channel.answer(gate, RecordKind.FAILED)
    if message is not None:
        raise exec_failure((message.record.a, message.record.b), spec)
    return terminal


def exec_failure(record: tuple[int, int], spec: ProcessSpec) -> SpawnFailedError | ExecFailedError:
    """The error for a stage and an errno that a failed start was reported with."""
    stage, code = Stage(record[0]), record[1]
    if stage in _EXEC_STAGES:
        subject = {
            Stage.CHDIR: spec.cwd,
            Stage.IDENTITY: f"{spec.identity.uid}:{spec.identity.gid}",
            Stage.TERMINAL: "/dev/ptmx",
        }.get(stage, spec.argv[0])
        return ExecFailedError(_EXEC_STAGES[stage], code, subject)
    return SpawnFailedError(f"no process could be made: {stage.name.lower()}: {os.strerror(code)}", code)


async def _undo(channel: InitChannel, job: Job, gate: RecordSocket, joined: CommandGroup | None) -> None:
    """End a child wherever it is, and wait until it was reaped; with it all that it may have started in its group."""
    if joined is not None:
        await joined.kill()
    if channel.is_dead:
        return  # the kernel ends it with its container
    await channel.signal(job, signal.SIGKILL)
    try:
        while (message := await gate.receive()) is not None:
            if message.fd is not None:
                os.close(message.fd)
            if message.record.kind is RecordKind.FAILED and message.record.a == Stage.FORK:
                channel.forget(job)
    except InitProtocolError as error:
        channel.violation(error)
    await job.exited.wait()
    if joined is not None:
        await joined.wait_empty()


def _make_process(
    pid: int,
    fds: FdSet,
    pipes: Pipes | None,
    terminal: int | None,
    owner: tuple[InitChannel, Job, CommandGroup | None],
) -> InitProcess:
    if pipes is None:
        assert terminal is not None
        second = fds.add(os.dup(terminal))
        output = TerminalOutput(fds.take(terminal))
        return InitProcess(pid, TerminalInput(fds.take(second)), output, None, *owner)
    stdin = None if pipes.stdin is None else trio.lowlevel.FdStream(fds.take(pipes.stdin))
    stdout = trio.lowlevel.FdStream(fds.take(pipes.stdout))
    return InitProcess(pid, stdin, stdout, trio.lowlevel.FdStream(fds.take(pipes.stderr)), *owner)
