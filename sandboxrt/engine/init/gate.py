"""The host's end of a socket into a container, and the block of ids that the container's processes have."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import weakref

import attrs
import trio

from sandboxrt.engine.init.fds import FdSet
from sandboxrt.engine.init.wire import RECORD_BYTES, InitProtocolError, Record

__all__ = ["Credentials", "IdMap", "Message", "RecordSocket"]

_UCRED = struct.Struct("=iII")
_INT_BYTES = array.array("i").itemsize
# The length, not the space: its padding would have room for one descriptor more.
_ANCILLARY_BYTES = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_LEN(_INT_BYTES)
_FLIGHT_PAUSE_S = 0.01
_RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT

_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()


@attrs.frozen
class IdMap:
    """How the ids of a container's user namespace appear on the host.

    Attributes:
        ranges: ``(first id inside, first id on the host, how many)``, for users and groups alike.
        can_set_groups: Whether processes inside may change their supplementary groups.
    """

    ranges: tuple[tuple[int, int, int], ...]
    can_set_groups: bool = True

    @classmethod
    def block(cls, base: int, size: int = 65536) -> IdMap:
        """The usual map: ids 0..``size`` inside are ``base``.. on the host."""
        return cls(((0, base, size),))

    def to_host(self, inside: int) -> int | None:
        """The id on the host, or ``None`` where it has none."""
        for first, host, size in self.ranges:
            if first <= inside < first + size:
                return host + inside - first
        return None

    def owns(self, host_id: int) -> bool:
        """Whether an id on the host belongs to the container."""
        return any(host <= host_id < host + size for _, host, size in self.ranges)


@attrs.frozen
class Credentials:
    """Who sent a message, by the kernel's word, in the host's ids."""

    pid: int
    uid: int
    gid: int


@attrs.frozen
class Message:
    """A record that came out of a container, and what came with it. Whoever receives it closes ``fd``."""

    record: Record
    fd: int | None = None
    sender: Credentials | None = None


@attrs.define
class RecordSocket:
    """The host's end of a control socket or gate: sends requests, receives records, believes neither size nor kind."""

    _sock: socket.socket
    with_credentials: bool = False
    _sending: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        _open.add(self._sock)
        self._sock.setblocking(False)
        if self.with_credentials:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    async def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send one record with descriptors, in turn where several tasks do. Cancelled means: not sent.

        Raises:
            OSError: ``EPIPE`` when the other end is gone.
            trio.ClosedResourceError: This end was closed.
        """
        if not self._sending.locked() and not self._send_nowait(data, fds):
            return
        # All jobs of a container share its control socket, and only one task can wait for a descriptor.
        async with self._sending:
            while lacking := self._send_nowait(data, fds):
                if lacking == errno.EAGAIN:
                    await trio.lowlevel.wait_writable(self._sock)
                else:
                    # No event tells when there is room again.
                    await trio.sleep(_FLIGHT_PAUSE_S)

    def _send_nowait(self, data: bytes, fds: tuple[int, ...]) -> int:
        """Send it if there is room: 0, or what there was none in.

        That is the socket (``EAGAIN``), or what an ordinary user may have under way of descriptors in all sockets
        together (``ETOOMANYREFS``).
        """
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError("the socket into the container was closed")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS):
                return error.errno
            raise
        return 0

    async def receive(self) -> Message | None:
        """The next record, or ``None`` at the end.

        Raises:
            InitProtocolError: Anything but one well-formed record with at most one descriptor.
            trio.ClosedResourceError: This end was closed meanwhile.
        """
        was_reset = False
        while True:
            try:
                if self._sock.fileno() < 0:
                    raise trio.ClosedResourceError("the socket into the container was closed")
                data, ancillary, flags, _ = self._sock.recvmsg(RECORD_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except ConnectionResetError:
                # The other end closed with something unread in it; what it said before is still to be had.
                if was_reset:
                    return None
                was_reset = True
            else:
                return _parse(data, ancillary, flags)

    def end_sending(self) -> None:
        """Let the other end see the end, and go on receiving."""
        if self._sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close it; a task that waits on it gets :class:`trio.ClosedResourceError`. Idempotent."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


def _parse(data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> Message | None:
    sender = None
    with FdSet() as fds:
        received: list[int] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(content) - len(content) % _INT_BYTES
                received.extend(fds.add(fd) for fd in array.array("i", content[:whole]))
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(content) == _UCRED.size:
                sender = Credentials(*_UCRED.unpack(content))
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(received) > 1:
            raise InitProtocolError("a record that is too long, or has too many descriptors")
        if not data:
            return None
        record = Record.unpack(data)
        return Message(record, fds.take(received[0]) if received else None, sender)


def _close_in_child() -> None:
    # A container ends when the last copy of its socket is closed: a forked child must not keep its parent's alive.
    for sock in list(_open):
        sock.close()


os.register_at_fork(after_in_child=_close_in_child)
