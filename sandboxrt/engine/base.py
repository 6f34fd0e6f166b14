"""The contract between the host's actors and whatever really runs commands.

Three classes, from the outside in: an :class:`Engine` makes :class:`Container` objects, a container spawns
:class:`Process` objects and opens files. ``engine/oci.py`` implements them on an OCI runtime, ``testing/fake.py`` with
scripted processes. The host's actors know nothing else, and the conformance suite runs over every implementation.

Cancellation, once for all: every coroutine here either completes, or raises with nothing left behind that it made.
``Engine.create``, ``Container.spawn`` and ``Container.open_file`` are atomic (cancelled means: it never was);
``Container.replace_file`` is atomic for the target path (the old content or the new, never a mixture);
``Container.close`` and ``Process.aclose`` are shielded and bounded; waits (``wait``, ``wait_tree``, ``wait_dead``) can
be cancelled and called again, from several tasks at once.

Trust: a container is the adversary. Nothing that it says is believed beyond its type and size, and no path inside it
is ever resolved on the host.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

import attrs
import trio

from sandboxrt.models import Isolation, IsolationReport, Limits

__all__ = [
    "Captured",
    "CommandGroup",
    "Container",
    "ContainerSpec",
    "Engine",
    "ExecFailedError",
    "ExitStatus",
    "Feature",
    "FileError",
    "FileErrorKind",
    "FileStat",
    "Identity",
    "Layer",
    "OpenFile",
    "Process",
    "ProcessSpec",
    "SpawnFailedError",
    "upper_name",
]


class Feature(enum.Enum):
    """What an exec strategy can do beyond the minimum. The conformance suite asks what was declared."""

    TREE_KILL = "tree-kill"
    """``kill_tree`` ends everything the process started, and ``wait_tree`` knows when it is gone."""
    OWN_PTY = "own-pty"
    """Terminals are the sandbox's own (``tty`` prints a path, job control works)."""
    TERMINAL_EOF = "terminal-eof"
    """The end-of-input character (^D) ends the input of a program that reads from a terminal."""
    PORTS = "ports"
    """``connect`` reaches TCP ports inside."""
    FREEZE = "freeze"
    """All processes can be stopped at one instant."""


@attrs.frozen
class Identity:
    """Who a process or file operation is, in the sandbox's own ids (0..65535)."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


@attrs.frozen
class Layer:
    """A read-only folder on the host that shows through in a container.

    Attributes:
        path: The folder; its files are owned by the ids seen inside (0..65535). Whiteouts and opaque folders are
            overlayfs's own (character device 0:0, ``trusted.overlay.opaque``).
        at: Where its content appears: ``/``, or a folder such as ``/usr``. Layers with the same ``at`` are stacked in
            the order given, topmost first, under one writable folder.
    """

    path: Path
    at: str = "/"


@attrs.frozen(kw_only=True)
class ContainerSpec:
    """Everything an engine needs to make one container.

    Attributes:
        id: 32 lower-case hex digits, unique without coordination, fixed length (runsc matches prefixes).
        hostname: What ``hostname`` prints inside.
        uid_base: First host uid and gid of the sandbox's block of 65,536. 0 where the engine has no block to give
            (unprivileged); it then maps what it can and says so in its report.
        layers: Read-only layer folders on the host, topmost first.
        state_dir: The sandbox's folder on the host; exists, empty or as an earlier container of the same sandbox left
            it. The engine keeps disk, upper folder and ``/tmp`` there, so that they survive stop and start.
        limits: What to enforce; ``None`` fields are not enforced.
        require: Isolation that must be achieved, else :class:`~sandboxrt.errors.IsolationError`.
        allow_unenforced_limits: Accept limits that this host cannot enforce (the report says which).
    """

    id: str
    hostname: str
    uid_base: int
    layers: tuple[Layer, ...]
    state_dir: Path
    limits: Limits
    require: frozenset[Isolation]
    allow_unenforced_limits: bool = False


@attrs.frozen(kw_only=True)
class ProcessSpec:
    """What to start.

    Attributes:
        argv: Program and arguments. A program without ``/`` is looked up in ``env``'s ``PATH``.
        env: The whole environment.
        cwd: Absolute working directory inside.
        identity: Who it runs as.
        stdin: Whether to give it an open pipe; otherwise standard input is ``/dev/null``. Ignored with ``pty``.
        pty: Columns and rows of a terminal of its own, or ``None`` for three pipes.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    identity: Identity
    stdin: bool = True
    pty: tuple[int, int] | None = None


@attrs.frozen
class ExitStatus:
    """How a leader ended. Exactly one of the two is set."""

    code: int | None = None
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """The shell's convention: the code, or 128 plus the signal."""
        if self.signal is not None:
            return 128 + self.signal
        assert self.code is not None
        return self.code


def upper_name(at: str) -> str:
    """The name of the writable folder for layers at ``at``, and of what is captured of it."""
    return at.rstrip("/").replace("/", "@") or "@"


