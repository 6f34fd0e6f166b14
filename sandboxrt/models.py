"""The values a user sees: immutable, comparable, with units in their names."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal

import attrs

__all__ = [
    "DEFAULT_LIMITS",
    "DEFAULT_REQUIRE",
    "DownloadURL",
    "ExecutionResult",
    "Isolation",
    "IsolationFinding",
    "IsolationReport",
    "Limits",
    "OutputChunk",
    "Quota",
    "Registry",
    "RegistryPage",
    "ResourceStatus",
    "RunConfig",
    "SandboxOwner",
    "Snapshot",
]


@attrs.frozen
class ExecutionResult:
    """What a finished command left behind.

    Attributes:
        stdout: Standard output as text; bytes that are not UTF-8 appear as U+FFFD.
        stderr: Standard error as text, likewise. Empty under ``pty=True``, where both are one stream.
        exit_code: The exit status, or 128 plus the signal number when a signal ended the command.
        oom_killed: Whether the kernel killed a process of this command's sandbox for lack of memory meanwhile; not
            necessarily one of this command's.
        reason: In words, why a command that ended with 137 was killed, and what to do, where the host knows it: the
            sandbox was out of memory. ``None`` otherwise, and from servers that do not tell.

    Source: protocol.md §7.3; ``oom_killed`` and ``reason`` are ours.
    """

    stdout: str
    stderr: str
    exit_code: int
    oom_killed: bool = attrs.field(default=False, kw_only=True)
    reason: str | None = attrs.field(default=None, kw_only=True)

    @property
    def success(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0


@attrs.frozen
class OutputChunk:
    """A piece of a command's output.

    Attributes:
        stream: ``"stdout"`` or ``"stderr"``.
        data: Text, never cut inside a character.
        offset: Position of the chunk's first byte in the UTF-8 encoding of the whole stream.

    Source: protocol.md §4.3, §7.4.
    """

    stream: Literal["stdout", "stderr"]
    data: str
    offset: int


@attrs.frozen
class ResourceStatus:
    """A sandbox's provisioning status: ``provisioning``, ``ready``, ``failed`` or ``stopped``.

    Source: protocol.md §7.2.
    """

    status: str
    status_message: str | None = None


@attrs.frozen
class RunConfig:
    """How commands run when the caller says nothing: user, working directory, environment.

    Source: protocol.md §7.9.
    """

    user: str | None = None
    work_dir: str | None = None
    env_vars: Mapping[str, str] | None = None


@attrs.frozen
class Snapshot:
    """A root filesystem that sandboxes start from.

    Attributes:
        id: Unique identifier (UUID).
        name: The name it was created under.
        status: ``building``, ``ready`` or ``failed``.
        fs_capacity_bytes: Disk size of a sandbox made from it when the caller names none, in bytes.
        docker_image: The image reference it was built from, if any.
        image_digest: The image's manifest digest (``sha256:...``), if it came from an image.
        source_sandbox_id: The sandbox it was captured from, if any.
        status_message: Why it failed, when it did.
        error_type: The protocol's word for that, e.g. ``ImagePull``.
        fs_used_bytes: Size of its unpacked files in bytes.
        registry_id: The named registry that its image was fetched from, if one was named.
        created_at: ISO-8601 time, UTC.
        updated_at: ISO-8601 time, UTC.

    Source: protocol.md §2.5.
    """

    id: str
    name: str
    status: str = "building"
    fs_capacity_bytes: int = 0
    docker_image: str | None = None
    image_digest: str | None = None
    source_sandbox_id: str | None = None
    status_message: str | None = None
    fs_used_bytes: int | None = None
    created_by: str | None = None
    registry_id: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    tags: tuple[str, ...] = ()
    run_config: RunConfig | None = None
    error_type: str | None = None


@attrs.frozen(kw_only=True)
class Registry:
    """A registry of images by a name of one's own, with what it takes to log in there; never the password.

    Attributes:
        id: What ``create_snapshot`` takes as ``registry_id`` (UUID).
        name: Unique for its owner.
        url: Its host, with a port and a path where it has them; ``http://`` says that it has no TLS.
        auth_type: ``DOCKER_CONFIG`` (a user and a password) or, where a server has it, ``AWS_ROLE``.
        aws_role_arn: The role of the latter.
        username: Who logs in; ``None`` for nobody, and where a server does not say.
        provider: What kind it is, as its host tells.
        repository_search_mode: Whether repositories can be searched for there.
        created_at: ISO-8601 time, UTC; ``updated_at`` likewise.
        created_by: The id of the key that made it; ``updated_by`` likewise. ``None`` for this machine's own.

    Source: protocol.md §2.8.
    """

    id: str
    name: str
    url: str
    auth_type: str = "DOCKER_CONFIG"
    aws_role_arn: str | None = None
    username: str | None = None
    provider: str | None = None
    repository_search_mode: str | None = None
    created_at: str | None = None
    created_by: str | None = None
    updated_at: str | None = None
    updated_by: str | None = None


@attrs.frozen
class RegistryPage:
    """Some of the registries, newest first.

    Attributes:
        items: They; ``registries`` is the same by its older name.
        next_cursor: The ``cursor`` of the page after this one, ``None`` at the end; only of pages by cursor.
        offset: The ``offset`` of the page after this one, 0 at the end; only of pages by offset.
    """

    items: tuple[Registry, ...]
    next_cursor: str | None = None
    offset: int = 0

    @property
    def registries(self) -> tuple[Registry, ...]:
        """The same as ``items``."""
        return self.items


@attrs.frozen(kw_only=True)
class Limits:
    """What one sandbox may use. ``None`` means: no limit.

    Attributes:
        vcpus: CPU time per wall-clock time, e.g. ``0.5`` or ``2``.
        mem_bytes: Memory, page cache of its files included, in bytes.
        pids: Processes and threads at once.
        disk_bytes: Size of its writable disk in bytes.
        inotify_instances: inotify instances at once (one sandbox could otherwise use up the host's).
    """

    vcpus: float | None = 1.0
    mem_bytes: int | None = 1024**3
    pids: int | None = 256
    disk_bytes: int | None = 4 * 1024**3
    inotify_instances: int | None = 64


DEFAULT_LIMITS = Limits()


@attrs.frozen
class SandboxOwner:
    """Who runs a sandbox, where that is another process or another event loop of this one.

    Attributes:
        pid: Its process, as that process sees itself; ``None`` where it is not known.
        program: What runs there, e.g. ``app.py``.
    """

    pid: int | None
    program: str

    def __str__(self) -> str:
        return f"{self.program}, pid {self.pid}" if self.pid is not None else self.program


@attrs.frozen(kw_only=True)
class Quota:
    """What all sandboxes of a tenant may take together. ``None`` means: nothing is said.

    Attributes:
        sandboxes: How many, stopped ones too.
        vcpus: CPU time per wall-clock time, of all.
        mem_bytes: Memory of all, in bytes.
        storage_bytes: Disks of all, in bytes.
    """

    sandboxes: int | None = None
    vcpus: float | None = None
    mem_bytes: int | None = None
    storage_bytes: int | None = None

    def over(self, other: Quota) -> Quota:
        """This one, with the other's word where this says nothing."""
        said = attrs.asdict(self, filter=lambda _, value: value is not None)
        return attrs.evolve(other, **said)


class Isolation(enum.Enum):
    """One property of isolation that a host achieves or not. The value is the name ``require=`` and the CLI use."""

    USER_NAMESPACE = "user-namespace"
    UID_BLOCK = "uid-block"
    """65,536 user ids of its own, shared with no other sandbox."""
    PID_NAMESPACE = "pid-namespace"
    MOUNT_NAMESPACE = "mount-namespace"
    IPC_NAMESPACE = "ipc-namespace"
    UTS_NAMESPACE = "uts-namespace"
    CGROUP_NAMESPACE = "cgroup-namespace"
    NETWORK_NAMESPACE = "network-namespace"
    """No network but its own loopback."""
    SECCOMP = "seccomp"
    CAPABILITIES = "capabilities"
    NO_NEW_PRIVILEGES = "no-new-privileges"
    MASKED_PATHS = "masked-paths"
    MEMORY_LIMIT = "memory-limit"
    CPU_LIMIT = "cpu-limit"
    PIDS_LIMIT = "pids-limit"
    DISK_LIMIT = "disk-limit"
    INOTIFY_LIMIT = "inotify-limit"
    TREE_KILL = "tree-kill"
    """Killing a command ends every process it started, however it hid them."""
    OOM_REPORT = "oom-report"
    GUEST_KERNEL = "guest-kernel"
    """System calls are served by a kernel of the sandbox's own (gVisor, kata), not by the host's."""


DEFAULT_REQUIRE: frozenset[Isolation] = frozenset(
    {
        Isolation.USER_NAMESPACE,
        Isolation.PID_NAMESPACE,
        Isolation.MOUNT_NAMESPACE,
        Isolation.IPC_NAMESPACE,
        Isolation.UTS_NAMESPACE,
        Isolation.NETWORK_NAMESPACE,
        Isolation.SECCOMP,
        Isolation.CAPABILITIES,
        Isolation.NO_NEW_PRIVILEGES,
        Isolation.MASKED_PATHS,
    }
)
"""What a sandbox always has unless ``require=`` says otherwise. Limits are checked apart: each limit that is set must
be enforceable, or creation is refused."""


@attrs.frozen
class IsolationFinding:
    """Whether one property is achieved, by what, and what would fix it if not."""

    achieved: bool
    detail: str
    fix: str | None = None


@attrs.frozen
class IsolationReport:
    """What isolation a host, or one sandbox on it, really has.

    Attributes:
        runtime: The OCI runtime, e.g. ``"crun 1.8.1"``.
        findings: A finding for every :class:`Isolation` property.
    """

    runtime: str
    findings: Mapping[Isolation, IsolationFinding]

    def has(self, prop: Isolation) -> bool:
        """Whether ``prop`` is achieved."""
        finding = self.findings.get(prop)
        return finding is not None and finding.achieved

    def missing(self, required: frozenset[Isolation]) -> tuple[Isolation, ...]:
        """The required properties that are not achieved, in the enum's order."""
        return tuple(prop for prop in Isolation if prop in required and not self.has(prop))


@attrs.frozen
class DownloadURL:
    """A link to one file of a sandbox: whoever has it gets the file, without a key.

    Attributes:
        download_url: The link, for a browser or any HTTP client; a path of the server's own address, or of the client's
            own port where that is embedded, unless the server has a domain for services.
        token: What in it gives the right; a part of the link.
        expires_at: Until when it is good, as an ISO-8601 time; ``None`` = as long as the sandbox is there.

    Source: protocol.md §2.7, §7.9.
    """

    download_url: str = attrs.field(repr=False)
    token: str = attrs.field(repr=False)
    expires_at: str | None = None
