"""The database file: opened, brought to the newest schema, and its errors put into words."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from sandboxrt.errors import HostDiskFullError, SandboxClientError
from sandboxrt.room import Room
from sandboxrt.threads import run_blocking

__all__ = [
    "RESTORE_MARK",
    "SCHEMA_VERSION",
    "connect",
    "migrate",
    "naming",
    "refuse_half_restored",
    "run_blocking",
    "transaction",
    "with_room",
]

T = TypeVar("T")

RESTORE_MARK: Final = "restoring"
"""In a state folder that a backup is being put into: half of one must not be used."""

_BUSY_TIMEOUT_S: Final = 10.0
_PAUSES_S: Final = (0.0, 0.05, 0.2)
_FULL_BELOW_BYTES: Final = 1024**2

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
    # Tenants: names are unique within each, and the machine's own processes are the tenant ''. Dropping a table is the
    # only way to loosen a UNIQUE; nothing refers to sandboxes.
    (
        """CREATE TABLE sandboxes_2 (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
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
            delete_after_stop_seconds INTEGER,
            env TEXT NOT NULL,
            labels TEXT NOT NULL,
            run_config TEXT,
            keep INTEGER NOT NULL,
            idempotency_key TEXT,
            stopped_at TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            UNIQUE (tenant, name)
        )""",
        """INSERT INTO sandboxes_2 (seq, id, tenant, name, owner_id, snapshot_id, status, status_message, uid_block,
            limits, require, allow_unenforced_limits, ttl_seconds, idle_ttl_seconds, env, labels, keep, created_at,
            updated_at)
        SELECT seq, id, '', name, owner_id, snapshot_id, status, status_message, uid_block, limits, require,
            allow_unenforced_limits, ttl_seconds, idle_ttl_seconds, env, '{}', 0, created_at, updated_at
        FROM sandboxes""",
        "DROP TABLE sandboxes",
        "ALTER TABLE sandboxes_2 RENAME TO sandboxes",
        "CREATE INDEX sandboxes_by_owner ON sandboxes (owner_id)",
        "CREATE INDEX sandboxes_by_snapshot ON sandboxes (snapshot_id)",
        "ALTER TABLE snapshots ADD COLUMN tenant TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE snapshots ADD COLUMN tag TEXT",
        "ALTER TABLE snapshots ADD COLUMN run_config TEXT",
        """CREATE TABLE snapshot_tags (
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            tag TEXT NOT NULL,
            snapshot_id TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
            PRIMARY KEY (tenant, name, tag)
        )""",
        "CREATE INDEX snapshot_tags_by_snapshot ON snapshot_tags (snapshot_id)",
        """CREATE TABLE tenants (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            created_at TEXT NOT NULL
        )""",
        """CREATE TABLE api_keys (
            id TEXT PRIMARY KEY,
            tenant_id TEXT NOT NULL REFERENCES tenants (id),
            label TEXT NOT NULL,
            hash TEXT NOT NULL,
            created_at TEXT NOT NULL,
            revoked_at TEXT
        )""",
    ),
    ("ALTER TABLE sandboxes ADD COLUMN lease_seconds INTEGER",),
    # Captures lie on the layers of what their sandbox was made from.
    (
        "ALTER TABLE snapshots ADD COLUMN base_id TEXT REFERENCES snapshots (id)",
        "CREATE INDEX snapshots_by_base ON snapshots (base_id)",
    ),
    (
        """CREATE TABLE link_keys (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            purpose TEXT NOT NULL,
            secret BLOB NOT NULL,
            created_at REAL NOT NULL,
            superseded_at REAL
        )""",
    ),
    ("ALTER TABLE sandboxes ADD COLUMN last_active_at TEXT",),
    # What a key's own quota says, as JSON.
    ("ALTER TABLE api_keys ADD COLUMN quota TEXT NOT NULL DEFAULT '{}'",),
    # A page of one tenant's snapshots, however many others have.
    ("CREATE INDEX snapshots_by_tenant ON snapshots (tenant, seq)",),
    # Passwords are sealed (store/vault.py).
    (
        """CREATE TABLE registries (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            url TEXT NOT NULL,
            username TEXT,
            password BLOB,
            created_at TEXT NOT NULL,
            created_by TEXT,
            updated_at TEXT NOT NULL,
            updated_by TEXT,
            UNIQUE (tenant, name)
        )""",
        "ALTER TABLE snapshots ADD COLUMN registry_id TEXT",
    ),
    # Images with the same layers share the files that the first of them unpacked.
    (
        "ALTER TABLE snapshots ADD COLUMN layers_key TEXT",
        "ALTER TABLE snapshots ADD COLUMN files_of TEXT",
        "CREATE INDEX snapshots_by_layers ON snapshots (layers_key)",
        "CREATE INDEX snapshots_by_files ON snapshots (files_of)",
    ),
    # The block whose ids the files of a sandbox have still, or some of them, until they are given to its own.
    ("ALTER TABLE sandboxes ADD COLUMN moved_from INTEGER",),
)
"""One tuple of statements a schema version. Append only: a state folder in the field has run those before."""

SCHEMA_VERSION: Final = len(_MIGRATIONS)


def connect(path: Path) -> sqlite3.Connection:
    """Open the database file, made where it is missing, for use by one thread at a time."""
    refuse_half_restored(path.parent)
    # SQLite makes the file with the process's umask; the environment of sandboxes in it is nobody else's business.
    # A file that is there must not be opened for that: the close would drop the locks of this process's other
    # connections to it, and then another process takes itself for the last one and removes the log beneath them.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    if os.stat(path).st_nlink > 1:
        raise SandboxClientError(
            f"{path} is one file in two folders, as `cp -al` makes them: what is written in one damages the other. "
            f"Give this folder a file of its own: cp -p {path} {path}.own && mv {path}.own {path}, and likewise the "
            "disks of its sandboxes; or make the copy again without links"
        )
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


def refuse_half_restored(state_dir: Path) -> None:
    """Refuse a folder into which a backup was not put back to its end.

    Raises:
        SandboxClientError: It is such a folder.
    """
    if (state_dir / RESTORE_MARK).exists():
        raise SandboxClientError(
            f"{state_dir} is half restored: the backup was not put back to its end. Remove the folder, then restore "
            "again"
        )


def migrate(db: sqlite3.Connection, state_dir: Path) -> None:
    """Bring the schema to the newest version; a version newer than this program knows is refused."""
    if db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    with transaction(db):
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
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction that holds the write lock from its start, so that what it reads stays true."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk ends the transaction by itself; then there is nothing to roll back.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


_NOT_WRITABLE: Final = "it is not writable for this user: change its owner or mode, or use another state folder"
_NO_SPACE: Final = "its file system is full: free some space, or use another state folder"
_ADVICE: Final[dict[int | str, str]] = {
    errno.EACCES: _NOT_WRITABLE,
    errno.EPERM: _NOT_WRITABLE,
    errno.EROFS: "its file system is read-only: use another state folder",
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: "the disk quota is used up: free some space, or use another state folder",
    errno.ENOTDIR: "it, or a folder above it, is a file: remove that, or use another state folder",
    errno.EEXIST: "it is a file: remove it, or use another state folder",
    errno.EMFILE: "this process has too many files open: raise its limit (ulimit -n)",
    f"SQLITE {sqlite3.SQLITE_CANTOPEN}": _NOT_WRITABLE,
    f"SQLITE {sqlite3.SQLITE_READONLY}": _NOT_WRITABLE,
    f"SQLITE {sqlite3.SQLITE_FULL}": _NO_SPACE,
    f"SQLITE {sqlite3.SQLITE_IOERR}": "its disk reports errors or is full: check the kernel log and the free space",
    f"SQLITE {sqlite3.SQLITE_BUSY}": (
        f"another process has kept it locked for {_BUSY_TIMEOUT_S:.0f} s: find and end that process"
    ),
    f"SQLITE {sqlite3.SQLITE_NOTADB}": "state.db in it is not a SQLite file: move it away, or use another state folder",
    f"SQLITE {sqlite3.SQLITE_CORRUPT}": "state.db in it is damaged: move it away, or use another state folder",
}


def with_room(state_dir: Path, function: Callable[[], T]) -> T:
    """Run a function that writes; on a full disk once more, with the room that is kept for records.

    What is removed to make room must be recorded first, on a disk that has none.
    """
    for pause_s in _PAUSES_S:
        try:
            return function()
        except (OSError, sqlite3.Error) as error:
            if _reason(error, state_dir) not in _FULL:
                raise
            Room(state_dir).records_ballast.release()
            time.sleep(pause_s)  # file systems take a moment to give back
    return function()


def _reason(error: OSError | sqlite3.Error, state_dir: Path) -> int | str:
    """The key of what is to be said about an error: a number of the system's, or ``SQLITE_`` and so on."""
    if isinstance(error, OSError):
        return error.errno or 0
    # The low byte is the primary code; what is above it says more than a user wants to know.
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(state_dir):
        code = sqlite3.SQLITE_FULL  # What it says when the file that it shares memory through cannot grow.
    return f"SQLITE {code}"


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, f"SQLITE {sqlite3.SQLITE_FULL}"})


@contextlib.contextmanager
def naming(state_dir: Path) -> Iterator[None]:
    """Turn the system's and SQLite's errors into one that names the folder and what to do."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = _reason(error, state_dir)
        said = error.strerror if isinstance(error, OSError) else error
        message = f"Cannot use the state folder {state_dir}: {said}; {_ADVICE.get(reason) or _default(error)}"
        if reason in _FULL:
            room = Room(state_dir)
            raise HostDiskFullError(
                message, folder=str(state_dir), free_bytes=room.free_bytes, min_free_bytes=room.min_free_bytes
            ) from error
        raise SandboxClientError(message) from error


def _default(error: OSError | sqlite3.Error) -> str:
    return "use another state folder if that cannot be helped" if isinstance(error, OSError) else "please report this"


def _is_full(state_dir: Path) -> bool:
    try:
        found = os.statvfs(state_dir)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _FULL_BELOW_BYTES
