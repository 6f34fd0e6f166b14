"""Looks at a state folder and says what is wrong with it, without changing anything.

What living owners have changes while one looks, so it is not judged by what is on disk: their own supervisors know it.
The order is that of writers turned round: a folder is listed before the rows are read that must have been there first.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from sandboxrt.engine.hierarchy import Hierarchy, this_host
from sandboxrt.engine.loops import backings
from sandboxrt.engine.remains import find_remains, has_files, has_nothing
from sandboxrt.host.doctor.findings import Examination, Finding, Kind
from sandboxrt.host.doctor.snapshots import SnapshotEvidence, snapshot_findings, snapshot_folders
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.store import SCHEMA_VERSION, UID_BLOCK_BASE, UID_BLOCK_COUNT, UID_BLOCK_SIZE, SandboxRow
from sandboxrt.store.examine import Recorded, read_state
from sandboxrt.store.privacy import exposures

__all__ = ["END_IT_FIRST", "examine"]

END_IT_FIRST: Final = "end the processes that use the state folder, then repair"
_ENGINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_STATUSES: Final = {"provisioning", "ready", "failed", "stopped", "deleting"}
_SECOND_LOOK_AFTER_S: Final = 0.5


@attrs.frozen(kw_only=True)
class _Evidence:
    recorded: Recorded
    folders: tuple[str, ...]
    snapshots: SnapshotEvidence
    hierarchy: Hierarchy
    loops: Mapping[str, str]

    def folder(self, row: SandboxRow) -> Path:
        return sandbox_dir(self.recorded.state_dir, row.engine_id)

    def lives(self, row: SandboxRow) -> bool:
        return row.owner_id in self.recorded.living


def examine(
    state_dir: Path,
    *,
    hierarchy: Hierarchy | None = None,
    ignoring: frozenset[str] = frozenset(),
    sleep: Callable[[float], None] = time.sleep,
) -> Examination:
    """Compare the database with the disk and with what runs. Blocking, for seconds where there are thousands.

    Args:
        state_dir: The folder.
        hierarchy: Where control groups are; this machine's where left out.
        ignoring: Owners that are the caller's own.
        sleep: Waits between the two looks that are taken where somebody uses the folder: what is wrong only for a
            moment, between two steps of a living owner, is not wrong.

    Raises:
        SandboxClientError: It is no state folder, or may not be read; the message says which.
    """
    state_dir = state_dir.absolute()
    groups = hierarchy or this_host()
    exposed = tuple(_exposure_findings(state_dir))
    living, findings = _look(state_dir, groups)
    if findings and living - ignoring:
        sleep(_SECOND_LOOK_AFTER_S)
        living, again = _look(state_dir, groups)
        findings = tuple(finding for finding in again if finding in findings)
    return Examination(state_dir, living - ignoring, (*exposed, *findings))


def _look(state_dir: Path, hierarchy: Hierarchy) -> tuple[frozenset[str], tuple[Finding, ...]]:
    folders = _names(state_dir / "sandboxes")
    found_snapshots = snapshot_folders(state_dir)
    recorded = read_state(state_dir)
    unusable = tuple(_schema_findings(recorded))
    if not recorded.is_readable:
        return recorded.living, unusable
    evidence = _Evidence(
        recorded=recorded,
        folders=folders,
        snapshots=SnapshotEvidence(recorded, found_snapshots),
        hierarchy=hierarchy,
        loops=backings(),
    )
    findings = (
        *unusable,
        *_row_findings(recorded),
        *_owner_findings(recorded),
        *_sandbox_findings(evidence),
        *_stray_findings(evidence),
        *_mount_findings(recorded),
        *snapshot_findings(evidence.snapshots),
    )
    return recorded.living, tuple(_allowed(recorded, findings))


def _allowed(recorded: Recorded, findings: tuple[Finding, ...]) -> Iterator[Finding]:
    """The findings, without their repairs where nothing may be written before something else is done."""
    first = None
    if recorded.unreadable:
        first = "see to the unreadable rows first; nothing is repaired before"
    elif recorded.version != SCHEMA_VERSION and recorded.living:
        # To open the database is to bring it up to date, beneath a program that does not know it.
        first = END_IT_FIRST
    for finding in findings:
        yield finding if first is None or not finding.repair else attrs.evolve(finding, repair=None, advice=first)


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()


def _exposure_findings(state_dir: Path) -> Iterator[Finding]:
    for each in exposures(state_dir) if state_dir.is_dir() else ():
        if each.mode is None:
            yield Finding(Kind.EXPOSED_FOLDER, f"it {each.what}", str(each.path), advice=each.command)
        elif each.matters:
            yield Finding(Kind.EXPOSED_FOLDER, f"it {each.what}", str(each.path), repair=each.command)


# -- the database ------------------------------------------------------------------------------------------------------


def _schema_findings(recorded: Recorded) -> Iterator[Finding]:
    where = str(recorded.state_dir / "state.db")
    if recorded.damage:
        shown = "; ".join(recorded.damage[:3]) + (" ..." if len(recorded.damage) > 3 else "")
        advice = (
            "end the processes that use it, keep a copy, then put a backup in its place, or let `sqlite3 state.db "
            "'.recover'` save what it can; nothing else was checked"
        )
        yield Finding(Kind.DAMAGED_DATABASE, f"SQLite finds the database damaged: {shown}", where, advice=advice)
    version = recorded.version
    if version is not None and version > SCHEMA_VERSION:
        what = f"its schema has version {version}, made by a newer sandboxrt; this one knows up to {SCHEMA_VERSION}"
        yield Finding(Kind.NEWER_SCHEMA, what, where, advice="upgrade sandboxrt; nothing else was checked")
    if version is not None and version < SCHEMA_VERSION:
        what = f"its schema has version {version}, and {SCHEMA_VERSION} is the newest"
        yield Finding(Kind.OLDER_SCHEMA, what, where, repair="bring it up to date, as the next start would")


def _row_findings(recorded: Recorded) -> Iterator[Finding]:
    for bad in recorded.unreadable:
        where = f"table {bad.table}, id {bad.row}"
        yield Finding(Kind.UNREADABLE_ROW, f"a row makes no sense: {bad.reason}", where, advice="put a backup in place")
    for each in recorded.dangling:
        what, where = f"it refers to a row of {each.parent} that is gone", f"table {each.table}, {each.row}"
        if each.table == "snapshot_tags":
            yield Finding(Kind.DANGLING_REFERENCE, what, where, repair="remove the tag, which means nothing")
        else:
            advice = "what hangs on it cannot be used: delete it, or put a backup in place"
            yield Finding(Kind.DANGLING_REFERENCE, what, where, advice=advice)
    yield from _value_findings(recorded)
    for lost in recorded.lost_passwords:
        tenant = f" of tenant {lost.tenant}" if lost.tenant else ""
        where = f"registry '{lost.registry}'{tenant}"
        advice = "put the key file of that time back, or give the password again with an update of the registry"
        yield Finding(Kind.LOST_PASSWORD, f"its password cannot be read: {lost.reason}", where, advice=advice)


def _value_findings(recorded: Recorded) -> Iterator[Finding]:
    blocks = Counter(row.uid_base for row in recorded.sandboxes)
    for row in recorded.sandboxes:
        number, rest = divmod(row.uid_base - UID_BLOCK_BASE, UID_BLOCK_SIZE)
        if blocks[row.uid_base] > 1:
            what = f"uid block {number} is also another sandbox's: the two could read each other's files"
            advice = "delete one of the two, after a capture if its files matter"
            yield Finding(Kind.UID_BLOCK, what, _named(row), advice=advice)
        elif rest or not 0 <= number < UID_BLOCK_COUNT:
            yield Finding(Kind.UID_BLOCK, f"there is no uid block {number}", _named(row), advice="delete the sandbox")
        if row.status not in _STATUSES:
            yield Finding(Kind.UNKNOWN_STATUS, f"no sandbox can be '{row.status}'", _named(row), advice="delete it")


def _owner_findings(recorded: Recorded) -> Iterator[Finding]:
    busy = {row.owner_id for row in recorded.sandboxes}
    busy |= {row.owner_id for row in recorded.snapshots if row.status == "building"}
    if recorded.unreadable:
        return  # Whose they are cannot be told.
    for owner in sorted(recorded.locks - recorded.living - busy):
        where = str(recorded.state_dir / "owners" / f"{owner}.lock")
        what = "an owner died that has nothing any more"
        yield Finding(Kind.DEAD_OWNER, what, where, repair="remove its lock file")


# -- sandboxes ---------------------------------------------------------------------------------------------------------


def _sandbox_findings(evidence: _Evidence) -> Iterator[Finding]:
    for row in evidence.recorded.sandboxes:
        folder = evidence.folder(row)
        if evidence.lives(row):
            if row.status in ("ready", "stopped") and not folder.is_dir():
                what = "its folder is gone while its owner lives"
                yield Finding(Kind.SANDBOX_FILES_MISSING, what, _named(row), advice="delete the sandbox")
            continue
        yield from _dead_owners(row, folder, evidence)


def _dead_owners(row: SandboxRow, folder: Path, evidence: _Evidence) -> Iterator[Finding]:
    """What is wrong with a sandbox whose owner is dead: nothing, when it is kept, at rest and whole."""
    where = _named(row)
    if not row.keep:
        what = f"the process that made it ended without removing it (it was {row.status})"
        yield Finding(Kind.ORPHANED_SANDBOX, what, where, repair="remove it, as the next start would")
        return
    if row.status in ("provisioning", "deleting"):
        what = "its owner died while it was " + ("made" if row.status == "provisioning" else "deleted")
        yield Finding(Kind.INTERRUPTED_SANDBOX, what, where, repair="remove what is left of it")
        return
    remains = find_remains(folder, evidence.recorded.container_id(row.engine_id), evidence.hierarchy, evidence.loops)
    if row.status in ("ready", "stopped") and not has_files(folder):
        what = f"its files are gone from {folder}"
        if has_nothing(folder):
            repair = "make it 'failed', so that it is not started with nothing"
            yield Finding(Kind.SANDBOX_FILES_MISSING, what, where, repair=repair)
        else:
            advice = "put them back from what else is in there, or from a backup; or delete the sandbox"
            yield Finding(Kind.SANDBOX_FILES_MISSING, what, where, advice=advice)
    elif row.status == "ready":
        left = f"; it has left {remains}" if remains else ""
        if evidence.recorded.identity is None:
            left += "; nothing here is its own: the folder is a copy or was restored, or the machine was restarted"
        repair = "free what it left and make it 'stopped', with its files as they are"
        yield Finding(
            Kind.ABANDONED_SANDBOX, f"it is recorded as running, and its owner is dead{left}", where, repair=repair
        )
    if remains and row.status != "ready":
        yield Finding(Kind.LEFTOVER_CONTAINER, f"its dead owner left {remains}", where, repair="end and free that")


def _stray_findings(evidence: _Evidence) -> Iterator[Finding]:
    known = {row.engine_id for row in evidence.recorded.sandboxes}
    known |= {row.row.replace("-", "") for row in evidence.recorded.unreadable}
    for name in evidence.folders:
        folder = evidence.recorded.state_dir / "sandboxes" / name
        if name in known or not folder.exists():
            continue
        if not _ENGINE_ID.fullmatch(name) or not folder.is_dir():
            what = "nothing of a sandbox's has such a name"
            yield Finding(Kind.STRAY_SANDBOX_FOLDER, what, str(folder), advice="look what it is, and move it away")
            continue
        remains = find_remains(folder, evidence.recorded.container_id(name), evidence.hierarchy, evidence.loops)
        what = "no sandbox is recorded for this folder" + (f", which has left {remains}" if remains else "")
        if evidence.recorded.living:
            # One of them might hold it, with a database that was exchanged beneath it.
            yield Finding(Kind.STRAY_SANDBOX_FOLDER, what, str(folder), advice=END_IT_FIRST)
        else:
            yield Finding(Kind.STRAY_SANDBOX_FOLDER, what, str(folder), repair="end what runs in it, and remove it")


def _mount_findings(recorded: Recorded) -> Iterator[Finding]:
    """Sandboxes' own mounts are never in the host's table: they are in namespaces that end with their processes."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
        for part in ("sandboxes", "snapshots"):
            if point.startswith(f"{recorded.state_dir / part}/"):
                what = "a file system is mounted here, and not by sandboxrt"
                yield Finding(Kind.FOREIGN_MOUNT, what, point, advice=f"umount {point}")


def _named(row: SandboxRow) -> str:
    tenant = f" of tenant {row.tenant}" if row.tenant else ""
    return f"sandbox '{row.name}'{tenant}, id {row.id}"
