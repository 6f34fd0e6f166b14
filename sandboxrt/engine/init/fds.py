"""Descriptors: owned ones that close for certain, and checks of those that came out of a container."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import termios
from types import TracebackType

import attrs

from sandboxrt.engine.init.wire import InitProtocolError

__all__ = ["FdSet", "check_regular_file", "check_tcp_socket", "check_terminal"]

_TIOCGPTN = 0x80045430
_SO_NETNS_COOKIE = 71
_KERNEL_FILE_SYSTEMS = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0x6E736673: "nsfs",
    0xCAFE4A11: "bpf",
    0x6165676C: "pstore",
    0x62656570: "configfs",
    0xF97CFF8C: "selinuxfs",
    0x42494E4D: "binfmt_misc",
}
_libc = ctypes.CDLL(None, use_errno=True)


@attrs.define
class FdSet:
    """Descriptors that are closed when the block ends, except those taken out before."""

    _fds: set[int] = attrs.field(factory=set, init=False)

    def add(self, fd: int) -> int:
        """Own ``fd``."""
        self._fds.add(fd)
        return fd

    def take(self, fd: int) -> int:
        """Disown ``fd``: the caller closes it from now on."""
        self._fds.discard(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close one now."""
        if fd in self._fds:
            self._fds.discard(fd)
            os.close(fd)

    def __enter__(self) -> FdSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._fds:
            os.close(self._fds.pop())


def check_regular_file(fd: int, *, writable: bool) -> None:
    """Refuse what is not data: devices, sockets, and the files of kernel file systems, which act when written.

    Raises:
        InitProtocolError: It is no regular file on an ordinary file system, or not opened as it must be.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise InitProtocolError("a descriptor that is no regular file")
    mode = fcntl.fcntl(fd, fcntl.F_GETFL)
    if mode & getattr(os, "O_PATH", 0) or mode & os.O_ACCMODE != (os.O_WRONLY if writable else os.O_RDONLY):
        raise InitProtocolError("a file opened in another way than asked for")
    # struct statfs is 120 bytes on 64-bit machines and begins with f_type, a long.
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        raise InitProtocolError(f"a descriptor without a file system: errno {ctypes.get_errno()}")
    kind = struct.unpack_from("@l", buffer.raw)[0] & 0xFFFFFFFF
    if kind in _KERNEL_FILE_SYSTEMS:
        raise InitProtocolError(f"a file of {_KERNEL_FILE_SYSTEMS[kind]}")


def check_terminal(fd: int, number: int) -> None:
    """Refuse what is not the master of terminal ``number``.

    Raises:
        InitProtocolError: It is something else.
    """
    found = os.fstat(fd)
    device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if not stat.S_ISCHR(found.st_mode) or (device != (5, 2) and device[0] not in range(128, 136)):
        raise InitProtocolError("a descriptor that is no terminal master")
    try:
        (actual,) = struct.unpack("=I", fcntl.ioctl(fd, _TIOCGPTN, b"\0" * 4))
    except (OSError, termios.error) as error:
        raise InitProtocolError("a descriptor that is no terminal master") from error
    if actual != number:
        raise InitProtocolError("the master of another terminal")


def check_tcp_socket(sock: socket.socket, family: int) -> None:
    """Refuse what is not a fresh TCP socket of another network namespace than this process's.

    Raises:
        InitProtocolError: It is something else, or the kernel (before 5.14) cannot tell.
    """
    try:
        facts = tuple(
            sock.getsockopt(socket.SOL_SOCKET, option)
            for option in (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL, socket.SO_ACCEPTCONN)
        )
        cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
            own_cookie = own.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError as error:
        raise InitProtocolError(f"a descriptor that is no socket: {errno.errorcode.get(error.errno or 0)}") from error
    if facts != (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, 0):
        raise InitProtocolError("a socket of another kind")
    if cookie == own_cookie:
        raise InitProtocolError("a socket of this machine's own network")
