"""From what was found out about a host to what isolation its sandboxes have: a pure function, with the fixes.

Why something is missing, and what helps, is told from words and surroundings (:mod:`sandboxrt.engine.causes`); what is
here is for what needs no words: where none can help (an unprivileged user who wants disk limits), the fix says what to
do instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from sandboxrt.engine.causes import Surroundings, explain
from sandboxrt.engine.hierarchy import CgroupKind, Hierarchy
from sandboxrt.engine.idmap import SubidRange
from sandboxrt.models import Isolation, IsolationFinding, IsolationReport

__all__ = ["BY_RUNTIME", "GUEST_KERNEL_RUNTIMES", "HostFacts", "RuntimeFacts", "Trial", "isolation_report"]

GUEST_KERNEL_RUNTIMES = frozenset({"runsc", "kata-runtime", "kata"})
"""Runtimes whose containers have a kernel of their own."""

_PACKAGED = frozenset({"crun", "runc", "runsc"})
_FIX_ROOT = "run as root, e.g. with sudo"
_FIX_DELEGATE = (
    "start with: systemd-run --user --scope -p Delegate=yes ...; where that gives too little, first: "
    "printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | "
    "sudo install -D -m 644 /dev/stdin /etc/systemd/system/user@.service.d/delegate.conf "
    "&& sudo systemctl daemon-reload, and log in again"
)
_FIX_V2 = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
_FIX_WORDS = "its own words say why"


@attrs.frozen
class Trial:
    """What came of trying something for real: whether it worked, and the kernel's or the tool's words if not."""

    ok: bool
    detail: str = ""


@attrs.frozen(kw_only=True)
class RuntimeFacts:
    """The OCI runtime.

    Attributes:
        name: As it was asked for.
        path: Where it is, or ``None`` when it is not installed.
        version: As it says itself, e.g. ``1.8.1``; empty when it could not be started.
    """

    name: str
    path: str | None
    version: str = ""

    @property
    def kind(self) -> str:
        """The program's own name, without its folder."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.kind} {self.version}".strip()

    @property
    def how_to_get(self) -> str:
        """The command that installs it, or what to use instead of a name that is no package."""
        if self.kind in _PACKAGED:
            return f"sudo apt-get install {self.kind}"
        others = ", ".join(sorted(_PACKAGED))
        return f"check the name; these are packages of Debian and Ubuntu: {others} (--runtime or SANDBOXRT_RUNTIME)"

    def flags(self, *, with_cgroups: bool) -> list[str]:
        """Options that come before every subcommand.

        crun must be told not to look at control groups that it may not use. runsc must be told not to copy the
        interfaces of a network namespace that has none; without an option it fails.
        """
        if self.kind == "crun":
            return [] if with_cgroups else ["--cgroup-manager=disabled"]
        if self.kind == "runsc":
            return ["--network=none", *([] if with_cgroups else ["--ignore-cgroups"])]
        return []


@attrs.frozen(kw_only=True)
class HostFacts:
    """What was tried on this host, as this user, and what came of it.

    Attributes:
        runtime: The OCI runtime.
        is_root: Whether we are root outside of any user namespace.
        user: Our name, or number.
        hierarchy: The control groups that can be used.
        container: A container with the configuration of sandboxes was run.
        cgroups: The runtime put it under limits.
        hide_unified: The runtime works only where the second control-group hierarchy is out of its sight.
        unified_mount: Where that is mounted, whether or not it can be written.
        swap_limit: Swap can be limited along with memory.
        userns: A user namespace with a block of 65,536 ids was made.
        overlay: An overlay was mounted in the state folder.
        idmap: A mount of the state folder was mapped into another block of ids.
        loop: An ext4 image was mounted through a loop device.
        inotify: The inotify limit of a user namespace was set.
        overlaps: Ranges of ``/etc/subuid`` and ``/etc/subgid`` that share ids with the sandboxes' blocks.
        pid_max: How many processes the host can have.
        around: What surrounds this process, which tells where refusals come from.
    """

    runtime: RuntimeFacts
    is_root: bool
    user: str
    hierarchy: Hierarchy
    container: Trial
    cgroups: Trial
    hide_unified: bool = False
    unified_mount: str = "/sys/fs/cgroup/unified"
    swap_limit: bool = False
    userns: Trial
    overlay: Trial
    idmap: Trial
    loop: Trial
    inotify: Trial
    overlaps: tuple[SubidRange, ...] = ()
    pid_max: int = 32768
    around: Surroundings = attrs.field(factory=Surroundings)


