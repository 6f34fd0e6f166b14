"""Puts a backup into a new state folder, on this machine or another one.

Until all of it is there the folder has a mark, and no program opens it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import trio

from sandboxrt.engine.remains import has_files
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.backup.archive import Contents, TarError, open_sealed, saying, unpack
from sandboxrt.host.lifetime import MAX_TTL_S
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.store import SCHEMA_VERSION
from sandboxrt.store.database import RESTORE_MARK
from sandboxrt.store.examine import read_state

__all__ = ["restore"]

_MINUTE_S: Final = 60


async def restore(backup: Path, state_dir: Path) -> Contents:
    """Check a backup and unpack it into a state folder, which is made, or is there and empty.

    Sandboxes are ``stopped``, with their files. What was to happen to them at some time happens that much later: the
    time between backup and restore does not count.

    Args:
        backup: The file.
        state_dir: The new state folder.

    Raises:
        SandboxClientError: The file is no whole backup or made by a newer sandboxrt, or the folder has something in it
            or cannot be written. The folder is as it was.

    Cancellation: the folder is as it was.
    """
    sealed = await trio.to_thread.run_sync(open_sealed, backup)
    contents = sealed.contents
    if contents.schema > SCHEMA_VERSION:
        raise SandboxClientError(
            f"{backup} has schema version {contents.schema}, made by sandboxrt {contents.version}; this one knows up "
            f"to {SCHEMA_VERSION}. Upgrade sandboxrt"
        )
    state_dir, was_there = await trio.to_thread.run_sync(_begin, state_dir, contents)
    mark = state_dir / RESTORE_MARK
    try:
        await unpack(sealed, state_dir)
        await trio.to_thread.run_sync(_finish, state_dir, contents)
    except TarError as error:
        raise SandboxClientError(f"{backup} cannot be unpacked: {error}") from error
    except OSError as error:
        raise SandboxClientError(f"Cannot use {state_dir}: {error.strerror}") from error
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: _undo(state_dir, was_there=was_there) if mark.exists() else None)
    return contents


def _begin(state_dir: Path, contents: Contents) -> tuple[Path, bool]:
    state_dir = state_dir.absolute()
    was_there = state_dir.exists()
    with saying(state_dir):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(state_dir.iterdir()):
            raise SandboxClientError(f"{state_dir} is not empty: name a folder that is, or does not exist")
        found = os.statvfs(state_dir)
        free = found.f_bavail * found.f_frsize
        if free < contents.unpacked_bytes:
            _undo(state_dir, was_there=was_there)
            raise SandboxClientError(
                f"There is no room for the backup in {state_dir}: it takes {contents.unpacked_bytes} bytes, and {free} "
                "are free"
            )
        (state_dir / RESTORE_MARK).touch(0o600)
    return state_dir, was_there


def _undo(state_dir: Path, *, was_there: bool) -> None:
    """The mark goes last, so that what cannot be removed is not taken for a state folder."""
    for path in sorted(state_dir.iterdir(), key=lambda each: each.name == RESTORE_MARK):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if not was_there:
        state_dir.rmdir()


def _finish(state_dir: Path, contents: Contents) -> None:
    for name in ("sandboxes", "snapshots", "owners"):
        (state_dir / name).mkdir(mode=0o700, exist_ok=True)
        (state_dir / name).chmod(0o700)
    for folder in (state_dir / "sandboxes").iterdir():
        folder.chmod(0o700)
    database = state_dir / "state.db"
    database.chmod(0o600)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        _put_off(db, contents.made_at)
    recorded = read_state(state_dir, half_restored=True)
    if not recorded.is_readable or recorded.unreadable or recorded.dangling:
        raise SandboxClientError("The database of the backup is damaged")
    known = {row.engine_id for row in recorded.sandboxes}
    for row in recorded.sandboxes:
        if not has_files(sandbox_dir(state_dir, row.engine_id)):
            raise SandboxClientError(f"The files of the sandbox '{row.name}' are not in the backup")
    for folder in (state_dir / "sandboxes").iterdir():
        if folder.name not in known:
            shutil.rmtree(folder)  # deleted while the backup was made
    # All of it is on the disk before it counts.
    os.sync()
    (state_dir / RESTORE_MARK).unlink()


def _put_off(db: sqlite3.Connection, made_at: str) -> None:
    gap = max(timedelta(), datetime.now(UTC) - datetime.fromisoformat(made_at))
    later_s = -(-int(gap.total_seconds()) // _MINUTE_S) * _MINUTE_S
    db.execute("UPDATE sandboxes SET ttl_seconds = min(ttl_seconds + ?, ?) WHERE ttl_seconds > 0", (later_s, MAX_TTL_S))
    stopped = db.execute("SELECT id, stopped_at FROM sandboxes WHERE stopped_at IS NOT NULL").fetchall()
    for row_id, stopped_at in stopped:
        later = (datetime.fromisoformat(stopped_at) + gap).astimezone(UTC).isoformat(timespec="milliseconds")
        db.execute("UPDATE sandboxes SET stopped_at = ? WHERE id = ?", (later.replace("+00:00", "Z"), row_id))
