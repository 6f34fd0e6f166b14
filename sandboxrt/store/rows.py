"""Rows of the database as values, and the queries that make them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from collections.abc import Mapping
from typing import Any, Final

import attrs

from sandboxrt.errors import ResourceNotFoundError
from sandboxrt.models import Isolation, Limits, RunConfig, Snapshot
from sandboxrt.protocol.quota import Usage

__all__ = [
    "OWNS_SOMETHING",
    "SNAPSHOT_COLUMNS",
    "UID_BLOCK_BASE",
    "UID_BLOCK_COUNT",
    "UID_BLOCK_SIZE",
    "SandboxRow",
    "SnapshotRow",
    "block_of",
    "canonical_id",
    "derived_snapshots",
    "find_sandbox",
    "find_snapshot",
    "one_sandbox",
    "one_snapshot",
    "run_config_to_text",
    "select_sandboxes",
    "update_row",
    "usage_of",
    "users_of_snapshot",
]

UID_BLOCK_BASE: Final = 0x20000000
"""First host uid and gid that sandboxes use: far above what accounts and /etc/subuid usually hold."""
UID_BLOCK_SIZE: Final = 65_536
UID_BLOCK_COUNT: Final = (0x80000000 - UID_BLOCK_BASE) // UID_BLOCK_SIZE
"""How many blocks there are; ids stay below 2**31, which some programs take for negative."""

OWNS_SOMETHING = """
    SELECT EXISTS (SELECT 1 FROM sandboxes WHERE owner_id = :owner)
        OR EXISTS (SELECT 1 FROM snapshots WHERE owner_id = :owner AND status = 'building')
