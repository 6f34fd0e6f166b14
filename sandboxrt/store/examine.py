"""A state folder read without touching it: its rows, who lives in it, and what SQLite says about the file.

Source: ours; SQLite's documentation of its write-ahead log, ``integrity_check`` and ``foreign_key_check``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs

from sandboxrt.errors import SandboxClientError
from sandboxrt.store.database import SCHEMA_VERSION, connect, migrate, naming, refuse_half_restored
from sandboxrt.store.identity import container_id, find_identity
from sandboxrt.store.owners import OwnerLock
from sandboxrt.store.rows import SandboxRow, SnapshotRow, one_snapshot, select_sandboxes
from sandboxrt.store.vault import SealError, Vault

__all__ = ["Dangling", "LostPassword", "Recorded", "UnreadableRow", "copy_database", "living_owners", "read_state"]

_DATABASE: Final = "state.db"
_COPY_TRIES: Final = 10
_MAX_DAMAGE: Final = 20
_NOT_THE_FILES_FAULT: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


@attrs.frozen
class Dangling:
    """A row that refers to one that is not there.

    Attributes:
        table: The table that it is in.
        row: Its id or name, as far as it has one.
        parent: The table that has no such row.
    """

    table: str
    row: str
    parent: str


@attrs.frozen
class UnreadableRow:
    """A row whose values make no sense."""

    table: str
    row: str
    reason: str


@attrs.frozen
class LostPassword:
    """A registry whose password cannot be read any more."""

    registry: str
    tenant: str
    reason: str


@attrs.frozen(kw_only=True)
class Recorded:
    """What a state folder's database says.

    Attributes:
        state_dir: The folder.
        living: Owners that were alive before or after the rows were read: what their rows say may change.
        version: Its schema; ``None`` where the file cannot be read at all.
        damage: What SQLite finds wrong with the file; empty when it is whole.
        dangling: Rows that refer to nothing.
        sandboxes: All of them; none where the schema is newer than this program knows. ``snapshots`` likewise.
        unreadable: Those that are in neither, and why.
        lost_passwords: Registries' that cannot be read with the key file.
        locks: Owners that have a lock file, living or dead.
        identity: Who the folder is on this machine; ``None`` where it is a copy, or was last opened before a reboot,
            so that nothing that runs can be its own.
    """

    state_dir: Path
    living: frozenset[str]
    version: int | None
    damage: tuple[str, ...] = ()
    dangling: tuple[Dangling, ...] = ()
    sandboxes: tuple[SandboxRow, ...] = ()
    snapshots: tuple[SnapshotRow, ...] = ()
    unreadable: tuple[UnreadableRow, ...] = ()
    lost_passwords: tuple[LostPassword, ...] = ()
    locks: frozenset[str] = frozenset()
    identity: str | None = None

    def container_id(self, engine_id: str) -> str | None:
        """What the container of a sandbox is called where there may be one."""
        return None if self.identity is None else container_id(self.identity, engine_id)

    @property
    def is_readable(self) -> bool:
        """Whether its rows are all that there are, and may be relied upon."""
        return self.version is not None and self.version <= SCHEMA_VERSION and not self.damage


def read_state(state_dir: Path, *, half_restored: bool = False) -> Recorded:
    """Read a state folder without changing anything in it. Blocking.

    The rows of an older schema are read as the newest has them.

    Args:
        state_dir: The folder.
        half_restored: Also one into which a backup is being put back.

    Raises:
        SandboxClientError: There is no such folder, it is none, or it may not be read; the message says which.
    """
    with naming(state_dir):
        _check_folder(state_dir)
        if not half_restored:
            refuse_half_restored(state_dir)
        before = living_owners(state_dir)
        with tempfile.TemporaryDirectory(prefix="sandboxrt-doctor-") as name:
            copy = Path(name, _DATABASE)
            try:
                _copy(state_dir, copy)
                found = _read(copy, state_dir)
            except sqlite3.DatabaseError as error:
                if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _NOT_THE_FILES_FAULT:
                    raise
                found = Recorded(state_dir=state_dir, living=before, version=None, damage=(str(error),))
        locks = frozenset(path.stem for path in (state_dir / "owners").glob("*.lock"))
        living = before | living_owners(state_dir)
        return attrs.evolve(found, living=living, locks=locks, identity=find_identity(state_dir))


def copy_database(state_dir: Path, copy: Path) -> sqlite3.Connection:
    """A copy of the database as it is at one moment, open, and of the newest schema. Blocking; changes nothing else.

    Args:
        state_dir: The state folder; it may be in use.
        copy: Where the copy goes: a new file.

    Raises:
        SandboxClientError: It cannot be read, or was made by a newer version.
    """
    with naming(state_dir):
        _copy(state_dir, copy)
        db = connect(copy)
        try:
            migrate(db, state_dir)
        except BaseException:
            db.close()
            raise
        return db


def living_owners(state_dir: Path) -> frozenset[str]:
    """The owners in a state folder that live now. Blocking, and quick."""
    locks = (state_dir / "owners").glob("*.lock")
    return frozenset(path.stem for path in locks if not OwnerLock.is_free(path))


def _check_folder(state_dir: Path) -> None:
    if not state_dir.exists():
        raise SandboxClientError(f"There is no state folder {state_dir}: check the path")
    if not state_dir.is_dir():
        raise SandboxClientError(f"{state_dir} is no state folder but a file: check the path")
    if not (state_dir / _DATABASE).is_file():
        raise SandboxClientError(f"{state_dir} is no state folder: there is no {_DATABASE} in it; check the path")


# -- a copy that others' writes cannot disturb -------------------------------------------------------------------------


def _copy(state_dir: Path, copy: Path) -> None:
    """Copy the database, with what is in its log, as it was at one moment.

    SQLite itself would change files even to read them (it recovers a log, and makes an index of it), so what nobody
    uses is copied as files. What a process uses is not: closing a plain descriptor would drop that process's locks,
    were it this one; and there SQLite has nothing to recover.
    """
    for _ in range(_COPY_TRIES):
        if living_owners(state_dir):
            return _back_up(state_dir / _DATABASE, copy)
        before = _stamps(state_dir)
        for path in _files(state_dir):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path, copy.with_name(path.name))
        if _stamps(state_dir) == before and not living_owners(state_dir):
            return None
        for path in _files(copy.parent):
            path.unlink(missing_ok=True)
    raise SandboxClientError(f"{state_dir} changes all the time: try again when fewer processes come and go in it")


def _back_up(database: Path, copy: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def _files(folder: Path) -> tuple[Path, ...]:
    return folder / _DATABASE, folder / f"{_DATABASE}-wal"


def _stamps(folder: Path) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_stamp(path) for path in _files(folder))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


# -- its rows ----------------------------------------------------------------------------------------------------------


def _read(copy: Path, state_dir: Path) -> Recorded:
    with contextlib.closing(connect(copy)) as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        lines = [row[0] for row in db.execute(f"PRAGMA integrity_check({_MAX_DAMAGE})")]
        damage = () if lines == ["ok"] else tuple(" ".join(line.split()) for line in lines)
        found = Recorded(state_dir=state_dir, living=frozenset(), version=version, damage=damage)
        if not found.is_readable:
            return found
        dangling = tuple(_dangling(db))
        # A copy's references need not hold for it to be brought up to date.
        db.execute("PRAGMA foreign_keys = OFF")
        migrate(db, state_dir)
        unreadable: list[UnreadableRow] = []
        return attrs.evolve(
            found,
            dangling=dangling,
            sandboxes=tuple(_rows(db, "sandboxes", unreadable)),
            snapshots=tuple(_rows(db, "snapshots", unreadable)),
            unreadable=tuple(unreadable),
            lost_passwords=tuple(_lost_passwords(db, Vault(state_dir))),
        )


def _dangling(db: sqlite3.Connection) -> Iterator[Dangling]:
    for table, rowid, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
        row = db.execute(f"SELECT * FROM {table} WHERE rowid = ?", (rowid,)).fetchone()  # noqa: S608  SQLite's own word
        names = [key for key in ("name", "tag", "id") if row is not None and key in row.keys()]  # noqa: SIM118
        yield Dangling(table, " ".join(str(row[key]) for key in names) or str(rowid), parent)


def _lost_passwords(db: sqlite3.Connection, vault: Vault) -> Iterator[LostPassword]:
    for row in db.execute("SELECT name, tenant, password FROM registries WHERE password IS NOT NULL ORDER BY seq"):
        try:
            vault.open(row["password"])
        except (SealError, TypeError) as error:
            yield LostPassword(row["name"], row["tenant"], str(error))


def _rows(db: sqlite3.Connection, table: str, unreadable: list[UnreadableRow]) -> Iterator[Any]:
    """The rows of a table one by one, so that one that makes no sense does not hide the others."""
    for (row_id,) in db.execute(f"SELECT id FROM {table} ORDER BY seq").fetchall():  # noqa: S608  our own tables
        try:
            if table == "sandboxes":
                yield from select_sandboxes(db, "id = ?", (row_id,))
            else:
                yield one_snapshot(db, row_id)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            unreadable.append(UnreadableRow(table, str(row_id), f"{type(error).__name__}: {error}"))
