"""A program of its own: gives a tree of files from one block of ids to another one.

It runs where the tree is mounted, for itself alone, and nothing else uses the tree. What it did it does not do again,
so one that was ended in the middle is finished by the next. It imports nothing of the package.

Source: xattr(7), acl(5) and capabilities(7) for what holds ids beside the owner.
"""

import os
import stat
import struct
import sys

SIZE = 65536
CAPABILITY, ACLS = "security.capability", ("system.posix_acl_access", "system.posix_acl_default")
ACL_USER, ACL_GROUP = 0x02, 0x08


class Shift:
    """From the block at ``old`` to that at ``new``; whoever is in neither stays."""

    def __init__(self, old: int, new: int) -> None:
        self.old: int = old
        self.new: int = new

    def id(self, number: int) -> int:
        """Who that is afterwards."""
        return number - self.old + self.new if self.old <= number < self.old + SIZE else number

    def capability(self, value: bytes) -> bytes:
        """The last word of version 3 is the root of the namespace that the capabilities are for."""
        if len(value) != 24:
            return value
        return value[:20] + struct.pack("<I", self.id(struct.unpack("<I", value[20:])[0]))

    def acl(self, value: bytes) -> bytes:
        """A version, then entries of tag, rights and id."""
        entries = []
        for tag, rights, who in struct.iter_unpack("<HHI", value[4:]):
            entries.append(struct.pack("<HHI", tag, rights, self.id(who) if tag in (ACL_USER, ACL_GROUP) else who))
        return value[:4] + b"".join(entries)

    def entry(self, folder: int, name: str) -> None:
        """One file of an open folder, links themselves and not what they lead to."""
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        path = f"/proc/self/fd/{folder}/{name}"
        names = () if stat.S_ISLNK(found.st_mode) else os.listxattr(path, follow_symlinks=False)
        kept = {key: os.getxattr(path, key, follow_symlinks=False) for key in names if key in (CAPABILITY, *ACLS)}
        owner, group = self.id(found.st_uid), self.id(found.st_gid)
        if (owner, group) != (found.st_uid, found.st_gid):
            os.chown(name, owner, group, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                # The change of owner took set-user-id and capabilities away.
                os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=folder)
        for key, value in kept.items():
            changed = self.capability(value) if key == CAPABILITY else self.acl(value)
            if changed != value or key == CAPABILITY:
                os.setxattr(path, key, changed, follow_symlinks=False)


def main(top: str, old: str, new: str) -> None:
    """Shift what is below ``top``; that itself is the host's."""
    shift = Shift(int(old), int(new))
    for _, folders, files, fd in os.fwalk(top, follow_symlinks=False):
        for name in (*folders, *files):
            shift.entry(fd, name)
    os.sync()


if __name__ == "__main__":
    main(*sys.argv[1:])
