"""Sandboxes of a state folder that another host has: who that is, and what is known of them here.

Each is used through its own host only; here they are seen, and whoever asks for one is told where it is.
"""

from __future__ import annotations

import os

import attrs

from sandboxrt.errors import ResourceInUseError
from sandboxrt.host.ports import SandboxRecords
from sandboxrt.models import SandboxOwner
from sandboxrt.protocol.rest import SandboxInfo
from sandboxrt.store import SandboxRow

__all__ = ["in_use_elsewhere", "sandboxes_elsewhere"]


async def sandboxes_elsewhere(records: SandboxRecords) -> list[SandboxInfo]:
    """Those of living hosts that share the state folder, of the tenant that embedded hosts have; oldest first."""
    rows = [row for row in await records.list_sandboxes() if row.owner_id != records.owner_id and not row.tenant]
    if not rows:
        return []
    dead = frozenset(await records.dead_owners())
    living = [row for row in rows if row.owner_id not in dead]
    owners = {owner_id: await records.owner(owner_id) for owner_id in {row.owner_id for row in living}}
    return [_info(row, owners[row.owner_id]) for row in living]


async def in_use_elsewhere(records: SandboxRecords, row: SandboxRow) -> ResourceInUseError:
    """What to tell somebody who wants to use another host's sandbox here."""
    owner = await records.owner(row.owner_id)
    if owner.pid == os.getpid():
        where = "a client in another event loop of this process, and can only be used there"
    else:
        where = f"another running process ({owner}), which alone can use it"
    return ResourceInUseError(
        f"Sandbox '{row.name}' belongs to {where}; run a server to share sandboxes", "sandbox", (str(owner),)
    )


def _info(row: SandboxRow, owner: SandboxOwner) -> SandboxInfo:
    known = {field.name for field in attrs.fields(SandboxRow)}
    same = {field.name: getattr(row, field.name) for field in attrs.fields(SandboxInfo) if field.name in known}
    limits = row.limits
    return SandboxInfo(
        **same,
        vcpus=limits.vcpus,
        mem_bytes=limits.mem_bytes,
        fs_capacity_bytes=limits.disk_bytes,
        owner=owner,
    )
