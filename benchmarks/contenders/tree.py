"""A small root tree for rivals that need an image of their own: this machine's own shell and a few tools."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

from benchmarks.programs import run

__all__ = ["pack_tree"]

TOOLS = ("bash", "sh", "echo", "sleep", "head", "yes", "true", "cat")
LIBRARY = re.compile(r"(/\S+) \(0x")


def pack_tree(archive: Path) -> None:
    """Write a tar of :data:`TOOLS` and the libraries that they load."""
    wanted: set[str] = set()
    with tarfile.open(archive, "w") as tar:
        for tool in TOOLS:
            path = shutil.which(tool, path="/usr/bin:/bin")
            if path is None:
                raise FileNotFoundError(f"{tool}: not on this machine")
            wanted.update(LIBRARY.findall(run(["ldd", path]).stdout.decode()))
            tar.add(Path(path).resolve(), arcname=f"usr/bin/{tool}")
        for library in sorted(wanted):
            tar.add(Path(library).resolve(), arcname="usr" + library.removeprefix("/usr"))
        for link in ("bin", "lib", "lib64"):
            member = tarfile.TarInfo(link)
            member.type = tarfile.SYMTYPE
            member.linkname = f"usr/{link}"
            tar.addfile(member)
        for folder in ("tmp", "dev", "proc", "sys", "etc", "root"):
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            member.mode = 0o755
            tar.addfile(member)
