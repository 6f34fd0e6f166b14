"""The streams of a started program: three pipes, or a terminal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios

import attrs
import trio

from sandboxrt.engine.init.fds import FdSet

__all__ = ["Pipes", "TerminalInput", "TerminalOutput", "set_terminal_size"]

_STDOUT_PIPE_BYTES = 256 * 1024
_END_OF_INPUT = b"\x04"


@attrs.frozen
class Pipes:
    """Both ends of a program's standard streams, before it is started."""

    inside: tuple[int, ...]
    stdin: int | None
    stdout: int
    stderr: int

    @classmethod
    def make(cls, fds: FdSet, *, stdin: bool, owner: tuple[int, int] | None) -> Pipes:
        """Make them, all owned by ``fds``.

        Args:
            fds: Closes what is not taken out.
            stdin: Whether there is a pipe for input. Otherwise it is the container's own null device, which its first
                process has: a node of the host's must not get in.
            owner: The program's user and group on the host, for whom the pipes can be reopened by name
                (``/dev/stderr``).

        Raises:
            OSError: No descriptors are left.
        """
        stdin_inside, stdin_host = _pipe(fds) if stdin else (None, None)
        stdout_host, stdout_inside = _pipe(fds)
        stderr_host, stderr_inside = _pipe(fds)
        inside = tuple(fd for fd in (stdin_inside, stdout_inside, stderr_inside) if fd is not None)
        # An ordinary user may be over his share of pipe memory; the pipe then keeps its size.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(stdout_host, fcntl.F_SETPIPE_SZ, _STDOUT_PIPE_BYTES)
        for fd in (stdin_host, stdout_host, stderr_host):
            if fd is not None:
                os.set_blocking(fd, False)
        if owner is not None:
            # Without root nobody else can own them; inside they then belong to the user this process is.
            with contextlib.suppress(PermissionError):
                for fd in inside:
                    os.fchown(fd, *owner)
        return cls(inside, stdin_host, stdout_host, stderr_host)


def _pipe(fds: FdSet) -> tuple[int, int]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    return fds.add(read_end), fds.add(write_end)


def set_terminal_size(fd: int, columns: int, rows: int) -> None:
    """Set the size of a terminal; its foreground process group gets SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))


class TerminalOutput(trio.abc.ReceiveStream):
    """Everything a terminal shows. It ends when the last process that has the terminal open is gone."""

    def __init__(self, fd: int) -> None:
        """Own ``fd``, a non-blocking master."""
        self._stream = trio.lowlevel.FdStream(fd)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some output, or nothing at the end.

        Raises:
            trio.ClosedResourceError: It was closed.
        """
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
                return b""
            raise

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    def fileno(self) -> int:
        """The master, for its size; negative once closed."""
        return self._stream.fileno()


class TerminalInput(trio.abc.SendStream):
    """What is typed into a terminal. Closing it types the end-of-input character."""

    def __init__(self, fd: int) -> None:
        """Own ``fd``, a non-blocking master."""
        self._stream = trio.lowlevel.FdStream(fd)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Type ``data``; waits while the program does not read.

        Raises:
            trio.BrokenResourceError: No process has the terminal open any more.
            trio.ClosedResourceError: It was closed.
        """
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the terminal takes more."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Type the end of input where the terminal takes it at once, and close."""
        fd = self._stream.fileno()
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.write(fd, _END_OF_INPUT)
        await self._stream.aclose()
