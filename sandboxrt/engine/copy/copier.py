"""Runs the copier (``copy.c``): one process for each copy, in mounts of its own, gone when its owner is."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import Captured
from sandboxrt.engine.init import build_tool
from sandboxrt.engine.launch.program import reap, spawn_launcher
from sandboxrt.engine.launch.words import meaning
from sandboxrt.engine.own_userns import write_own_maps
from sandboxrt.engine.probe import LAUNCH_SOURCE
from sandboxrt.errors import ResourceCreationError
from sandboxrt.threads import run_blocking

__all__ = ["COPY_SOURCE", "Copier", "Freezer", "Mounts"]

COPY_SOURCE = Path(__file__).with_name("copy.c")
_SOCKET_FD, _TARGET_FD, _THAW_FD, _MAPS_FD = 3, 4, 5, 6
_START_S = 20.0
_END_S = 5.0
_MAX_REPLY_BYTES = 1024
_WORDS = {
    "owner": "a file belongs to somebody outside of the sandbox",
    "device": "it holds a device node, which snapshots must not",
    "capability": "a file has capabilities for another user namespace",
    "changing": "it changed while it was copied",
}


@attrs.frozen
class Mounts:
    """What is mounted before the copy, in a namespace that ends with it.

    Attributes:
        words: The launcher's instructions for it.
        source: The folder to copy then.
        fds: Descriptors that the instructions name, by their numbers (8 or more).
    """

    words: tuple[str, ...]
    source: str
    fds: dict[int, int] = attrs.field(factory=dict)


@attrs.frozen
class Freezer:
    """How what is copied is made to stand still.

    Attributes:
        freeze: Returns when every process does.
        thaw: Lets them run again; called whatever happened, and harmless where they do.
        file: The control group's file that thaws, for the copier, which lives where its owner may not.
        text: What is written into it for that.
    """

    freeze: Callable[[], Awaitable[None]]
    thaw: Callable[[], Awaitable[None]]
    file: Path
    text: str


@attrs.frozen
class Copier:
    """Copies trees into layers.

    Attributes:
        tools: The folder of compiled programs.
        is_root: Whether this is the host's root; otherwise the copy happens in the user's subordinate ids.
    """

    tools: Path
    is_root: bool

    async def program(self) -> Path:
        """The compiled copier."""
        return await build_tool(COPY_SOURCE, self.tools)

    async def copy(
        self, mounts: Mounts, target: Path, *, first_id: int | None, reserve_bytes: int, freezer: Freezer | None = None
    ) -> Captured:
        """Copy a tree to ``target/tree``, a folder that is made.

        Args:
            mounts: What to copy.
            target: An empty private folder on the host; after a failure its owner removes it.
            first_id: First of the 65,536 owners that become 0 to 65,535; every owner stays where left out.
            reserve_bytes: What must stay free on the target's file system.
            freezer: Of what writes to the tree, where something may.

        Raises:
            ResourceCreationError: ``DiskFull``, or ``Capture`` with the reason.

        Cancellation: the copier is killed, and what was frozen runs again; the target is the caller's to remove.
        """
        launcher, program = await build_tool(LAUNCH_SOURCE, self.tools), await self.program()
        with contextlib.ExitStack() as stack:
            job = _Job.start(stack, self, launcher, program, mounts, target, first_id, reserve_bytes, freezer)
            copied = await job.run(freezer)
        await run_blocking(None, lambda: shutil.rmtree(target / "links"))
        return copied


@attrs.define(eq=False)
class _Job:
    """One copier that runs."""

    pid: int
    pidfd: int
    sock: socket.socket
    errors: int
    maps: socket.socket | None
    target: Path

    @classmethod
    def start(
        cls,
        stack: contextlib.ExitStack,
        copier: Copier,
        launcher: Path,
        program: Path,
        mounts: Mounts,
        target: Path,
        first_id: int | None,
        reserve_bytes: int,
        freezer: Freezer | None,
    ) -> _Job:
        ours, theirs = (stack.enter_context(each) for each in socket.socketpair())
        errors, their_errors = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, errors)
        fds = {_SOCKET_FD: theirs.fileno(), **mounts.fds}
        maps = None
        words: list[str] = []
        try:
            fds[_TARGET_FD] = _opened(stack, target, os.O_RDONLY | os.O_DIRECTORY)
            if freezer is not None:
                fds[_THAW_FD] = _opened(stack, freezer.file, os.O_WRONLY)
            if not copier.is_root:
                maps, theirs_too = (stack.enter_context(each) for each in socket.socketpair())
                fds[_MAPS_FD] = theirs_too.fileno()
                words += ["userns", str(_MAPS_FD)]
            words += [*mounts.words, "exec", str(program), str(_SOCKET_FD), str(_TARGET_FD)]
            words += [str(_THAW_FD), freezer.text] if freezer is not None else ["-1", ""]
            shift = ["0", "0"] if first_id is None else [str(first_id), "65536"]
            words += [mounts.source, *shift, str(reserve_bytes), "trusted" if copier.is_root else "user"]
            pid = spawn_launcher(launcher, words, fds, their_errors)
        except OSError as error:
            raise ResourceCreationError(f"the copier could not be started: {error}", "snapshot", "Capture") from error
        finally:
            os.close(their_errors)
        theirs.close()
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        return cls(pid, pidfd, ours, errors, maps, target)

    async def run(self, freezer: Freezer | None) -> Captured:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.sock))
        try:
            with trio.fail_after(_START_S):
                if self.maps is not None:
                    await self._answer(self.maps)
                await self._read(stream, "ready")
            began_ns = None
            if freezer is not None:
                began_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                await freezer.freeze()
            await stream.send_all(b"g")
            files, used_bytes, thawed_ns = (int(word) for word in (await self._read(stream, "done"))[:3])
            paused_s = None if began_ns is None else (thawed_ns - began_ns) / 1e9
            return Captured(files, used_bytes, paused_s)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            raise self._failed(str(error) or "it took too long to start") from error
        finally:
            with trio.CancelScope(shield=True):
                if freezer is not None:
                    await freezer.thaw()
                await stream.aclose()
                await self._end()

    async def _answer(self, sock: socket.socket) -> None:
        """Write the id maps when the launcher asks for them."""
        maps = trio.socket.from_stdlib_socket(sock)
        if await maps.recv(1) == b"u":
            await run_blocking(None, lambda: write_own_maps(self.pid))
            await maps.send(b"m")

    async def _read(self, stream: trio.SocketStream, wanted: str) -> list[str]:
        """The words of the next line after ``wanted``, which it must begin with."""
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_REPLY_BYTES:
            got = await stream.receive_some(_MAX_REPLY_BYTES)
            if not got:
                raise self._failed(await self._last_words())
            line += got
        word, *rest = line.decode(errors="replace").split()
        if word == wanted:
            return rest
        raise self._refused(rest)

    def _refused(self, words: Sequence[str]) -> ResourceCreationError:
        number, stage, *name = words
        if int(number) in (errno.ENOSPC, errno.EDQUOT):
            message = f"{os.strerror(errno.ENOSPC)} on this host, below {self.target.parent}"
            return ResourceCreationError(message, "snapshot", "DiskFull")
        reason = _WORDS.get(stage, f"{stage}: {os.strerror(int(number))}")
        where = f" ({' '.join(name)!r})" if name else ""
        return self._failed(f"{reason}{where}")

    def _failed(self, reason: str) -> ResourceCreationError:
        return ResourceCreationError(f"the files could not be copied: {reason}", "snapshot", "Capture")

    async def _last_words(self) -> str:
        await self._end()
        os.set_blocking(self.errors, False)
        with contextlib.suppress(BlockingIOError):
            text = os.read(self.errors, 4096).decode(errors="replace").strip()
            lines = [line for line in text.splitlines() if not line.startswith("loop ")]
            if lines:
                return meaning(lines[-1])
        return "the copier was ended"

    async def _end(self) -> None:
        """Its end, by force where it goes on. Shielded by callers; bounded."""
        if self.pid < 0:
            return
        with trio.CancelScope(shield=True):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            with trio.move_on_after(_END_S):
                await trio.lowlevel.wait_readable(self.pidfd)
            reap(self.pid)
            self.pid = -1


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
