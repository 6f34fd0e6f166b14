"""Every attempt to get out, and the errors by which policy refuses it.

The numbers are the families of the list of escapes: 1 host files, 2 kernel files, 3 other processes, 4 mounts and
namespaces, 5 privileged or wide system calls, 6 socket families, 7 addresses, 8 devices, 9 terminals, 10 foreign system
call interfaces, 11 privileges.
"""

from __future__ import annotations

import errno
import os
import socket

import attrs

from sandboxrt.engine.base import Identity
from tests.escapes.kit import ROOT, SETUID_PROBE, USER

FAMILIES = {
    1: "host-files",
    2: "kernel-files",
    3: "processes",
    4: "mounts-and-namespaces",
    5: "system-calls",
    6: "socket-families",
    7: "addresses",
    8: "devices",
    9: "terminals",
    10: "foreign-abis",
    11: "privileges",
}
BOTH = (ROOT, USER)


@attrs.frozen
class Attempt:
    """One attempt.

    Attributes:
        family: Its number in the list.
        question: The probe's name and arguments; names in braces are filled in with the host's canary.
        refusals: What the probe may say after "refused".
        identity: Who makes it inside.
        control: Whether the same probe, run by the host's root, must be allowed: it shows that the probe can tell. Off
            where success would do harm, and where this kernel lacks the thing.
    """

    family: int
    question: str
    refusals: frozenset[str]
    identity: Identity = ROOT
    control: bool = False

    @property
    def id(self) -> str:
        """Its name in the test's id."""
        return f"{FAMILIES[self.family]}:{self.question}:{'root' if self.identity == ROOT else 'user'}"


def _each(
    family: int, refusals: str, *questions: str, control: bool = False, who: tuple[Identity, ...] = BOTH
) -> list[Attempt]:
    """The questions, asked by root and by an ordinary user, whom file modes may stop before policy does."""
    as_root = frozenset(refusals.split())
    as_user = as_root | _MODES
    return [
        Attempt(family, question, as_root if identity == ROOT else as_user, identity, control)
        for question in questions
        for identity in who
    ]


_MODES = frozenset({"EACCES", "EPERM"})
_NAMESPACES = ("user", "mnt", "net", "pid", "ipc", "uts", "cgroup", "time")
_CLONED = tuple(kind for kind in _NAMESPACES if kind != "time")  # the flag's bit is the exit signal's in clone(2)

_HIDDEN = "ENOENT EACCES EPERM EROFS EMPTY MASKED"
_SYSCTLS = (
    "kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/hotplug", "kernel/pid_max",
    "net/ipv4/ip_forward", "vm/drop_caches", "vm/overcommit_memory", "fs/file-max",
)  # fmt: skip
_TELLING = (
    "kcore", "keys", "timer_list", "sched_debug", "kpageflags", "kpagecount", "slabinfo", "vmallocinfo",
    "pagetypeinfo", "kallsyms", "interrupts", "cmdline", "diskstats", "partitions",
)  # fmt: skip
_TELLING_FOLDERS = (
    "/sys/firmware", "/sys/module", "/sys/kernel", "/sys/dev/block", "/sys/fs/ext4", "/sys/block",
    "/sys/class/block", "/sys/devices/virtual/block", "/proc/scsi", "/proc/acpi",
)  # fmt: skip
_INTO_PROCESSES = (
    "ptrace_attach", "ptrace_seize", "process_vm_readv", "pidfd_getfd", "kcmp", "process_madvise", "move_pages",
)  # fmt: skip
_OF_PROCESSES = ("mem", "exe", "environ", "maps", "auxv", "stack", "syscall", "fd/3", "pagemap")
_DEVICES = (
    "vda", "sda", "kvm", "mem", "kmem", "port", "fuse", "net/tun", "loop-control", "loop0", "kmsg", "vsock",
    "vhost-net", "mapper/control", "tty0", "uinput", "rtc0",
)  # fmt: skip
_PACKET = f"{socket.AF_PACKET},{socket.SOCK_RAW}"
_VSOCK = f"{socket.AF_VSOCK},{socket.SOCK_STREAM}"

