"""Who a state folder is among all of this machine, so that a copy of it is never taken for the original.

What sandboxes have on the machine beside their files (control groups, the runtime's records) is named after the
identity of their folder. It is good for one place only: one boot of one machine, one folder, one file that says so,
each by its inode. A copy, a backup that was put back, a clone of the whole file system and a folder after a reboot are
other places; there the folder gets a new identity when it is opened, and nothing that runs under the old one is its
own. A folder that was renamed, or is mounted elsewhere too, is the same place.

Source: ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = ["IDENTITY_FILE", "container_id", "find_identity", "settle_identity"]

IDENTITY_FILE: Final = "identity"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_ID_BYTES: Final = 8
_MAX_BYTES: Final = 4096


def container_id(identity: str, engine_id: str) -> str:
    """What the container of a sandbox is called on this machine: no other folder's has that name."""
    return f"{identity}-{engine_id}"


@attrs.frozen
class _Place:
    """Where a folder is: what is the same for nothing else that exists at the same time."""

    boot: str
    device: int
    folder: int
    file: int

    @classmethod
    def of(cls, folder: os.stat_result, file: os.stat_result) -> _Place:
        return cls(_boot_id(), folder.st_dev, folder.st_ino, file.st_ino)


def find_identity(state_dir: Path) -> str | None:
    """The identity of a folder as it stands, or ``None`` where it gets a new one when it is next opened.

    Blocking, and quick; changes nothing.
    """
    try:
        descriptor = os.open(state_dir / IDENTITY_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        place = _Place.of(os.stat(state_dir), os.fstat(descriptor))
        try:
            recorded: Any = json.loads(file.read(_MAX_BYTES))
            known = recorded.pop("id"), _Place(**recorded)
        except (ValueError, TypeError, AttributeError, KeyError):
            return None
    return known[0] if known[1] == place and isinstance(known[0], str) and _is_id(known[0]) else None


def settle_identity(state_dir: Path) -> tuple[str, bool]:
    """The identity of a folder that is being opened, and whether it is new; of those who ask at once all get the same.

    Blocking. Call it before the folder's first container is made or looked for.
    """
    with _alone(state_dir):
        known = find_identity(state_dir)
        if known is not None:
            return known, False
        identity = secrets.token_hex(_ID_BYTES)
        draft = state_dir / f".{IDENTITY_FILE}.{secrets.token_hex(_ID_BYTES)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                # Renamed, it is still the file with this inode; copied, it is not.
                place = _Place.of(os.stat(state_dir), os.fstat(descriptor))
                json.dump({"id": identity, **attrs.asdict(place)}, file)
            os.rename(draft, state_dir / IDENTITY_FILE)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return identity, True


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Held for some milliseconds, by one opener at a time."""
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _is_id(text: str) -> bool:
    return len(text) == 2 * _ID_BYTES and all(digit in "0123456789abcdef" for digit in text)


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