class SpawnFailedError(Exception):
    """No process could be made: the pid limit is reached, or the container is dying. ``errno`` says which."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class ExecFailedError(Exception):
    """The process was made but the program could not be started.

    Attributes:
        stage: ``"chdir"``, ``"identity"``, ``"terminal"`` or ``"exec"``.
        errno: The reason.
    """

    def __init__(self, stage: str, errno: int, subject: str) -> None:
        super().__init__(f"{stage}: {subject}: errno {errno}")
        self.stage = stage
        self.errno = errno
        self.subject = subject


class FileErrorKind(enum.Enum):
    """Why a file operation failed; the host maps these to the public errors."""

    NOT_FOUND = "not-found"
    IS_DIRECTORY = "is-directory"
    NOT_A_DIRECTORY = "not-a-directory"
    NOT_REGULAR = "not-regular"
    PERMISSION = "permission"
    NO_SPACE = "no-space"
    READ_ONLY = "read-only"
    NAME_TOO_LONG = "name-too-long"
    LOOP = "loop"
    OTHER = "other"


class FileError(Exception):
    """A file operation inside a container failed. ``path`` is the caller's, ``kind`` the reason."""

    def __init__(self, kind: FileErrorKind, path: str, detail: str = "") -> None:
        super().__init__(f"{path}: {kind.value}{f' ({detail})' if detail else ''}")
        self.kind = kind
        self.path = path
        self.detail = detail


@attrs.frozen
class FileStat:
    """What is known of an open regular file.

    Attributes:
        size_bytes: Its size.
        mtime_ns: When its content was changed, in nanoseconds since the epoch; a program inside can set it freely.
        ctime_ns: When anything of it was changed, likewise; nobody can set it.
        inode: Which file it is: another one after it was replaced.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0


@attrs.frozen
class Captured:
    """What was copied.

    Attributes:
        files: How many files, folders aside.
        used_bytes: What they take on disk.
        paused_s: For how long everything stood still; ``None`` where nothing ran.
    """

    files: int
    used_bytes: int
    paused_s: float | None = None


class OpenFile(Protocol):
    """A regular file opened for reading. Closed with ``aclose``."""

    @property
    def stat(self) -> FileStat:
        """As of when it was opened."""
        ...

    async def read(self, offset: int, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` from ``offset``; empty at the end. Raises :class:`FileError`."""
        ...

    async def aclose(self) -> None:
        """Close it. Idempotent."""
        ...


class CommandGroup(Protocol):
    """What holds the processes of one command together on the host, so that none can leave: a cgroup of its own.

    Made empty by the container, given to the process that is started into it, which owns it from then on. Every
    method is harmless on an empty or removed group.
    """

    async def add(self, host_pid: int) -> None:
        """Move one process, by its id on the host, into the group; its later children are born in it.

        Raises:
            OSError: The kernel refused, or the process is gone (``ESRCH``).
        """
        ...

    async def signal(self, signum: int) -> None:
        """Send a signal to every process of the group, as of now."""
        ...

    async def kill(self) -> None:
        """SIGKILL for every process of the group, those being forked included, even when it is frozen."""
        ...

    async def wait_empty(self) -> None:
        """Wait until no process is left in the group. Can be cancelled and called again."""
        ...

    async def remove(self) -> None:
        """Free the group. It is empty, or its last processes are on their way out. Idempotent.

        Raises:
            OSError: It could not be removed (``EBUSY``: processes are still in it).
        """
        ...


