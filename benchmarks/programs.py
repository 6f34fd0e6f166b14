"""Programs as the rivals' users would start them, with as little of our own in the way as possible.

Plain ``posix_spawn`` and blocking reads: no event loop and no thread stands between the clock and the rival.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

import attrs

__all__ = ["Finished", "ProgramFailedError", "Running", "run", "start"]

READ_BYTES = 1 << 16
DEADLINE_S = 120.0


class ProgramFailedError(RuntimeError):
    """A program of a contender failed: the sample is worth nothing, and the run stops."""


@attrs.frozen
class Finished:
    """What a program did: its output, when the first byte came and when it was gone, seconds after its start."""

    stdout: bytes
    length: int
    first_byte_s: float
    exit_s: float


@attrs.define
class Running:
    """A started program. Standard error goes to a file of ours, so that a rival's words reach the report."""

    argv: Sequence[str]
    pid: int
    stdout: int
    stderr: int
    started: float

    def finish(self, *, keep: bool = True, expect: Sequence[int] = (0,)) -> Finished:
        """Read to the end of its output, reap it.

        Raises:
            ProgramFailedError: Another exit code than expected, or the deadline passed (it was killed).
        """
        pieces: list[bytes] = []
        length = 0
        first = 0.0
        try:
            while True:
                if not select.select([self.stdout], [], [], DEADLINE_S)[0]:
                    os.kill(self.pid, 9)
                    raise ProgramFailedError(f"{self.argv}: silent for {DEADLINE_S} s")
                piece = os.read(self.stdout, READ_BYTES)
                if not length:
                    first = time.perf_counter() - self.started
                if not piece:
                    break
                length += len(piece)
                if keep:
                    pieces.append(piece)
        finally:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            gone = time.perf_counter() - self.started
            os.close(self.stdout)
            said = os.pread(self.stderr, 4096, 0).decode(errors="replace")
            os.close(self.stderr)
        if status not in expect:
            raise ProgramFailedError(f"{self.argv[:8]}: exit {status}: {said.strip()}")
        return Finished(b"".join(pieces), length, first, gone)


def start(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    pass_fds: dict[int, int] | None = None,
    mute: bool = False,
) -> Running:
    """Start ``argv`` with standard output piped to us.

    Args:
        argv: Program, looked up in ``PATH``, and arguments.
        stdin: Its standard input; ``None`` = ``/dev/null``.
        pass_fds: Its further descriptors: number there to number here.
        mute: Drop its output instead, for a program that leaves others behind who would keep the pipe open.
    """
    read_end, write_end = os.pipe()
    stderr = os.memfd_create("stderr")
    source = os.open("/dev/null", os.O_RDONLY) if stdin is None else os.memfd_create("stdin")
    if stdin is not None:
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
    if mute:
        os.close(write_end)
        write_end = os.open("/dev/null", os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in ((0, source), (1, write_end), (2, stderr))]
    actions += [(os.POSIX_SPAWN_DUP2, here, there) for there, here in (pass_fds or {}).items()]
    started = time.perf_counter()
    pid = os.posix_spawnp(argv[0], list(argv), os.environ, file_actions=actions)
    os.close(write_end)
    os.close(source)
    return Running(argv, pid, read_end, stderr, started)


def run(
    argv: Sequence[str], *, stdin: bytes | None = None, keep: bool = True, expect: Sequence[int] = (0,)
) -> Finished:
    """Start ``argv`` and see it through."""
    return start(argv, stdin=stdin).finish(keep=keep, expect=expect)
