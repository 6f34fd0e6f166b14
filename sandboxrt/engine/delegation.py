"""Gets this process a part of the host's v2 control groups that is its own to manage.

Three cases, see :mod:`sandboxrt.engine.hierarchy`. A unit's group that was delegated, or a container's: the processes
in it move down into a leaf, because the kernel hands controllers to the groups below one without processes only. A
group of systemd's: systemd is asked for a scope in ``sandboxrt.slice``. That scope lasts as long as a process in it
does, and this one may not be it: a server would leave its service's group, a program its session's. So a ``cat``
is, and it ends with us, because its input does; the scope then goes, with every group that was made in it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import subprocess
import threading
from pathlib import Path
from typing import IO

import attrs

from sandboxrt.engine.cgroup_folder import write
from sandboxrt.engine.hierarchy import Hierarchy, has_mark, this_host

__all__ = ["LEAF", "SLICE", "claim"]

LEAF = "host"
"""The group that our own processes move to, out of the group that sandboxes are put below."""
SLICE = "sandboxrt.slice"

_TOOL_TIMEOUT_S = 20.0
_MAX_ANSWER_BYTES = 4000
_MOVE_ROUNDS = 50
_USER_MANAGER = "user@"


@attrs.define
class _Scope:
    """A scope that systemd has made for us, and the process that keeps it."""

    holder: subprocess.Popen[bytes]
    group: str

    @property
    def stands(self) -> bool:
        return self.holder.poll() is None


_lock = threading.Lock()
_scope: _Scope | None = None


def claim() -> Hierarchy:
    """The control groups that this process's sandboxes can have, made ready for them.

    Blocking: a systemd that is asked takes a fraction of a second, and is waited for 20 s at most. What was claimed
    stays for the life of the process.
    """
    with _lock:
        found = this_host()
        if found.asks:
            found = this_host(is_delegated=_is_delegated)
        if found.asks:
            found = _in_scope(found)
        return _with_leaf(found)


def _is_delegated(group: Path) -> bool:
    """What systemd itself says, for users, to whom the groups do not show it."""
    if has_mark(group):
        return True
    whose = ["--user"] if _USER_MANAGER in str(group.parent) else []
    try:
        done = subprocess.run(
            ["systemctl", *whose, "show", "--property=Delegate", "--value", "--", group.name],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TOOL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == b"yes"


def _environment() -> dict[str, str]:
    """Ours, with the folder in which a user's systemd is reached, which ``su`` and timers leave out."""
    return {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}", **os.environ}


def _in_scope(refused: Hierarchy) -> Hierarchy:
    global _scope
    if _scope is None or not _scope.stands:
        try:
            _scope = _start_scope()
        except OSError as error:
            return attrs.evolve(refused, reason=f"{refused.reason}; asked for a scope: {error}")
    return this_host(_scope.group, lambda _: True)


def _start_scope() -> _Scope:
    """Ask systemd for a scope.

    Raises:
        OSError: It gave none; the message has its words.
    """
    program = shutil.which("systemd-run")
    if program is None:
        raise FileNotFoundError("systemd-run is not installed")
    name = f"sandboxrt-{os.getpid()}-{secrets.token_hex(4)}.scope"
    holder = subprocess.Popen(
        [
            *(program, *(["--user"] if os.geteuid() else []), "--scope", "--quiet", "--collect", f"--unit={name}"),
            *(f"--slice={SLICE}", f"--description=Sandboxes of process {os.getpid()}"),
            # Programs in sandboxes need not mind a SIGTERM, and a shutdown is not to wait for that.
            *("--property=Delegate=yes", "--property=TimeoutStopSec=5"),
            *("--", "sh", "-c", "echo && exec cat > /dev/null"),
        ],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdout is not None
    assert holder.stderr is not None
    with holder.stdout, holder.stderr:
        try:
            if _read(holder.stdout) != b"\n":
                holder.kill()
                raise PermissionError(_read(holder.stderr).decode(errors="replace").strip() or "no answer")
            return _Scope(holder, _group_of(holder.pid))
        except BaseException:
            holder.kill()
            holder.wait()
            raise


def _read(stream: IO[bytes]) -> bytes:
    """What comes first, or nothing within the time that systemd may take."""
    return os.read(stream.fileno(), _MAX_ANSWER_BYTES) if select.select([stream], [], [], _TOOL_TIMEOUT_S)[0] else b""


def _group_of(pid: int) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[len("0::") :]
    raise FileNotFoundError("the scope has no group in the v2 tree")


def _with_leaf(found: Hierarchy) -> Hierarchy:
    """Move what runs in the group that sandboxes are put below into a leaf of it. The host's top group needs none."""
    base = found.base
    if base is None or found.v1 or not found.controllers or not (base / "cgroup.type").exists():
        return found
    try:
        _move_down(base)
    except OSError as error:
        why = f"the processes in {base} cannot be moved into a group of their own: {error.strerror or error}"
        return attrs.evolve(found, controllers=frozenset(), reason=why)
    return found


def _move_down(base: Path) -> None:
    for _ in range(_MOVE_ROUNDS):
        pids = (base / "cgroup.procs").read_text().split()
        if not pids:
            return
        with contextlib.suppress(FileExistsError):
            (base / LEAF).mkdir()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                write(base / LEAF / "cgroup.procs", pid)
    raise TimeoutError("new ones come again and again")
