"""Runs the programs that fetch and unpack images: bounded in time and output, and gone when their owner is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import trio

from sandboxrt.errors import EngineUnavailableError

__all__ = ["ToolResult", "run_tool"]

# Standard input is the lifeline: its other end closes when the owner dies, however it dies, and then the tool is
# killed. (A parent-death signal would fire when the thread that forked ends, long before the process.)
_LEASH: Final = """
umask 022
exec 3<&0 </dev/null
"$@" 3<&- &
tool=$!
{ read -r _ <&3; kill -9 "$tool"; } >/dev/null 2>&1 &
watch=$!
exec 3<&-
wait "$tool"
code=$?
kill -9 "$watch" 2>/dev/null
exit "$code"
"""
_KEPT_BYTES: Final = 64 * 1024
_EXIT_LIMIT_S: Final = 5.0


@attrs.frozen
class ToolResult:
    """How a program ended; ``stdout`` from its beginning and ``stderr`` up to its end, both bounded."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool


async def run_tool(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, max_stdout_bytes: int = _KEPT_BYTES
) -> ToolResult:
    """Run a program to its end.

    Raises:
        EngineUnavailableError: The program is not installed.

    Cancellation: the program is killed, and waited for (at most some seconds).
    """
    try:
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", _LEASH, "sh", *argv],
            env=dict(os.environ if env is None else env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise EngineUnavailableError(f"Cannot run {argv[0]}: {error.strerror}") from error
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    head, tail = _Head(max_stdout_bytes), _Tail(_KEPT_BYTES)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, process.stdout, head)
            nursery.start_soon(_drain, process.stderr, tail)
        exit_code = await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)
    if exit_code == 127 and b"not found" in tail.data:
        raise EngineUnavailableError(f"{argv[0]} is not installed: install the package {argv[0]}")
    return ToolResult(exit_code, bytes(head.data), bytes(tail.data), head.truncated)


class _Head:
    """Keeps the first bytes; what is beyond is noted and dropped."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.truncated = False
        self._limit = limit

    def add(self, data: bytes | bytearray) -> None:
        self.truncated = self.truncated or len(self.data) + len(data) > self._limit
        self.data += data[: self._limit - len(self.data)]


class _Tail:
    """Keeps the last bytes."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    def add(self, data: bytes | bytearray) -> None:
        self.data += data
        del self.data[: -self._limit]


async def _drain(stream: trio.abc.ReceiveStream, into: _Head | _Tail) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(65536):
            into.add(data)


async def _end(process: trio.Process) -> None:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    if process.returncode is None:
        # It leads a process group of its own, with the tool and the watcher in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.move_on_after(_EXIT_LIMIT_S):
            await process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        await stream.aclose()
