"""Which control groups this process can use, decided from what the kernel shows about them.

Four shapes are met in practice: one v2 tree (current distributions), one v1 tree per controller (old ones), both at
once ("hybrid", where the v2 tree may offer no controller at all and is still good for killing and freezing), and a v2
subtree that systemd has given to an unprivileged user. :func:`detect` is a function of file contents, so that all of
them are tested on any machine; :func:`this_host` feeds it.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

__all__ = ["FREEZER", "LIMITING", "CgroupKind", "Hierarchy", "detect", "this_host"]

LIMITING = frozenset({"memory", "cpu", "pids"})
"""The controllers that enforce a sandbox's limits."""

FREEZER = "freezer"

_FOLDER = "sandboxrt"
_OCTAL = re.compile(r"\\([0-7]{3})")
# A v1 hierarchy's super-block options also name what is no controller.
_NO_CONTROLLERS = frozenset({"rw", "ro", "clone_children", "cpuset_v2_mode", "xattr", "noprefix"})


class CgroupKind(enum.Enum):
    """How the host's control groups are mounted."""

    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"
    NONE = "none"


@attrs.frozen(kw_only=True)
class Hierarchy:
    """Where sandboxes' control groups go, and what they can do.

    Attributes:
        kind: How the host's control groups are mounted.
        unified: Mount point of the v2 tree, or ``None`` where it is missing or cannot be written.
        v1: Mount point by controller (or ``name=...``) of the v1 trees that can be written.
        parent: The folder of all sandboxes inside every tree, as a runtime's ``cgroupsPath`` names it.
        controllers: Those of :data:`LIMITING` that sandboxes can be limited with.
        delegated: Whether the v2 tree is a part of the host's that was given to this user.
        nested: Whether a sandbox's first process has a group of its own inside the sandbox's, see
            :mod:`sandboxrt.engine.cgroups`.
        reason: Why nothing, or not everything, can be used; empty when all is well.
    """

    kind: CgroupKind
    unified: Path | None = None
    v1: Mapping[str, Path] = attrs.field(factory=dict)
    parent: str = f"/{_FOLDER}"
    controllers: frozenset[str] = frozenset()
    delegated: bool = False
    nested: bool = False
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is any tree that sandboxes can have folders in."""
        return self.unified is not None or bool(self.v1)

    @property
    def mounts(self) -> tuple[Path, ...]:
        """Every tree once (controllers may share one), the v2 tree last."""
        unique = dict.fromkeys(self.v1.values())
        return (*unique, self.unified) if self.unified is not None else tuple(unique)

    def cgroups_path(self, sandbox_id: str) -> str:
        """The value of ``cgroupsPath`` in the runtime's configuration."""
        return f"{self.parent}/{sandbox_id}"

    def folder(self, mount: Path, sandbox_id: str | None = None) -> Path:
        """The folder of a sandbox, or of all of them, in the tree at ``mount``."""
        inside = self.parent if sandbox_id is None else self.cgroups_path(sandbox_id)
        return mount / inside.lstrip("/")

    def limiting_folder(self, controller: str, sandbox_id: str) -> Path | None:
        """The folder in the tree that has ``controller``, or ``None`` where no tree has."""
        mount = self.v1.get(controller)
        if mount is None and controller in self.controllers:
            mount = self.unified
        return None if mount is None else self.folder(mount, sandbox_id)


@attrs.frozen
class _Mount:
    root: str
    point: Path
    kind: str
    options: frozenset[str]


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _mounts(mountinfo: str) -> list[_Mount]:
    """The control-group mounts that can be seen (a later mount over the same folder hides the earlier)."""
    found: dict[Path, _Mount] = {}
    for line in mountinfo.splitlines():
        fields, separator, rest = line.partition(" - ")
        before, after = fields.split(), rest.split()
        if not separator or len(before) < 6 or len(after) < 3:
            continue
        point = Path(_unescape(before[4]))
        found.pop(point, None)
        if after[0] in ("cgroup", "cgroup2"):
            found[point] = _Mount(_unescape(before[3]), point, after[0], frozenset(after[2].split(",")))
    return list(found.values())


