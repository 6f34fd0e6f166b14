"""The state of one state folder: the only way to its database."""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import trio

from sandboxrt.errors import (
    QuotaExceededError,
    ResourceAlreadyExistsError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    SandboxClientError,
    SandboxNotReadyError,
    ValidationError,
)
from sandboxrt.models import Isolation, Limits, Quota, RunConfig, SandboxOwner
from sandboxrt.protocol.quota import check_quota
from sandboxrt.store.database import connect, migrate, naming, run_blocking, transaction, with_room
from sandboxrt.store.identity import settle_identity
from sandboxrt.store.owners import OwnerLock
from sandboxrt.store.privacy import make_private
from sandboxrt.store.rows import (
    OWNS_SOMETHING,
    SNAPSHOT_COLUMNS,
    UID_BLOCK_COUNT,
    SandboxRow,
    SnapshotRow,
    block_of,
    canonical_id,
    derived_snapshots,
    find_sandbox,
    find_snapshot,
    one_sandbox,
    one_snapshot,
    run_config_to_text,
    select_sandboxes,
    update_row,
    usage_of,
    users_of_snapshot,
)
from sandboxrt.store.uid_blocks import UidBlocks

__all__ = ["Store"]

T = TypeVar("T")

_CLAIM_TRIES: Final = 20
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 500