def isolation_report(facts: HostFacts) -> IsolationReport:
    """What sandboxes on this host have, property by property."""
    findings: dict[Isolation, IsolationFinding] = {}
    findings.update(_kernel_findings(facts))
    findings.update(_limit_findings(facts))
    findings[Isolation.UID_BLOCK] = _uid_block(facts)
    findings[Isolation.DISK_LIMIT] = _disk(facts)
    findings[Isolation.INOTIFY_LIMIT] = _inotify(facts)
    findings[Isolation.TREE_KILL] = _tree_kill(facts)
    findings[Isolation.GUEST_KERNEL] = _guest_kernel(facts)
    return IsolationReport(facts.runtime.label, {prop: findings[prop] for prop in Isolation})


def _found(achieved: bool, detail: str, fix: str | None) -> IsolationFinding:
    return IsolationFinding(achieved, detail, None if achieved else fix)


BY_RUNTIME = {
    Isolation.PID_NAMESPACE: "processes see only their own sandbox",
    Isolation.MOUNT_NAMESPACE: "a root folder of its own",
    Isolation.IPC_NAMESPACE: "System V IPC and message queues of its own",
    Isolation.UTS_NAMESPACE: "a host name of its own",
    Isolation.NETWORK_NAMESPACE: "nothing but its own loopback",
    Isolation.CGROUP_NAMESPACE: "the host's control groups are out of sight",
    Isolation.SECCOMP: "an allow-list of system calls",
    Isolation.CAPABILITIES: "few, and valid only inside",
    Isolation.NO_NEW_PRIVILEGES: "setuid programs gain nothing",
    Isolation.MASKED_PATHS: "/proc and /sys without what tells about or changes the host",
    Isolation.USER_NAMESPACE: "root inside is nobody on the host",
}
"""What the runtime does from our configuration. It was run with it: it works as a whole, or not at all."""


def _kernel_findings(facts: HostFacts) -> Mapping[Isolation, IsolationFinding]:
    if facts.container.ok:
        own = " (gVisor's own filter on the host)" if facts.runtime.kind in GUEST_KERNEL_RUNTIMES else ""
        return {
            prop: IsolationFinding(True, f"{facts.runtime.kind}: {what}{own if prop is Isolation.SECCOMP else ''}")
            for prop, what in BY_RUNTIME.items()
        }
    refused = _container_refused(facts)
    return dict.fromkeys(BY_RUNTIME, refused)


def _refused(facts: HostFacts, words: str, fix: str) -> IsolationFinding:
    """What was refused with these words, by its cause where that can be told, else with what may help."""
    cause = explain(words, facts.around)
    if cause is None:
        return IsolationFinding(False, words, fix)
    return IsolationFinding(False, cause.what if cause.what in words else f"{cause.what} ({words})", cause.fix)


def _container_refused(facts: HostFacts) -> IsolationFinding:
    if facts.runtime.path is None:
        return _refused(facts, facts.container.detail, facts.runtime.how_to_get)
    other = "runc" if facts.runtime.kind != "runc" else "crun"
    return _refused(facts, facts.container.detail, f"{_FIX_WORDS}; another runtime may work: --runtime {other}")


def _limit_findings(facts: HostFacts) -> Mapping[Isolation, IsolationFinding]:
    oom = "counted by the memory controller"
    findings = {}
    for prop, controller, detail in (
        (Isolation.MEMORY_LIMIT, "memory", "" if facts.swap_limit else "; swap is not limited with it"),
        (Isolation.CPU_LIMIT, "cpu", ""),
        (Isolation.PIDS_LIMIT, "pids", f"; the host has {facts.pid_max} ids for all"),
        (Isolation.OOM_REPORT, "memory", f"; {oom}"),
    ):
        achieved = facts.cgroups.ok and controller in facts.hierarchy.controllers
        said = f"cgroup {_version(facts.hierarchy, controller)} {controller}{detail}"
        findings[prop] = IsolationFinding(True, said) if achieved else _groups_refused(facts)
    return findings