def _memberships(self_cgroup: str) -> dict[str, str]:
    """The caller's own group by controller; the v2 tree's is under the empty string."""
    found = {}
    for line in self_cgroup.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                found[controller] = fields[2]
    return found


def _below(path: str, root: str) -> str | None:
    """``path`` as seen from a mount whose own root is ``root``, or ``None`` when it is not below it."""
    if root == "/":
        return path
    if path == root or path.startswith(root + "/"):
        return path[len(root) :] or "/"
    return None


def _delegated_root(mount: _Mount, own: str, is_writable: Callable[[Path], bool]) -> str | None:
    """The highest group above the caller's own that it may manage: processes can be moved only inside of it."""
    inside = _below(own, mount.root)
    if inside is None or "/.." in inside:
        return None
    parts = [part for part in inside.split("/") if part]
    for depth in range(len(parts) + 1):
        candidate = mount.point.joinpath(*parts[:depth])
        wanted = (candidate, candidate / "cgroup.procs", candidate / "cgroup.subtree_control")
        if all(is_writable(path) for path in wanted):
            return "/" + "/".join(parts[:depth])
    return None


def _kind(mounts: list[_Mount]) -> CgroupKind:
    has_v2 = any(mount.kind == "cgroup2" for mount in mounts)
    has_v1 = any(mount.kind == "cgroup" for mount in mounts)
    if has_v1 and has_v2:
        return CgroupKind.HYBRID
    if has_v2:
        return CgroupKind.V2
    return CgroupKind.V1 if has_v1 else CgroupKind.NONE


def detect(
    mountinfo: str,
    self_cgroup: str,
    *,
    read: Callable[[Path], str],
    is_writable: Callable[[Path], bool],
) -> Hierarchy:
    """Decide what control groups can be used.

    Args:
        mountinfo: Contents of ``/proc/self/mountinfo``.
        self_cgroup: Contents of ``/proc/self/cgroup``.
        read: Contents of a file below a mount point; empty when it cannot be read.
        is_writable: Whether the caller may write to a path below a mount point.

    Source: ours; the kernel's cgroup-v2 document for delegation.
    """
    mounts = _mounts(mountinfo)
    kind = _kind(mounts)
    if kind is CgroupKind.NONE:
        return Hierarchy(kind=kind, reason="no cgroup file system is mounted")
    v1: dict[str, Path] = {}
    for mount in mounts:
        if mount.kind == "cgroup" and is_writable(mount.point):
            v1.update((option, mount.point) for option in sorted(mount.options - _NO_CONTROLLERS) if _is_name(option))
    unified, root, controllers = None, "/", frozenset(v1) & LIMITING
    for mount in mounts:
        if mount.kind == "cgroup2" and unified is None:
            found = _delegated_root(mount, _memberships(self_cgroup).get("", "/"), is_writable)
            if found is not None:
                unified, root = mount.point, found
                offered = read(mount.point.joinpath(root.lstrip("/"), "cgroup.controllers")).split()
                controllers |= LIMITING.intersection(offered)
    delegated = root != "/"
    if delegated and v1:
        # One configured path serves all trees; where both can be written, the v1 trees have the controllers.
        unified, delegated, root = None, False, "/"
    result = Hierarchy(
        kind=kind,
        unified=unified,
        v1=v1,
        parent=f"{root.rstrip('/')}/{_FOLDER}",
        controllers=controllers,
        delegated=delegated,
    )
    return attrs.evolve(result, reason=_reason(result))


def _is_name(option: str) -> bool:
    return option.startswith("name=") or "=" not in option


def _reason(found: Hierarchy) -> str:
    if not found.usable:
        return "this user may write to no cgroup (none was delegated)"
    missing = ", ".join(sorted(LIMITING - found.controllers))
    return f"no cgroup controller for: {missing}" if missing else ""


def this_host() -> Hierarchy:
    """What :func:`detect` says about this process on this host. Quick; reads a few small files of the kernel's."""

    def read(path: Path) -> str:
        with contextlib.suppress(OSError):
            return path.read_text()
        return ""

    return detect(
        read(Path("/proc/self/mountinfo")),
        read(Path("/proc/self/cgroup")),
        read=read,
        is_writable=lambda path: os.access(path, os.W_OK, effective_ids=True),
    )