@attrs.define(eq=False)
class Store:
    """The state of one state folder, open in this process. Made by :meth:`open`.

    Attributes:
        state_dir: The folder.
        owner_id: 32 hex digits; who this store is among those that share the folder.
        identity: Who the folder is on this machine; see ``store/identity.py``.
    """

    state_dir: Path
    owner_id: str
    identity: str
    _connection: sqlite3.Connection = attrs.field(repr=False)
    _lock: OwnerLock = attrs.field(repr=False)
    _now: Callable[[], datetime] = attrs.field(repr=False)
    _blocks: UidBlocks = attrs.field(factory=UidBlocks.of_this_user, repr=False, kw_only=True)
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1), repr=False)
    _claims: dict[str, OwnerLock] = attrs.field(factory=dict, repr=False)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, state_dir: Path | str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> AsyncIterator[Store]:
        """Open a state folder, made where it is missing, as a new owner.

        Args:
            state_dir: The folder; it should be on a local file system, and is made private to its user.
            now: The clock of the time stamps.

        Raises:
            SandboxClientError: The folder cannot be used (not writable, a file, a full disk, made by a newer
                version); the message names it and what to do.

        Cancellation: atomic; closing is shielded and short.
        """
        limiter = trio.CapacityLimiter(1)
        store = await run_blocking(limiter, lambda: cls._open(Path(state_dir).absolute(), now, limiter))
        try:
            yield store
        finally:
            with trio.CancelScope(shield=True):
                await run_blocking(limiter, store._close)

    @classmethod
    def _open(cls, state_dir: Path, now: Callable[[], datetime], limiter: trio.CapacityLimiter) -> Store:
        owner_id = uuid.uuid4().hex
        with naming(state_dir), contextlib.ExitStack() as undo:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_private(state_dir)
            owners = state_dir / "owners"
            owners.mkdir(mode=0o700, exist_ok=True)
            connection = with_room(state_dir, lambda: connect(state_dir / "state.db"))
            undo.callback(connection.close)
            with_room(state_dir, lambda: migrate(connection, state_dir))
            identity, _ = with_room(state_dir, lambda: settle_identity(state_dir))
            lock = with_room(state_dir, lambda: OwnerLock.create(owners / f"{owner_id}.lock"))
            undo.pop_all()
        return cls(state_dir, owner_id, identity, connection, lock, now, limiter)

    def _close(self) -> None:
        for lock in tuple(self._claims.values()):
            lock.release(forget=False)
        self._claims.clear()
        try:
            # An owner that leaves nothing needs no cleaner.
            left = self._connection.execute(OWNS_SOMETHING, {"owner": self.owner_id}).fetchone()[0]
        except sqlite3.Error:
            left = True
        finally:
            self._connection.close()
            self._blocks.close()
        self._lock.release(forget=not left)

    async def transact(self, function: Callable[[sqlite3.Connection], T], *, write: bool = True) -> T:
        """Run a function on the database in one transaction: for the other tables of this package."""

        def call() -> T:
            with naming(self.state_dir):
                if not write:
                    return function(self._connection)
                return with_room(self.state_dir, lambda: self._transact(function))

        return await run_blocking(self._limiter, call)

    def _transact(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with transaction(self._connection):
            return function(self._connection)

    async def compact(self) -> None:
        """Give back what the database's file holds and does not use, unless somebody uses it at this moment."""

        def shrink() -> None:
            with naming(self.state_dir), contextlib.suppress(sqlite3.OperationalError):
                self._connection.execute("VACUUM")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        await run_blocking(self._limiter, shrink)

    def _stamp(self, ago_s: float = 0.0) -> str:
        return (
            (self._now().astimezone(UTC) - timedelta(seconds=ago_s))
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z")
        )

    # -- sandboxes ---------------------------------------------------------------------------------------------------

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
        """Record a new sandbox of this owner and give it a uid block that is nobody else's on this machine.

        Raises:
            ResourceAlreadyExistsError: The name is taken; choose another, or use that sandbox.
            ResourceNotFoundError: There is no such snapshot.
            SandboxNotReadyError: The snapshot is not ready.
            QuotaExceededError: It does not fit into the quota, or all uid blocks are taken.
        """
        sandbox_id = str(uuid.uuid4())
        stamp = self._stamp()

        def add(db: sqlite3.Connection) -> SandboxRow:
            if db.execute("SELECT 1 FROM sandboxes WHERE tenant = ? AND name = ?", (tenant, name)).fetchone():
                raise ResourceAlreadyExistsError(f"Sandbox '{name}' already exists", "sandbox")
            snapshot = db.execute("SELECT status FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone()
            if snapshot is None:
                raise ResourceNotFoundError(f"Snapshot '{snapshot_id}' not found", "snapshot")
            if snapshot[0] != "ready":
                raise SandboxNotReadyError(f"Snapshot '{snapshot_id}' is {snapshot[0]}, not ready")
            if quota is not None:
                check_quota(quota, usage_of(db, tenant), limits)
            block = self._new_block(db)
            db.execute(
                "INSERT INTO sandboxes (id, name, owner_id, snapshot_id, status, uid_block, limits, require,"
                " allow_unenforced_limits, ttl_seconds, idle_ttl_seconds, env, created_at, updated_at, tenant, labels,"
                " run_config, delete_after_stop_seconds, keep, idempotency_key, lease_seconds)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    sandbox_id,
                    name,
                    self.owner_id,
                    snapshot_id,
                    status,
                    block,
                    json.dumps(attrs.asdict(limits)),
                    None if require is None else json.dumps(sorted(prop.value for prop in require)),
                    allow_unenforced_limits,
                    ttl_seconds,
                    idle_ttl_seconds,
                    json.dumps(dict(env or {})),
                    stamp,
                    stamp,
                    tenant,
                    json.dumps(dict(labels or {})),
                    run_config_to_text(run_config),
                    delete_after_stop_seconds,
                    keep,
                    idempotency_key,
                    lease_seconds,
                ),
            )
            return one_sandbox(db, "id = ?", (sandbox_id,))

        return await self.transact(add)

    async def set_sandbox_status(
        self, name_or_id: str, status: str, message: str | None = None, *, idle_for_s: float | None = None
    ) -> SandboxRow:
        """Change a sandbox's status and message; ``stopped`` is dated.

        Args:
            name_or_id: Which.
            status: The new one.
            message: What to say about it.
            idle_for_s: How many seconds it has been idle; ``None`` where its idle time does not count.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        stopped_at = self._stamp() if status == "stopped" else None
        active_at = None if idle_for_s is None else self._stamp(ago_s=idle_for_s)
        changes = {"status": status, "status_message": message, "stopped_at": stopped_at, "last_active_at": active_at}
        return await self._update_sandbox(name_or_id, changes)

    async def note_activity(self, sandbox_id: str, idle_for_s: float) -> None:
        """Note that a sandbox has been idle for so many seconds; harmless when it is gone."""
        changes = {"last_active_at": self._stamp(ago_s=idle_for_s)}
        await self.transact(lambda db: update_row(db, "sandboxes", sandbox_id, changes))

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
        """Change a sandbox's name, TTLs or run configuration; ``None`` leaves as is.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            ResourceNameConflictError: The new name belongs to another one.
        """
        wanted = {
            "name": new_name,
            "ttl_seconds": ttl_seconds,
            "idle_ttl_seconds": idle_ttl_seconds,
            "delete_after_stop_seconds": delete_after_stop_seconds,
            "run_config": run_config_to_text(run_config),
        }
        return await self._update_sandbox(
            name_or_id, {key: value for key, value in wanted.items() if value is not None}
        )

    async def _update_sandbox(self, name_or_id: str, changes: Mapping[str, Any]) -> SandboxRow:
        stamp = self._stamp()

        def update(db: sqlite3.Connection) -> SandboxRow:
            row = find_sandbox(db, name_or_id)
            if not changes:
                return row
            try:
                update_row(db, "sandboxes", row.id, {**changes, "updated_at": stamp})
            except sqlite3.IntegrityError as error:
                raise ResourceNameConflictError(f"Sandbox name '{changes['name']}' is taken", "sandbox") from error
            return one_sandbox(db, "id = ?", (row.id,))

        return await self.transact(update)

    async def remove_sandbox(self, name_or_id: str) -> None:
        """Forget a sandbox and free its uid block. Harmless when it is gone already.

        Call it last: from then on another sandbox may get the same uid block.
        """

        def remove(db: sqlite3.Connection) -> None:
            with contextlib.suppress(ResourceNotFoundError):
                row = find_sandbox(db, name_or_id)
                db.execute("DELETE FROM sandboxes WHERE id = ?", (row.id,))
                self._blocks.free(block_of(row))

        await self.transact(remove)

    async def secure_block(self, row: SandboxRow) -> SandboxRow:
        """Hold the uid block of a sandbox that is to be started, or give it another one that can be held.

        Returns:
            The sandbox. With ``moved_from`` its files are to be given to its block first; then call
            :meth:`owners_moved`, and this again.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            QuotaExceededError: All uid blocks are taken.
            SandboxClientError: This machine's blocks cannot be kept apart.
        """
        if row.moved_from is None and self._blocks.holds(block_of(row)):
            await trio.lowlevel.checkpoint()  # It was made here, or taken over; a create asks no more of the database.
            return row
        sandbox_id = row.id

        def secure(db: sqlite3.Connection) -> SandboxRow:
            row = find_sandbox(db, sandbox_id)
            if row.moved_from is not None or self._blocks.hold(block_of(row)):
                return row
            changes = {"uid_block": self._new_block(db), "moved_from": block_of(row)}
            update_row(db, "sandboxes", row.id, changes)
            return one_sandbox(db, "id = ?", (row.id,))

        return await self.transact(secure)

    async def owners_moved(self, sandbox_id: str) -> None:
        """All files of a sandbox are its block's now."""
        await self.transact(lambda db: update_row(db, "sandboxes", sandbox_id, {"moved_from": None}))

    def _new_block(self, db: sqlite3.Connection) -> int:
        """A block that no sandbox of this folder has and nobody on this machine holds, held.

        At random: other folders' sandboxes that nobody holds now have blocks, too.
        """
        start = secrets.randbelow(UID_BLOCK_COUNT)
        for step in range(UID_BLOCK_COUNT):
            block = (start + step) % UID_BLOCK_COUNT
            taken = db.execute("SELECT 1 FROM sandboxes WHERE uid_block = ?", (block,)).fetchone()
            if not taken and self._blocks.hold(block):
                return block
        raise QuotaExceededError(f"All {UID_BLOCK_COUNT} uid blocks are taken", "sandbox_count")

    async def find_sandbox(self, name_or_id: str, tenant: str = "") -> SandboxRow:
        """The sandbox of that name in a tenant, or else of that id (with or without dashes) in any.

        Raises:
            ResourceNotFoundError: There is none.
        """
        return await self.transact(lambda db: find_sandbox(db, name_or_id, tenant), write=False)

    async def list_sandboxes(self) -> tuple[SandboxRow, ...]:
        """All sandboxes in the state folder, whoever owns them, oldest first."""
        return await self.transact(lambda db: select_sandboxes(db, "1", ()), write=False)

    async def sandboxes_of(self, owner_id: str) -> tuple[SandboxRow, ...]:
        """The sandboxes of one owner, oldest first."""
        return await self.transact(lambda db: select_sandboxes(db, "owner_id = ?", (owner_id,)), write=False)

    # -- owners ------------------------------------------------------------------------------------------------------

    async def other_owners(self) -> int:
        """How many other owners live and have sandboxes in the folder."""

        def count(db: sqlite3.Connection) -> int:
            owners = [row[0] for row in db.execute("SELECT DISTINCT owner_id FROM sandboxes")]
            return sum(owner != self.owner_id and not OwnerLock.is_free(self._lock_path(owner)) for owner in owners)

        return await self.transact(count, write=False)

    async def dead_owners(self) -> tuple[str, ...]:
        """Owners that are gone and left something: sandboxes, half-built snapshots, or just their lock file.

        A living owner is never among them, in whatever process or thread it lives. An owner that another cleaner
        holds at this moment may be missing; it is in good hands.
        """

        def find(db: sqlite3.Connection) -> tuple[str, ...]:
            # Files before rows: an owner locks its file before its first row, so whoever is in the rows had a file.
            owners = {path.stem for path in self._lock_paths()}
            owners.update(
                row[0]
                for row in db.execute(
                    "SELECT owner_id FROM sandboxes UNION SELECT owner_id FROM snapshots WHERE status = 'building'"
                )
            )
            mine = {self.owner_id, *self._claims}
            return tuple(sorted(o for o in owners - mine if OwnerLock.is_free(self._lock_path(o))))

        return await self.transact(find, write=False)

    async def owner(self, owner_id: str) -> SandboxOwner:
        """What process an owner is, as far as it is known."""
        return await run_blocking(self._limiter, lambda: OwnerLock.owner(self._lock_path(owner_id)))

    @contextlib.asynccontextmanager
    async def claim_owner(self, owner_id: str) -> AsyncIterator[bool]:
        """Hold a dead owner's lock while cleaning up after it; gives ``False`` where it lives or another cleans.

        Among all processes exactly one claim of an owner is held at a time, and none once it was forgotten.
        """
        lock = await self.transact(lambda db: self._take(db, owner_id), write=False)
        for _ in range(_CLAIM_TRIES):
            # Another's passing question "is it free?" holds a shared lock for some microseconds.
            if lock is not None or not await self.transact(lambda db: self._is_free(owner_id), write=False):
                break
            await trio.sleep(0.005)
            lock = await self.transact(lambda db: self._take(db, owner_id), write=False)
        if lock is None:
            yield False
            return
        self._claims[owner_id] = lock
        try:
            yield True
        finally:
            self._claims.pop(owner_id, None)
            lock.release(forget=False)

    async def adopt_sandboxes(self, statuses: Mapping[str, str]) -> tuple[SandboxRow, ...]:
        """Take over sandboxes of claimed owners, all of them or, where it raises, none.

        Args:
            statuses: What each is from now on, by its id: ``stopped``, or what it else was.

        Returns:
            Their rows, in the same order.

        Raises:
            ValueError: One is of no owner that this store has claimed.
        """
        stamp = self._stamp()

        def adopt(db: sqlite3.Connection) -> tuple[SandboxRow, ...]:
            claimed = [row for owner_id in self._claims for row in select_sandboxes(db, "owner_id = ?", (owner_id,))]
            found = {row.id: row for row in claimed}
            if foreign := sorted(statuses.keys() - found.keys()):
                raise ValueError(f"sandboxes {foreign} are of no owner that is claimed by this store: use claim_owner")
            adopted = []
            for sandbox_id, status in statuses.items():
                row = found[sandbox_id]
                with contextlib.suppress(SandboxClientError):
                    # Where it cannot be held, its start gives it another one, or says what is wrong.
                    self._blocks.hold(block_of(row))
                stopped_at = row.stopped_at or stamp if status == "stopped" else None
                row = attrs.evolve(row, owner_id=self.owner_id, status=status, stopped_at=stopped_at)
                changes = {"owner_id": row.owner_id, "status": row.status, "stopped_at": row.stopped_at}
                update_row(db, "sandboxes", row.id, changes)
                adopted.append(row)
            return tuple(adopted)

        return await self.transact(adopt)

    async def forget_owner(self, owner_id: str) -> None:
        """Remove a claimed owner with all its sandboxes from the records, after what they held was freed.

        Raises:
            ValueError: The owner is not claimed by this store.
        """
        lock = self._claims.get(owner_id)
        if lock is None:
            raise ValueError(f"owner {owner_id} is not claimed by this store: use claim_owner")
        await self.transact(lambda db: db.execute("DELETE FROM sandboxes WHERE owner_id = ?", (owner_id,)))
        await run_blocking(self._limiter, lambda: lock.release(forget=True))

    def _take(self, db: sqlite3.Connection, owner_id: str) -> OwnerLock | None:
        path = self._lock_path(owner_id)
        if not path.exists() and db.execute(OWNS_SOMETHING, {"owner": owner_id}).fetchone()[0]:
            # Somebody tidied up too much. All cleaners come here, so the new file serves as well as the lost one.
            path.touch(0o600)
        return OwnerLock.take(path)

    def _is_free(self, owner_id: str) -> bool:
        path = self._lock_path(owner_id)
        return path.exists() and OwnerLock.is_free(path)

    def _lock_path(self, owner_id: str) -> Path:
        return self.state_dir / "owners" / f"{owner_id}.lock"

    def _lock_paths(self) -> Iterator[Path]:
        return (self.state_dir / "owners").glob("*.lock")

    # -- snapshots ---------------------------------------------------------------------------------------------------

    async def add_snapshot(
        self,
        *,
        name: str,
        kind: str,
        fs_capacity_bytes: int,
        status: str = "building",
        docker_image: str | None = None,
        source_sandbox_id: str | None = None,
        fingerprint: str | None = None,
        content: str | None = None,
        tenant: str = "",
        tag: str | None = None,
        run_config: RunConfig | None = None,
        base_id: str | None = None,
        registry_id: str | None = None,
    ) -> SnapshotRow:
        """Record a snapshot that this owner builds. Names need not be unique: see :meth:`find_snapshot`.

        Raises:
            ResourceNotFoundError: The base, on whose layers it lies, is gone.
        """
        snapshot_id = str(uuid.uuid4())
        stamp = self._stamp()

        def add(db: sqlite3.Connection) -> SnapshotRow:
            if base_id is not None:
                one_snapshot(db, base_id)
            db.execute(
                "INSERT INTO snapshots (id, name, kind, status, owner_id, fs_capacity_bytes, docker_image,"
                " source_sandbox_id, fingerprint, content, created_at, updated_at, tenant, tag, run_config, base_id,"
                " registry_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    snapshot_id,
                    name,
                    kind,
                    status,
                    self.owner_id,
                    fs_capacity_bytes,
                    docker_image,
                    source_sandbox_id,
                    fingerprint,
                    content,
                    stamp,
                    stamp,
                    tenant,
                    tag,
                    run_config_to_text(run_config),
                    base_id,
                    registry_id,
                ),
            )
            return one_snapshot(db, snapshot_id)

        return await self.transact(add)

    async def finish_snapshot(
        self,
        snapshot_id: str,
        *,
        content: str,
        fs_used_bytes: int | None = None,
        image_digest: str | None = None,
        layers_key: str | None = None,
        stands_alone: bool = True,
    ) -> SnapshotRow:
        """Make a snapshot that is being built ``ready``; one that ``stands_alone`` has no base any more.

        Raises:
            ResourceNotFoundError: It was deleted meanwhile.
        """
        changes: dict[str, Any] = {
            "status": "ready",
            "content": content,
            "fs_used_bytes": fs_used_bytes,
            "image_digest": image_digest,
            "layers_key": layers_key,
            **({"base_id": None} if stands_alone else {}),
        }
        return await self._end_building(snapshot_id, changes)

    async def fail_snapshot(self, snapshot_id: str, message: str, error_type: str | None = None) -> SnapshotRow:
        """Make a snapshot that is being built ``failed``, with the reason.

        Raises:
            ResourceNotFoundError: It was deleted meanwhile.
        """
        changes = {"status_message": message, "error_type": error_type, "base_id": None, "files_of": None}
        return await self._end_building(snapshot_id, {"status": "failed", **changes})

    async def forget_failed_snapshots(self, *, before: str, keep: int) -> None:
        """Forget the failed builds of before that time, and those of a tenant beyond its ``keep`` newest."""
        await self.transact(
            lambda db: db.execute(
                "DELETE FROM snapshots WHERE status = 'failed' AND (updated_at < ? OR"
                " (SELECT count(*) FROM snapshots AS newer WHERE newer.tenant = snapshots.tenant"
                " AND newer.status = 'failed' AND newer.seq > snapshots.seq) >= ?)",
                (before, keep),
            )
        )

    async def _end_building(self, snapshot_id: str, changes: Mapping[str, Any]) -> SnapshotRow:
        stamp = self._stamp()

        def end(db: sqlite3.Connection) -> SnapshotRow:
            row = one_snapshot(db, snapshot_id)
            if row.status != "building":
                raise ResourceNotFoundError(f"Snapshot '{snapshot_id}' is not being built any more", "snapshot")
            update_row(db, "snapshots", snapshot_id, {**changes, "updated_at": stamp})
            if changes["status"] == "ready" and row.tag is not None:
                # A tag moves when the new snapshot can be used, so a failed build takes nothing away.
                db.execute(
                    "INSERT OR REPLACE INTO snapshot_tags (tenant, name, tag, snapshot_id) VALUES (?, ?, ?, ?)",
                    (row.tenant, row.name, row.tag, row.id),
                )
            return one_snapshot(db, snapshot_id)

        return await self.transact(end)

    async def share_files(
        self, snapshot_id: str, *, layers_key: str | None = None, image_digest: str | None = None
    ) -> SnapshotRow | None:
        """Let a snapshot that is being built have the files of a ready one, from now on and in one step.

        Args:
            snapshot_id: The one that is being built.
            layers_key: Files that follow from the same layers, whosever they are.
            image_digest: Files of the same image, of the same tenant: others would get what they never had in hands.

        Returns:
            The one that has those files already; ``None`` where there is none.
        """

        def share(db: sqlite3.Connection) -> SnapshotRow | None:
            row = one_snapshot(db, snapshot_id)
            found = db.execute(
                f"SELECT {SNAPSHOT_COLUMNS} FROM snapshots WHERE status = 'ready' AND kind = 'image'"  # noqa: S608
                " AND (layers_key = :layers OR (image_digest = :digest AND tenant = :tenant)) ORDER BY seq LIMIT 1",
                {"layers": layers_key, "digest": image_digest, "tenant": row.tenant},
            ).fetchone()
            if found is None:
                return None
            other = SnapshotRow(**dict(found))
            update_row(db, "snapshots", row.id, {"files_of": other.files_id})
            return other

        return await self.transact(share)

    async def keep_own_files(self, snapshot_id: str) -> None:
        """Undo :meth:`share_files`."""
        await self.transact(lambda db: update_row(db, "snapshots", snapshot_id, {"files_of": None}))

    async def unused_files(self, files_ids: Iterable[str], *, besides: str | None = None) -> tuple[str, ...]:
        """Which of those folders no snapshot has, or none ``besides`` that one. None of them is ever shared again."""

        def unused(db: sqlite3.Connection) -> tuple[str, ...]:
            query = "SELECT 1 FROM snapshots WHERE coalesce(files_of, id) = ? AND status != 'failed' AND id IS NOT ?"
            return tuple(each for each in files_ids if db.execute(query, (each, besides)).fetchone() is None)

        return await self.transact(unused, write=False)

    async def find_snapshot(self, reference: str, tenant: str | None = None, *, newest: bool = False) -> SnapshotRow:
        """The snapshot that an id, ``name:tag`` or bare name means; see :func:`sandboxrt.store.rows.find_snapshot`.

        Args:
            reference: Which.
            tenant: Only this one's; ``None`` finds any by id and the machine's own by name.
            newest: A bare name means the newest ready one even where another is tagged ``latest``.

        Raises:
            ResourceNotFoundError: There is none.
        """
        return await self.transact(lambda db: find_snapshot(db, reference, tenant, newest=newest), write=False)

    async def snapshot_tags(self, name: str, tenant: str = "") -> tuple[tuple[str, str], ...]:
        """The tags of a snapshot's name, each with the id that it means.

        Raises:
            ResourceNotFoundError: No snapshot of that name was ever ready.
        """

        def select(db: sqlite3.Connection) -> tuple[tuple[str, str], ...]:
            known = db.execute(
                "SELECT 1 FROM snapshots WHERE tenant = ? AND name = ? AND status = 'ready'", (tenant, name)
            ).fetchone()
            if known is None:
                raise ResourceNotFoundError(f"Snapshot name '{name}' not found", "snapshot")
            rows = db.execute(
                "SELECT tag, snapshot_id FROM snapshot_tags WHERE tenant = ? AND name = ? ORDER BY tag", (tenant, name)
            )
            return tuple((row[0], row[1]) for row in rows)

        return await self.transact(select, write=False)

    async def list_snapshots(
        self,
        *,
        name_contains: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        tenant: str = "",
    ) -> tuple[SnapshotRow, ...]:
        """A page of a tenant's snapshots, newest first.

        Args:
            name_contains: Only names that contain this, upper and lower case alike.
            limit: 1 to 500, default 50.
            offset: How many to pass over, default 0.
            tenant: Whose.

        Raises:
            ValidationError: ``limit`` or ``offset`` is out of range.
        """
        limit = _DEFAULT_PAGE if limit is None else limit
        offset = 0 if offset is None else offset
        if not 1 <= limit <= _MAX_PAGE:
            raise ValidationError(f"limit must be between 1 and {_MAX_PAGE}, not {limit}", "limit")
        if not 0 <= offset < 2**63:
            raise ValidationError(f"offset must be 0 or more, not {offset}", "offset")
        needle = (name_contains or "").casefold()

        def page(db: sqlite3.Connection) -> tuple[SnapshotRow, ...]:
            rows = db.execute(
                f"SELECT {SNAPSHOT_COLUMNS} FROM snapshots"  # noqa: S608
                " WHERE tenant = ? AND (? = '' OR instr(casefold(name), ?) > 0) ORDER BY seq DESC LIMIT ? OFFSET ?",
                (tenant, needle, needle, limit, offset),
            )
            return tuple(SnapshotRow(**dict(row)) for row in rows)

        return await self.transact(page, write=False)

    async def snapshots_where(self, *, kind: str | None = None, status: str | None = None) -> tuple[SnapshotRow, ...]:
        """All snapshots of a kind and status, newest first."""

        def select(db: sqlite3.Connection) -> tuple[SnapshotRow, ...]:
            rows = db.execute(
                f"SELECT {SNAPSHOT_COLUMNS} FROM snapshots"  # noqa: S608
                " WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR status = ?2) ORDER BY seq DESC",
                (kind, status),
            )
            return tuple(SnapshotRow(**dict(row)) for row in rows)

        return await self.transact(select, write=False)

    async def remove_snapshot(self, snapshot_id: str) -> SnapshotRow:
        """Forget a snapshot, by its id; its files are the caller's to remove, afterwards.

        Returns:
            What it was.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
            ResourceInUseError: Sandboxes use it, or snapshots that were captured from those (``used_by`` has their
                names); delete them first.
        """

        def remove(db: sqlite3.Connection) -> SnapshotRow:
            row = one_snapshot(db, canonical_id(snapshot_id) or snapshot_id)
            users, derived = users_of_snapshot(db, row.id), derived_snapshots(db, row.id)
            if users or derived:
                kinds = {"sandboxes": users, "snapshots captured from those": derived}
                shown = " and by ".join(f"{kind}: {_shown(names)}" for kind, names in kinds.items() if names)
                raise ResourceInUseError(f"Snapshot '{row.id}' is used by {shown}", "snapshot", (*users, *derived))
            db.execute("DELETE FROM snapshots WHERE id = ?", (row.id,))
            return row

        return await self.transact(remove)

    async def users_of_snapshot(self, snapshot_id: str) -> tuple[str, ...]:
        """Names of the sandboxes whose layers are a snapshot's: made from it, or from a capture that lies on it."""
        return await self.transact(lambda db: users_of_snapshot(db, snapshot_id, with_derived=True), write=False)

    async def replace_base(self, old_id: str, new_id: str) -> None:
        """Forget a snapshot, and let those that were captured on it lie on another one from now on.

        Raises:
            ResourceNotFoundError: One of the two is gone.
            ResourceInUseError: Sandboxes have its layers (``used_by``).
        """

        def replace(db: sqlite3.Connection) -> None:
            old, new = one_snapshot(db, old_id), one_snapshot(db, new_id)
            users = users_of_snapshot(db, old.id, with_derived=True)
            if users:
                raise ResourceInUseError(
                    f"Snapshot '{old.id}' is used by sandboxes: {_shown(users)}", "snapshot", users
                )
            db.execute("UPDATE snapshots SET base_id = ? WHERE base_id = ?", (new.id, old.id))
            db.execute("DELETE FROM snapshots WHERE id = ?", (old.id,))

        await self.transact(replace)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
