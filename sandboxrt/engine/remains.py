"""What containers have left on this machine besides their files: found without an engine, by their ids alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.capture import DISK_IMAGE
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.hierarchy import Hierarchy
from sandboxrt.engine.launch.plan import DATA_FOLDER
from sandboxrt.engine.loops import loops_below

__all__ = [
    "SESSIONS_FOLDER",
    "Remains",
    "find_remains",
    "free_groups",
    "has_files",
    "has_nothing",
    "record_folder",
    "record_groups",
    "recorded_groups",
    "records_in",
]

SESSIONS_FOLDER = "sessions"
"""In a container's folder: what its owner remembers of commands. Nothing that programs inside wrote as files."""
_END_TIMEOUT_S = 10.0
_RECORD = "run."
_GROUPS = "groups"


@attrs.frozen
class Remains:
    """What is left of a container.

    Attributes:
        pids: Its processes.
        groups: Its control groups.
        loops: Loop devices that hold its disk.
        records: The runtime's records of it.
    """

    pids: frozenset[int]
    groups: tuple[Path, ...]
    loops: tuple[str, ...]
    records: tuple[Path, ...]

    def __bool__(self) -> bool:
        return bool(self.groups or self.loops or self.records)

    def __str__(self) -> str:
        words = [f"{len(self.pids)} processes"] if self.pids else []
        words += ["its control groups"] if self.groups else []
        words += self.loops
        words += ["the runtime's record of it"] if self.records else []
        return ", ".join(words)


def record_folder(folder: Path, container_id: str) -> Path:
    """Where the runtime keeps its record of a container: its name is what everything else is found by."""
    return folder / f"{_RECORD}{container_id}"


def records_in(folder: Path) -> tuple[Path, ...]:
    """All such records in a container's folder, those too that came with a copy of it. Blocking, and quick."""
    return tuple(sorted(folder.glob(f"{_RECORD}*")))


def record_groups(record: Path, hierarchy: Hierarchy) -> None:
    """Write down, beside the runtime's record, where a container's control groups are: another process has others."""
    (record / _GROUPS).write_text(hierarchy.to_record())


def recorded_groups(record: Path) -> Hierarchy | None:
    """Where a container's control groups are, or were; ``None`` where that was not written down."""
    try:
        return Hierarchy.from_record((record / _GROUPS).read_text())
    except (OSError, ValueError):
        return None


def find_remains(
    folder: Path, container_id: str | None, hierarchy: Hierarchy, loops: Mapping[str, str] | None = None
) -> Remains:
    """What is left of a container, whose folder may be gone. Blocking, and quick; changes nothing.

    Args:
        folder: The sandbox's folder.
        container_id: The container's; ``None`` where this folder is a copy, or from before a reboot, so that nothing
            that runs can be its own.
        hierarchy: Where control groups are, if its record does not say it.
        loops: What :func:`~sandboxrt.engine.loops.backings` said, for those who ask for many; looked for where left
            out.
    """
    cgroups = None
    if container_id is not None:
        recorded = recorded_groups(record_folder(folder, container_id))
        cgroups = SandboxCgroups(recorded or hierarchy, container_id)
    return Remains(
        pids=frozenset() if cgroups is None else cgroups.members(),
        groups=() if cgroups is None else tuple(group for group in cgroups.folders if group.is_dir()),
        loops=loops_below(folder, loops),
        records=() if container_id is None else tuple(p for p in (record_folder(folder, container_id),) if p.exists()),
    )


def has_files(folder: Path) -> bool:
    """Whether a container's folder has what its programs wrote. Blocking, and quick."""
    return (folder / DISK_IMAGE).exists() or (folder / DATA_FOLDER).exists()


def has_nothing(folder: Path) -> bool:
    """Whether a container's folder is gone, or has nothing in it that programs inside wrote. Blocking, and quick."""
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    return all(name == SESSIONS_FOLDER or name.startswith(_RECORD) for name in names)


async def free_groups(container_id: str, hierarchy: Hierarchy) -> None:
    """Kill what runs in a dead owner's control groups and remove them, where the record that they go by is lost.

    Raises:
        OSError: The kernel refused, or something did not end in time.
    """
    cgroups = SandboxCgroups(hierarchy, container_id)
    await cgroups.kill_all()
    with trio.move_on_after(_END_TIMEOUT_S):
        await cgroups.wait_empty()
    await cgroups.remove()
