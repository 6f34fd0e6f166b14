"""What a host remembers, in memory: for hosts over the fake engine, with no file, thread or real time involved."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import Layer, upper_name
from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxClientError,
    ValidationError,
)
from sandboxrt.host.ports import HostState
from sandboxrt.models import Isolation, Limits, Quota, RunConfig, SandboxOwner, Snapshot
from sandboxrt.protocol.quota import Usage, check_quota
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSnapshot
from sandboxrt.snapshots.content import CaptureSource, Phase, Progress
from sandboxrt.store import UID_BLOCK_BASE, UID_BLOCK_SIZE, SandboxRow
from sandboxrt.testing.registries import MemoryRegistries

__all__ = ["MemoryContents", "MemoryImage", "MemoryRecords", "MemorySnapshots", "memory_state", "state_of"]


def memory_state() -> HostState:
    """What :func:`sandboxrt.host.opening.open_host` needs to remember things in memory, empty."""
    records = MemoryRecords()
    return state_of(records, MemorySnapshots(records))


def state_of(records: MemoryRecords, snapshots: MemorySnapshots) -> HostState:
    """The same with sandboxes and snapshots that are there already."""
    return HostState(records, snapshots, MemoryRegistries(snapshots.building_with))


@attrs.frozen
class MemoryImage:
    """How commands run in sandboxes of a snapshot."""

    env: Mapping[str, str] = attrs.field(factory=dict)
    user: str | None = None
    work_dir: str | None = "/root"


@attrs.frozen
class MemoryContents:
    """What the fake engine is given; it needs no layers."""

    layers: tuple[Layer, ...] = ()
    config: MemoryImage = attrs.field(factory=MemoryImage)


class MemoryRecords:
    """Implements :class:`sandboxrt.host.ports.SandboxRecords`."""

    def __init__(self, owner_id: str = "0" * 32) -> None:
        self.owner_id = owner_id
        self.identity = "0" * 16
        self.rows: dict[str, SandboxRow] = {}

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
        """Record a sandbox."""
        await trio.lowlevel.checkpoint()
        if any((row.tenant, row.name) == (tenant, name) for row in self.rows.values()):
            raise ResourceAlreadyExistsError(f"Sandbox '{name}' already exists", "sandbox")
        if quota is not None:
            check_quota(quota, self._usage(tenant), limits)
        taken = {row.uid_base for row in self.rows.values()}
        uid_base = UID_BLOCK_BASE
        while uid_base in taken:
            uid_base += UID_BLOCK_SIZE
        stamp = _now()
        row = SandboxRow(
            id=str(uuid.uuid4()),
            name=name,
            owner_id=self.owner_id,
            snapshot_id=snapshot_id,
            status=status,
            status_message=None,
            uid_base=uid_base,
            limits=limits,
            require=require,
            allow_unenforced_limits=allow_unenforced_limits,
            ttl_seconds=ttl_seconds,
            idle_ttl_seconds=idle_ttl_seconds,
            env=dict(env or {}),
            created_at=stamp,
            updated_at=stamp,
            tenant=tenant,
            labels=dict(labels or {}),
            run_config=run_config,
            delete_after_stop_seconds=delete_after_stop_seconds,
            keep=keep,
            idempotency_key=idempotency_key,
            lease_seconds=lease_seconds,
        )
        self.rows[row.id] = row
        return row

    async def set_sandbox_status(
        self, name_or_id: str, status: str, message: str | None = None, *, idle_for_s: float | None = None
    ) -> SandboxRow:
        """Change a status."""
        row = await self.find_sandbox(name_or_id)
        stopped_at = _now() if status == "stopped" else None
        active_at = None if idle_for_s is None else _now(idle_for_s)
        return self._put(
            attrs.evolve(row, status=status, status_message=message, stopped_at=stopped_at, last_active_at=active_at)
        )

    async def note_activity(self, sandbox_id: str, idle_for_s: float) -> None:
        """Note how long one has been idle."""
        await trio.lowlevel.checkpoint()
        if (row := self.rows.get(sandbox_id)) is not None:
            self._put(attrs.evolve(row, last_active_at=_now(idle_for_s)))

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
        """Change a name, TTLs or run configuration."""
        row = await self.find_sandbox(name_or_id)
        others = [other for other in self.rows.values() if other.id != row.id and other.tenant == row.tenant]
        if new_name is not None and any(other.name == new_name for other in others):
            raise ResourceNameConflictError(f"Sandbox name '{new_name}' is taken", "sandbox")
        return self._put(
            attrs.evolve(
                row,
                name=row.name if new_name is None else new_name,
                ttl_seconds=row.ttl_seconds if ttl_seconds is None else ttl_seconds,
                idle_ttl_seconds=row.idle_ttl_seconds if idle_ttl_seconds is None else idle_ttl_seconds,
                delete_after_stop_seconds=(
                    row.delete_after_stop_seconds if delete_after_stop_seconds is None else delete_after_stop_seconds
                ),
                run_config=run_config or row.run_config,
            )
        )

    async def secure_block(self, row: SandboxRow) -> SandboxRow:
        """Blocks are nobody else's here."""
        await trio.lowlevel.checkpoint()
        return row

    async def owners_moved(self, sandbox_id: str) -> None:
        """Files have no owners here."""
        await trio.lowlevel.checkpoint()

    async def remove_sandbox(self, name_or_id: str) -> None:
        """Forget one."""
        await trio.lowlevel.checkpoint()
        self.rows.pop(name_or_id, None)

    async def find_sandbox(self, name_or_id: str, tenant: str = "") -> SandboxRow:
        """By name in a tenant, or by id."""
        await trio.lowlevel.checkpoint()
        for row in self.rows.values():
            if name_or_id == row.id or (tenant, name_or_id) == (row.tenant, row.name):
                return row
        raise ResourceNotFoundError(f"Sandbox '{name_or_id}' not found", "sandbox")

    async def list_sandboxes(self) -> tuple[SandboxRow, ...]:
        """All."""
        await trio.lowlevel.checkpoint()
        return tuple(self.rows.values())

    async def owner(self, owner_id: str) -> SandboxOwner:
        """Always this process."""
        await trio.lowlevel.checkpoint()
        return SandboxOwner(os.getpid(), "this process")

    async def dead_owners(self) -> tuple[str, ...]:
        """There are none."""
        await trio.lowlevel.checkpoint()
        return ()

    def _usage(self, tenant: str) -> Usage:
        limits = [row.limits for row in self.rows.values() if row.tenant == tenant]
        return Usage(
            sandboxes=len(limits),
            vcpus=sum(each.vcpus or 0 for each in limits),
            mem_bytes=sum(each.mem_bytes or 0 for each in limits),
            storage_bytes=sum(each.disk_bytes or 0 for each in limits),
        )

    def _put(self, row: SandboxRow) -> SandboxRow:
        row = attrs.evolve(row, updated_at=_now())
        self.rows[row.id] = row
        return row


