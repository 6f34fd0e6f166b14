"""Makes a backup of a state folder, whoever uses it meanwhile.

Files come first, and the database after them: what it has then and the backup has not (sandboxes made since) is taken
out of the copy, so that everything in a backup is whole. The files of snapshots that are ready do not change. The disk
of a sandbox that rests is copied and looked at again; the file system of one that runs stands still while its disk is
copied, so each sandbox is as it was at one instant of its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import attrs
import trio

from sandboxrt._version import __version__
from sandboxrt.engine.capture import DISK_IMAGE
from sandboxrt.engine.launch.plan import DATA_FOLDER
from sandboxrt.engine.loops import loops_below
from sandboxrt.engine.remains import has_files, records_in
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.backup.archive import FORMAT, Contents, Draft, Item, TarError
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.snapshots.content import SnapshotContent
from sandboxrt.store import SCHEMA_VERSION, SandboxRow, SnapshotRow
from sandboxrt.store.examine import Recorded, copy_database, read_state
from sandboxrt.store.vault import KEY_FILE

__all__ = ["Made", "back_up"]

_STILL: Final = Path(__file__).with_name("still.py")
_STILL_LIMIT_S: Final = 600
_START_S: Final = 60.0
_TRIES: Final = 5
_SUFFIX: Final = ".backup"
_KEPT: Final = ("ready", "stopped", "failed")
"""What sandboxes must be to be in a backup: the others are half made or half gone."""


@attrs.frozen
class Made:
    """A backup that was made.

    Attributes:
        path: Where.
        bytes: How long it is.
        contents: What is in it.
    """

    path: Path
    bytes: int
    contents: Contents


async def back_up(state_dir: Path, target: Path, *, tell: Callable[[str], None] = lambda _: None) -> Made:
    """Write all that counts of a state folder into one new file.

    That is: sandboxes that outlive their server, with their files; snapshots that are ready, with theirs; API keys and
    tenants, quotas, registries with their passwords and the key that those are sealed with, and the keys of links.

    Args:
        state_dir: The state folder; it may be in use.
        target: The new file, or a folder in which it gets a name of its own.
        tell: Is told what is being copied.

    Raises:
        SandboxClientError: It is no state folder, or damaged, or made by a newer sandboxrt; ``target`` exists or cannot
            be written; or a sandbox that runs cannot be made to stand still. There is nothing at ``target`` then.

    Cancellation: there is nothing at ``target``; every sandbox runs on.
    """
    recorded = await trio.to_thread.run_sync(read_state, state_dir)
    _check(recorded)
    state_dir, target = await trio.to_thread.run_sync(_places, state_dir, target)
    with Draft.open(target) as draft:
        backup = _Backup(state_dir, draft, tell)
        await backup.add_snapshots(recorded.snapshots)
        for row in recorded.sandboxes:
            await backup.add_sandbox(row)
        contents = await backup.add_records()
        await draft.seal(contents)
        return Made(target, draft.tell(), contents)


def _places(state_dir: Path, target: Path) -> tuple[Path, Path]:
    if target.is_dir():
        target = target / f"sandboxrt-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{_SUFFIX}"
    if target.resolve().is_relative_to(state_dir.resolve()):
        raise SandboxClientError(f"A backup must not lie in the state folder that it is of: {target}")
    return state_dir.absolute(), target.absolute()


def _check(recorded: Recorded) -> None:
    folder = recorded.state_dir
    if recorded.version is not None and recorded.version > SCHEMA_VERSION:
        raise SandboxClientError(
            f"{folder} has schema version {recorded.version}, made by a newer sandboxrt; this one knows up to"
            f" {SCHEMA_VERSION}. Make the backup with that one"
        )
    if not recorded.is_readable or recorded.unreadable or recorded.dangling:
        raise SandboxClientError(
            f"{folder} is damaged, and a backup would be, too: see `sandboxrt doctor --state --state-dir {folder}`"
        )


class _ChangedError(Exception):
    """Somebody started, stopped or removed it meanwhile: again."""


@attrs.define
class _Backup:
    state_dir: Path
    draft: Draft
    tell: Callable[[str], None]
    sandboxes: dict[str, Item] = attrs.field(factory=dict)
    snapshots: dict[str, Item] = attrs.field(factory=dict)
    left_out: list[tuple[str, str]] = attrs.field(factory=list)
    needs: set[str] = attrs.field(factory=set)
    unpacked_bytes: int = 0

    # -- snapshots -----------------------------------------------------------------------------------------------------

    async def add_snapshots(self, rows: Iterable[SnapshotRow]) -> None:
        folder = self.state_dir / "snapshots"
        done: set[str] = set()
        for row in rows:
            if row.status != "ready":
                self.left_out.append((f"snapshot {row.name}", f"it is {row.status}"))
                continue
            layers = SnapshotContent.from_json(row.content or "", folder).layers
            self.needs.update(str(layer.path) for layer in layers if not layer.path.is_relative_to(folder))
            names = {layer.path.relative_to(folder).parts[0] for layer in layers if layer.path.is_relative_to(folder)}
            if (folder / row.files_id).is_dir():
                names.add(row.files_id)
            self.tell(f"snapshot {row.name}")
            try:
                for name in sorted(names - done):
                    await self.draft.add(folder, name, prefix="snapshots")
                    done.add(name)
                    self.unpacked_bytes += await trio.to_thread.run_sync(_taken, folder / name)
            except TarError as error:
                if await self._is_there("snapshots", row.id):
                    raise SandboxClientError(f"The snapshot '{row.name}' cannot be read: {error}") from error
                self.left_out.append((f"snapshot {row.name}", "it was deleted meanwhile"))
                continue
            self.snapshots[row.id] = Item(kind="snapshot", id=row.id, name=row.name, tenant=row.tenant)

    async def _is_there(self, table: str, row_id: str) -> bool:
        rows = getattr(await trio.to_thread.run_sync(read_state, self.state_dir), table)
        return any(row.id == row_id and row.status in _KEPT for row in rows)

    # -- sandboxes -----------------------------------------------------------------------------------------------------

    async def add_sandbox(self, row: SandboxRow) -> None:
        why = self._unfit(row)
        if why is not None:
            self.left_out.append((f"sandbox {row.name}", why))
            return
        folder = sandbox_dir(self.state_dir, row.engine_id)
        self.tell(f"sandbox {row.name}")
        for _ in range(_TRIES):
            length = self.draft.tell()
            try:
                stood_still_s = await self._copy(row, folder)
            except (_ChangedError, TarError) as error:
                self.draft.forget_from(length)
                if not await self._is_there("sandboxes", row.id):
                    self.left_out.append((f"sandbox {row.name}", "it was deleted meanwhile"))
                    return
                reason = error
                continue
            self.unpacked_bytes += await trio.to_thread.run_sync(_taken, folder)
            self.sandboxes[row.id] = Item(
                kind="sandbox",
                id=row.id,
                name=row.name,
                tenant=row.tenant,
                was=row.status,
                stood_still_s=stood_still_s,
            )
            return
        raise SandboxClientError(
            f"The sandbox '{row.name}' cannot be copied: {reason}. Stop it first, then make the backup"
        )

    def _unfit(self, row: SandboxRow) -> str | None:
        if not row.keep:
            return "it goes with the process that made it"
        if row.status not in _KEPT:
            return f"it is {row.status}"
        if row.snapshot_id not in self.snapshots:
            return "it was made while the backup was"
        if not has_files(sandbox_dir(self.state_dir, row.engine_id)):
            return "its files are gone"
        return None

    async def _copy(self, row: SandboxRow, folder: Path) -> float | None:
        image = folder / DISK_IMAGE
        name = image.name if image.exists() else DATA_FOLDER
        where = f"sandboxes/{folder.name}"
        before = await trio.to_thread.run_sync(_signs, folder)
        if before.loops:
            async with _still(row, folder, before.loops[0]) as began:
                await self.draft.add(folder, name, prefix=where)
                return time.monotonic() - began
        if name == DATA_FOLDER and row.status == "ready" and before.records:
            raise SandboxClientError(
                f"The sandbox '{row.name}' runs without a disk of its own, so nothing can make its files stand still. "
                "Stop it first, then make the backup"
            )
        await self.draft.add(folder, name, prefix=where)
        if await trio.to_thread.run_sync(_signs, folder) != before:
            raise _ChangedError("it is started and stopped all the time")
        return None

    # -- the database --------------------------------------------------------------------------------------------------

    async def add_records(self) -> Contents:
        with tempfile.TemporaryDirectory(prefix="sandboxrt-backup-") as name:
            copy = Path(name, "state.db")
            made_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            await trio.to_thread.run_sync(self._copy_records, copy, made_at)
            await self.draft.add(copy.parent, copy.name)
            if (self.state_dir / KEY_FILE).exists():
                await self.draft.add(self.state_dir, KEY_FILE)
        return Contents(
            format=FORMAT,
            schema=SCHEMA_VERSION,
            version=__version__,
            made_at=made_at,
            unpacked_bytes=self.unpacked_bytes,
            items=(*self.snapshots.values(), *self.sandboxes.values()),
            left_out=tuple(self.left_out),
            needs=tuple(sorted(self.needs)),
        )

    def _copy_records(self, copy: Path, made_at: str) -> None:
        with contextlib.closing(copy_database(self.state_dir, copy)) as db:
            _keep_only(db, "sandboxes", self.sandboxes)
            # What lies on others has them among the ready ones of the same moment; only builds have not.
            _keep_only(db, "snapshots", self.snapshots)
            db.execute(
                "UPDATE sandboxes SET status = 'stopped', status_message = NULL, stopped_at = ?, last_active_at = NULL"
                " WHERE status NOT IN ('stopped', 'failed')",
                (made_at,),
            )
            left = {row[0] for row in db.execute("SELECT id FROM sandboxes UNION SELECT id FROM snapshots")}
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("VACUUM")
        for kept in (self.sandboxes, self.snapshots):
            for gone in kept.keys() - left:
                # Its files are in the backup; the doctor would call them strays, the next server removes them.
                self.left_out.append((f"{kept[gone].kind} {kept[gone].name}", "it was deleted meanwhile"))
                del kept[gone]


def _keep_only(db: sqlite3.Connection, table: str, known: Iterable[str]) -> None:
    db.execute("CREATE TEMP TABLE known (id TEXT PRIMARY KEY)")
    db.executemany("INSERT INTO known VALUES (?)", ((each,) for each in known))
    db.execute(f"DELETE FROM {table} WHERE id NOT IN (SELECT id FROM known)")  # noqa: S608  our own tables
    db.execute("DROP TABLE known")


# -- the files of a sandbox --------------------------------------------------------------------------------------------


@attrs.frozen
class _Signs:
    """What changes when a sandbox's files are used."""

    loops: tuple[str, ...]
    records: tuple[Path, ...]
    image: tuple[int, int, int] | None


