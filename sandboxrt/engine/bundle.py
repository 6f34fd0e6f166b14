"""The configuration that an OCI runtime gets for one container: a pure function from what is wanted to ``config.json``.

Source: OCI runtime specification 1.0.2; the choices are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from sandboxrt.engine.seccomp import seccomp_profile
from sandboxrt.models import Limits

__all__ = [
    "BLOCK_SIZE",
    "CAPABILITIES",
    "CPU_PERIOD_US",
    "INIT_PATH",
    "MASKED_PATHS",
    "READONLY_PATHS",
    "BundlePlan",
    "bundle_config",
    "cpu_quota_us",
]

BLOCK_SIZE = 65_536
"""Ids of one sandbox's block."""

INIT_PATH = "/dev/.init"
"""Where the first process's program appears: on the container's own /dev, so that it leaves no trace in the disk."""

CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""What package managers, servers that drop their rights, and the first process need, valid only inside the container's
user namespace. ``SETFCAP`` is there for packages that carry file capabilities (no gain: no_new_privs ignores them).
Unlike container engines: no ``MKNOD`` and ``AUDIT_WRITE`` (useless in a user namespace) and no ``NET_RAW``."""

MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/block",
    "/sys/class/block",
    "/sys/dev/block",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/fs/ext4",
    "/sys/kernel",
    "/sys/module",
)
"""Not visible: they tell about the host, or were the way out of containers before. Block devices tell most: a loop
device names its file, so every sandbox's disk, and counts what is read and written there."""

READONLY_PATHS: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")

CPU_PERIOD_US = 100_000
"""What a limit of processor time is counted in."""
_MIN_CPU_QUOTA_US = 1_000
_SHM_BYTES = 64 * 1024**2
_MAX_TERMINALS = 64
"""Terminals of one sandbox. The kernel has some 3,000 for all containers together (``kernel.pty.max``)."""
_PTS_OPTIONS = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5", f"max={_MAX_TERMINALS}")


@attrs.frozen(kw_only=True)
class BundlePlan:
    """What the engine decided for one container.

    Attributes:
        hostname: What ``hostname`` prints inside.
        rootfs: The mounted root folder, as the runtime will see it.
        tmp_source: The folder that appears as ``/tmp``.
        init_source: The program of the first process, or ``None`` where ``init_argv`` names one inside.
        init_argv: The first process and its arguments.
        id_map: First host id and number of ids that the container's 0.. map to, or ``None`` for no user namespace.
        user_namespace: Name of a user namespace with that map to join, or ``None`` to have one made.
        cgroup_path: Where the runtime makes the container's cgroups, or ``None`` when there are none.
        limits: What the cgroups enforce; a field is ``None`` where this host cannot.
        swap_limit: Whether the host can limit swap along with memory.
        max_open_files: Limit of open descriptors per process (at most the caller's own hard limit), or ``None`` where
            the runtime is started with the limits that the container is to have.
        new_network: A network namespace of its own (always, but for tests of the report).
        seccomp: Whether the runtime applies filters.
        cgroup_namespace: Whether the runtime can make one.
    """

    hostname: str
    rootfs: str
    tmp_source: str
    init_source: str | None
    init_argv: tuple[str, ...]
    id_map: tuple[int, int] | None
    cgroup_path: str | None
    limits: Limits
    swap_limit: bool
    max_open_files: int | None = None
    user_namespace: str | None = None
    new_network: bool = True
    seccomp: bool = True
    cgroup_namespace: bool = True


def _namespaces(plan: BundlePlan) -> list[dict[str, str]]:
    kinds = ["pid", "mount", "ipc", "uts"]
    if plan.cgroup_namespace:
        kinds.append("cgroup")
    if plan.new_network:
        kinds.append("network")
    namespaces = [{"type": kind} for kind in kinds]
    if plan.user_namespace is not None:
        namespaces.append({"type": "user", "path": plan.user_namespace})
    elif plan.id_map is not None:
        namespaces.append({"type": "user"})
    return namespaces


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _mounts(plan: BundlePlan) -> list[dict[str, Any]]:
    quiet = ("nosuid", "noexec", "nodev")
    mounts = [
        _mount("/proc", "proc", "proc", *quiet),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=64k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", *_PTS_OPTIONS),
        _mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", f"size={_SHM_BYTES}"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
        _mount("/sys", "sysfs", "sysfs", *quiet, "ro"),
        _mount("/tmp", "bind", plan.tmp_source, "bind", "nosuid", "nodev"),  # noqa: S108 - inside
    ]
    if plan.init_source is not None:
        mounts.append(_mount(INIT_PATH, "bind", plan.init_source, "bind", "ro", "nosuid", "nodev"))
    return mounts


def cpu_quota_us(vcpus: float) -> int:
    """Processor time for each :data:`CPU_PERIOD_US`; the kernel takes no less than a millisecond."""
    return max(_MIN_CPU_QUOTA_US, round(vcpus * CPU_PERIOD_US))


def _resources(plan: BundlePlan) -> dict[str, Any]:
    limits = plan.limits
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limits.mem_bytes is not None:
        resources["memory"] = {"limit": limits.mem_bytes}
        if plan.swap_limit:
            resources["memory"]["swap"] = limits.mem_bytes
    if limits.pids is not None:
        resources["pids"] = {"limit": limits.pids}
    if limits.vcpus is not None:
        resources["cpu"] = {"quota": cpu_quota_us(limits.vcpus), "period": CPU_PERIOD_US}
    return resources


def _process(plan: BundlePlan) -> dict[str, Any]:
    capabilities = list(CAPABILITIES)
    process = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "umask": 0o022},
        "args": list(plan.init_argv),
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "noNewPrivileges": True,
        # Not inheritable, not ambient: a program that runs as an ordinary user has none.
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    }
    if plan.max_open_files is not None:
        limits = {"RLIMIT_NOFILE": plan.max_open_files, "RLIMIT_CORE": 0}
        process["rlimits"] = [{"type": name, "soft": value, "hard": value} for name, value in limits.items()]
    return process


def _linux(plan: BundlePlan) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "namespaces": _namespaces(plan),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
    }
    if plan.id_map is not None:
        first, size = plan.id_map
        mapping: list[Mapping[str, int]] = [{"containerID": 0, "hostID": first, "size": size}]
        linux["uidMappings"] = linux["gidMappings"] = mapping
    if plan.cgroup_path is not None:
        linux["cgroupsPath"] = plan.cgroup_path
        linux["resources"] = _resources(plan)
    if plan.seccomp:
        linux["seccomp"] = seccomp_profile()
    return linux


def bundle_config(plan: BundlePlan) -> dict[str, Any]:
    """The whole configuration, ready to be written as JSON."""
    return {
        "ociVersion": "1.0.2",
        "hostname": plan.hostname,
        "root": {"path": plan.rootfs, "readonly": False},
        "process": _process(plan),
        "mounts": _mounts(plan),
        "linux": _linux(plan),
    }