class MemorySnapshots:
    """Implements :class:`sandboxrt.host.ports.Snapshots`. Builds succeed, after ``build_s``, for any image.

    Args:
        records: Whose sandboxes keep a snapshot from being deleted.
        build_s: How long a build takes.
    """

    def __init__(self, records: MemoryRecords, build_s: float = 0.0) -> None:
        self._records = records
        self._build_s = build_s
        self._ready_at: dict[str, float] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._tenants: dict[str, str] = {}
        self._tags: dict[tuple[str, str, str], str] = {}
        self._bases: dict[str, str] = {}
        self.contents: dict[str, MemoryContents] = {}

    async def create(self, request: CreateSnapshot) -> Snapshot:
        """Begin a build."""
        await trio.lowlevel.checkpoint()
        return self.add(
            request.name,
            docker_image=request.docker_image,
            size=request.fs_capacity_bytes,
            tenant=request.tenant,
            tag=request.tag,
            run_config=request.run_config,
            registry_id=request.registry_id,
        )

    async def capture(self, request: CaptureSnapshot, source: CaptureSource) -> Snapshot:
        """Capture, to the end: nobody else is there to do it later."""
        if not request.name or request.name == "host":
            raise ValidationError("A snapshot's name has 1 to 255 characters and is not 'host'", "name")
        base = await self.get(source.snapshot_id)
        folder = Path("/captures", uuid.uuid4().hex)
        try:
            copied = await source.copy(folder, 0)
        except SandboxClientError as error:
            failed = self.add(request.name, source_sandbox_id=source.sandbox_id, tenant=request.tenant)
            self._snapshots[failed.id] = attrs.evolve(
                failed, status="failed", status_message=str(error), error_type=getattr(error, "error_type", None)
            )
            return self._snapshots[failed.id]
        own = Layer(folder / "tree" / upper_name("/"))
        contents = self.contents[base.id]
        snapshot = self.add(
            request.name,
            attrs.evolve(contents, layers=(own, *contents.layers)),
            size=request.fs_capacity_bytes or source.fs_capacity_bytes or base.fs_capacity_bytes,
            tenant=request.tenant,
            tag=request.tag,
            run_config=request.run_config or base.run_config,
            source_sandbox_id=source.sandbox_id,
            used_bytes=copied.used_bytes,
        )
        self._bases[snapshot.id] = base.id
        return snapshot

    def add(
        self,
        name: str,
        contents: MemoryContents | None = None,
        *,
        docker_image: str | None = None,
        size: int = 4 * 1024**3,
        tenant: str = "",
        tag: str | None = None,
        run_config: RunConfig | None = None,
        source_sandbox_id: str | None = None,
        used_bytes: int | None = None,
        registry_id: str | None = None,
    ) -> Snapshot:
        """Put a snapshot there: for setting a scene."""
        stamp = _now()
        snapshot = Snapshot(
            id=str(uuid.uuid4()),
            name=name,
            docker_image=docker_image,
            fs_capacity_bytes=size,
            created_at=stamp,
            updated_at=stamp,
            run_config=run_config,
            source_sandbox_id=source_sandbox_id,
            fs_used_bytes=used_bytes,
            registry_id=registry_id,
        )
        self._snapshots[snapshot.id] = snapshot
        self._tenants[snapshot.id] = tenant
        if tag is not None:
            self._tags[tenant, name, tag] = snapshot.id
        self._ready_at[snapshot.id] = trio.current_time() + self._build_s
        self.contents[snapshot.id] = contents or MemoryContents()
        return self._current(snapshot)

    async def get(self, reference: str, tenant: str | None = None, *, newest: bool = False) -> Snapshot:
        """By id, ``name:tag`` or name."""
        await trio.lowlevel.checkpoint()
        name, colon, tag = reference.rpartition(":")
        tagged = None
        if colon or not newest:
            tagged = self._tags.get((tenant or "", *((name, tag) if colon else (reference, "latest"))))
        for snapshot in reversed(self._snapshots.values()):
            owner = self._tenants[snapshot.id]
            by_id = reference == snapshot.id and tenant in (None, owner)
            by_name = tagged is None and reference == snapshot.name and (tenant or "") == owner
            if by_id or by_name or snapshot.id == tagged:
                return self._current(snapshot)
        raise ResourceNotFoundError(f"Snapshot '{reference}' not found", "snapshot")

    def building_with(self, registry_id: str) -> tuple[str, ...]:
        """The names of those that are being built with a named registry."""
        mine = (self._current(s) for s in self._snapshots.values() if s.registry_id == registry_id)
        return tuple(snapshot.name for snapshot in mine if snapshot.status == "building")

    async def tags(self, name: str, tenant: str = "") -> tuple[tuple[str, str], ...]:
        """The tags of a name."""
        await trio.lowlevel.checkpoint()
        if not any(s.name == name and self._tenants[s.id] == tenant for s in self._snapshots.values()):
            raise ResourceNotFoundError(f"Snapshot name '{name}' not found", "snapshot")
        return tuple(sorted((key[2], found) for key, found in self._tags.items() if key[:2] == (tenant, name)))

    async def list(
        self,
        *,
        name_contains: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        tenant: str = "",
    ) -> tuple[Snapshot, ...]:
        """A page of them."""
        await trio.lowlevel.checkpoint()
        for field, value, lowest, highest in (("limit", limit, 1, 500), ("offset", offset, 0, 2**63 - 1)):
            if value is not None and not lowest <= value <= highest:
                raise ValidationError(f"{field} must be between {lowest} and {highest}, not {value}", field)
        wanted = (name_contains or "").casefold()
        mine = [s for s in reversed(self._snapshots.values()) if self._tenants[s.id] == tenant]
        found = [self._current(s) for s in mine if wanted in s.name.casefold()]
        start = offset or 0
        return tuple(found[start : start + (limit or 50)])

    async def delete(self, snapshot_id: str) -> None:
        """Remove one."""
        snapshot = await self.get(snapshot_id)
        users = [row.name for row in self._records.rows.values() if row.snapshot_id == snapshot.id]
        users += [self._snapshots[other].name for other, base in self._bases.items() if base == snapshot.id]
        if users:
            raise ResourceInUseError(f"Snapshot '{snapshot_id}' is used by {', '.join(users)}", "snapshot", users)
        del self._snapshots[snapshot.id], self._ready_at[snapshot.id], self.contents[snapshot.id]
        self._bases.pop(snapshot.id, None)
        self._tags = {key: found for key, found in self._tags.items() if found != snapshot.id}

    async def wait(self, snapshot_id: str, timeout_s: float) -> Snapshot:
        """Wait for a build."""
        snapshot = await self.get(snapshot_id)
        if snapshot.status == "failed":
            message = snapshot.status_message or "Snapshot build failed"
            raise ResourceCreationError(message, "snapshot", snapshot.error_type)
        left = self._ready_at[snapshot.id] - trio.current_time()
        await trio.sleep(max(0.0, min(left, timeout_s)))
        if left > timeout_s:
            raise ResourceTimeoutError(
                f"Snapshot '{snapshot_id}' not ready after {timeout_s:g}s", "snapshot", "building"
            )
        return await self.get(snapshot_id)

    async def progress(self, snapshot_id: str) -> AsyncIterator[Progress]:
        """Where a build is now, and its end."""
        snapshot = await self.get(snapshot_id)
        if snapshot.status == "building":
            yield Progress(Phase.PULL)
            await self.wait(snapshot_id, math.inf)
        yield Progress(Phase.DONE)

    async def host_snapshot(self) -> Snapshot:
        """The default one."""
        try:
            return await self.get("host")
        except ResourceNotFoundError:
            return self.add("host")

    async def prepare(self, snapshot_id: str) -> None:
        """Nothing: none depends on anything."""
        await trio.lowlevel.checkpoint()

    async def use(self, snapshot_id: str) -> MemoryContents:
        """What to start from."""
        snapshot = await self.get(snapshot_id)
        if snapshot.status != "ready":
            raise ResourceCreationError(f"Snapshot '{snapshot_id}' is {snapshot.status}", "sandbox", "SnapshotNotReady")
        return self.contents[snapshot.id]

    def _current(self, snapshot: Snapshot) -> Snapshot:
        if snapshot.status == "failed":
            return snapshot
        ready = trio.current_time() >= self._ready_at[snapshot.id]
        tags = tuple(key[2] for key, found in self._tags.items() if found == snapshot.id)
        return attrs.evolve(snapshot, status="ready" if ready else "building", tags=tags)


def _now(ago_s: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