class Process(Protocol):
    """A started program: its leader, its streams and its tree are separate facts.

    The streams end when the last holder of their other end closes it, which may be long after the leader's exit or
    (with ``aclose``) before it. Closing ``stdin`` is end of input for the program.
    """

    @property
    def pid(self) -> int:
        """The leader's process id as seen inside the sandbox."""
        ...

    @property
    def stdin(self) -> trio.abc.SendStream | None:
        """The program's standard input, the terminal with ``pty``, or ``None`` when not asked for."""
        ...

    @property
    def stdout(self) -> trio.abc.ReceiveStream:
        """Standard output; with ``pty`` everything the terminal shows."""
        ...

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        """Standard error; ``None`` with ``pty``."""
        ...

    async def wait(self) -> ExitStatus:
        """Wait until the leader was reaped. If the whole container died first: signal 9.

        What it had written can be read then without waiting; where that comes over a relay, somebody has to be reading.
        """
        ...

    async def wait_tree(self) -> None:
        """Wait until no process of the tree is left (without ``TREE_KILL``: until the leader is gone)."""
        ...

    async def signal(self, signum: int) -> None:
        """Send a signal to the leader's process group and, with ``TREE_KILL``, to every process of the tree."""
        ...

    async def kill_tree(self) -> None:
        """SIGKILL for the whole tree; returns when the kernel has taken it. Idempotent, harmless when all is gone."""
        ...

    async def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size; nothing without ``pty``."""
        ...

    async def aclose(self) -> None:
        """Kill what is left of the tree, close the streams, free what the host holds for it. Shielded, bounded."""
        ...


class Container(Protocol):
    """A running sandbox as the engine sees it."""

    @property
    def id(self) -> str:
        """The spec's id."""
        ...

    @property
    def report(self) -> IsolationReport:
        """What isolation this container really has."""
        ...

    @property
    def features(self) -> frozenset[Feature]:
        """What its exec strategy can do."""
        ...

    async def spawn(self, spec: ProcessSpec) -> Process:
        """Start a program. When it returns, the program image has been executed.

        Raises:
            SpawnFailedError: No process could be made.
            ExecFailedError: Working directory, identity, terminal or program were wrong.
        """
        ...

    async def open_file(self, path: str, identity: Identity) -> OpenFile:
        """Open a regular file for reading, with the rights of ``identity``, resolved inside the container.

        Raises:
            FileError: With the reason.
        """
        ...

    async def replace_file(self, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
        """Make ``path`` contain ``content``: parents created, then the new file put in place at once.

        An existing file keeps its mode; a new one gets 0644, a new folder 0755, both owned by ``identity``. A symbolic
        link as the last component is followed and stays a link.

        Raises:
            FileError: With the reason; the old content is still there.
        """
        ...

    async def connect(self, port: int) -> trio.SocketStream:
        """Connect to a TCP port on the container's loopback, IPv4 then IPv6.

        Raises:
            ConnectionRefusedError: Nothing listens there.
            OSError: Any other reason.
        """
        ...

    async def capture(self, target: Path, *, reserve_bytes: int = 0) -> Captured:
        """Copy what was written since the layers, as of one instant, without ``/tmp``; see :meth:`Engine.capture`.

        Everything inside stands still meanwhile, and runs on whatever comes of it. Needs ``FREEZE``.
        """
        ...

    async def oom_kills(self) -> int:
        """How many processes the kernel has killed here for lack of memory (0 where it cannot be told)."""
        ...

    async def wait_dead(self) -> str:
        """Wait until the container's first process is gone, however it went; returns a sentence that says why."""
        ...

    async def close(self) -> None:
        """Kill everything inside and free all that the host holds for it, except ``state_dir``.

        Idempotent. Shielded, bounded by the engine's own deadline (10 s); a part that cannot be freed in that time
        raises :class:`RuntimeError` that names it, after everything else was freed.
        """
        ...


class Engine(Protocol):
    """Makes containers on this machine."""

    async def report(self) -> IsolationReport:
        """What isolation this host achieves, probed once and remembered.

        Raises:
            EngineUnavailableError: Sandboxes cannot run here at all; the message says what to do.
        """
        ...

    async def create(self, spec: ContainerSpec) -> Container:
        """Make and start a container: its first process runs and waits for orders.

        Raises:
            IsolationError: ``spec.require`` or a limit cannot be met here.
            EngineUnavailableError: The runtime is missing or does not work; the message has its own words.
            ResourceCreationError: Anything else, with the runtime's own words.
        """
        ...

    async def capture(self, state_dir: Path, uid_base: int, target: Path, *, reserve_bytes: int = 0) -> Captured:
        """Copy what closed containers of ``state_dir`` have written since their layers, without ``/tmp``.

        Args:
            state_dir: The sandbox's folder; nothing runs over it, and nothing is started before this ends.
            uid_base: The spec's.
            target: An empty private folder. ``target/tree/NAME`` is made for each place of layers
                (:func:`upper_name`): a layer to lie on top of those, with the owners seen inside.
            reserve_bytes: What must stay free on the target's file system.

        Raises:
            ResourceCreationError: ``DiskFull``, or ``Capture`` with the reason; the target is the caller's to remove.

        Cancellation: the copying ends; the target is the caller's to remove.
        """
        ...

    async def move_owners(self, state_dir: Path, old_base: int, new_base: int) -> None:
        """Give the files of ``state_dir`` that a block of ids owns to another block. Idempotent, also after a half.

        For containers that are to be started with another ``uid_base`` than those before. Nothing runs over them.

        Raises:
            ResourceCreationError: With the reason; some files may be given already, and can be given back likewise.

        Cancellation: shielded; bounded by ten minutes.
        """
        ...

    async def release(self, state_dir: Path, container_id: str) -> None:
        """End and free everything that a container of ``state_dir`` may have left on this host, but keep its files.

        For those of owners that died, before their files are used again. Idempotent.

        Args:
            state_dir: The sandbox's folder.
            container_id: The spec's id. What is recorded in the folder of containers with other ids came with a copy
                of it: they are not touched, only their records go.
        """
        ...

    async def discard(self, state_dir: Path, container_id: str) -> None:
        """Remove ``state_dir`` and everything that its container may have left on this host; see :meth:`release`.

        For closed containers, and for those of owners that died (containers, mounts, loops, cgroups). Idempotent.
        """
        ...