def _version(hierarchy: Hierarchy, controller: str) -> str:
    return "v1" if controller in hierarchy.v1 else "v2"


def _groups_refused(facts: HostFacts) -> IsolationFinding:
    if not facts.container.ok:
        return _container_refused(facts)
    words = facts.hierarchy.reason or facts.cgroups.detail or "the runtime could not set it"
    return _refused(facts, words, _cgroup_fix(facts))


def _cgroup_fix(facts: HostFacts) -> str:
    kind = facts.hierarchy.kind
    if not facts.is_root:
        return _FIX_DELEGATE if kind is CgroupKind.V2 else f"{_FIX_ROOT}, or {_FIX_V2}"
    if kind is CgroupKind.NONE:
        return "sudo mount -t cgroup2 none /sys/fs/cgroup"
    return _FIX_WORDS if kind is CgroupKind.V2 else _FIX_V2


def _uid_block(facts: HostFacts) -> IsolationFinding:
    if not facts.is_root:
        return IsolationFinding(False, "all sandboxes of an ordinary user share its subordinate ids", _FIX_ROOT)
    if facts.overlaps:
        taken = ", ".join(f"{each.owner}:{each.first}:{each.count}" for each in facts.overlaps)
        return IsolationFinding(
            False,
            f"/etc/subuid or /etc/subgid gives ids of the sandboxes' blocks to others ({taken})",
            "move those ranges below 536870912 or to 2147483648 and above, in both files",
        )
    for trial in (facts.userns, facts.idmap):
        if not trial.ok:
            return _refused(facts, trial.detail, "use Linux 5.19 or newer, and a state folder on ext4 or xfs")
    return IsolationFinding(True, "65,536 host ids each from 536870912 up; layers are shared through idmapped mounts")


def _disk(facts: HostFacts) -> IsolationFinding:
    if facts.loop.ok and facts.overlay.ok:
        return IsolationFinding(True, "an ext4 image of its own on a loop device")
    if not facts.is_root:
        return IsolationFinding(False, "loop devices need root", _FIX_ROOT)
    return _refused(facts, (facts.overlay if facts.loop.ok else facts.loop).detail, _FIX_WORDS)


def _inotify(facts: HostFacts) -> IsolationFinding:
    if facts.runtime.kind in GUEST_KERNEL_RUNTIMES and facts.container.ok:
        return IsolationFinding(True, f"instances are those of {facts.runtime.kind}'s own kernel, none are the host's")
    if facts.inotify.ok:
        return IsolationFinding(True, "user.max_inotify_instances of its user namespace")
    kernel = "use a kernel with CONFIG_INOTIFY_USER and user namespaces"
    return _refused(facts, facts.inotify.detail, kernel if facts.is_root else _FIX_ROOT)


def _tree_kill(facts: HostFacts) -> IsolationFinding:
    if facts.runtime.kind in GUEST_KERNEL_RUNTIMES:
        return IsolationFinding(
            False,
            f"processes of {facts.runtime.kind} are not the host's; closing the sandbox ends all of them",
            "use --runtime crun where commands must be killed with all that they started",
        )
    hierarchy = facts.hierarchy
    if facts.container.ok and hierarchy.usable and (facts.is_root or facts.cgroups.ok):
        by = "cgroup v2 cgroup.kill" if hierarchy.unified is not None else "the cgroup v1 freezer"
        return IsolationFinding(True, f"a control group for each command, ended by {by}")
    return _groups_refused(facts)


def _guest_kernel(facts: HostFacts) -> IsolationFinding:
    if facts.runtime.kind in GUEST_KERNEL_RUNTIMES:
        return _found(facts.container.ok, facts.runtime.label if facts.container.ok else facts.container.detail, None)
    return IsolationFinding(
        False, "system calls go to the host's kernel", "sudo apt-get install runsc, then --runtime runsc"
    )
