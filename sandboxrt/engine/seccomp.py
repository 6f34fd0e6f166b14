"""The system calls a sandbox may make: an allow-list, in the form that OCI runtimes take.

What is not on the list does not exist (``ENOSYS``), so that libraries fall back as they do on an older kernel; what is
known and refused on purpose answers ``EPERM``. Only the machine's own system call interface is served: i386 and x32
calls on x86-64 end the caller, 32-bit ARM calls on aarch64 likewise.

The rules assume the other walls (user namespace, capabilities, no_new_privs): a call that those refuse anyway may be on
the list when ordinary programs probe for it. Kept out is what reaches much kernel code from inside a user namespace, or
what no namespace confines: new namespaces and mounts, io_uring, keyrings, BPF, userfaultfd, perf events, file handles,
unusual socket families, input injection into terminals, and asynchronous I/O contexts (``io_setup``), whose number is
limited for the whole machine alone, so that one sandbox could take all; those who use them do without where there are
none.

Source: ours, from the kernel's system call tables (6.x) and what programs need.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

__all__ = ["ALLOWED", "REFUSED", "seccomp_profile"]

_FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate
fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr file_getattr flistxattr flock fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr
lseek lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv
preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat
renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee
truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
"""
_POLLING = """
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 pipe pipe2 poll ppoll pselect6
select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_settime
"""
_MEMORY = """
brk cachestat get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mlock mlock2
mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_madvise
process_mrelease remap_file_pages set_mempolicy set_mempolicy_home_node
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake
get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups getitimer getpgid getpgrp getpid getppid
getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kcmp kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self pause pidfd_open pidfd_send_signal prctl
prlimit64 restart_syscall
riscv_flush_icache rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sigaltstack tgkill
time timer_create timer_delete timer_getoverrun timer_gettime timer_settime times tkill vfork wait4 waitid
"""
_DEBUGGING = "process_vm_readv process_vm_writev ptrace"
_CLOCKS = """
adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep
"""
_SYSTEM = "chroot getrandom sysinfo uname"
_NETWORK = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto
setsockopt shutdown
"""
_IPC = """
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
semtimedop shmat shmctl shmdt shmget
"""

ALLOWED: frozenset[str] = frozenset(
    " ".join((_FILES, _POLLING, _MEMORY, _PROCESSES, _DEBUGGING, _CLOCKS, _SYSTEM, _NETWORK, _IPC)).split()
)
"""Allowed whatever their arguments. Tracing (gdb, strace) is allowed: it reaches only processes of the same sandbox,
and the first process is not dumpable. ``chroot`` is: without mounts or namespaces it leads nowhere."""

REFUSED: frozenset[str] = frozenset(
    """
    acct add_key bpf clock_settime delete_module fanotify_init fanotify_mark finit_module fsconfig fsmount fsopen fspick
    init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kexec_file_load kexec_load keyctl
    listmount lookup_dcookie lsm_set_self_attr migrate_pages mount mount_setattr move_mount move_pages nfsservctl
    open_by_handle_at open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root quotactl quotactl_fd reboot
    request_key setdomainname sethostname setns settimeofday statmount swapoff swapon syslog umount2 unshare
    userfaultfd vhangup vserver
    """.split()
)
"""Refused with ``EPERM``: what a program that probes for it takes for a lack of rights. (``clone3``, whose flags no
filter can see, is on neither list: ``ENOSYS`` makes libraries fall back to ``clone``.)"""

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_LOW_32 = 0xFFFFFFFF
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0x40000, _LOW_32)
"""Linux, its 32-bit name, the old version number, both, no address randomisation (debuggers), and "what is it?"."""

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCKET_TYPES = (1, 2)  # SOCK_STREAM, SOCK_DGRAM
_SOCKET_TYPE_MASK = 0xF
_INET_PROTOCOLS = (0, 6, 17)  # the default, TCP, UDP
_NETLINK_ROUTE = 0


def _rule(
    names: Iterable[str], *args: tuple[int, str, int, int], action: str = "SCMP_ACT_ALLOW", error: int | None = None
) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": sorted(names), "action": action}
    if error is not None:
        rule["errnoRet"] = error
    if args:
        rule["args"] = [{"index": i, "value": value, "valueTwo": two, "op": op} for i, op, value, two in args]
    return rule


def _equal(index: int, value: int) -> tuple[int, str, int, int]:
    return index, "SCMP_CMP_EQ", value, 0


def _masked(index: int, mask: int, value: int) -> tuple[int, str, int, int]:
    return index, "SCMP_CMP_MASKED_EQ", mask, value


def _all_but(forbidden: tuple[int, ...], prefix: int = 0, bits: int = 0) -> list[tuple[int, int]]:
    """(mask, value) pairs that together match every 32-bit number except the forbidden ones.

    A filter of allowing rules cannot say "not equal in the low 32 bits"; it can list the subtrees of the binary tree
    of all numbers in which no forbidden one lies.
    """
    mask = (_LOW_32 << (32 - bits)) & _LOW_32
    inside = tuple(value for value in forbidden if value & mask == prefix)
    if not inside:
        return [(mask, prefix)]
    if bits == 32:
        return []
    half = 1 << (31 - bits)
    return _all_but(inside, prefix, bits + 1) + _all_but(inside, prefix | half, bits + 1)


def _socket_rules() -> list[dict[str, Any]]:
    rules = [_rule(["socket", "socketpair"], _equal(0, _AF_UNIX))]
    rules += [
        _rule(["socket"], _equal(0, family), _masked(1, _SOCKET_TYPE_MASK, kind), _equal(2, protocol))
        for family in (_AF_INET, _AF_INET6)
        for kind in _SOCKET_TYPES
        for protocol in _INET_PROTOCOLS
    ]
    rules.append(_rule(["socket"], _equal(0, _AF_NETLINK), _equal(2, _NETLINK_ROUTE)))
    # libaudit takes this for "no audit in this kernel"; any other error stops useradd, su and their like.
    rules.append(
        _rule(
            ["socket"],
            _equal(0, _AF_NETLINK),
            (2, "SCMP_CMP_NE", _NETLINK_ROUTE, 0),
            action="SCMP_ACT_ERRNO",
            error=errno.EPROTONOSUPPORT,
        )
    )
    families = [f for f in range(_AF_NETLINK) if f not in (_AF_UNIX, _AF_INET, _AF_INET6)]
    strange = [_equal(0, family) for family in families] + [(0, "SCMP_CMP_GT", _AF_NETLINK, 0)]
    rules += [_rule(["socket"], test, action="SCMP_ACT_ERRNO", error=errno.EAFNOSUPPORT) for test in strange]
    return rules


def seccomp_profile() -> dict[str, Any]:
    """The ``linux.seccomp`` object of a container's configuration. The same for every container and machine."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": [
            _rule(ALLOWED),
            _rule(REFUSED, action="SCMP_ACT_ERRNO", error=errno.EPERM),
            _rule(["clone"], _masked(0, _NEW_NAMESPACES, 0)),
            *(_rule(["ioctl"], _masked(1, mask, value)) for mask, value in _all_but((_TIOCSTI, _TIOCLINUX))),
            *(_rule(["personality"], _equal(0, persona)) for persona in _PERSONALITIES),
            *_socket_rules(),
        ],
    }
