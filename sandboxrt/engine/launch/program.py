"""Runs the launcher: one process for each container, started directly, waited for without a thread."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import attrs
import trio

from sandboxrt.threads import run_blocking

__all__ = ["Finished", "reap", "run_launcher", "spawn_launcher"]

_FIRST_COPY = 100
_MAX_OUTPUT_BYTES = 1 << 16
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_MAX_REAP_S = 5.0


@attrs.frozen
class Finished:
    """How the launcher, or the runtime that it became, ended.

    Attributes:
        code: Its exit code, or minus the signal that ended it; ``None`` when something else in this process took it.
        output: What it said on standard error.
        timed_out: It was killed because it took too long.
    """

    code: int | None
    output: str
    timed_out: bool = False


async def run_launcher(
    launcher: Path,
    words: Iterable[str],
    fds: Mapping[int, int],
    *,
    timeout_s: float,
    maps: tuple[socket.socket, Callable[[int], None]] | None = None,
) -> Finished:
    """Run the launcher with instructions to its end.

    Args:
        launcher: The compiled program.
        words: Instructions and arguments, see ``launch.c``.
        fds: Descriptors to give it, by the number that it knows them by (3 or more). They stay the caller's.
        timeout_s: After this long it is killed.
        maps: Our end of the socket of a ``userns`` instruction, and what writes the id maps of a process, in a thread.

    Raises:
        ValueError: A word holds a NUL.
        OSError: It could not be started.

    Cancellation: shielded; a start that is under way is finished, because half a container is harder to remove than a
    whole one. Bounded by ``timeout_s``.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = spawn_launcher(launcher, words, fds, write)
        finally:
            os.close(write)
        with trio.CancelScope(shield=True):
            code, timed_out = await _wait(pid, timeout_s, maps)
        os.set_blocking(read, False)
        with contextlib.suppress(BlockingIOError):
            return Finished(code, os.read(read, _MAX_OUTPUT_BYTES).decode(errors="replace"), timed_out)
        return Finished(code, "", timed_out)
    finally:
        os.close(read)


def _encode(words: Iterable[str]) -> bytes:
    listed = list(words)
    if any("\0" in word for word in listed):
        raise ValueError("a NUL in a name")
    return "".join(f"{word}\0" for word in listed).encode()


def spawn_launcher(launcher: Path, words: Iterable[str], fds: Mapping[int, int], output: int) -> int:
    """Start it with the given descriptors and no other, as leader of a session of its own. Returns its id.

    Args:
        launcher: The compiled program.
        words: Instructions and arguments, see ``launch.c``.
        fds: Descriptors to give it, by the number that it knows them by (3 or more). They stay the caller's.
        output: Its standard output and error: a pipe made for it. A runtime gives its standard streams to the
            container's root, so nothing that anybody else has open may be one.

    Raises:
        ValueError: A word holds a NUL.
        OSError: It could not be started.
    """
    instructions = _encode(words)
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        given = own(os.memfd_create("instructions", os.MFD_CLOEXEC))
        os.write(given, instructions)
        os.lseek(given, 0, os.SEEK_SET)
        # Copies with high numbers, so that no target is the source of another.
        copies = {
            target: own(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_COPY))
            for target, fd in {0: given, 1: output, 2: output, **fds}.items()
        }
        return os.posix_spawn(
            launcher,
            ["launch"],
            _ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in copies.items()],
            setsid=True,
            setsigmask=[],
            # Python ignores some signals, and programs in the container would inherit that.
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ, signal.SIGTERM, signal.SIGHUP],
        )


async def _wait(
    pid: int, timeout_s: float, maps: tuple[socket.socket, Callable[[int], None]] | None
) -> tuple[int | None, bool]:
    timed_out = False
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None, False
    try:
        with trio.move_on_after(timeout_s) as scope:
            if maps is not None:
                await _answer(pid, *maps)
            await trio.lowlevel.wait_readable(pidfd)
        if scope.cancelled_caught:
            timed_out = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with trio.move_on_after(_MAX_REAP_S):
                await trio.lowlevel.wait_readable(pidfd)
        return reap(pid), timed_out
    finally:
        os.close(pidfd)


async def _answer(pid: int, sock: socket.socket, write_maps: Callable[[int], None]) -> None:
    """Write the id maps when the launcher asks for it. It fails by itself when it gets no answer."""
    sock.setblocking(False)
    await trio.lowlevel.wait_readable(sock)
    try:
        if sock.recv(1) == b"u":
            await run_blocking(None, lambda: write_maps(pid))
            sock.send(b"m")
    finally:
        sock.close()


def reap(pid: int) -> int | None:
    """The exit code of a child that has ended, or minus its signal; ``None`` where somebody else took it."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if found else None