"""


@attrs.frozen(kw_only=True)
class SandboxRow:
    """A sandbox as the store knows it.

    Attributes:
        id: UUID with dashes, as the protocol shows it.
        name: Unique within the tenant.
        owner_id: The owner that runs it.
        snapshot_id: What it was made from.
        status: ``provisioning``, ``ready``, ``failed``, ``stopped`` or ``deleting``.
        uid_base: First host uid and gid of its block of 65,536.
        limits: What it may use.
        require: Isolation that its creator asked for; ``None`` means the default.
        ttl_seconds: Longest life; 0 means none, ``None`` not set. ``idle_ttl_seconds`` likewise.
        env: Environment of its commands.
        created_at: ISO-8601, UTC. ``updated_at`` and ``stopped_at`` likewise.
        tenant: Whose it is.
        labels: Its creator's own marks.
        run_config: How its commands run when their callers say nothing.
        keep: Whether its files outlive its owner; the next server takes it over.
        idempotency_key: What tells a repeated create from another one.
        lease_seconds: How long it outlives an owner that does not say that it lives; ``None`` = for ever.
        moved_from: First id of the block that its files have still, wholly or in part; ``None`` = ``uid_base``.
        last_active_at: When something last happened in it, to the minute; ``None`` while its idle time does not count.
    """

    id: str
    name: str
    owner_id: str
    snapshot_id: str
    status: str
    status_message: str | None
    uid_base: int
    limits: Limits
    require: frozenset[Isolation] | None
    allow_unenforced_limits: bool
    ttl_seconds: int | None
    idle_ttl_seconds: int | None
    env: Mapping[str, str] = attrs.field(repr=False)
    created_at: str
    updated_at: str
    tenant: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    run_config: RunConfig | None = None
    delete_after_stop_seconds: int | None = None
    keep: bool = False
    idempotency_key: str | None = attrs.field(default=None, repr=False)
    stopped_at: str | None = None
    lease_seconds: int | None = None
    last_active_at: str | None = None
    moved_from: int | None = None

    @property
    def engine_id(self) -> str:
        """The id as engines want it: 32 hex digits, no dashes."""
        return self.id.replace("-", "")


def run_config_to_text(config: RunConfig | None) -> str | None:
    """A run configuration as a column has it."""
    if config is None:
        return None
    env = None if config.env_vars is None else dict(config.env_vars)
    return json.dumps({"user": config.user, "work_dir": config.work_dir, "env_vars": env})


def _run_config(text: str | RunConfig | None) -> RunConfig | None:
    return RunConfig(**json.loads(text)) if isinstance(text, str) else text


def _tags(text: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(json.loads(text))) if isinstance(text, str) else text


@attrs.frozen(kw_only=True)
class SnapshotRow:
    """A snapshot as the store knows it.

    Attributes:
        kind: ``host``, ``image`` or ``capture``.
        status: ``building``, ``ready`` or ``failed``.
        error_type: Why it failed, in the protocol's word.
        owner_id: Who built it; only a living owner's ``building`` can become ``ready``.
        fingerprint: What the content depends on outside the state folder, if anything.
        content: Layers and image configuration, as the snapshot library wrote them.
        tenant: Whose it is.
        tag: The tag that it takes when it becomes ready.
        run_config: How commands run in its sandboxes when nobody says otherwise.
        tags: The tags that mean it now.
        base_id: The snapshot on whose layers its own lie; ``None`` where it stands alone.
        registry_id: The named registry that its image comes from, if one was named; it may be gone.
        layers_key: What its files follow from, the same for every image with the same layers; ``None`` where it is
            not known, or is no image.
        files_of: The snapshot that made the folder in which its files are; ``None`` = itself.
    """

    id: str
    name: str
    kind: str
    status: str
    status_message: str | None
    error_type: str | None
    owner_id: str
    fs_capacity_bytes: int
    fs_used_bytes: int | None
    docker_image: str | None
    image_digest: str | None
    source_sandbox_id: str | None
    fingerprint: str | None
    content: str | None
    created_at: str
    updated_at: str
    tenant: str = ""
    tag: str | None = None
    run_config: RunConfig | None = attrs.field(default=None, converter=_run_config)
    tags: tuple[str, ...] = attrs.field(default=(), converter=_tags)
    base_id: str | None = None
    registry_id: str | None = None
    layers_key: str | None = None
    files_of: str | None = None

    @property
    def files_id(self) -> str:
        """The name of the folder that has its files; snapshots with the same layers share one."""
        return self.files_of or self.id

    @property
    def public(self) -> Snapshot:
        """What the user sees of it."""
        return Snapshot(
            id=self.id,
            name=self.name,
            status=self.status,
            status_message=self.status_message,
            fs_capacity_bytes=self.fs_capacity_bytes,
            fs_used_bytes=self.fs_used_bytes,
            docker_image=self.docker_image,
            image_digest=self.image_digest,
            source_sandbox_id=self.source_sandbox_id,
            registry_id=self.registry_id,
            created_at=self.created_at,
            updated_at=self.updated_at,
            tags=self.tags,
            run_config=self.run_config,
            error_type=self.error_type,
        )


def canonical_id(text: str) -> str | None:
    """``text`` as a UUID with dashes, or ``None`` where it is none; 32 hex digits without dashes will do."""
    if len(text) not in (32, 36):
        return None
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


SANDBOX_COLUMNS: Final = (
    "id, name, owner_id, snapshot_id, status, status_message, uid_block, limits, require, allow_unenforced_limits,"
    " ttl_seconds, idle_ttl_seconds, env, created_at, updated_at, tenant, labels, run_config,"
    " delete_after_stop_seconds, keep, idempotency_key, stopped_at, lease_seconds, last_active_at, moved_from"
)
SNAPSHOT_COLUMNS: Final = ", ".join(
    field.name
    if field.name != "tags"
    else "(SELECT json_group_array(t.tag) FROM snapshot_tags AS t WHERE t.snapshot_id = snapshots.id) AS tags"
    for field in attrs.fields(SnapshotRow)
)


def _first_id(block: int) -> int:
    return UID_BLOCK_BASE + block * UID_BLOCK_SIZE


def block_of(row: SandboxRow) -> int:
    """The number of a sandbox's block."""
    return (row.uid_base - UID_BLOCK_BASE) // UID_BLOCK_SIZE


def _sandbox_row(row: sqlite3.Row) -> SandboxRow:
    values = dict(row)
    require = values.pop("require")
    moved_from = values.pop("moved_from")
    return SandboxRow(
        uid_base=_first_id(values.pop("uid_block")),
        moved_from=None if moved_from is None else _first_id(moved_from),
        limits=Limits(**json.loads(values.pop("limits"))),
        require=None if require is None else frozenset(Isolation(value) for value in json.loads(require)),
        allow_unenforced_limits=bool(values.pop("allow_unenforced_limits")),
        env=json.loads(values.pop("env")),
        labels=json.loads(values.pop("labels")),
        run_config=_run_config(values.pop("run_config")),
        keep=bool(values.pop("keep")),
        **values,
    )


def select_sandboxes(db: sqlite3.Connection, where: str, arguments: tuple[Any, ...]) -> tuple[SandboxRow, ...]:
    """Sandboxes that fulfil a condition, oldest first."""
    rows = db.execute(f"SELECT {SANDBOX_COLUMNS} FROM sandboxes WHERE {where} ORDER BY seq", arguments)  # noqa: S608
    return tuple(_sandbox_row(row) for row in rows)


def one_sandbox(db: sqlite3.Connection, where: str, arguments: tuple[Any, ...]) -> SandboxRow:
    """The sandbox that fulfils a condition; there is exactly one."""
    (row,) = select_sandboxes(db, where, arguments)
    return row


