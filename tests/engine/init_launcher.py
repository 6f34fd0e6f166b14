"""Starts a program as pid 1 of fresh namespaces, as an OCI runtime would.

Usage: ``init_launcher.py PROGRAM_FD CONTROL_FD BASE TMP_BYTES``.

Standard library only, run with ``-I -S`` so that it starts fast. It waits for the program and exits with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

NEW = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000  # user, mount, pid, net, ipc
# chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service
KEPT_CAPABILITIES = {0, 1, 3, 4, 5, 6, 7, 10}
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    check(libc.mount(source, target, kind, flags, data))


def map_ids(pid: int, base: int) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(f"0 {base} 65536")


def unshare(base: int) -> None:
    read_end, write_end = os.pipe()
    parent = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        os.read(read_end, 1)
        map_ids(parent, base)
        os._exit(0)
    check(libc.unshare(NEW))
    os.write(write_end, b"x")
    _, status = os.waitpid(mapper, 0)
    assert status == 0
    os.close(read_end)
    os.close(write_end)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def arrange(tmp_bytes: int) -> None:
    mount(b"none", b"/", None, 0x44000)  # private, recursively
    mount(b"proc", b"/proc", b"proc", 0)
    mount(b"devpts", b"/dev/pts", b"devpts", 0, b"newinstance,ptmxmode=0666,mode=0620")
    mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"mode=1777,size=%d" % tmp_bytes)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", 1 | 0x40))


def main() -> None:
    program, control, base, tmp_bytes = (int(word) for word in sys.argv[1:])
    unshare(base)
    child = os.fork()
    if child == 0:
        arrange(tmp_bytes)
        for capability in set(range(41)) - KEPT_CAPABILITIES:
            check(libc.prctl(24, capability, 0, 0, 0))  # PR_CAPBSET_DROP
        check(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
        os.dup2(control, 100)
        os.dup2(program, 101, inheritable=False)
        os.dup2(100, 3)
        os.execve(101, ["init"], {})
    os.close(control)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


main()
