"""What a host can be told: where its state is, what runs its sandboxes, and its bounds."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import platformdirs

from sandboxrt.host.command import CommandSettings
from sandboxrt.host.connections import ConnectionSettings
from sandboxrt.host.sessions import SessionLimits
from sandboxrt.host.tunnel import TunnelSettings
from sandboxrt.models import DEFAULT_LIMITS, DEFAULT_REQUIRE, Isolation, Limits, Quota
from sandboxrt.snapshots.content import SnapshotConfig

__all__ = ["HostConfig", "default_state_dir"]


def default_state_dir() -> Path:
    """The folder in ``SANDBOXRT_STATE_DIR``, else the user's own for program state."""
    told = os.environ.get("SANDBOXRT_STATE_DIR", "").strip()
    return Path(told) if told else Path(platformdirs.user_state_dir("sandboxrt"))


def _default_runtime() -> str:
    return os.environ.get("SANDBOXRT_RUNTIME", "").strip() or "crun"


def _default_concurrency() -> int:
    return max(4, 2 * (os.cpu_count() or 1))


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Programs that are started from elsewhere get it, too, and the working folder may change meanwhile."""
    return Path(path).absolute()


@attrs.frozen(kw_only=True)
class HostConfig:
    """The settings of one host.

    Attributes:
        state_dir: Where sandboxes and snapshots live; several processes may share it.
        runtime: The OCI runtime's name or path.
        limits: What a sandbox may use when its creator names no limits.
        quota: What each tenant's sandboxes in the state folder may take together; nothing is said where left out.
        require: The isolation that a sandbox has when its creator says nothing else.
        snapshots: Registries and bounds of the snapshot library.
        max_concurrent_creates: Sandboxes being started at once; more wait their turn.
        max_concurrent_deletes: Sandboxes being removed at once, likewise.
        cleanup_limit_s: How long the removal of one sandbox may take before it is left to the next start.
        stop_grace_s: How long the processes of a sandbox that is stopped may take to end themselves after SIGTERM.
        command: Bounds of each command.
        sessions: Bounds of each sandbox's commands together.
        connections: Which ports inside may be reached, and the bounds of each sandbox's connections to them.
        tunnels: The bounds of each tunnel.
        replay_budget_bytes: Memory for the output that all commands of the host keep for readers who come later.
        spill_quota_bytes: Disk for the output of one sandbox's commands that is too much for memory; never more than
            the sandbox's own disk has, or 64 MiB where that is less.
        spill_budget_bytes: The same for all sandboxes together. One that holds as much as is still free gets no more.
        min_free_bytes: The low-water mark of the state folder's file system: below it nothing new begins, and what is
            above it is all that running sandboxes get. If unset, a twentieth of the file system, 24 MiB to 2 GiB.
        keep: Leave sandboxes as ``stopped`` with their files when the host ends or dies, and take over those that dead
            hosts have kept: for servers. Otherwise a host's sandboxes go with it.
    """

    state_dir: Path = attrs.field(factory=default_state_dir, converter=_absolute)
    runtime: str = attrs.field(factory=_default_runtime)
    limits: Limits = DEFAULT_LIMITS
    quota: Quota = attrs.field(factory=Quota)
    require: frozenset[Isolation] = DEFAULT_REQUIRE
    snapshots: SnapshotConfig = attrs.field(factory=SnapshotConfig)
    max_concurrent_creates: int = attrs.field(factory=_default_concurrency)
    max_concurrent_deletes: int = attrs.field(factory=_default_concurrency)
    cleanup_limit_s: float = 30.0
    stop_grace_s: float = 5.0
    command: CommandSettings = attrs.field(factory=CommandSettings)
    sessions: SessionLimits = attrs.field(factory=SessionLimits)
    connections: ConnectionSettings = attrs.field(factory=ConnectionSettings)
    tunnels: TunnelSettings = attrs.field(factory=TunnelSettings)
    replay_budget_bytes: int = 256 * 1024**2
    spill_quota_bytes: int = 4 * 1024**3
    spill_budget_bytes: int = 16 * 1024**3
    min_free_bytes: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
    keep: bool = False
