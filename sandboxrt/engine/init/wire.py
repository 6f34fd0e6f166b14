"""The records between the host and the first process of a container (``init.c`` has the other half).

Two kinds of socket, both SEQPACKET. On the *control* socket the host sends requests with descriptors, and the init
answers ``READY`` once and ``EXITED`` whenever a spawned job's leader was reaped. Each request but ``SIGNAL`` carries
one end of a socket of its own, the *gate*, on which everything else about that job is said::

    SPAWN     gate, strings, [stdin], stdout, stderr   HELLO(pid) → RELEASE → [TERMINAL + fd] → end | FAILED
    SPAWN+PTY gate, strings
    OPEN      gate, path                               FILE + fd | FAILED
    REPLACE   gate, path                               FILE + fd → COMMIT → DONE | FAILED
    SOCKET    gate                                     SOCKET + fd | FAILED
    SIGNAL    (none)                                   nothing

A ``SPAWN`` whose argument is 0 has no stdin: the program gets the container's null device. The end of the gate after
``RELEASE`` means that the program was executed, or died on the way there; the exit tells.
Strings (working directory, arguments, environment; or one path), each ended by NUL, lie in a sealed memfd.
"""

from __future__ import annotations

import enum
import fcntl
import os
import struct
from collections.abc import Iterable, Sequence

import attrs

from sandboxrt.engine.base import Identity

__all__ = [
    "MAX_GROUPS",
    "MAX_JOBS",
    "RECORD_BYTES",
    "REQUEST_BYTES",
    "InitProtocolError",
    "Record",
    "RecordKind",
    "Request",
    "RequestFlag",
    "RequestKind",
    "Stage",
    "pack_strings",
    "sealed_memfd",
]

MAGIC = 0x73627801
"""Its last byte is the version."""
MAX_GROUPS = 64
MAX_JOBS = 1024
MAX_STRINGS_BYTES = 8 << 20
_REQUEST = struct.Struct("=IIQIIIIIIIiHHI64I")
_RECORD = struct.Struct("=IIQii")
REQUEST_BYTES = _REQUEST.size
RECORD_BYTES = _RECORD.size


class InitProtocolError(Exception):
    """What came out of the container is not what the protocol allows; the channel is closed and the container dead."""


class RequestKind(enum.IntEnum):
    """What the host asks for."""

    SPAWN = 1
    OPEN = 2
    REPLACE = 3
    SOCKET = 4
    SIGNAL = 5


class RequestFlag(enum.IntFlag):
    """Variations of a request."""

    PTY = 1
    KEEP_GROUPS = 2
    """Supplementary groups cannot be changed here (an unprivileged user's namespace)."""


class RecordKind(enum.IntEnum):
    """What a record says; ``a`` and ``b`` in brackets."""

    READY = 1
    EXITED = 2
    """(wait status)"""
    HELLO = 3
    """(the child's process id inside)"""
    RELEASE = 4
    TERMINAL = 5
    """(number of the terminal), with its master"""
    FILE = 6
    SOCKET = 7
    COMMIT = 8
    DONE = 9
    FAILED = 10
    """(stage, errno)"""


class Stage(enum.IntEnum):
    """Where a job failed."""

    FORK = 1
    REQUEST = 2
    STDIO = 3
    TERMINAL = 4
    IDENTITY = 5
    CHDIR = 6
    EXEC = 7
    FILE = 8
    FILE_TYPE = 9
    SOCKET = 10


@attrs.frozen(kw_only=True)
class Request:
    """One request; which fields count depends on its kind."""

    kind: RequestKind
    job_id: int
    identity: Identity = attrs.field(factory=Identity)
    flags: int = 0
    argument_count: int = 0
    environment_count: int = 0
    strings_bytes: int = 0
    oom_score_adj: int = 0
    terminal: tuple[int, int] = (0, 0)
    argument: int = 0

    def pack(self) -> bytes:
        """The record's bytes."""
        groups = self.identity.groups
        if len(groups) > MAX_GROUPS:
            raise ValueError(f"at most {MAX_GROUPS} supplementary groups, not {len(groups)}")
        return _REQUEST.pack(
            MAGIC,
            self.kind,
            self.job_id,
            self.identity.uid,
            self.identity.gid,
            len(groups),
            self.flags,
            self.argument_count,
            self.environment_count,
            self.strings_bytes,
            self.oom_score_adj,
            *self.terminal,
            self.argument,
            *groups,
            *(0 for _ in range(MAX_GROUPS - len(groups))),
        )


@attrs.frozen
class Record:
    """One record, of either direction."""

    kind: RecordKind
    job_id: int = 0
    a: int = 0
    b: int = 0

    def pack(self) -> bytes:
        """The record's bytes."""
        return _RECORD.pack(MAGIC, self.kind, self.job_id, self.a, self.b)

    @classmethod
    def unpack(cls, data: bytes) -> Record:
        """Read a record that came from inside.

        Raises:
            InitProtocolError: Wrong size, version or kind.
        """
        if len(data) != RECORD_BYTES:
            raise InitProtocolError(f"a record of {len(data)} bytes instead of {RECORD_BYTES}")
        magic, kind, job_id, a, b = _RECORD.unpack(data)
        if magic != MAGIC:
            raise InitProtocolError(f"a record of another version ({magic:#x})")
        try:
            return cls(RecordKind(kind), job_id, a, b)
        except ValueError:
            raise InitProtocolError(f"a record of unknown kind {kind}") from None


def pack_strings(strings: Iterable[str | bytes]) -> bytes:
    """Encode strings as the file system does, each ended by NUL.

    Raises:
        ValueError: One holds a NUL, or all together are longer than 8 MiB.
    """
    parts: Sequence[bytes] = [os.fsencode(text) for text in strings]
    if any(b"\0" in part for part in parts):
        raise ValueError("a path, argument or environment entry holds a NUL character")
    packed = b"\0".join((*parts, b""))
    if len(packed) > MAX_STRINGS_BYTES:
        raise ValueError(f"arguments and environment are longer than {MAX_STRINGS_BYTES} bytes")
    return packed


def sealed_memfd(content: bytes) -> int:
    """A memfd with ``content`` that nobody can change any more. The caller closes it."""
    fd = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        )
    except BaseException:
        os.close(fd)
        raise
    return fd