def _signs(folder: Path) -> _Signs:
    try:
        found = os.stat(folder / DISK_IMAGE)
    except FileNotFoundError:
        return _Signs((), records_in(folder), None)
    return _Signs(loops_below(folder), records_in(folder), (found.st_ino, found.st_size, found.st_mtime_ns))


@contextlib.asynccontextmanager
async def _still(row: SandboxRow, folder: Path, loop: str) -> AsyncIterator[float]:
    """The file system of a running sandbox stands still for the length of the block; gives when that began."""
    pid, device = await trio.to_thread.run_sync(lambda: (_first_process(folder), _device(loop)))
    # ``/tmp`` inside is on its disk, and nobody in there can mount.
    words = [sys.executable, "-I", "-S", str(_STILL), f"/proc/{pid}/root/tmp", str(device), str(_STILL_LIMIT_S)]
    pipe = subprocess.PIPE
    # In a session of its own: it outlives this process by as long as the thaw takes, and no Ctrl-C reaches it.
    helper = await trio.lowlevel.open_process(words, stdin=pipe, stdout=pipe, start_new_session=True)
    assert helper.stdin is not None
    assert helper.stdout is not None
    try:
        answer = b""
        with trio.move_on_after(_START_S):
            answer = bytes(await helper.stdout.receive_some(64))
        if answer != b"still\n":
            raise _ChangedError("its disk cannot be made to stand still")
        yield time.monotonic()
    finally:
        with trio.CancelScope(shield=True):
            await helper.stdin.aclose()
            code = await helper.wait()
            await helper.stdout.aclose()
    if code != 0:
        raise SandboxClientError(
            f"The sandbox '{row.name}' stood still for {_STILL_LIMIT_S} s, and its copy was not finished: stop it "
            "first, then make the backup, or write the backup to a faster place"
        )


def _device(loop: str) -> int:
    try:
        major, minor = Path(f"/sys/block/{loop}/dev").read_text().split(":")
    except (OSError, ValueError) as error:
        raise _ChangedError("its disk is not mounted any more") from error
    return os.makedev(int(major), int(minor))


def _first_process(folder: Path) -> int:
    for record in records_in(folder):
        with contextlib.suppress(OSError, ValueError):
            return int((record / "pid").read_text())
    raise _ChangedError("its first process cannot be found")


def _taken(path: Path) -> int:
    """What files take on disk, in bytes."""
    if path.is_file():
        return path.lstat().st_blocks * 512
    return sum(
        os.lstat(Path(folder, name)).st_blocks * 512 for folder, _, names in os.walk(path) for name in (*names, "")
    )
