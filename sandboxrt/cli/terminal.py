"""The caller's own terminal: raw while a command owns it, its size, its input."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import trio

__all__ = ["raw_mode", "read_input", "sizes"]

_READ_BYTES = 65536


@contextlib.contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Put the terminal behind ``fd`` into raw mode, and give it back as it was."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def read_input(fd: int) -> AsyncGenerator[bytes, None]:
    """What can be read from ``fd`` until its end.

    The descriptor is read in a worker thread because it is shared with the caller's shell, which would be surprised to
    find it non-blocking. A read that is under way when the command ends is abandoned with its thread.
    """
    while chunk := await trio.to_thread.run_sync(os.read, fd, _READ_BYTES, abandon_on_cancel=True):
        yield chunk


async def sizes(fd: int) -> AsyncIterator[os.terminal_size]:
    """The terminal's size each time it changes."""
    with trio.open_signal_receiver(signal.SIGWINCH) as changes:
        async for _ in changes:
            yield os.get_terminal_size(fd)