ATTEMPTS: list[Attempt] = [
    *_each(1, "ENOENT", "read,{canary}", "climb,{canary}", "fd_escape,{canary}", control=True),
    *_each(1, "ENOENT", "read,/proc/self/root{canary}", "read,/proc/self/cwd/../../../..{canary}", control=True),
    *_each(1, "EACCES EPERM", "read,/proc/{init}/root{canary}", "read,/proc/{init}/cwd/../../..{canary}", control=True),
    *_each(1, "EACCES EPERM", "list,/proc/{init}/root", "list,/proc/{init}/cwd", control=True),
    *_each(1, "EACCES EPERM", "readlink,/proc/{init}/root", "readlink,/proc/{init}/cwd", control=True),
    *_each(1, "ENOENT", "unix_path,{unix}", control=True),
    # The program of the first process is the host's: it must not change under the next container.
    *_each(1, "EXDEV EPERM", "hard_link,{program},{scratch}", control=True),
    *_each(1, "EROFS EBUSY EACCES", "write,{program}", "unlink,{program}", "replace,{program}", control=True),
    # Kernel files: opened for writing, never written.
    *_each(2, _HIDDEN, "write,/proc/sysrq-trigger", *(f"write,/proc/sys/{name}" for name in _SYSCTLS), control=True),
    *_each(2, _HIDDEN, "write,/proc/sys/user/max_user_namespaces", "write,/proc/sys/user/max_inotify_instances"),
    *_each(2, _HIDDEN, "write,/proc/sys/fs/binfmt_misc/register", "write,/proc/mtrr", "write,/sys/power/state"),
    *_each(2, _HIDDEN, "mkdir,/sys/fs/cgroup/escape", "write,/sys/fs/cgroup/cgroup.procs"),
    *_each(2, _HIDDEN, "write,/sys/fs/cgroup/release_agent", "write,/sys/kernel/uevent_helper"),
    *_each(2, _HIDDEN, *(f"read,/proc/{name}" for name in _TELLING), control=True),
    *_each(2, _HIDDEN, "read,/proc/kmsg"),
    *_each(2, _HIDDEN, *(f"list,{path}" for path in _TELLING_FOLDERS), control=True),
    *_each(2, "NONE", "writable_below,/proc/sys", "writable_below,/proc/irq", "writable_below,/sys", control=True),
    *_each(2, "NONE", "writable_below,/proc/fs", "writable_below,/proc/bus"),
    # Other processes: the host's, and the first of the sandbox.
    *_each(3, "ESRCH", "kill,{pid}", "ptrace_seize,{pid}", "process_vm_readv,{pid}", control=True),
    *_each(3, "ESRCH", "pidfd_getfd,{pid}", "setns_of,{pid}", control=True),
    *_each(3, "ENOENT", "read,/proc/{pid}/environ", "list,/proc/{pid}/fd", "readlink,/proc/{pid}/exe", control=True),
    *_each(3, "SURVIVED", "kill_init"),
    *_each(3, "EPERM EACCES", *(f"{call},{{init}}" for call in _INTO_PROCESSES), control=True),
    *_each(3, "EPERM EACCES", "process_vm_writev,{init}", "setns_of,{init}", control=True),
    *_each(3, "EPERM EACCES", *(f"read,/proc/{{init}}/{name}" for name in _OF_PROCESSES), control=True),
    *_each(3, "EPERM EACCES", "write,/proc/{init}/mem", "list,/proc/{init}/map_files", control=True),
    *_each(3, "EPERM EACCES", *(f"readlink,/proc/{{init}}/{name}" for name in ("exe", "ns/mnt", "fd/3")), control=True),
    # Mounts and namespaces.
    *_each(
        4, "EPERM", "mount_tmpfs", "mount_proc", "mount_sysfs", "mount_bind", "remount", "make_shared", control=True
    ),
    *_each(4, "EPERM", "mount_cgroup", "mount_cgroup1", "mount_setattr", "move_mount", "pivot_root", control=True),
    *_each(4, "EPERM", "fsopen", "fspick", "fsconfig", "fsmount", "open_tree", "umount,/dev/shm", control=True),
    *_each(4, "EPERM", *(f"umount,{path}" for path in ("/proc", "/proc/sys", "/sys", "/tmp", "/dev/.init"))),
    *_each(4, "EPERM", "mount_overlay"),
    *_each(4, "EPERM", *(f"unshare,{kind}" for kind in _NAMESPACES), control=True),
    *_each(4, "ENOSYS EPERM", *(f"clone,{kind}" for kind in _CLONED), control=True),
    *_each(4, "ENOSYS EPERM", *(f"clone_high_bits,{kind}" for kind in _CLONED), control=True),
    *_each(4, "ENOSYS", "clone3", *(f"clone3,{kind}" for kind in _NAMESPACES), control=True),
    *_each(4, "EPERM", *(f"setns,{kind}" for kind in _NAMESPACES), control=True),
    # System calls. Where the kernel here lacks one, the answer is the filter's all the same.
    *_each(5, "EPERM", "keyctl", "add_key", "request_key", "bpf", "userfaultfd", "perf_event_open", control=True),
    *_each(5, "EPERM", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at", control=True),
    *_each(5, "EPERM", "syslog", "syslog_read", "acct", "settimeofday", "clock_settime", "adjtimex", control=True),
    *_each(5, "EPERM", "quotactl", "fanotify_init", "vhangup", "swapon", "swapoff", control=True),
    *_each(5, "EPERM", "sethostname", "setdomainname", control=True),
    *_each(5, "ENOSYS EPERM", "file_setattr", "listmount", control=True),  # newer than some filter compilers
    *_each(5, "EPERM", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot"),
    *_each(5, "EPERM", "iopl", "ioperm"),
    *_each(5, "ENOSYS", "io_setup", control=True),  # what it takes is counted for the whole machine
    # Socket families: family, type, protocol.
    *_each(6, "EAFNOSUPPORT EPERM", *(f"socket,{_PACKET},0{high}" for high in ("", ",high")), control=True),
    *_each(6, "EAFNOSUPPORT EPERM", *(f"socket,{_VSOCK},0{high}" for high in ("", ",high")), control=True),
    *_each(6, "EAFNOSUPPORT EPERM", f"socket,{socket.AF_VSOCK},{socket.SOCK_DGRAM},0"),
    *_each(6, "EAFNOSUPPORT EPERM", f"socket,{socket.AF_ALG},{socket.SOCK_SEQPACKET},0"),
    *_each(6, "EAFNOSUPPORT EPERM", "socket_sweep", control=True),
    *_each(6, "ENOSYS EPERM", f"socket,{socket.AF_INET},{socket.SOCK_RAW},{socket.IPPROTO_ICMP}", control=True),
    *_each(6, "ENOSYS EPERM", f"socket,{socket.AF_INET6},{socket.SOCK_RAW},{socket.IPPROTO_ICMPV6}", control=True),
    *_each(6, "ENOSYS EPERM", f"socket,{socket.AF_INET},{socket.SOCK_DGRAM},{socket.IPPROTO_ICMP}"),
    *_each(6, "ENOSYS EPERM", f"socket,{socket.AF_INET},{socket.SOCK_RAW},{socket.IPPROTO_TCP}", control=True),
    *_each(6, "EPROTONOSUPPORT EPERM", *(f"socket,{socket.AF_NETLINK},{socket.SOCK_RAW},{p}" for p in (9, 12, 15, 16))),
    *_each(6, "EPERM", "interface_flags", control=True),
    # Addresses.
    *_each(7, "ECONNREFUSED", "tcp,127.0.0.1,{port}", control=True),
    *_each(7, "ECONNREFUSED", "abstract,{abstract}", control=True),
    *_each(7, "ENETUNREACH", "route,{address}", "tcp,{address},{port}", control=True),
    *_each(7, "ENETUNREACH", "route,169.254.169.254", "tcp,169.254.169.254,80"),
    *_each(7, "ENETUNREACH", "tcp,10.0.2.2,80", "tcp,172.17.0.1,80", "tcp,192.168.0.1,80", "route,198.51.100.1"),
    *_each(7, "ENETUNREACH EADDRNOTAVAIL", "tcp,fd00::1,80", "tcp,2001:db8::1,80"),
    *_each(7, "EINVAL ENETUNREACH EADDRNOTAVAIL", "tcp,fe80::1,80"),
    # Devices.
    *_each(8, "EPERM", "mknod_char", "mknod_block", control=True),
    *_each(8, "EPERM", "mknod_whiteout"),
    *_each(8, "ENOENT", *(f"read,/dev/{name}" for name in _DEVICES)),
    # Terminals.
    *_each(9, "ENOSYS EPERM", "tiocsti", "tiocsti_high_bits", "tioclinux", "tioclinux_high_bits", control=True),
    # Foreign system call interfaces.
    *_each(10, "SIGSYS", "int80", "int80_unshare", control=os.uname().machine == "x86_64"),
    *_each(10, "SIGSYS ENOSYS", "x32", "x32_unshare"),
    # Privileges.
    *_each(11, "ENOENT", "chroot_escape,{canary}", control=True),
    *_each(11, "EUID", f"run_setuid,{SETUID_PROBE}", who=(USER,)),
    *_each(11, "EPERM", "setuid", "setgroups", who=(USER,)),
    *_each(11, "EPERM", "immutable,{scratch}", "immutable_xattr,{scratch}", control=True),
    *_each(11, "EPERM", "overlay_xattr", "sched_fifo", "ioprio", control=True),
    *_each(11, "EACCES EPERM", "nice", "oom_score_adj", "init_oom_score_adj"),
    *_each(11, "EPERM", "rlimit"),
    *_each(11, "SET", "no_new_privs", control=True),
    *_each(11, "FILTER", "seccomp_on", control=True),
]

SINCE = {"file_setattr": (6, 17), "listmount": (6, 8)}
"""The first kernels that have what an attempt asks for: older ones say ENOSYS to root, too."""

assert len({attempt.id for attempt in ATTEMPTS}) == len(ATTEMPTS)
_WORDS = {"EMPTY", "EUID"}
assert all(hasattr(errno, name) for a in ATTEMPTS for name in a.refusals - _WORDS if name.startswith("E"))
