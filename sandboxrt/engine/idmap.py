"""Blocks of user and group ids, and the descriptors by which mounts are mapped into them.

Every sandbox that root makes has 65,536 host ids of its own. The blocks start high, so that they meet neither the ids
of people and services nor the ranges that ``useradd`` hands out in ``/etc/subuid`` (from 100000 up); where an
administrator put a range there all the same, :func:`overlapping_ranges` finds it.

The shared, read-only layers of snapshots belong to the ids seen inside (0..65535). A mount can show them as the ids of
a block when it is given a user namespace that has the mapping; :class:`UsernsFds` makes those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs
import trio

from sandboxrt.threads import run_blocking

__all__ = [
    "UID_BLOCK_BASE",
    "UID_BLOCK_COUNT",
    "UID_BLOCK_SIZE",
    "SubidRange",
    "UsernsFds",
    "overlapping_ranges",
    "parse_subids",
    "read_subids",
    "subid_ranges_of",
    "uid_base",
]

UID_BLOCK_BASE = 0x20000000
UID_BLOCK_SIZE = 65_536
UID_BLOCK_COUNT = (0x80000000 - UID_BLOCK_BASE) // UID_BLOCK_SIZE
"""Ids from 0x80000000 up are negative to programs that keep them in an ``int``."""

_ANSWER_TIMEOUT_S = 5.0
_MAX_FILE_BYTES = 1 << 20
_THREADS = 4
_limiters: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("user namespace threads")


def uid_base(block: int) -> int:
    """First host id of a block.

    Raises:
        ValueError: There is no such block.
    """
    if not 0 <= block < UID_BLOCK_COUNT:
        raise ValueError(f"uid blocks are numbered 0..{UID_BLOCK_COUNT - 1}, not {block}")
    return UID_BLOCK_BASE + block * UID_BLOCK_SIZE


@attrs.frozen
class SubidRange:
    """A line of ``/etc/subuid`` or ``/etc/subgid``: ``count`` host ids from ``first`` that ``owner`` may map."""

    owner: str
    first: int
    count: int


def parse_subids(text: str) -> tuple[SubidRange, ...]:
    """The ranges in a file of ``owner:first:count`` lines; lines that make no sense are passed over, as shadow does."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] and fields[1].isdecimal() and fields[2].isdecimal():
            found.append(SubidRange(fields[0], int(fields[1]), int(fields[2])))
    return tuple(found)


def subid_ranges_of(ranges: Iterable[SubidRange], name: str | None, uid: int) -> tuple[SubidRange, ...]:
    """The ranges that belong to a user, who may be entered by name or by number."""
    return tuple(each for each in ranges if each.owner in (name, str(uid)))


def overlapping_ranges(ranges: Iterable[SubidRange]) -> tuple[SubidRange, ...]:
    """Those that share ids with the sandboxes' blocks: their owners could act as processes of sandboxes."""
    end = UID_BLOCK_BASE + UID_BLOCK_COUNT * UID_BLOCK_SIZE
    return tuple(each for each in ranges if each.first < end and each.first + each.count > UID_BLOCK_BASE)


def read_subids(path: Path) -> tuple[SubidRange, ...]:
    """The ranges of a file; none when it does not exist."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return parse_subids(file.read(_MAX_FILE_BYTES))
    except OSError:
        return ()


@attrs.frozen
class UsernsFds:
    """Makes user namespaces that nothing runs in, for their mapping alone.

    Attributes:
        launcher: The compiled launcher. A namespace must be made by a process with a single thread, which we are not.
    """

    launcher: Path

    async def open(self, base: int, size: int = UID_BLOCK_SIZE) -> int:
        """A descriptor of a user namespace where ids 0.. are ``base``.. on the host; whoever asks closes it.

        Raises:
            OSError: No such namespace can be made here (``EPERM`` without root's rights, ``ENOSPC`` beyond the limit).

        Cancellation: atomic; the call takes a millisecond and is finished.
        """
        mapping = f"0 {base} {size}\n"

        def write_maps(pid: int) -> None:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text(mapping)

        return await self.open_with(write_maps)

    async def open_with(self, write_maps: Callable[[int], None]) -> int:
        """The same with maps of the caller's making: ``write_maps`` gets the process id, in a worker thread."""
        try:
            limiter = _limiters.get()
        except LookupError:
            limiter = trio.CapacityLimiter(_THREADS)
            _limiters.set(limiter)
        return await run_blocking(limiter, lambda: self._open(write_maps))

    def _open(self, write_maps: Callable[[int], None]) -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = self._start(theirs)
            try:
                theirs.close()
                ours.settimeout(_ANSWER_TIMEOUT_S)
                if ours.recv(1) != b"u":
                    raise PermissionError("this user may not make user namespaces")
                write_maps(pid)
                return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _start(self, theirs: socket.socket) -> int:
        """Start the launcher with instructions on 0, its socket on 3, and nothing else of ours."""
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(write, b"userns\0003\0")
            actions = [
                (os.POSIX_SPAWN_DUP2, read, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
            ]
            return os.posix_spawn(self.launcher, ["launch"], {}, file_actions=actions)
        finally:
            for fd in (read, write, null):
                os.close(fd)
