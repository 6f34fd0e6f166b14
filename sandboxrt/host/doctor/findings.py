"""What can be wrong with a state folder, in words that its owner can act upon."""

from __future__ import annotations

import enum
from pathlib import Path

import attrs

__all__ = ["Examination", "Finding", "Kind"]


class Kind(enum.Enum):
    """The kinds of findings; the values are what users see."""

    EXPOSED_FOLDER = "exposed-folder"
    DAMAGED_DATABASE = "damaged-database"
    NEWER_SCHEMA = "newer-schema"
    OLDER_SCHEMA = "older-schema"
    UNREADABLE_ROW = "unreadable-row"
    DANGLING_REFERENCE = "dangling-reference"
    UID_BLOCK = "uid-block"
    UNKNOWN_STATUS = "unknown-status"
    LOST_PASSWORD = "lost-password"  # noqa: S105  a kind of finding
    DEAD_OWNER = "dead-owner"
    ORPHANED_SANDBOX = "orphaned-sandbox"
    INTERRUPTED_SANDBOX = "interrupted-sandbox"
    ABANDONED_SANDBOX = "abandoned-sandbox"
    SANDBOX_FILES_MISSING = "sandbox-files-missing"
    LEFTOVER_CONTAINER = "leftover-container"
    STRAY_SANDBOX_FOLDER = "stray-sandbox-folder"
    FOREIGN_MOUNT = "foreign-mount"
    INTERRUPTED_SNAPSHOT = "interrupted-snapshot"
    STRAY_SNAPSHOT_FOLDER = "stray-snapshot-folder"
    SNAPSHOT_FILES_MISSING = "snapshot-files-missing"
    UNREADABLE_LAYERS = "unreadable-layers"
    UNREFERENCED_LAYER = "unreferenced-layer"


@attrs.frozen
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: What sort of thing.
        what: What is wrong, in a sentence without its full stop.
        where: The file, folder or row.
        repair: What ``--repair`` does about it; ``None`` where that is not safe.
        advice: What its owner can do where a repair does nothing.
    """

    kind: Kind
    what: str
    where: str
    repair: str | None = None
    advice: str | None = None


@attrs.frozen
class Examination:
    """What was found in a state folder.

    Attributes:
        state_dir: The folder.
        living: Owners that use it now; what is theirs is for them to know.
        findings: What is wrong; empty when it is sound.
    """

    state_dir: Path
    living: frozenset[str]
    findings: tuple[Finding, ...]
