"""What one machine knows about its sandboxes and snapshots: a SQLite file that several processes share.

Layout of a state folder: ``state.db`` (with its WAL beside it) and ``owners/<owner_id>.lock``. Every open
:class:`Store` is an *owner*: it holds an advisory lock on a file of its own for as long as it lives, however it ends.
A sandbox belongs to the owner that added it. An owner whose lock is free is dead, and what it left may be cleaned by
whoever takes the lock first; nothing else is ever cleaned, so processes share a state folder without knowing of each
other.

Every coroutine is one transaction: cancelled before it starts it does nothing, and once started it completes.

Source: ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
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
from sandboxrt.models import Isolation, Limits, Snapshot

__all__ = [
    "SCHEMA_VERSION",
    "UID_BLOCK_BASE",
    "UID_BLOCK_COUNT",
    "UID_BLOCK_SIZE",
    "SandboxRow",
    "SnapshotRow",
    "Store",
    "canonical_id",
    "run_blocking",
]

T = TypeVar("T")

UID_BLOCK_BASE: Final = 0x20000000
"""First host uid and gid that sandboxes use: far above what accounts and /etc/subuid usually hold."""
UID_BLOCK_SIZE: Final = 65_536
UID_BLOCK_COUNT: Final = (0x80000000 - UID_BLOCK_BASE) // UID_BLOCK_SIZE
"""How many blocks there are; ids stay below 2**31, which some programs take for negative."""

_BUSY_TIMEOUT_S: Final = 10.0
_CLAIM_TRIES: Final = 20
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 500

_MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE snapshots (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            kind TEXT NOT NULL,
            status TEXT NOT NULL,
            status_message TEXT,
            error_type TEXT,
            owner_id TEXT NOT NULL,
            fs_capacity_bytes INTEGER NOT NULL,
            fs_used_bytes INTEGER,
            docker_image TEXT,
            image_digest TEXT,
            source_sandbox_id TEXT,
            fingerprint TEXT,
            content TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )""",
        "CREATE INDEX snapshots_by_name ON snapshots (name, status, seq)",
        """CREATE TABLE sandboxes (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL UNIQUE,
            owner_id TEXT NOT NULL,
            snapshot_id TEXT NOT NULL REFERENCES snapshots (id),
            status TEXT NOT NULL,
            status_message TEXT,
            uid_block INTEGER NOT NULL UNIQUE,
            limits TEXT NOT NULL,
            require TEXT,
            allow_unenforced_limits INTEGER NOT NULL,
            ttl_seconds INTEGER,
            idle_ttl_seconds INTEGER,
            env TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )""",
        "CREATE INDEX sandboxes_by_owner ON sandboxes (owner_id)",
        "CREATE INDEX sandboxes_by_snapshot ON sandboxes (snapshot_id)",
    ),
)
"""One tuple of statements a schema version. Append only: a state folder in the field has run those before."""

SCHEMA_VERSION: Final = len(_MIGRATIONS)

_FREE_BLOCK = """
    SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM sandboxes WHERE uid_block = 0) THEN 0 ELSE
        (SELECT a.uid_block + 1 FROM sandboxes AS a
         WHERE NOT EXISTS (SELECT 1 FROM sandboxes AS b WHERE b.uid_block = a.uid_block + 1)
         ORDER BY a.uid_block LIMIT 1) END
"""


_OWNS_SOMETHING = """
    SELECT EXISTS (SELECT 1 FROM sandboxes WHERE owner_id = :owner)
        OR EXISTS (SELECT 1 FROM snapshots WHERE owner_id = :owner AND status = 'building')
"""


