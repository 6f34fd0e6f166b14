"""Which commands were begun in a sandbox: what a start asks before it runs anything, since it may be a repeated one.

A client whose answer was lost sends its start again under the same id, perhaps to the next server, or after the sandbox
was stopped. So ids are remembered for longer than sessions: whatever became of the command, and, by a host whose
sandboxes outlive it, in a file that is written before each start.

The file survives the end of the host's process, however that ends: the kernel has the bytes then. It is not flushed to
the disk, which would cost more than the command; after a loss of power the last seconds may be missing.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Final

import trio

from sandboxrt.threads import run_blocking

__all__ = ["REMEMBERED_STARTS", "Begun", "StartLog"]

REMEMBERED_STARTS: Final = 16 * 1024
"""The newest so many of a sandbox: 136 a second for the two minutes in which clients repeat a start."""

_NAME: Final = "starts"
_MARK: Final = struct.Struct("=12sI")
_MARK_BYTES: Final = _MARK.size
_NUMBERS: Final = 2**32


class Begun(enum.Enum):
    """When a command was begun."""

    NOW = enum.auto()
    """In what runs of the sandbox now: what can be said of it, its session says, or has said."""
    BEFORE_STOP = enum.auto()
    """Before the sandbox was last stopped, which ended it at the latest."""
    BEFORE_HOST = enum.auto()
    """Under a host that has ended since."""


class StartLog:
    """The ids of one sandbox's commands.

    Args:
        folder: Where its file is, made at the first start; ``None``: memory is enough.
        is_new: Whether no other host can have written there.
    """

    def __init__(self, folder: Path | None, *, is_new: bool) -> None:
        self._folder = folder
        self._loaded = is_new or folder is None
        self._loading = trio.Lock()
        self._begun: OrderedDict[bytes, tuple[int, Begun]] = OrderedDict()
        """Oldest first, each with its place in the file."""
        self._number = 1

    def __len__(self) -> int:
        return len(self._begun)

    def when(self, command_id: str) -> Begun | None:
        """When a command of that id was begun, or ``None``: it never was, or too long ago. To be loaded before."""
        found = self._begun.get(_digest(command_id))
        return None if found is None else found[1]

    def note(self, command_id: str) -> None:
        """A command is about to be begun.

        Raises:
            OSError: It could not be recorded, and must not be begun.
        """
        digest = _digest(command_id)
        number = self._number
        # Some microseconds without waiting for the disk, against the hundreds that a worker thread costs each command.
        self._write(number, digest)
        self._number = number % (_NUMBERS - 1) + 1
        self._begun[digest] = number, Begun.NOW
        self._begun.move_to_end(digest)
        if len(self._begun) > REMEMBERED_STARTS:
            self._begun.popitem(last=False)

    def forget(self, command_id: str) -> None:
        """It was not begun after all."""
        number, _ = self._begun.pop(_digest(command_id), (0, None))
        if number:
            # Left there it would be taken for begun by the next host: an answer that is too careful, not a wrong one.
            with contextlib.suppress(OSError):
                self._write(number, None)

    def end_run(self) -> None:
        """The sandbox was stopped: what was begun until now has ended."""
        for digest, (number, when) in self._begun.items():
            if when is Begun.NOW:
                self._begun[digest] = number, Begun.BEFORE_STOP

    async def load(self) -> None:
        """Read what an earlier host has written; nothing where that was done, and then without a checkpoint.

        Raises:
            OSError: The file cannot be read.
        """
        if self._loaded:
            return
        async with self._loading:
            if not self._loaded:
                assert self._folder is not None
                path = self._folder / _NAME
                marks = await run_blocking(None, lambda: _read(path))
                for number, digest in marks:
                    self._begun[digest] = number, Begun.BEFORE_HOST
                if marks:
                    self._number = marks[-1][0] % (_NUMBERS - 1) + 1
                self._loaded = True

    def _write(self, number: int, digest: bytes | None) -> None:
        if self._folder is None:
            return
        path = self._folder / _NAME
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        try:
            mark = bytes(_MARK_BYTES) if digest is None else _MARK.pack(digest, number)
            os.pwrite(fd, mark, number % REMEMBERED_STARTS * _MARK_BYTES)
        finally:
            os.close(fd)


def _digest(command_id: str) -> bytes:
    return hashlib.blake2b(command_id.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _read(path: Path) -> list[tuple[int, bytes]]:
    """The marks in a file, oldest first."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = len(data) - len(data) % _MARK_BYTES
    marks = [(number, digest) for digest, number in _MARK.iter_unpack(data[:whole]) if number]
    newest = max((number for number, _ in marks), default=0)
    if any(number < newest - _NUMBERS // 2 for number, _ in marks):
        # The numbers have begun anew: the high ones are the old ones.
        return sorted(marks, key=lambda mark: (mark[0] + _NUMBERS // 2) % _NUMBERS)
    return sorted(marks)
