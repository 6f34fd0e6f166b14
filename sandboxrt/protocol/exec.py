"""Command-session frames: the words that a client and a sandbox daemon exchange about one command.

Embedded, these values travel through memory channels as they are; over a WebSocket, :mod:`sandboxrt.protocol.exec_wire`
turns them into the text frames of protocol.md §4. Nothing here waits, reads a clock or opens anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import attrs

__all__ = [
    "COMMAND_TOO_LONG",
    "ClientFrame",
    "CloseStdin",
    "ErrorFrame",
    "Execute",
    "Exit",
    "Input",
    "InputAck",
    "Kill",
    "Output",
    "Reconnect",
    "Resize",
    "ServerFrame",
    "Signal",
    "Started",
]

StreamName: TypeAlias = Literal["stdout", "stderr"]

COMMAND_TOO_LONG: Final = (
    "The command and its environment are longer than the kernel takes; write the script to a file with write() and run "
    "that"
)
"""What is said of a command that no program can be given, wherever that is found."""


@attrs.frozen(kw_only=True)
class Execute:
    """Start a command, or attach to it when ``command_id`` is known already (first frame).

    Attributes:
        command: Run as ``shell -c command``.
        command_id: Chosen by the client, so that a repeated start attaches instead of starting twice.
        timeout_s: Wall-clock limit in seconds; 0 = none.
        idle_timeout_s: Kill after this long without any attached client, in seconds; -1 = never.
        ttl_s: How long the finished command stays attachable, in seconds; -1 = for ever.
        kill_on_disconnect: Kill when the last client detaches.
        close_stdin: End of input from the beginning.
        shell: Absolute path; ``None`` = ``/bin/bash``, or ``/bin/sh`` in an image without it.
        env: Added to the sandbox's environment.
        cwd: Working directory; ``None`` = the snapshot's.
        user: ``name``, ``uid``, ``name:group`` or ``uid:gid``; ``None`` = the snapshot's.
        pty: Allocate a terminal; everything it shows is ``stdout``.
        columns: The terminal's width in characters.
        rows: The terminal's height in lines.
        input_id: Names the input of this handle among that of others, and asks for :class:`InputAck`. Random, the
            same in each ``Reconnect`` of the handle. ``None`` = input is neither numbered nor acknowledged.
        reuse: Asks that the connection may carry another command when this one has exited. Only with ``input_id``.
    """

    command: str
    command_id: str | None = None
    timeout_s: float = 60
    idle_timeout_s: float = 300
    ttl_s: float = 600
    kill_on_disconnect: bool = False
    close_stdin: bool = False
    shell: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    cwd: str | None = None
    user: str | None = None
    pty: bool = False
    columns: int = 80
    rows: int = 24
    input_id: str | None = None
    reuse: bool = False


@attrs.frozen
class Reconnect:
    """Attach to a command from the given byte offsets on (first frame); the rest as in :class:`Execute`."""

    command_id: str
    stdout_offset: int = 0
    stderr_offset: int = 0
    input_id: str | None = None
    reuse: bool = False


@attrs.frozen
class Input:
    """Text for the command's standard input (or terminal).

    ``offset`` is the position of its first byte in the UTF-8 text of all input sent under the attachment's
    ``input_id``: what the command's side has taken already is dropped, so that it may be sent again after a broken
    connection. ``None`` = take it as it comes.
    """

    data: str
    offset: int | None = None


@attrs.frozen
class CloseStdin:
    """End of input."""


@attrs.frozen
class Kill:
    """SIGKILL for the whole process tree."""


@attrs.frozen
class Signal:
    """A signal for the leader's process group, e.g. 2 for Ctrl-C. Between our own ends only."""

    signum: int


@attrs.frozen
class Resize:
    """The terminal's new size."""

    columns: int
    rows: int


@attrs.frozen
class Started:
    """The command runs; the first answer to ``Execute``, and to ``Reconnect``.

    ``pid`` is 0 where the other side does not say. ``input_offset`` answers an ``input_id``: how many bytes of that
    input were taken so far; ``None`` = the other side does not number input, nor know any other extension of ours.
    """

    command_id: str
    pid: int
    input_offset: int | None = None


@attrs.frozen
class InputAck:
    """Input before ``offset`` was taken and need not be kept any more. Answers an ``input_id`` only.

    The offset may lie inside a character; what is sent again begins at the character's first byte then.
    """

    offset: int


@attrs.frozen
class Output:
    """Text of one stream; ``offset`` is the byte position of its beginning in the UTF-8 text sent so far."""

    stream: StreamName
    data: str
    offset: int


@attrs.frozen
class Exit:
    """The command ended (its last frame). What follows the exit code travels only between our own ends.

    ``oom_killed`` and ``reason`` say, the latter in words, why it was killed. ``reuse_s`` answers ``reuse``: for how
    many seconds the connection will now wait for the first frame of another command; ``None`` = it ends, as is usual.
    """

    exit_code: int
    oom_killed: bool = False
    reason: str | None = None
    reuse_s: float | None = None


@attrs.frozen
class ErrorFrame:
    """The session ended without an exit (last frame).

    ``error_type`` is the protocol's word: ``CommandTimeout``, ``CommandNotFound``, ``SessionExpired``,
    ``CommandError``, ``ReadOffsetUnavailable``, ... ``first_offset`` and ``stream`` go with ``ReadOffsetUnavailable``.
    """

    error: str
    error_type: str = "CommandError"
    stream: StreamName | None = None
    first_offset: int | None = None


ClientFrame: TypeAlias = Execute | Reconnect | Input | CloseStdin | Kill | Signal | Resize
ServerFrame: TypeAlias = Started | Output | InputAck | Exit | ErrorFrame
