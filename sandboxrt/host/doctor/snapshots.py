"""What can be wrong with the snapshots of a state folder: rows against folders, and layers against rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from sandboxrt.host.doctor.findings import Finding, Kind
from sandboxrt.snapshots.content import SnapshotContent
from sandboxrt.snapshots.files import FolderName
from sandboxrt.store import SnapshotRow
from sandboxrt.store.examine import Recorded

__all__ = ["SnapshotEvidence", "has_any_folder", "snapshot_findings", "snapshot_folders", "unreferenced_layers"]

_WHAT: Final = {".build-": "half of a snapshot", ".trash-": "what is left of a removed one", "": "a snapshot"}

_WHY_STRAY: Final = {
    "failed": "its build failed",
    "ready": "its files are in a folder that it shares",
}


@attrs.frozen
class SnapshotEvidence:
    """Rows, and the names in the snapshots' folder as they were before the rows were read."""

    recorded: Recorded
    names: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.recorded.state_dir / "snapshots"


def snapshot_folders(state_dir: Path) -> tuple[str, ...]:
    """The names in the snapshots' folder."""
    folder = state_dir / "snapshots"
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()


def snapshot_findings(evidence: SnapshotEvidence) -> Iterator[Finding]:
    """Everything that is wrong with snapshots. Changes nothing."""
    yield from _folder_findings(evidence)
    used = {row.snapshot_id for row in evidence.recorded.sandboxes}
    used |= {row.base_id for row in evidence.recorded.snapshots if row.base_id is not None}
    for row in evidence.recorded.snapshots:
        if row.status == "building" and row.owner_id not in evidence.recorded.living:
            what, repair = "its builder died", "make it 'failed', and remove what there is of it"
            yield Finding(Kind.INTERRUPTED_SNAPSHOT, what, _named(row), repair=repair)
        if row.status == "ready":
            yield from _layer_findings(evidence.folder, row, is_used=row.id in used)


def _folder_findings(evidence: SnapshotEvidence) -> Iterator[Finding]:
    rows = {row.id: row for row in evidence.recorded.snapshots}
    used = {row.files_id for row in rows.values() if row.status != "failed"}
    unreadable = {row.row for row in evidence.recorded.unreadable if row.table == "snapshots"}
    for name in evidence.names:
        path, parts = evidence.folder / name, FolderName.parse(name)
        if not path.exists() or (parts is not None and parts.snapshot_id in unreadable):
            continue
        if parts is None:
            what = "nothing of a snapshot's has such a name"
            yield Finding(Kind.STRAY_SNAPSHOT_FOLDER, what, str(path), advice="look what it is, and move it away")
            continue
        row = rows.get(parts.snapshot_id)
        kind = _WHAT[parts.prefix]
        if parts.snapshot_id in used and not parts.prefix:
            continue
        if row is None or row.status == "failed" or (row.status == "ready" and not parts.prefix):
            why = "no snapshot is recorded for it" if row is None else _WHY_STRAY[row.status]
            yield Finding(Kind.STRAY_SNAPSHOT_FOLDER, f"{kind}: {why}", str(path), repair="remove it")
        elif row.status == "ready" and parts.prefix:
            what = f"{kind}, although the snapshot is ready"
            if (evidence.folder / row.files_id).is_dir():
                yield Finding(Kind.STRAY_SNAPSHOT_FOLDER, what, str(path), repair="remove it")
            else:
                advice = f"see whether it is whole; then rename it to {row.id}"
                yield Finding(Kind.STRAY_SNAPSHOT_FOLDER, f"{what} and has no other files", str(path), advice=advice)


def _layer_findings(folder: Path, row: SnapshotRow, *, is_used: bool) -> Iterator[Finding]:
    try:
        content = SnapshotContent.from_json(row.content or "", folder)
    except (ValueError, KeyError, TypeError) as error:
        what = f"what is recorded of its layers makes no sense: {error}"
        yield Finding(Kind.UNREADABLE_LAYERS, what, _named(row), advice="delete the snapshot, or put a backup in place")
        return
    missing = [str(layer.path) for layer in content.layers if not layer.path.is_dir()]
    if missing:
        what = f"layers are missing: {', '.join(missing)}"
        if is_used or has_any_folder(folder, row.files_id):
            advice = "put them back from a backup, or delete it and what was made from it"
            yield Finding(Kind.SNAPSHOT_FILES_MISSING, what, _named(row), advice=advice)
        else:
            repair = "make it 'failed': nothing of it is left, and nothing was made from it"
            yield Finding(Kind.SNAPSHOT_FILES_MISSING, what, _named(row), repair=repair)
    for path in unreferenced_layers(folder, row, content):
        what = f"the snapshot '{row.name}' has no such layer"
        yield Finding(Kind.UNREFERENCED_LAYER, what, str(path), repair="remove it")


def has_any_folder(folder: Path, snapshot_id: str) -> bool:
    """Whether anything is there of a snapshot, under whatever name."""
    return any((folder / name).exists() for name in FolderName.all_of(snapshot_id))


def unreferenced_layers(folder: Path, row: SnapshotRow, content: SnapshotContent) -> Iterator[Path]:
    """The folders of a ready snapshot that none of its layers is, or is in. A ready snapshot gets no new layers."""
    layers = {layer.path for layer in content.layers}
    above = {parent for layer in layers for parent in layer.parents}
    waiting = [folder / row.files_id]
    while waiting:
        inside = waiting.pop()
        for path in sorted(inside.iterdir()) if inside.is_dir() and not inside.is_symlink() else ():
            if path in layers or not path.is_dir() or path.is_symlink():
                continue
            if path in above:
                waiting.append(path)
            elif any(path.iterdir()):
                # A capture leaves the places empty where nothing was written.
                yield path


def _named(row: SnapshotRow) -> str:
    tenant = f" of tenant {row.tenant}" if row.tenant else ""
    return f"snapshot '{row.name}'{tenant}, id {row.id}"
