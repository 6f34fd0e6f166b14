"""Who a command runs as: the words of ``user=`` and of an image's ``User``, looked up in the sandbox's own files.

Source: passwd(5), group(5), the OCI image specification's ``User``.
"""

from __future__ import annotations

import attrs

from sandboxrt.engine.base import Identity

__all__ = ["User", "UserNotFoundError", "find_user"]

_MAX_ID = 65_535
_MAX_GROUPS = 32


@attrs.frozen
class User:
    """A user of a sandbox: its ids, its name where it has one, its home folder."""

    identity: Identity
    name: str
    home: str


class UserNotFoundError(Exception):
    """The sandbox has no such user or group, or the id is out of range; the message is for the user."""


def find_user(text: str | None, passwd: str, group: str) -> User:
    """Find ``name``, ``uid``, ``name:group`` or ``uid:gid``; nothing means root.

    Args:
        text: What was asked for.
        passwd: The content of ``/etc/passwd``; lines that make no sense are passed over.
        group: The content of ``/etc/group``, likewise.

    Raises:
        UserNotFoundError: There is no such user or group.
    """
    who, _, which = (text or "0").partition(":")
    entry = _passwd_entry(who or "0", passwd)
    if entry is None and not who.isdecimal():
        raise UserNotFoundError(f"User '{who}' does not exist in the sandbox: there is no such name in /etc/passwd")
    if entry is None:
        uid, gid, name, home = _checked_id(who), 0, who, "/"
    else:
        name, uid, gid, home = entry
    groups: tuple[int, ...] = ()
    if which:
        gid = _group_id(which, group)
    elif entry is not None:
        groups = _memberships(name, group, gid)
    return User(Identity(uid, gid, groups), name, home or "/")


def _passwd_entry(who: str, passwd: str) -> tuple[str, int, int, str] | None:
    by_id: tuple[str, int, int, str] | None = None
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) < 6 or not _is_id(fields[2]) or not _is_id(fields[3]):
            continue
        entry = (fields[0], int(fields[2]), int(fields[3]), fields[5])
        if fields[0] == who:
            return entry
        if by_id is None and who.isdecimal() and entry[1] == int(who):
            by_id = entry
    return by_id


def _group_id(which: str, group: str) -> int:
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] == which and _is_id(fields[2]):
            return int(fields[2])
    if not which.isdecimal():
        raise UserNotFoundError(f"Group '{which}' does not exist in the sandbox: there is no such name in /etc/group")
    return _checked_id(which)


def _memberships(name: str, group: str, own: int) -> tuple[int, ...]:
    found = []
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and _is_id(fields[2]) and name in fields[3].split(",") and int(fields[2]) != own:
            found.append(int(fields[2]))
    return tuple(sorted(set(found))[:_MAX_GROUPS])


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= _MAX_ID


def _checked_id(text: str) -> int:
    if not _is_id(text):
        raise UserNotFoundError(f"Id {text} is out of range: a sandbox has the ids 0 to {_MAX_ID}")
    return int(text)
