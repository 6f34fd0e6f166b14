"""Runs programs as an unprivileged user who exists for them alone: in a mount namespace with tables of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["USER_ID", "as_user"]

USER_ID = 61234

# Accounts and subordinate ids as the test wants them, seen by nothing but this test's processes.
ENTER = """
set -e
for name in passwd subuid subgid; do mount --bind "$0/$name" /etc/$name; done
user=$1 python=$2 program=$3
shift 3
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$python" -c "$program" "$@"
"""


def _readable_python() -> tuple[str, dict[str, str]]:
    """An interpreter that every user can run, and the environment with which it finds what this one finds."""
    real = Path(sys.executable).resolve()
    if all(folder.stat().st_mode & 0o005 == 0o005 for folder in real.parents):
        return sys.executable, {}
    return "/usr/bin/python3", {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path)
        + f"{os.pathsep}{Path(__file__).parents[1]}"
    }


def as_user(
    folder: Path, subordinate: str, program: str, *arguments: str, timeout_s: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run a Python program as the user ``stranger``.

    Args:
        folder: Where the tables and the user's home and ``state`` folder are made; all above it can be entered.
        subordinate: The content of ``/etc/subuid`` and ``/etc/subgid``.
        program: Its text.
        arguments: Its arguments.
        timeout_s: How long it may take.
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
    python, paths = _readable_python()
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "LANG": "C.UTF-8", **paths}
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", ENTER, str(tables), str(USER_ID), python, program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
        cwd="/",
        check=False,
    )
