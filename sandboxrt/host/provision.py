"""The making of a sandbox: from what its creator asked for to a recorded row, and from that to a container.

Making the container is done again at each start; the row, and the files in the sandbox's folder, stay.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import Container, ContainerSpec, Engine
from sandboxrt.errors import ResourceAlreadyExistsError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.launch import ImageSettings, Launcher
from sandboxrt.host.leftovers import Leftovers
from sandboxrt.host.ports import SandboxRecords, Snapshots
from sandboxrt.host.replay import ReplayBudget
from sandboxrt.host.spill import SpillBudget
from sandboxrt.models import RunConfig
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.protocol.rest_fields import invalid
from sandboxrt.room import Room
from sandboxrt.store import SandboxRow, container_id

__all__ = ["Workshop", "hostname", "make_container", "new_launcher", "record_sandbox", "sandbox_dir", "secure_block"]

_log = logging.getLogger("sandboxrt.host")


@attrs.frozen(kw_only=True)
class Workshop:
    """What all sandboxes of a host share: the tools to make one with, and the turns to take."""

    config: HostConfig
    engine: Engine
    leftovers: Leftovers
    records: SandboxRecords
    snapshots: Snapshots
    reclaim: Callable[[], Awaitable[None]]
    creating: trio.CapacityLimiter
    removing: trio.CapacityLimiter
    spilling: trio.CapacityLimiter
    replay: ReplayBudget
    room: Room
    spill: SpillBudget


def sandbox_dir(state_dir: Path, engine_id: str) -> Path:
    """The folder of one sandbox."""
    return state_dir / "sandboxes" / engine_id


async def record_sandbox(shop: Workshop, request: CreateSandbox) -> tuple[SandboxRow, CreateSandbox]:
    """Record a new sandbox. Returns its row, and the request with the disk size of its snapshot where it has that.

    Raises:
        ResourceNotFoundError: There is no such snapshot.
        ResourceAlreadyExistsError: The name is taken.
        QuotaExceededError: It does not fit into the quota of its tenant.
        ValidationError: Its disk would be smaller than what the snapshot holds.
        ResourceInUseError: It lies on this machine's own packages, and sandboxes have those of before a change.
    """
    snapshot_id = await _snapshot_id(shop, request)
    request = await _sized(shop, request, snapshot_id)
    await shop.snapshots.prepare(snapshot_id)
    try:
        return await _record(shop, request, snapshot_id), request
    except ResourceAlreadyExistsError:
        # It may be what a dead owner left; then the name is free after a clean-up.
        await shop.reclaim()
        return await _record(shop, request, snapshot_id), request


async def make_container(shop: Workshop, request: CreateSandbox, row: SandboxRow) -> tuple[Container, ImageSettings]:
    """Make the container of a recorded sandbox, over the files that an earlier one left in its folder, if any.

    ``row`` must be what :func:`secure_block` gave.
    """
    contents = await shop.snapshots.use(row.snapshot_id)
    folder = sandbox_dir(shop.config.state_dir, row.engine_id)
    # Some microseconds, against the hundreds that a worker thread takes, on the way of every create.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    container = await shop.engine.create(
        ContainerSpec(
            id=container_id(shop.records.identity, row.engine_id),
            hostname=hostname(request.name),
            uid_base=row.uid_base,
            layers=contents.layers,
            state_dir=folder,
            limits=request.limits,
            require=shop.config.require if request.require is None else request.require,
            allow_unenforced_limits=request.allow_unenforced_limits,
        )
    )
    return container, contents.config


async def secure_block(shop: Workshop, row: SandboxRow) -> SandboxRow:
    """See that a sandbox that is to be started has a block of user ids of its own, and that its files are that block's.

    It has had one since it was made; but while nobody held it, because its host was down, a sandbox of another state
    folder may have been given the same, and one of a copied folder has it for certain.
    """
    while (row := await shop.records.secure_block(row)).moved_from is not None:
        folder = sandbox_dir(shop.config.state_dir, row.engine_id)
        _log.warning("sandbox %s gets other user ids: a sandbox of another state folder has its", row.id)
        await shop.engine.move_owners(folder, row.moved_from, row.uid_base)
        await shop.records.owners_moved(row.id)
    return row


@attrs.frozen
class _Settings:
    """An image's settings with somebody's over them."""

    env: Mapping[str, str]
    user: str | None
    work_dir: str | None


def new_launcher(
    container: Container, image: ImageSettings, request: CreateSandbox, config: RunConfig | None
) -> Launcher:
    """What starts commands in a container, by the image's settings and the run configuration over them."""
    env = request.env
    if config is not None:
        image = _Settings(image.env, config.user or image.user, config.work_dir or image.work_dir)
        env = {**env, **(config.env_vars or {})}
    return Launcher(container, image, env, hostname(request.name), request.limits.pids)


def hostname(name: str) -> str:
    """What ``hostname`` prints in a sandbox of that name."""
    return name[:63].rstrip("-.") or "sandbox"


async def _snapshot_id(shop: Workshop, request: CreateSandbox) -> str:
    if request.snapshot_id is not None:
        return request.snapshot_id
    tenant = request.tenant or None
    if request.snapshot is not None:
        return (await shop.snapshots.get(request.snapshot, tenant)).id
    if request.snapshot_name is not None:
        return (await shop.snapshots.get(request.snapshot_name, tenant, newest=True)).id
    return (await shop.snapshots.host_snapshot()).id


async def _sized(shop: Workshop, request: CreateSandbox, snapshot_id: str) -> CreateSandbox:
    if not (request.snapshot_id or request.snapshot_name or request.snapshot):
        return request
    snapshot = await shop.snapshots.get(snapshot_id)
    if not request.disk_of_snapshot:
        asked, used = request.limits.disk_bytes, snapshot.fs_used_bytes
        if asked is not None and used is not None and asked < used:
            message = f"of {asked} must not be less than the {used} bytes that the snapshot holds"
            raise invalid(message, "fs_capacity_bytes")
        return request
    size = snapshot.fs_capacity_bytes
    return attrs.evolve(request, limits=attrs.evolve(request.limits, disk_bytes=size)) if size else request


async def _record(shop: Workshop, request: CreateSandbox, snapshot_id: str) -> SandboxRow:
    return await shop.records.add_sandbox(
        name=request.name,
        snapshot_id=snapshot_id,
        limits=request.limits,
        require=request.require,
        allow_unenforced_limits=request.allow_unenforced_limits,
        ttl_seconds=request.ttl_seconds,
        idle_ttl_seconds=request.idle_ttl_seconds,
        env=request.env,
        tenant=request.tenant,
        labels=request.labels,
        run_config=request.run_config,
        delete_after_stop_seconds=request.delete_after_stop_seconds,
        keep=shop.config.keep,
        idempotency_key=request.idempotency_key,
        lease_seconds=request.lease_seconds,
        quota=request.quota.over(shop.config.quota),
    )
