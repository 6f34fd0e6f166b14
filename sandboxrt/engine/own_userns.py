"""Runs the launcher as an ordinary user does: in a user namespace with the user's own and subordinate ids."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from sandboxrt.engine.findings import Trial
from sandboxrt.engine.idmap import SubidRange, read_subids, subid_ranges_of

__all__ = [
    "SANDBOX_IDS",
    "SUBID_FILES",
    "TOOL_TIMEOUT_S",
    "reason",
    "run_in_userns",
    "run_tool",
    "user_name",
    "write_own_maps",
]

SANDBOX_IDS = 65_536
SUBID_FILES = (Path("/etc/subuid"), Path("/etc/subgid"))
# A second where nothing else runs; an emulated, busy machine was seen to need ten.
TOOL_TIMEOUT_S = 30.0
_MAX_OUTPUT_BYTES = 4000


def user_name() -> str | None:
    """Our name; ``None`` where the tables have none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def run_tool(command: list[str], text: str = "", fds: tuple[int, ...] = ()) -> Trial:
    """Run a program to its end; its output, standard error last, is the detail."""
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_TIMEOUT_S,
            pass_fds=fds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Trial(False, str(error))
    return Trial(done.returncode == 0, done.stdout[-_MAX_OUTPUT_BYTES:].decode(errors="replace").strip())


def reason(output: str) -> str:
    """The last lines that a tool printed, as one."""
    return "; ".join(line.strip() for line in output.splitlines()[-3:] if line.strip())[:500]


def _own_range(path: Path) -> SubidRange:
    ranges = subid_ranges_of(read_subids(path), user_name(), os.geteuid())
    for each in ranges:
        if each.count >= SANDBOX_IDS:
            return each
    raise PermissionError(f"{path} has no range of {SANDBOX_IDS} ids for {user_name() or os.geteuid()}")


def write_own_maps(pid: int) -> None:
    """Map an unprivileged user's own ids and its subordinate ones into a new user namespace, by the setuid helpers."""
    own = {
        "newuidmap": (os.geteuid(), _own_range(SUBID_FILES[0])),
        "newgidmap": (os.getegid(), _own_range(SUBID_FILES[1])),
    }
    for helper, (identity, extra) in own.items():
        program = shutil.which(helper)
        if program is None:
            raise FileNotFoundError(f"newuidmap and newgidmap are missing ({helper})")
        done = run_tool([program, str(pid), "0", str(identity), "1", "1", str(extra.first), str(extra.count)])
        if not done.ok:
            raise PermissionError(f"{helper}: {reason(done.detail)}")


def run_in_userns(launcher: Path, text: str, fds: tuple[int, ...]) -> Trial:
    """Start the launcher in a user namespace of its own, write the maps when it asks for them, wait for its end."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as output:
        words = f"userns\0{theirs.fileno()}\0{text}"
        child = subprocess.Popen(
            [str(launcher)], stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(theirs.fileno(), *fds)
        )
        try:
            theirs.close()
            ours.settimeout(TOOL_TIMEOUT_S)
            assert child.stdin is not None
            with child.stdin:
                child.stdin.write(words.encode())
            if ours.recv(1) == b"u":
                write_own_maps(child.pid)
                ours.send(b"m")
            code = child.wait(TOOL_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            return Trial(False, str(error))
        finally:
            child.kill()
            child.wait()
        output.seek(0)
        return Trial(code == 0, output.read(_MAX_OUTPUT_BYTES).decode(errors="replace").strip())
