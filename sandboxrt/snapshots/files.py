"""The files of a state folder's snapshots: what each folder's name says, and how one is made and removed.

``snapshots/<id>/`` is a finished one, ``.build-<id>/`` one in the making, ``.trash-<id>/`` one being removed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from sandboxrt.snapshots.disk import remove_tree
from sandboxrt.store import run_blocking

__all__ = ["FolderName", "SnapshotFiles"]

T = TypeVar("T")

_NAME: Final = re.compile(r"(\.build-|\.trash-|)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@attrs.frozen
class FolderName:
    """What the name of a folder among the snapshots says.

    Attributes:
        prefix: ``""`` (finished), ``".build-"`` or ``".trash-"``.
        snapshot_id: Of which snapshot.
    """

    prefix: str
    snapshot_id: str

    @classmethod
    def parse(cls, name: str) -> FolderName | None:
        """The parts of ``name``, or ``None`` where nothing of a snapshot's has such a name."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(match[1], match[2])

    @staticmethod
    def all_of(snapshot_id: str) -> tuple[str, ...]:
        """Every name under which something of a snapshot may be there."""
        return tuple(f"{prefix}{snapshot_id}" for prefix in ("", ".build-", ".trash-"))


class SnapshotFiles:
    """The folder of all snapshots' files.

    Args:
        folder: Where it is; made with the first snapshot.
        limiter: For what blocks.
    """

    def __init__(self, folder: Path, limiter: trio.CapacityLimiter) -> None:
        self.folder = folder
        self.limiter = limiter

    def draft(self, snapshot_id: str) -> Path:
        """Where a snapshot is made."""
        return self.folder / f".build-{snapshot_id}"

    def final(self, snapshot_id: str) -> Path:
        """Where a finished one is."""
        return self.folder / snapshot_id

    async def blocking(self, function: Callable[[], T]) -> T:
        """Run what reads or writes files on a thread."""
        return await run_blocking(self.limiter, function)

    async def new_draft(self, snapshot_id: str) -> Path:
        """Make the empty private folder that a snapshot is made in."""
        draft = self.draft(snapshot_id)
        await self.blocking(lambda: draft.mkdir(mode=0o700, parents=True))
        return draft

    async def found(self) -> tuple[str, ...]:
        """The ids of which something is there, finished or not."""

        def find() -> tuple[str, ...]:
            if not self.folder.is_dir():
                return ()
            names = (FolderName.parse(path.name) for path in self.folder.iterdir())
            return tuple(dict.fromkeys(name.snapshot_id for name in names if name is not None))

        return await self.blocking(find)

    async def discard(self, snapshot_id: str) -> None:
        """Remove a snapshot's files, finished or not. Harmless where there are none.

        Raises:
            SandboxClientError: Something could not be removed; the message names it.
        """

        def rename() -> list[Path]:
            final, trash = self.final(snapshot_id), self.folder / f".trash-{snapshot_id}"
            # Fails where it is gone, or where an earlier removal of it stopped half-way.
            with contextlib.suppress(OSError):
                final.rename(trash)
            return [path for path in (final, trash, self.draft(snapshot_id)) if path.exists()]

        for path in await self.blocking(rename):
            await remove_tree(path, self.limiter)
