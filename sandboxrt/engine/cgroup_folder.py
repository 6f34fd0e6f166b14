"""What can be done with the folder of one control group, v1 or v2: blocking calls into the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from sandboxrt.engine.cgroup_events import read_flags

__all__ = [
    "is_empty",
    "is_frozen",
    "is_v2",
    "kill",
    "make",
    "members",
    "read_number",
    "remove_one",
    "remove_with_children",
    "set_frozen",
    "signal_members",
    "write",
    "write_all",
]

_KILL_ROUNDS = 200
_MKDIR_TRIES = 50
_GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH)


def write(path: Path, text: str) -> None:
    """Write a control file, in one call to the kernel."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_all(files: list[tuple[Path, str]]) -> None:
    """Write several control files, in order."""
    for path, text in files:
        write(path, text)


def read_number(path: Path) -> int | None:
    """The number in a file, ``None`` when it has none (``max``) or is gone."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def members(folder: Path) -> set[int]:
    """The processes of a group and of those below it, as far as they have an id in our pid namespace."""
    found: set[int] = set()
    for group in (folder, *_children(folder)):
        with contextlib.suppress(OSError):
            found.update(int(line) for line in (group / "cgroup.procs").read_text().split())
    return found - {0}


def _children(folder: Path) -> list[Path]:
    """The groups below a group, deepest first."""
    return [Path(path) for path, _, _ in os.walk(folder, topdown=False)][:-1]


def signal_members(folder: Path, signum: int) -> int:
    """Send a signal to every member, never to another process that got a member's id meanwhile; how many there were."""
    descriptors: dict[int, int] = {}
    try:
        for pid in members(folder):
            with contextlib.suppress(ProcessLookupError):
                descriptors[pid] = os.pidfd_open(pid)
        # A descriptor holds the process it was opened for; whoever is a member now, after the opening, is that one.
        still = members(folder) if descriptors else set()
        for pid, fd in descriptors.items():
            if pid in still:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signum)
        return len(descriptors)
    finally:
        for fd in descriptors.values():
            os.close(fd)


def is_v2(folder: Path) -> bool:
    """Whether a group is of the v2 tree."""
    return (folder / "cgroup.events").exists()


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """Pass over the errors that say that a group was removed meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise


def set_frozen(folder: Path, frozen: bool) -> None:
    """Stop all processes of a group and of those below it, or let them run again. Freezing takes a moment."""
    with _unless_gone():
        if is_v2(folder):
            write(folder / "cgroup.freeze", "1" if frozen else "0")
        else:
            write(folder / "freezer.state", "FROZEN" if frozen else "THAWED")


def is_frozen(folder: Path) -> bool:
    """Whether every process stands still. A group that is gone has none that moves."""
    if is_v2(folder):
        return read_flags(folder / "cgroup.events").get("frozen", 1) == 1
    try:
        return (folder / "freezer.state").read_text().strip() == "FROZEN"
    except OSError as error:
        if error.errno in _GONE:
            return True
        raise


def is_empty(folder: Path) -> bool:
    """Whether no process is in a group, nor in one below it."""
    flags = read_flags(folder / "cgroup.events")
    if flags:
        return flags.get("populated", 0) == 0
    return not members(folder)


def kill(folder: Path) -> None:
    """SIGKILL for everything in a group and below it, what is being forked included."""
    if (folder / "cgroup.kill").exists():
        with _unless_gone():
            write(folder / "cgroup.kill", "1")
    else:
        _kill_one_by_one(folder)


def _kill_one_by_one(folder: Path) -> None:
    """The same without the kernel's help: nothing forks while it is frozen, and v1 dies only when it is thawed."""
    for _ in range(_KILL_ROUNDS):
        if not members(folder):
            return
        set_frozen(folder, frozen=True)
        try:
            signal_members(folder, signal.SIGKILL)
        finally:
            set_frozen(folder, frozen=False)
        # Freezing is not instant: a fork may have slipped through, which the next round sees.
        os.sched_yield()


def make(folder: Path) -> None:
    """Make a group and the one above it, which another sandbox's end may remove as we look."""
    for _ in range(_MKDIR_TRIES):
        try:
            os.mkdir(folder)
        except FileExistsError:
            return
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder.parent)
        else:
            return
    raise OSError(errno.EBUSY, "the control group above goes away again and again", str(folder))


def remove_one(folder: Path) -> bool:
    """Whether a group is gone now."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        if error.errno not in _GONE:
            raise
    return True


def remove_with_children(folder: Path) -> bool:
    """Remove a group and those below it, as far as they are empty; whether it is gone now."""
    if remove_one(folder):
        return True
    for child in _children(folder):
        remove_one(child)
    return remove_one(folder)
