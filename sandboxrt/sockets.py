"""Writing to sockets without waiting: what is small need not pay for the ways of waiting.

trio's own ``send`` lets everybody else run once before it returns, which for a small message between two programs is a
good part of its way. Who uses this instead lets others run where it waits for the next message.
"""

from __future__ import annotations

import os

import trio

__all__ = ["send_at_once"]


def send_at_once(sock: trio.socket.SocketType, data: bytes | bytearray | memoryview) -> int:
    """Write what the kernel takes now; returns how many bytes that was.

    None where the socket is closed or broken: whoever sends the rest in the ordinary way finds out.
    """
    handle = sock.fileno()
    if handle < 0:
        return 0
    try:
        return os.write(handle, data)
    except OSError:
        return 0