def find_sandbox(db: sqlite3.Connection, name_or_id: str, tenant: str = "") -> SandboxRow:
    """The sandbox of that name in a tenant, or else of that id anywhere. Raises ``ResourceNotFoundError``."""
    found = select_sandboxes(db, "tenant = ? AND name = ?", (tenant, name_or_id))
    sandbox_id = canonical_id(name_or_id)
    if not found and sandbox_id is not None:
        found = select_sandboxes(db, "id = ?", (sandbox_id,))
    if found:
        return found[0]
    raise ResourceNotFoundError(f"Sandbox '{name_or_id}' not found", "sandbox")


def usage_of(db: sqlite3.Connection, tenant: str) -> Usage:
    """What a tenant's sandboxes take together, whoever owns them and whatever their status."""
    found = db.execute(
        "SELECT count(*), total(json_extract(limits, '$.vcpus')), total(json_extract(limits, '$.mem_bytes')),"
        " total(json_extract(limits, '$.disk_bytes')) FROM sandboxes WHERE tenant = ?",
        (tenant,),
    ).fetchone()
    return Usage(sandboxes=found[0], vcpus=found[1], mem_bytes=int(found[2]), storage_bytes=int(found[3]))


def one_snapshot(db: sqlite3.Connection, snapshot_id: str) -> SnapshotRow:
    """The snapshot of that id. Raises ``ResourceNotFoundError``."""
    row = db.execute(f"SELECT {SNAPSHOT_COLUMNS} FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone()  # noqa: S608
    if row is None:
        raise ResourceNotFoundError(f"Snapshot '{snapshot_id}' not found", "snapshot")
    return SnapshotRow(**dict(row))


def find_snapshot(
    db: sqlite3.Connection, reference: str, tenant: str | None = None, *, newest: bool = False
) -> SnapshotRow:
    """The snapshot that a reference means: an id, ``name:tag``, or a bare name.

    A bare name means ``name:latest``, else (or with ``newest``) the newest ready one of that name, else the newest.
    Without a tenant an id is enough to find any tenant's snapshot, and names are the machine's own.

    Raises:
        ResourceNotFoundError: It means none.
    """
    missing = ResourceNotFoundError(f"Snapshot '{reference}' not found", "snapshot")
    snapshot_id = canonical_id(reference)
    if snapshot_id is not None:
        with contextlib.suppress(ResourceNotFoundError):
            row = one_snapshot(db, snapshot_id)
            if tenant in (None, row.tenant):
                return row
    owner = tenant or ""
    name, colon, tag = reference.rpartition(":")
    tagged = (name, tag) if colon else (reference, "latest")
    if colon or not newest:
        found = db.execute(
            "SELECT snapshot_id FROM snapshot_tags WHERE tenant = ? AND name = ? AND tag = ?", (owner, *tagged)
        ).fetchone()
        if found is not None:
            return one_snapshot(db, found[0])
    found = db.execute(
        f"SELECT {SNAPSHOT_COLUMNS} FROM snapshots WHERE tenant = ? AND name = ?"  # noqa: S608
        " ORDER BY status = 'ready' DESC, seq DESC LIMIT 1",
        (owner, reference),
    ).fetchone()
    if found is None:
        raise missing
    return SnapshotRow(**dict(found))


def derived_snapshots(db: sqlite3.Connection, snapshot_id: str) -> tuple[str, ...]:
    """Names of the snapshots that were captured on a snapshot's layers, and lie on them still."""
    rows = db.execute("SELECT name FROM snapshots WHERE base_id = ? ORDER BY name, seq", (snapshot_id,))
    return tuple(row[0] for row in rows)


def users_of_snapshot(db: sqlite3.Connection, snapshot_id: str, *, with_derived: bool = False) -> tuple[str, ...]:
    """Names of the sandboxes that were made from a snapshot, or ``with_derived`` from one that lies on it."""
    derived = "SELECT ?" if not with_derived else _WITH_DERIVED
    rows = db.execute(f"SELECT name FROM sandboxes WHERE snapshot_id IN ({derived}) ORDER BY name", (snapshot_id,))  # noqa: S608
    return tuple(row[0] for row in rows)


_WITH_DERIVED: Final = """
    WITH RECURSIVE derived (id) AS (
        VALUES (?) UNION SELECT s.id FROM snapshots AS s JOIN derived AS d ON s.base_id = d.id
    ) SELECT id FROM derived
"""


def update_row(db: sqlite3.Connection, table: str, key: str, changes: Mapping[str, Any]) -> None:
    """Change columns of the row with that id. Table and column names are this package's own."""
    columns = ", ".join(f"{column} = ?" for column in changes)
    db.execute(f"UPDATE {table} SET {columns} WHERE id = ?", (*changes.values(), key))  # noqa: S608
