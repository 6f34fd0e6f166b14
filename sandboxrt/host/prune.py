"""What a state folder holds and nobody needs: found first, so that it can be shown, then removed.

Everything here is safe beside living owners, for each step takes what it removes from the records first, or holds the
dead owner's lock, or is a cache that is made again in milliseconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import Engine
from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.init.build import remove_old_tools
from sandboxrt.errors import ResourceInUseError, ResourceNotFoundError, SandboxClientError
from sandboxrt.host.opening import clean_leftovers
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.snapshots.content import SnapshotConfig
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.snapshots.tidy import measure
from sandboxrt.store import SandboxRow, SnapshotRow, Store

__all__ = ["Pruner", "Unneeded", "open_pruner"]


@attrs.frozen
class Unneeded:
    """One thing that nobody needs.

    Attributes:
        kind: ``sandbox`` (its owner died), ``build`` (it failed), ``snapshot`` or ``cache``.
        name: Its name, or what it is.
        used_bytes: What it takes on disk, as far as that is told without it.
    """

    kind: str
    name: str
    used_bytes: int
    _remove: Callable[[], Awaitable[None]] = attrs.field(repr=False, eq=False)


@attrs.frozen
class Pruner:
    """Finds and removes what is not needed in one state folder. Made by :func:`open_pruner`."""

    store: Store
    engine: Engine
    library: SnapshotLibrary

    async def find(self, *, unused_for: timedelta | None = None) -> tuple[Unneeded, ...]:
        """Everything that can go.

        Args:
            unused_for: Snapshots, too, that no sandbox was made from and nothing lies on, if they are older than this;
                ``None`` = no snapshots.
        """
        found = [item async for item in self._sandboxes()]
        rows = await self.store.snapshots_where()
        found += [Unneeded("build", row.name, 0, self._removal(row)) for row in rows if row.status == "failed"]
        if unused_for is not None:
            found += [item async for item in self._snapshots(rows, unused_for)]
        caches = {
            "empty disks": self._templates().remove_unused,
            "programs of other versions": self._old_tools,
        }
        found += [Unneeded("cache", name, 0, self._blocking(remove)) for name, remove in caches.items()]
        return tuple(found)

    async def remove(self, unneeded: Iterable[Unneeded]) -> tuple[str, ...]:
        """Remove these, and what is left in the middle of builds and removals; make the database smaller.

        Returns:
            What could not be removed, and why. What somebody began to use meanwhile is passed over.
        """
        trouble: list[str] = []
        for item in unneeded:
            try:
                with contextlib.suppress(ResourceNotFoundError, ResourceInUseError):
                    await item._remove()
            except (OSError, RuntimeError, SandboxClientError) as error:
                trouble.append(f"{item.kind} {item.name}: {error}")
        await self.store.compact()
        return tuple(trouble)

    async def _sandboxes(self) -> AsyncIterator[Unneeded]:
        dead = set(await self.store.dead_owners())
        rows = [row for row in await self.store.list_sandboxes() if row.owner_id in dead and not row.keep]
        for row in rows:
            yield Unneeded("sandbox", row.name, await self._size(self._folder_of(row)), self._clean)

    async def _clean(self) -> None:
        # All at once: the first takes the others with it, under one lock.
        await clean_leftovers(self.store.state_dir, engine=self.engine)

    async def _snapshots(self, rows: tuple[SnapshotRow, ...], unused_for: timedelta) -> AsyncIterator[Unneeded]:
        """Newest first, so that what lies on another goes before it."""
        newest = (datetime.now(UTC) - unused_for).isoformat()
        bases = {row.id: row.base_id for row in rows}
        kept = {row.snapshot_id for row in await self.store.list_sandboxes()}
        kept |= {row.id for row in rows if row.created_at > newest or row.status == "building" or row.kind == "host"}
        for snapshot_id in tuple(kept):
            below = bases.get(snapshot_id)
            while below is not None and below not in kept:
                kept.add(below)
                below = bases.get(below)
        files = {row.files_id for row in rows if row.id in kept}
        for row in rows:
            if row.status == "ready" and row.id not in kept:
                own = row.files_id not in files
                files.add(row.files_id)
                folder = self.store.state_dir / "snapshots" / row.files_id
                yield Unneeded("snapshot", row.name, await self._size(folder) if own else 0, self._removal(row))

    def _removal(self, row: SnapshotRow) -> Callable[[], Awaitable[None]]:
        return lambda: self.library.delete(row.id)

    def _templates(self) -> DiskTemplates:
        return DiskTemplates(self.store.state_dir / "templates")

    def _old_tools(self) -> None:
        remove_old_tools(self.store.state_dir / "tools")

    def _blocking(self, function: Callable[[], object]) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await trio.to_thread.run_sync(function)

        return run

    def _folder_of(self, row: SandboxRow) -> Path:
        return sandbox_dir(self.store.state_dir, row.engine_id)

    async def _size(self, folder: Path) -> int:
        try:
            return await trio.to_thread.run_sync(measure, str(folder), 2**63)
        except FileNotFoundError:
            return 0


@contextlib.asynccontextmanager
async def open_pruner(state_dir: Path, engine: Engine, config: SnapshotConfig | None = None) -> AsyncIterator[Pruner]:
    """A pruner for a state folder; opening it removes what builders left that died in the middle.

    Raises:
        SandboxClientError: The folder cannot be used.
    """
    async with Store.open(state_dir) as store, SnapshotLibrary(store, state_dir, config) as library:
        yield Pruner(store, engine, library)
