"""Looks at what surrounds this process, so that refusals can be explained. Reads small files of the kernel's."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sandboxrt.engine.causes import Surroundings
from sandboxrt.engine.hierarchy import unescape

__all__ = ["look_around"]

_CLOSED_BY = {
    "user.max_user_namespaces": "0",
    "kernel.unprivileged_userns_clone": "0",
    "kernel.apparmor_restrict_unprivileged_userns": "1",
}
_FOR_ALL = ("user.max_user_namespaces",)
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"), Path("/run/systemd/container"))
_USER_MANAGER = "/user@"


def look_around(state_dir: Path, launcher: Path | None, *, user: str, is_root: bool) -> Surroundings:
    """What surrounds this process, and a state folder that exists. Blocking, and quick."""
    mounts = _mounts()
    unit, systemctl = _unit()
    return Surroundings(
        user=user,
        is_root=is_root,
        unit=unit,
        systemctl=systemctl,
        is_container="container" in os.environ or any(mark.exists() for mark in _CONTAINER_MARKS),
        no_new_privileges="NoNewPrivs:\t1" in _read(Path("/proc/self/status")),
        closed=tuple(
            name for name, value in _CLOSED_BY.items() if _setting(name) == value and (not is_root or name in _FOR_ALL)
        ),
        covered=any(_covers(point, kind) for point, kind in mounts.items()),
        own_devices=mounts.get(Path("/dev"), "devtmpfs") != "devtmpfs",
        file_system=_file_system(state_dir.resolve(), mounts),
        state_dir=str(state_dir),
        launcher=str(launcher or ""),
        kernel=os.uname().release,
    )


def _covers(point: Path, kind: str) -> bool:
    """Whether a mount hides, or makes read-only, a part of /proc; what automounts put there for use does not count."""
    return Path("/proc") in point.parents and kind not in ("binfmt_misc", "autofs", "nfsd")


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _setting(name: str) -> str:
    return _read(Path("/proc/sys", *name.split("."))).strip()


def _mounts() -> dict[Path, str]:
    """The file systems' types by where they are seen; what is mounted later over the same place counts."""
    found = {}
    for line in _read(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split()) > 4 and after:
            found[Path(unescape(before.split()[4]))] = after.split()[0]
    return found


def _file_system(folder: Path, mounts: dict[Path, str]) -> str:
    return next((mounts[each] for each in (folder, *folder.parents) if each in mounts), "")


def _unit() -> tuple[str, str]:
    """The service that this process is of and what its settings are changed with; empty in a session or a scope."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0" or controllers == "name=systemd":
            parts = [part for part in group.split("/") if part.endswith((".service", ".scope"))]
            if parts and parts[-1].endswith(".service") and not parts[-1].startswith("user@"):
                return parts[-1], "systemctl --user" if _USER_MANAGER in group else "sudo systemctl"
    return "", "sudo systemctl"