@attrs.frozen(kw_only=True)
class SandboxRow:
    """A sandbox as the store knows it.

    Attributes:
        id: UUID with dashes, as the protocol shows it.
        name: Unique in the state folder.
        owner_id: The owner that runs it.
        snapshot_id: What it was made from.
        status: ``provisioning``, ``ready``, ``failed`` or ``stopped``.
        uid_base: First host uid and gid of its block of 65,536.
        limits: What it may use.
        require: Isolation that its creator asked for; ``None`` means the default.
        ttl_seconds: Longest life; 0 means none, ``None`` not set. ``idle_ttl_seconds`` likewise.
        env: Environment of its commands.
        created_at: ISO-8601, UTC. ``updated_at`` likewise.
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

    @property
    def engine_id(self) -> str:
        """The id as engines want it: 32 hex digits, no dashes."""
        return self.id.replace("-", "")


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
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


def canonical_id(text: str) -> str | None:
    """``text`` as a UUID with dashes, or ``None`` where it is none; 32 hex digits without dashes will do."""
    if len(text) not in (32, 36):
        return None
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


async def run_blocking(limiter: trio.CapacityLimiter, function: Callable[[], T]) -> T:
    """Run ``function`` in a worker thread, or right here when the interpreter exits and starts no more threads.

    Cancellation: before the start only.
    """
    started = False

    def call() -> T:
        nonlocal started
        started = True
        return function()

    try:
        return await trio.to_thread.run_sync(call, limiter=limiter)
    except RuntimeError:
        # Python 3.12 and later refuse new threads once the interpreter shuts down. What is left to do then is the
        # clean-up of this process, and blocking its last task for a moment harms nobody.
        if started:
            raise
        return function()


class _OwnerLock:
    """A locked file that says: this owner lives. Nothing but the death or close of its holder frees it."""

    _held: Final[set[int]] = set()

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        self._held.add(descriptor)

    @classmethod
    def create(cls, path: Path) -> _OwnerLock:
        """Make a new lock file; it has its final name only once it is locked, so nobody ever sees it free."""
        draft = path.with_suffix(".new")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(draft, path)
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        return cls(path, descriptor)

    @classmethod
    def take(cls, path: Path) -> _OwnerLock | None:
        """Lock a dead owner's file, or return ``None``: it lives, another was first, or there is no such file."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever cleaned it before us unlinked the file; then what we locked is a nameless inode.
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return cls(path, descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    @staticmethod
    def is_free(path: Path) -> bool:
        """Whether nobody holds it. Tested with a shared lock, so that two testers do not mistake each other."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def release(self, *, forget: bool) -> None:
        """Free the lock; with ``forget`` the file goes too. Idempotent."""
        if self._descriptor is None:
            return
        if forget:
            self.path.unlink(missing_ok=True)
        self._held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None

    @classmethod
    def _close_in_child(cls) -> None:
        # A forked child shares the open file, and would keep its parent "alive" after the parent's death.
        for descriptor in cls._held:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        cls._held.clear()


os.register_at_fork(after_in_child=_OwnerLock._close_in_child)


@attrs.define(eq=False)
class Store:
    """The state of one state folder, open in this process. Made by :meth:`open`.

    Attributes:
        state_dir: The folder.
        owner_id: 32 hex digits; who this store is among those that share the folder.
    """

    state_dir: Path
    owner_id: str
    _connection: sqlite3.Connection = attrs.field(repr=False)
    _lock: _OwnerLock = attrs.field(repr=False)
    _now: Callable[[], datetime] = attrs.field(repr=False)
    _limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1), repr=False)
    _claims: dict[str, _OwnerLock] = attrs.field(factory=dict, repr=False)

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
        with _naming(state_dir), contextlib.ExitStack() as undo:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            owners = state_dir / "owners"
            owners.mkdir(mode=0o700, exist_ok=True)
            connection = _connect(state_dir / "state.db")
            undo.callback(connection.close)
            _migrate(connection, state_dir)
            lock = _OwnerLock.create(owners / f"{owner_id}.lock")
            undo.pop_all()
        return cls(state_dir, owner_id, connection, lock, now, limiter)

    def _close(self) -> None:
        for lock in tuple(self._claims.values()):
            lock.release(forget=False)
        self._claims.clear()
        try:
            # An owner that leaves nothing needs no cleaner.
            left = self._connection.execute(_OWNS_SOMETHING, {"owner": self.owner_id}).fetchone()[0]
        except sqlite3.Error:
            left = True
        finally:
            self._connection.close()
        self._lock.release(forget=not left)

    async def _run(self, function: Callable[[sqlite3.Connection], T], *, write: bool = True) -> T:
        def call() -> T:
            with _naming(self.state_dir):
                if not write:
                    return function(self._connection)
                with _transaction(self._connection):
                    return function(self._connection)

        return await run_blocking(self._limiter, call)

    def _stamp(self) -> str:
        return self._now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

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
    ) -> SandboxRow:
        """Record a new sandbox of this owner and give it the lowest free uid block.

        Raises:
            ResourceAlreadyExistsError: The name is taken; choose another, or use that sandbox.
            ResourceNotFoundError: There is no such snapshot.
            SandboxNotReadyError: The snapshot is not ready.
            QuotaExceededError: All uid blocks are taken.
        """
        sandbox_id = str(uuid.uuid4())
        stamp = self._stamp()

        def add(db: sqlite3.Connection) -> SandboxRow:
            if db.execute("SELECT 1 FROM sandboxes WHERE name = ?", (name,)).fetchone():
                raise ResourceAlreadyExistsError(f"Sandbox '{name}' already exists", "sandbox")
            snapshot = db.execute("SELECT status FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone()
            if snapshot is None:
                raise ResourceNotFoundError(f"Snapshot '{snapshot_id}' not found", "snapshot")
            if snapshot[0] != "ready":
                raise SandboxNotReadyError(f"Snapshot '{snapshot_id}' is {snapshot[0]}, not ready")
            block = int(db.execute(_FREE_BLOCK).fetchone()[0])
            if block >= UID_BLOCK_COUNT:
                raise QuotaExceededError(f"All {UID_BLOCK_COUNT} uid blocks are taken", "sandbox_count")
            db.execute(
                "INSERT INTO sandboxes (id, name, owner_id, snapshot_id, status, uid_block, limits, require,"
                " allow_unenforced_limits, ttl_seconds, idle_ttl_seconds, env, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                ),
            )
            return _one_sandbox(db, "id = ?", (sandbox_id,))

        return await self._run(add)

    async def set_sandbox_status(self, name_or_id: str, status: str, message: str | None = None) -> SandboxRow:
        """Change a sandbox's status and message.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        return await self._update_sandbox(name_or_id, {"status": status, "status_message": message})

    async def update_sandbox(
        self,
        name_or_id: str,
        *,
        new_name: str | None = None,
        ttl_seconds: int | None = None,
        idle_ttl_seconds: int | None = None,
    ) -> SandboxRow:
        """Change a sandbox's name or TTLs; ``None`` leaves as is.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            ResourceNameConflictError: The new name belongs to another one.
        """
        wanted = {"name": new_name, "ttl_seconds": ttl_seconds, "idle_ttl_seconds": idle_ttl_seconds}
        return await self._update_sandbox(
            name_or_id, {key: value for key, value in wanted.items() if value is not None}
        )

    async def _update_sandbox(self, name_or_id: str, changes: Mapping[str, Any]) -> SandboxRow:
        stamp = self._stamp()

        def update(db: sqlite3.Connection) -> SandboxRow:
            row = _find_sandbox(db, name_or_id)
            if not changes:
                return row
            try:
                _update(db, "sandboxes", row.id, {**changes, "updated_at": stamp})
            except sqlite3.IntegrityError as error:
                raise ResourceNameConflictError(f"Sandbox name '{changes['name']}' is taken", "sandbox") from error
            return _one_sandbox(db, "id = ?", (row.id,))

        return await self._run(update)

    async def remove_sandbox(self, name_or_id: str) -> None:
        """Forget a sandbox and free its uid block. Harmless when it is gone already.

        Call it last: from then on another sandbox may get the same uid block.
        """

        def remove(db: sqlite3.Connection) -> None:
            with contextlib.suppress(ResourceNotFoundError):
                row = _find_sandbox(db, name_or_id)
                db.execute("DELETE FROM sandboxes WHERE id = ?", (row.id,))

        await self._run(remove)

    async def find_sandbox(self, name_or_id: str) -> SandboxRow:
        """The sandbox of that name, or else of that id (with or without dashes).

        Raises:
            ResourceNotFoundError: There is none.
        """
        return await self._run(lambda db: _find_sandbox(db, name_or_id), write=False)

    async def list_sandboxes(self) -> tuple[SandboxRow, ...]:
        """All sandboxes in the state folder, whoever owns them, oldest first."""
        return await self._run(lambda db: _sandboxes(db, "1", ()), write=False)

    async def sandboxes_of(self, owner_id: str) -> tuple[SandboxRow, ...]:
        """The sandboxes of one owner, oldest first."""
        return await self._run(lambda db: _sandboxes(db, "owner_id = ?", (owner_id,)), write=False)

    # -- owners ------------------------------------------------------------------------------------------------------

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
            return tuple(sorted(o for o in owners - mine if _OwnerLock.is_free(self._lock_path(o))))

        return await self._run(find, write=False)

    @contextlib.asynccontextmanager
    async def claim_owner(self, owner_id: str) -> AsyncIterator[bool]:
        """Hold a dead owner's lock while cleaning up after it; gives ``False`` where it lives or another cleans.

        Among all processes exactly one claim of an owner is held at a time, and none once it was forgotten.
        """
        lock = await self._run(lambda db: self._take(db, owner_id), write=False)
        for _ in range(_CLAIM_TRIES):
            # Another's passing question "is it free?" holds a shared lock for some microseconds.
            if lock is not None or not await self._run(lambda db: self._is_free(owner_id), write=False):
                break
            await trio.sleep(0.005)
            lock = await self._run(lambda db: self._take(db, owner_id), write=False)
        if lock is None:
            yield False
            return
        self._claims[owner_id] = lock
        try:
            yield True
        finally:
            self._claims.pop(owner_id, None)
            lock.release(forget=False)

    async def forget_owner(self, owner_id: str) -> None:
        """Remove a claimed owner with all its sandboxes from the records, after what they held was freed.

        Raises:
            ValueError: The owner is not claimed by this store.
        """
        lock = self._claims.get(owner_id)
        if lock is None:
            raise ValueError(f"owner {owner_id} is not claimed by this store: use claim_owner")
        await self._run(lambda db: db.execute("DELETE FROM sandboxes WHERE owner_id = ?", (owner_id,)))
        await run_blocking(self._limiter, lambda: lock.release(forget=True))

    def _take(self, db: sqlite3.Connection, owner_id: str) -> _OwnerLock | None:
        path = self._lock_path(owner_id)
        if not path.exists() and db.execute(_OWNS_SOMETHING, {"owner": owner_id}).fetchone()[0]:
            # Somebody tidied up too much. All cleaners come here, so the new file serves as well as the lost one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return _OwnerLock.take(path)

    def _is_free(self, owner_id: str) -> bool:
        path = self._lock_path(owner_id)
        return path.exists() and _OwnerLock.is_free(path)

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
    ) -> SnapshotRow:
        """Record a snapshot that this owner builds. Names need not be unique: the newest ready one is meant."""
        snapshot_id = str(uuid.uuid4())
        stamp = self._stamp()

        def add(db: sqlite3.Connection) -> SnapshotRow:
            db.execute(
                "INSERT INTO snapshots (id, name, kind, status, owner_id, fs_capacity_bytes, docker_image,"
                " source_sandbox_id, fingerprint, content, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                ),
            )
            return _one_snapshot(db, snapshot_id)

        return await self._run(add)

    async def finish_snapshot(
        self, snapshot_id: str, *, content: str, fs_used_bytes: int | None = None, image_digest: str | None = None
    ) -> SnapshotRow:
        """Make a snapshot that is being built ``ready``.

        Raises:
            ResourceNotFoundError: It was deleted meanwhile.
        """
        changes = {
            "status": "ready",
            "content": content,
            "fs_used_bytes": fs_used_bytes,
            "image_digest": image_digest,
        }
        return await self._end_building(snapshot_id, changes)

    async def fail_snapshot(self, snapshot_id: str, message: str, error_type: str | None = None) -> SnapshotRow:
        """Make a snapshot that is being built ``failed``, with the reason.

        Raises:
            ResourceNotFoundError: It was deleted meanwhile.
        """
        return await self._end_building(
            snapshot_id, {"status": "failed", "status_message": message, "error_type": error_type}
        )

    async def _end_building(self, snapshot_id: str, changes: Mapping[str, Any]) -> SnapshotRow:
        stamp = self._stamp()

        def end(db: sqlite3.Connection) -> SnapshotRow:
            if _one_snapshot(db, snapshot_id).status != "building":
                raise ResourceNotFoundError(f"Snapshot '{snapshot_id}' is not being built any more", "snapshot")
            _update(db, "snapshots", snapshot_id, {**changes, "updated_at": stamp})
            return _one_snapshot(db, snapshot_id)

        return await self._run(end)

    async def find_snapshot(self, id_or_name: str) -> SnapshotRow:
        """The snapshot of that id, or else the newest ready one of that name (or the newest, if none is ready).

        Raises:
            ResourceNotFoundError: There is none.
        """
        return await self._run(lambda db: _find_snapshot(db, id_or_name), write=False)

    async def list_snapshots(
        self, *, name_contains: str | None = None, limit: int | None = None, offset: int | None = None
    ) -> tuple[SnapshotRow, ...]:
        """A page of snapshots, newest first.

        Args:
            name_contains: Only names that contain this, upper and lower case alike.
            limit: 1 to 500, default 50.
            offset: How many to pass over, default 0.

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
                f"SELECT {_SNAPSHOT_COLUMNS} FROM snapshots WHERE ? = '' OR instr(casefold(name), ?) > 0"  # noqa: S608
                " ORDER BY seq DESC LIMIT ? OFFSET ?",
                (needle, needle, limit, offset),
            )
            return tuple(SnapshotRow(**dict(row)) for row in rows)

        return await self._run(page, write=False)

    async def snapshots_where(self, *, kind: str | None = None, status: str | None = None) -> tuple[SnapshotRow, ...]:
        """All snapshots of a kind and status, newest first."""

        def select(db: sqlite3.Connection) -> tuple[SnapshotRow, ...]:
            rows = db.execute(
                f"SELECT {_SNAPSHOT_COLUMNS} FROM snapshots"  # noqa: S608
                " WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR status = ?2) ORDER BY seq DESC",
                (kind, status),
            )
            return tuple(SnapshotRow(**dict(row)) for row in rows)

        return await self._run(select, write=False)

    async def remove_snapshot(self, snapshot_id: str) -> SnapshotRow:
        """Forget a snapshot, by its id; its files are the caller's to remove, afterwards.

        Returns:
            What it was.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
            ResourceInUseError: Sandboxes use it (``used_by`` has their names); delete them first.
        """

        def remove(db: sqlite3.Connection) -> SnapshotRow:
            row = _one_snapshot(db, canonical_id(snapshot_id) or snapshot_id)
            users = [
                r[0] for r in db.execute("SELECT name FROM sandboxes WHERE snapshot_id = ? ORDER BY name", (row.id,))
            ]
            if users:
                shown = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
                raise ResourceInUseError(f"Snapshot '{row.id}' is used by sandboxes: {shown}", "snapshot", users)
            db.execute("DELETE FROM snapshots WHERE id = ?", (row.id,))
            return row

        return await self._run(remove)

    async def users_of_snapshot(self, snapshot_id: str) -> tuple[str, ...]:
        """Names of the sandboxes that were made from a snapshot."""

        def names(db: sqlite3.Connection) -> tuple[str, ...]:
            rows = db.execute("SELECT name FROM sandboxes WHERE snapshot_id = ? ORDER BY name", (snapshot_id,))
            return tuple(row[0] for row in rows)

        return await self._run(names, write=False)


_SANDBOX_COLUMNS: Final = (
    "id, name, owner_id, snapshot_id, status, status_message, uid_block, limits, require, allow_unenforced_limits,"
    " ttl_seconds, idle_ttl_seconds, env, created_at, updated_at"
)
_SNAPSHOT_COLUMNS: Final = ", ".join(field.name for field in attrs.fields(SnapshotRow))


def _sandbox_row(row: sqlite3.Row) -> SandboxRow:
    values = dict(row)
    require = values.pop("require")
    return SandboxRow(
        uid_base=UID_BLOCK_BASE + values.pop("uid_block") * UID_BLOCK_SIZE,
        limits=Limits(**json.loads(values.pop("limits"))),
        require=None if require is None else frozenset(Isolation(value) for value in json.loads(require)),
        allow_unenforced_limits=bool(values.pop("allow_unenforced_limits")),
        env=json.loads(values.pop("env")),
        **values,
    )


def _sandboxes(db: sqlite3.Connection, where: str, arguments: tuple[Any, ...]) -> tuple[SandboxRow, ...]:
    rows = db.execute(f"SELECT {_SANDBOX_COLUMNS} FROM sandboxes WHERE {where} ORDER BY seq", arguments)  # noqa: S608
    return tuple(_sandbox_row(row) for row in rows)


def _one_sandbox(db: sqlite3.Connection, where: str, arguments: tuple[Any, ...]) -> SandboxRow:
    (row,) = _sandboxes(db, where, arguments)
    return row


def _find_sandbox(db: sqlite3.Connection, name_or_id: str) -> SandboxRow:
    for where, argument in (("name = ?", name_or_id), ("id = ?", canonical_id(name_or_id))):
        found = _sandboxes(db, where, (argument,)) if argument else ()
        if found:
            return found[0]
    raise ResourceNotFoundError(f"Sandbox '{name_or_id}' not found", "sandbox")


def _one_snapshot(db: sqlite3.Connection, snapshot_id: str) -> SnapshotRow:
    row = db.execute(f"SELECT {_SNAPSHOT_COLUMNS} FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone()  # noqa: S608
    if row is None:
        raise ResourceNotFoundError(f"Snapshot '{snapshot_id}' not found", "snapshot")
    return SnapshotRow(**dict(row))


def _find_snapshot(db: sqlite3.Connection, id_or_name: str) -> SnapshotRow:
    snapshot_id = canonical_id(id_or_name)
    if snapshot_id is not None:
        with contextlib.suppress(ResourceNotFoundError):
            return _one_snapshot(db, snapshot_id)
    row = db.execute(
        f"SELECT {_SNAPSHOT_COLUMNS} FROM snapshots WHERE name = ?"  # noqa: S608
        " ORDER BY status = 'ready' DESC, seq DESC LIMIT 1",
        (id_or_name,),
    ).fetchone()
    if row is None:
        raise ResourceNotFoundError(f"Snapshot '{id_or_name}' not found", "snapshot")
    return SnapshotRow(**dict(row))


def _update(db: sqlite3.Connection, table: str, key: str, changes: Mapping[str, Any]) -> None:
    columns = ", ".join(f"{column} = ?" for column in changes)
    db.execute(f"UPDATE {table} SET {columns} WHERE id = ?", (*changes.values(), key))  # noqa: S608


def _connect(path: Path) -> sqlite3.Connection:
    # SQLite makes the file with the process's umask; the environment of sandboxes in it is nobody else's business.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        # SQLite's own lower() and LIKE know ASCII only.
        db.create_function("casefold", 1, lambda text: text.casefold(), deterministic=True)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, state_dir: Path) -> None:
    if db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    with _transaction(db):
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise SandboxClientError(
                f"{state_dir} has schema version {found}, made by a newer sandboxrt; this one knows up to"
                f" {SCHEMA_VERSION}. Upgrade sandboxrt, or use another state folder."
            )
        for statements in _MIGRATIONS[found:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk ends the transaction by itself; then there is nothing to roll back.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


_ADVICE: Final = {
    errno.EACCES: "it is not writable for this user: change its owner or mode, or use another state folder",
    errno.EPERM: "it is not writable for this user: change its owner or mode, or use another state folder",
    errno.EROFS: "its file system is read-only: use another state folder",
    errno.ENOSPC: "its file system is full: free some space, or use another state folder",
    errno.EDQUOT: "the disk quota is used up: free some space, or use another state folder",
    errno.ENOTDIR: "it, or a folder above it, is a file: remove that, or use another state folder",
    errno.EEXIST: "it is a file: remove it, or use another state folder",
    errno.EMFILE: "this process has too many files open: raise its limit (ulimit -n)",
}
_SQLITE_ADVICE: Final = {
    sqlite3.SQLITE_CANTOPEN: _ADVICE[errno.EACCES],
    sqlite3.SQLITE_READONLY: _ADVICE[errno.EACCES],
    sqlite3.SQLITE_FULL: _ADVICE[errno.ENOSPC],
    sqlite3.SQLITE_IOERR: "its disk reports errors or is full: check the kernel log and the free space",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {_BUSY_TIMEOUT_S:.0f} s: find and end that process",
    sqlite3.SQLITE_NOTADB: "state.db in it is not a SQLite file: move it away, or use another state folder",
    sqlite3.SQLITE_CORRUPT: "state.db in it is damaged: move it away, or use another state folder",
}


@contextlib.contextmanager
def _naming(state_dir: Path) -> Iterator[None]:
    """Turn the system's and SQLite's errors into one that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "use another state folder if that cannot be helped")
        raise SandboxClientError(f"Cannot use the state folder {state_dir}: {error.strerror}; {advice}") from error
    except sqlite3.Error as error:
        # The low byte is the primary code; what is above it says more than a user wants to know.
        advice = _SQLITE_ADVICE.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF, "please report this")
        raise SandboxClientError(f"Cannot use the state folder {state_dir}: {error}; {advice}") from error
