"""Whether nobody but this user can change a state folder: who opens it executes what lies in it, and believes it.

Source: ours; the rule is that of ssh for its keys.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from sandboxrt.errors import SandboxClientError

__all__ = ["Exposure", "exposures", "make_private"]

_log = logging.getLogger("sandboxrt.store")
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
_FOLDERS: Final = ("owners", "sandboxes", "snapshots", "templates", "tools")
_SECRETS: Final = ("identity", "secrets.key", "state.db", "state.db-shm", "state.db-wal")
_PROGRAMS: Final = "tools"


@attrs.frozen
class Exposure:
    """Something of a state folder that others can change or read.

    Attributes:
        path: What.
        what: How, as the end of a sentence that begins with the path.
        command: What mends it, for a shell.
        mode: The mode that mends it; ``None`` where a change of mode is not enough.
        matters: Whether anybody can make use of it; not of what lies in a folder that nobody else may enter.
    """

    path: Path
    what: str
    command: str
    mode: int | None = None
    matters: bool = True


def make_private(state_dir: Path) -> None:
    """Refuse a state folder that others can have changed; close what others could only read. Blocking, and quick.

    Raises:
        SandboxClientError: It, or what is executed from it, is another user's or was writable for others; the message
            has the command that mends it.
        OSError: It cannot be read or changed.
    """
    if os.stat(state_dir).st_uid != os.geteuid() and not os.access(state_dir, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(state_dir))
    found = tuple(exposures(state_dir))
    for each in found:
        if each.mode is None:
            raise SandboxClientError(
                f"Cannot use the state folder {state_dir}: {each.path} {each.what}. Whoever can write there decides "
                f"what this user executes. If you trust its contents: {each.command}"
            )
    for each in found:
        assert each.mode is not None
        os.chmod(each.path, each.mode)
        if each.matters:
            _log.warning("%s %s; it is this user's alone now", each.path, each.what)


def exposures(state_dir: Path) -> Iterator[Exposure]:
    """What others can change or read of a folder that exists. Blocking, and quick; changes nothing."""
    yield from _place_exposures(state_dir)
    top = os.stat(state_dir)
    if top.st_uid != os.geteuid():
        return  # What is in it is judged when it is ours.
    # It could be made ours alone now, and would still have what somebody put there.
    judged = set(state_dir.iterdir()) if top.st_mode & _OTHERS_WRITE else set()
    for path in sorted(judged):
        yield from _foreign(path)
    for name, mode in (*((name, 0o700) for name in _FOLDERS), *((name, 0o600) for name in _SECRETS)):
        yield from _entry(state_dir / name, mode, is_open=bool(top.st_mode & _OTHERS), judged=judged)
    programs = state_dir / _PROGRAMS
    for path in sorted(programs.iterdir()) if programs.is_dir() else ():
        yield from _program(path)


def _place_exposures(state_dir: Path) -> Iterator[Exposure]:
    top = os.stat(state_dir)
    if top.st_uid != os.geteuid():
        yield _owned_by_another(state_dir, top)
    elif top.st_mode & _OTHERS:
        yield Exposure(state_dir, _words(top), f"chmod 700 {shlex.quote(str(state_dir))}", 0o700)
    for place in (state_dir, *state_dir.parents):
        found = place.lstat()
        if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
            what = f"is a link of {_name(found.st_uid)}, who can let it lead elsewhere"
            yield Exposure(place, what, f"use {shlex.quote(str(state_dir.resolve()))}")
    for above in state_dir.resolve().parents:
        found = os.stat(above)
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            command = f"chmod o-w {shlex.quote(str(above))}"
            yield Exposure(above, "is writable for everybody, who could put another folder in its place", command)


def _entry(path: Path, mode: int, *, is_open: bool, judged: set[Path]) -> Iterator[Exposure]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if found.st_uid != os.geteuid():
        if path not in judged:
            yield _owned_by_another(path, found)
    elif found.st_mode & _OTHERS:
        command = f"chmod {mode:o} {shlex.quote(str(path))}"
        yield Exposure(path, _words(found), command, mode, is_open or bool(found.st_mode & _OTHERS_WRITE))


def _foreign(path: Path) -> Iterator[Exposure]:
    found = path.lstat()
    if found.st_uid != os.geteuid():
        yield _owned_by_another(path, found)


def _program(path: Path) -> Iterator[Exposure]:
    found = path.lstat()
    command = f"rm -r {shlex.quote(str(path.parent))} (its programs are made again)"
    if found.st_uid != os.geteuid():
        yield Exposure(path, f"belongs to {_name(found.st_uid)}", command)
    elif found.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(found.st_mode):
        yield Exposure(path, "is writable for others", command)


def _owned_by_another(path: Path, found: os.stat_result) -> Exposure:
    me = _name(os.geteuid())
    command = f"chown -hR --from={found.st_uid} {me} {shlex.quote(str(path))}"
    if stat.S_ISDIR(found.st_mode):
        command += f" && chmod 700 {shlex.quote(str(path))}"
    return Exposure(path, f"belongs to {_name(found.st_uid)}, and this is {me}", command)


def _words(found: os.stat_result) -> str:
    verb = "writable" if found.st_mode & _OTHERS_WRITE else "open"
    return f"was {verb} for others (mode {stat.S_IMODE(found.st_mode):04o})"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
