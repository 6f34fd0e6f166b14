"""Runs programs as an unprivileged user who exists for them alone: in a mount namespace with tables of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["USER_ID", "as_user"]

USER_ID = 61234

# Accounts and subordinate ids as the test wants them, and this interpreter's packages where everybody may read them:
# seen by nothing but this test's processes.
ENTER = """
set -e
[ -z "$GROUP" ] || echo $$ > "$GROUP/cgroup.procs"
for name in passwd subuid subgid; do mount --bind "$0/$name" /etc/$name; done
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
user=$2 python=$3 program=$4
shift 4
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$python" -c "$program" "$@"
"""


def _readable_python() -> str:
    """An interpreter of this version that every user can run."""
    real = Path(sys.executable).resolve()
    readable = all(folder.stat().st_mode & 0o005 == 0o005 for folder in real.parents)
    return str(real) if readable else f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"


def _packages(folder: Path) -> dict[str, Path]:
    """This interpreter's packages and the project itself, by where they appear."""
    found = [Path(path) for path in sys.path if path.endswith("site-packages")]
    places = {}
    for number, source in enumerate((*found, Path(__file__).parents[1])):
        place = folder / f"packages{number}"
        place.mkdir()
        places[str(place)] = source
    return places


def as_user(
    folder: Path, subordinate: str, program: str, *arguments: str, timeout_s: float = 100, group: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python program as the user ``stranger``.

    Args:
        folder: Where the tables and the user's home and ``state`` folder are made; all above it can be entered.
        subordinate: The content of ``/etc/subuid`` and ``/etc/subgid``.
        program: Its text.
        arguments: Its arguments.
        timeout_s: How long it may take.
        group: The control group that it is started in.
    """
    tables = folder / "tables"
    tables.mkdir()
    account = f"stranger:x:{USER_ID}:{USER_ID}::{folder}/home:/bin/sh\n"
    (tables / "passwd").write_text(Path("/etc/passwd").read_text() + account)
    for name in ("subuid", "subgid"):
        (tables / name).write_text(subordinate)
    for name in ("state", "home"):
        (folder / name).mkdir()
        os.chown(folder / name, USER_ID, USER_ID)
    for above in (folder, *folder.parents[:2]):
        above.chmod(above.stat().st_mode | 0o011)
    places = _packages(folder)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GROUP": str(group or ""),
    }
    binds = [str(path) for place, source in places.items() for path in (source, place)]
    user = ["--", str(USER_ID), _readable_python(), program, *arguments]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", ENTER, str(tables), *binds, *user],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
        cwd="/",
        check=False,
    )
