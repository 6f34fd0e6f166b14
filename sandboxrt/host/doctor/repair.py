"""Mends a state folder: what dead owners left in the middle, and what belongs to nobody.

Each step asks again, under the dead owner's lock, whether its reason still holds, so that a repair beside living owners
touches nothing of theirs, and two repairs at once do no harm. The files of a sandbox that somebody may still want are
never removed: only those of sandboxes that were never ready, that their users deleted, or whose embedded owner is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import attrs
import trio

from sandboxrt.engine.base import Engine
from sandboxrt.engine.hierarchy import Hierarchy, this_host
from sandboxrt.engine.remains import find_remains, free_groups, has_files, has_nothing
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.doctor.examine import examine
from sandboxrt.host.doctor.findings import Examination, Finding, Kind
from sandboxrt.host.doctor.snapshots import has_any_folder, unreferenced_layers
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.snapshots.content import SnapshotContent
from sandboxrt.snapshots.disk import remove_tree
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import SandboxRow, Store, container_id, run_blocking

__all__ = ["Repaired", "repair"]

_FILES_GONE: Final = "Its files are gone from the state folder"


@attrs.frozen
class Repaired:
    """What a repair did.

    Attributes:
        before: What was wrong.
        after: What still is.
        trouble: What could not be done, and why.
    """

    before: Examination
    after: Examination
    trouble: tuple[str, ...] = ()

    @property
    def mended(self) -> tuple[Finding, ...]:
        """What was wrong and is no more."""
        left = {(finding.kind, finding.where) for finding in self.after.findings}
        return tuple(f for f in self.before.findings if f.repair and (f.kind, f.where) not in left)


async def repair(state_dir: Path, engine: Engine, *, hierarchy: Hierarchy | None = None) -> Repaired:
    """Mend what can be mended safely. Nothing is touched where nothing is to be mended.

    Args:
        state_dir: The folder.
        engine: Frees what containers left; entered.
        hierarchy: Where control groups are; this machine's where left out.

    Raises:
        SandboxClientError: It is no state folder, or cannot be used; the message says which.

    Cancellation: partial, between two steps; call it again.
    """
    groups = hierarchy or this_host()
    before = await trio.to_thread.run_sync(lambda: examine(state_dir, hierarchy=groups))
    if not any(finding.repair for finding in before.findings):
        return Repaired(before, before)
    async with Store.open(before.state_dir) as store:
        mender = _Mender(store, engine, groups, alone=not before.living)
        await mender.mend(before.findings)
    after = await trio.to_thread.run_sync(lambda: examine(state_dir, hierarchy=groups))
    return Repaired(before, after, tuple(mender.trouble))


@attrs.define
class _Mender:
    store: Store
    engine: Engine
    hierarchy: Hierarchy
    alone: bool
    trouble: list[str] = attrs.field(factory=list)

    async def mend(self, findings: tuple[Finding, ...]) -> None:
        kinds = {finding.kind for finding in findings if finding.repair}
        if Kind.DANGLING_REFERENCE in kinds:
            await self._try("tags", self._remove_dangling_tags)
        for owner_id in await self.store.dead_owners():
            async with self.store.claim_owner(owner_id) as claimed:
                if claimed:
                    await self._settle(owner_id)
        if self.alone:
            for finding in findings:
                if finding.kind is Kind.STRAY_SANDBOX_FOLDER and finding.repair:
                    await self._try(finding.where, self._remove_stray, Path(finding.where))
        if kinds & {Kind.INTERRUPTED_SNAPSHOT, Kind.STRAY_SNAPSHOT_FOLDER}:
            await self._try("snapshots", self._open_library)
        await self._mend_ready_snapshots(kinds, findings)

    async def _try(self, what: str, step: Callable[..., Awaitable[None]], *arguments: object) -> bool:
        try:
            await step(*arguments)
        except (OSError, RuntimeError, SandboxClientError) as error:
            self.trouble.append(f"{what}: {error}")
            return False
        return True

    async def _remove_dangling_tags(self) -> None:
        statement = "DELETE FROM snapshot_tags WHERE snapshot_id NOT IN (SELECT id FROM snapshots)"
        await self.store.transact(lambda db: db.execute(statement))

    # -- dead owners ---------------------------------------------------------------------------------------------------

    async def _settle(self, owner_id: str) -> None:
        """What the next server would do for a dead owner's sandboxes, but that nobody runs them afterwards."""
        whole = True
        for row in await self.store.sandboxes_of(owner_id):
            whole &= await self._try(row.name, self._settle_sandbox, row)
        builds = await self.store.snapshots_where(status="building")
        left = await self.store.sandboxes_of(owner_id)
        if whole and not left and not any(row.owner_id == owner_id for row in builds):
            await self.store.forget_owner(owner_id)

    async def _settle_sandbox(self, row: SandboxRow) -> None:
        folder = sandbox_dir(self.store.state_dir, row.engine_id)
        name = container_id(self.store.identity, row.engine_id)
        if not row.keep or row.status in ("provisioning", "deleting"):
            await self._free_groups(name, folder)
            await self.engine.discard(folder, name)
            await self.store.remove_sandbox(row.id)
            return
        remains = await trio.to_thread.run_sync(find_remains, folder, name, self.hierarchy)
        if remains:
            await self._free_groups(name, folder)
            await self.engine.release(folder, name)
        if row.status in ("ready", "stopped") and not await trio.to_thread.run_sync(has_files, folder):
            if await trio.to_thread.run_sync(has_nothing, folder):
                # Without a folder a failed sandbox can be seen and deleted, and not be started.
                await self.store.set_sandbox_status(row.id, "failed", _FILES_GONE)
                await self.engine.discard(folder, name)
        elif row.status == "ready":
            await self.store.adopt_sandboxes({row.id: "stopped"})

    async def _free_groups(self, name: str, folder: Path) -> None:
        """Free control groups that the engine does not find, because the runtime's record of them is lost."""
        remains = await trio.to_thread.run_sync(find_remains, folder, name, self.hierarchy)
        if remains.groups and not remains.records:
            await free_groups(name, self.hierarchy)

    async def _remove_stray(self, folder: Path) -> None:
        name = container_id(self.store.identity, folder.name)
        await self._free_groups(name, folder)
        await self.engine.discard(folder, name)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    async def _open_library(self) -> None:
        """A library that opens cleans: unfinished builds, folders without a row, those of failed builds."""
        async with SnapshotLibrary(self.store):
            pass

    async def _mend_ready_snapshots(self, kinds: set[Kind], findings: tuple[Finding, ...]) -> None:
        limiter = trio.CapacityLimiter(1)
        folder = self.store.state_dir / "snapshots"
        for finding in findings:
            path = Path(finding.where)
            if finding.kind is Kind.STRAY_SNAPSHOT_FOLDER and finding.repair and path.name.startswith("."):
                # What the library leaves: unfinished beside finished.
                await self._try(finding.where, remove_tree, path, limiter)
        if not kinds & {Kind.UNREFERENCED_LAYER, Kind.SNAPSHOT_FILES_MISSING}:
            return
        for row in await self.store.snapshots_where(status="ready"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                content = SnapshotContent.from_json(row.content or "", folder)
                unused = await run_blocking(limiter, lambda: list(unreferenced_layers(folder, row, content)))  # noqa: B023
                for path in unused:
                    await self._try(str(path), remove_tree, path, limiter)
                lost = await run_blocking(limiter, lambda: not has_any_folder(folder, row.files_id))  # noqa: B023
                if lost and any(layer.path.is_relative_to(folder) for layer in content.layers):
                    await self._try(row.name, self._fail_lost, row.id)

    async def _fail_lost(self, snapshot_id: str) -> None:
        """Make a snapshot without files ``failed``, unless something was made from it."""
        statement = (
            "UPDATE snapshots SET status = 'failed', status_message = ?1, error_type = 'FilesMissing', base_id = NULL,"
            " updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
            " WHERE id = ?2 AND status = 'ready'"
            " AND NOT EXISTS (SELECT 1 FROM sandboxes WHERE snapshot_id = ?2)"
            " AND NOT EXISTS (SELECT 1 FROM snapshots AS s WHERE s.base_id = ?2)"
        )
        await self.store.transact(lambda db: db.execute(statement, (_FILES_GONE, snapshot_id)))
