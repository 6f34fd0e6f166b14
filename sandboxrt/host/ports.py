"""What a host needs from the state folder: the sandboxes it remembers and the snapshots it starts them from.

``store.py`` and ``snapshots`` fill these in on disk, ``testing/state.py`` in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import attrs
import trio

from sandboxrt.engine.base import Layer
from sandboxrt.host.launch import ImageSettings
from sandboxrt.models import Isolation, Limits, Quota, Registry, RunConfig, SandboxOwner, Snapshot
from sandboxrt.protocol.registries import CreateRegistry, RegistryLogin, UpdateRegistry
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSnapshot
from sandboxrt.snapshots.content import CaptureSource, Progress
from sandboxrt.store import SandboxRow

__all__ = ["HostState", "RegistryStore", "SandboxRecords", "SnapshotContents", "Snapshots"]


class SandboxRecords(Protocol):
    """The sandboxes of one state folder, as this owner sees them. Every coroutine is one transaction."""

    @property
    def owner_id(self) -> str:
        """Who this process is among those that share the folder."""
        ...

    @property
    def identity(self) -> str:
        """Who the state folder is on this machine: what containers' names begin with."""
        ...

    async def add_sandbox(
        self,
        *,
        name: str,
        snapshot_id: str,
        limits: Limits,
        status: str = "provisioning",
        require: frozenset[Isolation] | None = None,
        allow_unenforced_limits: bool = False,
        ttl_seconds: int | None = None,
        idle_ttl_seconds: int | None = None,
        env: Mapping[str, str] | None = None,
        tenant: str = "",
        labels: Mapping[str, str] | None = None,
        run_config: RunConfig | None = None,
        delete_after_stop_seconds: int | None = None,
        keep: bool = False,
        idempotency_key: str | None = None,
        lease_seconds: int | None = None,
        quota: Quota | None = None,
    ) -> SandboxRow:
        """Record a new sandbox of this owner and give it a uid block.

        Raises ``ResourceAlreadyExistsError`` or ``QuotaExceededError``.
        """
        ...

    async def set_sandbox_status(
        self, name_or_id: str, status: str, message: str | None = None, *, idle_for_s: float | None = None
    ) -> SandboxRow:
        """Change its status and message, and how long it has been idle, where that counts."""
        ...

    async def note_activity(self, sandbox_id: str, idle_for_s: float) -> None:
        """Note how long it has been idle; harmless when it is gone."""
        ...

    async def update_sandbox(
        self,
        name_or_id: str,
        *,
        new_name: str | None = None,
        ttl_seconds: int | None = None,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        run_config: RunConfig | None = None,
    ) -> SandboxRow:
        """Change its name, TTLs or run configuration; ``None`` leaves as is."""
        ...

    async def secure_block(self, row: SandboxRow) -> SandboxRow:
        """Hold its uid block for a start, or give it another one, to which its files have to be given then."""
        ...

    async def owners_moved(self, sandbox_id: str) -> None:
        """All its files are its block's now."""
        ...

    async def remove_sandbox(self, name_or_id: str) -> None:
        """Forget it and free its uid block; harmless when it is gone."""
        ...

    async def dead_owners(self) -> tuple[str, ...]:
        """Owners that are gone and left something."""
        ...

    async def find_sandbox(self, name_or_id: str, tenant: str = "") -> SandboxRow:
        """By name or id, whoever owns it. Raises ``ResourceNotFoundError``."""
        ...

    async def list_sandboxes(self) -> Sequence[SandboxRow]:
        """All, whoever owns them, oldest first."""
        ...

    async def owner(self, owner_id: str) -> SandboxOwner:
        """What process an owner is, as far as it is known."""
        ...


class SnapshotContents(Protocol):
    """What a sandbox is started from."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Topmost first."""
        ...

    @property
    def config(self) -> ImageSettings:
        """How its commands run."""
        ...


class Snapshots(Protocol):
    """The snapshots of one state folder."""

    async def create(self, request: CreateSnapshot) -> Snapshot:
        """Begin to build one."""
        ...

    async def capture(self, request: CaptureSnapshot, source: CaptureSource) -> Snapshot:
        """Begin to make one of a sandbox's files."""
        ...

    async def get(self, reference: str, tenant: str | None = None, *, newest: bool = False) -> Snapshot:
        """By id, ``name:tag`` or name, of one tenant or (``None``) any by id. Raises ``ResourceNotFoundError``."""
        ...

    async def list(
        self,
        *,
        name_contains: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        tenant: str = "",
    ) -> Sequence[Snapshot]:
        """A page of a tenant's."""
        ...

    async def tags(self, name: str, tenant: str = "") -> Sequence[tuple[str, str]]:
        """The tags of a name, each with the id that it means. Raises ``ResourceNotFoundError``."""
        ...

    async def delete(self, snapshot_id: str) -> None:
        """Remove one. Raises ``ResourceNotFoundError`` or ``ResourceInUseError``."""
        ...

    async def wait(self, snapshot_id: str, timeout_s: float) -> Snapshot:
        """Wait until it is ready. Raises ``ResourceCreationError`` or ``ResourceTimeoutError``."""
        ...

    def progress(self, snapshot_id: str) -> AsyncIterator[Progress]:
        """News of its build, until it ends."""
        ...

    async def host_snapshot(self) -> Snapshot:
        """The built-in one, made from this machine's own files."""
        ...

    async def prepare(self, snapshot_id: str) -> None:
        """Bring up to date what one depends on outside of the state folder, before a sandbox of it is recorded."""
        ...

    async def use(self, snapshot_id: str) -> SnapshotContents:
        """What to start a sandbox from."""
        ...


class RegistryStore(Protocol):
    """The named registries of one state folder. Every coroutine is one transaction."""

    async def add(self, request: CreateRegistry) -> Registry:
        """Record one. Raises ``ResourceAlreadyExistsError`` or ``ValidationError``."""
        ...

    async def find(self, name_or_id: str, tenant: str) -> Registry:
        """A tenant's, by name or id. Raises ``ResourceNotFoundError``."""
        ...

    async def page(
        self, tenant: str, name_contains: str, limit: int, offset: int, after: int | None
    ) -> Sequence[tuple[int, Registry]]:
        """Some of a tenant's, newest first, each with its place in the order; only those ``after`` a place."""
        ...

    async def change(self, name_or_id: str, tenant: str, change: UpdateRegistry) -> Registry:
        """Change one. Raises ``ResourceNotFoundError``, ``ResourceNameConflictError`` or ``ValidationError``."""
        ...

    async def remove(self, name_or_id: str, tenant: str) -> None:
        """Forget one. Raises ``ResourceNotFoundError`` or ``ResourceInUseError``."""
        ...

    async def login(self, registry_id: str, tenant: str) -> RegistryLogin:
        """A tenant's, by id, with its password. Raises ``ResourceNotFoundError`` or ``ResourceCreationError``."""
        ...


@attrs.frozen
class HostState:
    """Where a host keeps what it knows: sandboxes, snapshots and named registries.

    Attributes:
        records: The sandboxes.
        snapshots: What they are started from.
        registries: What images are fetched from with a stored login.
        reclaim: Removes what dead owners left.
    """

    records: SandboxRecords
    snapshots: Snapshots
    registries: RegistryStore
    reclaim: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
