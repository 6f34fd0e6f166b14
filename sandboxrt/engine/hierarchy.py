"""Which control groups this process can use, decided from what the kernel shows about them.

Four shapes are met in practice: one v2 tree (current distributions), one v1 tree per controller (old ones), both at
once ("hybrid", where the v2 tree may offer no controller at all and is still good for killing and freezing), and a v2
subtree that systemd has given to an unprivileged user. :func:`detect` is a function of file contents, so that all of
them are tested on any machine; :func:`this_host` feeds it.

A v2 tree has one writer for each group. Where systemd runs, that is systemd, but below units with ``Delegate=``: the
sandboxes of a process in such a unit are below the unit's own group. Of every other process it is said that systemd
has to be asked (:mod:`sandboxrt.engine.delegation` does).
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

__all__ = ["FREEZER", "LIMITING", "READ_ONLY", "CgroupKind", "Hierarchy", "detect", "has_mark", "this_host", "unescape"]

LIMITING = frozenset({"memory", "cpu", "pids"})
"""The controllers that enforce a sandbox's limits."""

FREEZER = "freezer"

READ_ONLY = "the control groups are read-only here"

_FOLDER = "sandboxrt"
_UNIT_ENDINGS = (".service", ".scope")
_SERVICE_MANAGER = Path("/run/systemd/system")
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
        delegated: Whether the v2 tree is a part of the host's that was given to this process.
        asks: Whether there is nothing because the groups are systemd's, which can be asked for one.
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
    asks: bool = False
    nested: bool = False
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is any tree that sandboxes can have folders in."""
        return self.unified is not None or bool(self.v1)

    @property
    def base(self) -> Path | None:
        """The group of the v2 tree that the folder of all sandboxes is in, or ``None`` without such a tree."""
        return None if self.unified is None else self.folder(self.unified).parent

    @property
    def stands(self) -> bool:
        """Whether the groups are still there; a unit's go with the unit."""
        return self.base is None or self.base.is_dir()

    def to_record(self) -> str:
        """What :meth:`from_record` makes the same trees and folders of, in another process and later."""
        v1 = {controller: str(mount) for controller, mount in self.v1.items()}
        unified = None if self.unified is None else str(self.unified)
        return json.dumps({"unified": unified, "v1": v1, "parent": self.parent, "nested": self.nested})

    @classmethod
    def from_record(cls, text: str) -> Hierarchy:
        """Where a sandbox's groups were made.

        Raises:
            ValueError: That is no record.
        """
        try:
            found = json.loads(text)
            unified, v1 = found["unified"], {name: Path(mount) for name, mount in found["v1"].items()}
            kind = CgroupKind.V1 if unified is None else CgroupKind.HYBRID if v1 else CgroupKind.V2
            return cls(
                kind=kind,
                unified=None if unified is None else Path(unified),
                v1=v1,
                parent=str(found["parent"]),
                controllers=LIMITING & v1.keys() if v1 else LIMITING,
                nested=bool(found["nested"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of control groups: {error}") from error

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
    is_read_only: bool


def unescape(text: str) -> str:
    """A name as it is, from how the kernel's tables of mounts write it."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _mounts(mountinfo: str) -> list[_Mount]:
    """The control-group mounts that can be seen (a later mount over the same folder hides the earlier)."""
    found: dict[Path, _Mount] = {}
    for line in mountinfo.splitlines():
        fields, separator, rest = line.partition(" - ")
        before, after = fields.split(), rest.split()
        if not separator or len(before) < 6 or len(after) < 3:
            continue
        point = Path(unescape(before[4]))
        found.pop(point, None)
        if after[0] in ("cgroup", "cgroup2"):
            options = frozenset(after[2].split(","))
            is_read_only = "ro" in options or "ro" in before[5].split(",")
            found[point] = _Mount(unescape(before[3]), point, after[0], options, is_read_only)
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


def _unit(group: str) -> str:
    """The group of the innermost unit that a group is in or below; ``/`` outside of all units."""
    parts = group.split("/")
    depths = [depth for depth, part in enumerate(parts, 1) if part.endswith(_UNIT_ENDINGS)]
    return "/".join(parts[: depths[-1]]) if depths else "/"


def _managed_root(
    mount: _Mount, own: str, is_writable: Callable[[Path], bool], is_delegated: Callable[[Path], bool]
) -> tuple[str | None, bool]:
    """The same where a service manager rules: its unit's group if that was delegated, else whether it can be asked."""
    highest = _delegated_root(mount, own, is_writable)
    if highest is None:
        return None, False
    unit = _unit(own)
    if highest != "/" and len(highest) > len(unit):
        return highest, False  # given by somebody else, out of what is that unit's or no unit's
    folder = mount.point / unit.lstrip("/")
    if unit != "/" and is_delegated(folder) and is_writable(folder / "cgroup.procs"):
        return unit, False
    return None, True


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
    is_delegated: Callable[[Path], bool] | None = None,
) -> Hierarchy:
    """Decide what control groups can be used.

    Args:
        mountinfo: Contents of ``/proc/self/mountinfo``.
        self_cgroup: Contents of ``/proc/self/cgroup``.
        read: Contents of a file below a mount point; empty when it cannot be read.
        is_writable: Whether the caller may write to a path below a mount point.
        is_delegated: Whether the service manager has given the group of a unit away; ``None`` where there is no such
            manager.

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
    unified, root, asks, controllers = None, "/", False, frozenset(v1) & LIMITING
    for mount in mounts:
        if mount.kind == "cgroup2" and unified is None:
            own = _memberships(self_cgroup).get("", "/")
            if kind is CgroupKind.V2 and is_delegated is not None:
                found, asks = _managed_root(mount, own, is_writable, is_delegated)
            else:
                found = _delegated_root(mount, own, is_writable)
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
        asks=asks,
    )
    return attrs.evolve(result, reason=_reason(result, all(mount.is_read_only for mount in mounts)))


def _is_name(option: str) -> bool:
    return option.startswith("name=") or "=" not in option


def _reason(found: Hierarchy, is_read_only: bool) -> str:
    if found.asks:
        return "the control groups here are systemd's, and it has given none away (Delegate=)"
    if not found.usable and is_read_only:
        return READ_ONLY
    if not found.usable:
        return "this user may write to no cgroup (none was delegated)"
    missing = ", ".join(sorted(LIMITING - found.controllers))
    return f"no cgroup controller for: {missing}" if missing else ""


def has_mark(group: Path) -> bool:
    """Whether systemd has marked a unit's group as given away. Older versions do so for root's eyes only."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def this_host(own: str | None = None, is_delegated: Callable[[Path], bool] = has_mark) -> Hierarchy:
    """What :func:`detect` says about a process on this host. Quick; reads a few small files of the kernel's.

    Args:
        own: The process's group in the v2 tree; this process's where left out.
        is_delegated: Whether systemd has given the group of a unit away.
    """

    def read(path: Path) -> str:
        with contextlib.suppress(OSError):
            return path.read_text()
        return ""

    return detect(
        read(Path("/proc/self/mountinfo")),
        read(Path("/proc/self/cgroup")) if own is None else f"0::{own}\n",
        read=read,
        is_writable=lambda path: os.access(path, os.W_OK, effective_ids=True),
        is_delegated=is_delegated if _SERVICE_MANAGER.is_dir() else None,
    )
