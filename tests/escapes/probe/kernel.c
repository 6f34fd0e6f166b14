/* System calls that reach the kernel's wide or privileged surface (items 5, 9, 10 and the scheduler part of 11). */
#include "probe.h"

#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <sys/fanotify.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/quota.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>

#ifndef SYS_file_setattr
#define SYS_file_setattr 469
#endif
#ifndef SYS_statmount
#define SYS_statmount 457
#define SYS_listmount 458
#endif

#define PROBE(name) static int name(int argc __attribute__((unused)), char **argv __attribute__((unused)))

/* KEYCTL_JOIN_SESSION_KEYRING, a new one of this process's own: that of a login may be revoked. */
PROBE(keyctl_) { return verdict(syscall(SYS_keyctl, 1, NULL)); }
PROBE(add_key_) { return verdict(syscall(SYS_add_key, "user", "sandboxrt-probe", "x", 1, -2)); }
PROBE(request_key_) { return verdict_unless(syscall(SYS_request_key, "user", "sandboxrt-none", NULL, 0), ENOKEY); }

PROBE(bpf_) {
    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return verdict(syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr));
}

/* UFFD_USER_MODE_ONLY: what an unprivileged process may have on a stock kernel. */
PROBE(userfaultfd_) { return verdict(syscall(SYS_userfaultfd, O_CLOEXEC | 1)); }

PROBE(perf_event_open_) {
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_TASK_CLOCK,
        .exclude_kernel = 1, .exclude_hv = 1,
    };
    return verdict(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0));
}

PROBE(io_uring_setup_) {
    struct io_uring_params params = {0};
    return verdict(syscall(SYS_io_uring_setup, 4, &params));
}
PROBE(io_uring_enter_) { return verdict_unless(syscall(SYS_io_uring_enter, -1, 1, 0, 0, NULL, 0), EBADF); }
PROBE(io_uring_register_) { return verdict_unless(syscall(SYS_io_uring_register, 1000, 1, NULL, 0), EBADF); }

PROBE(io_setup_) {
    unsigned long context = 0;
    return verdict(syscall(SYS_io_setup, 16, &context));
}

PROBE(open_by_handle_at_) {
    struct {
        struct file_handle head;
        unsigned char bytes[128];
    } handle = {.head.handle_bytes = 128};
    int mount_id;
    int root = open("/", O_RDONLY | O_DIRECTORY);
    if (root < 0) {
        return verdict(root);
    }
    if (name_to_handle_at(AT_FDCWD, "/", &handle.head, &mount_id, 0) < 0 && errno != EOPNOTSUPP && errno != EPERM) {
        return verdict(-1);
    }
    /* Where no handle can be had the kernel must refuse before it looks at this one. */
    return verdict_unless(syscall(SYS_open_by_handle_at, root, &handle, O_RDONLY), ESTALE);
}

PROBE(init_module_) { return verdict_unless(syscall(SYS_init_module, "not a module", 12, ""), ENOEXEC); }
PROBE(finit_module_) {
    int fd = open("/proc/self/exe", O_RDONLY);
    return verdict_unless(syscall(SYS_finit_module, fd, "", 0), ENOEXEC);
}
PROBE(delete_module_) { return verdict_unless(syscall(SYS_delete_module, "sandboxrt_none", O_NONBLOCK), ENOENT); }
PROBE(kexec_load_) { return verdict(syscall(SYS_kexec_load, 0, 0, NULL, 0)); }
PROBE(kexec_file_load_) { return verdict_unless(syscall(SYS_kexec_file_load, -1, -1, 1, "", 0), EBADF); }
PROBE(syslog_) { return verdict(syscall(SYS_syslog, 10, NULL, 0)); }
PROBE(syslog_read_) {
    static char buffer[4096];
    return verdict(syscall(SYS_syslog, 3, buffer, sizeof buffer));
}
PROBE(reboot_) { return verdict_unless(syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL), EINVAL); }
PROBE(swapon_) { return verdict_unless(syscall(SYS_swapon, "/dev/null", 0), EINVAL); }
PROBE(swapoff_) { return verdict_unless(syscall(SYS_swapoff, "/dev/null"), EINVAL); }
PROBE(acct_) { return verdict_unless(syscall(SYS_acct, "/sandboxrt/none"), ENOENT); }
PROBE(settimeofday_) {
    struct timezone utc = {0};
    return verdict(syscall(SYS_settimeofday, NULL, &utc));
}
PROBE(clock_settime_) {
    struct timespec bad = {.tv_sec = -1, .tv_nsec = 0};
    return verdict_unless(syscall(SYS_clock_settime, CLOCK_REALTIME, &bad), EINVAL);
}
PROBE(adjtimex_) {
    struct timex now = {.modes = 0};
    if (syscall(SYS_adjtimex, &now) < 0) {
        return verdict(-1);
    }
    now.modes = ADJ_TICK; /* to the value it has */
    return verdict(syscall(SYS_adjtimex, &now));
}
PROBE(iopl_) { return verdict(syscall(SYS_iopl, 3)); }
PROBE(ioperm_) { return verdict(syscall(SYS_ioperm, 0x80, 1, 1)); }
PROBE(quotactl_) { return verdict(syscall(SYS_quotactl, QCMD(Q_SYNC, USRQUOTA), NULL, 0, NULL)); }
PROBE(fanotify_init_) { return verdict(syscall(SYS_fanotify_init, FAN_CLASS_NOTIF, O_RDONLY)); }
PROBE(vhangup_) {
    setsid(); /* no terminal is left to hang up */
    return verdict(syscall(SYS_vhangup));
}
PROBE(file_setattr_) { return verdict_unless(syscall(SYS_file_setattr, AT_FDCWD, "/none", NULL, 0, 0), EINVAL); }
/* To what they are already. */
PROBE(sethostname_) {
    char name[65] = "";
    gethostname(name, sizeof name - 1);
    return verdict(sethostname(name, strlen(name)));
}
PROBE(setdomainname_) {
    char name[65] = "";
    if (getdomainname(name, sizeof name - 1) < 0) {
        return verdict(-1);
    }
    return verdict(setdomainname(name, strlen(name)));
}
PROBE(statmount_) {
    struct { uint32_t size, fd; uint64_t mnt_id, param, ns; } request = {.size = 24, .mnt_id = ~0ull, .param = 0};
    uint64_t ids[64];
    return verdict(syscall(SYS_listmount, &request, ids, 64, 0));
}

PROBE(int80) {
#ifdef __x86_64__
    long ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "a"(20) : "r8", "r9", "r10", "r11", "memory");
    if (ret < 0) {
        errno = -ret;
        ret = -1;
    }
    return verdict(ret);
#else
    return refused("ENOSYS");
#endif
}
PROBE(int80_unshare) {
#ifdef __x86_64__
    long ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "a"(310), "b"(CLONE_NEWUSER) : "r8", "r9", "r10", "r11", "memory");
    if (ret < 0) {
        errno = -ret;
        ret = -1;
    }
    return verdict(ret);
#else
    return refused("ENOSYS");
#endif
}
PROBE(x32) { return verdict(syscall(0x40000000 | SYS_getpid)); }
PROBE(x32_unshare) { return verdict(syscall(0x40000000 | SYS_unshare, CLONE_NEWUSER)); }

PROBE(sched_fifo) {
    struct sched_param param = {.sched_priority = 1};
    return verdict(sched_setscheduler(0, SCHED_FIFO, &param));
}
PROBE(nice_) { return verdict(setpriority(PRIO_PROCESS, 0, -20)); }
PROBE(ioprio_) { return verdict(syscall(SYS_ioprio_set, 1, 0, 1 << 13)); }
PROBE(rlimit_) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_max += 1;
    return verdict(setrlimit(RLIMIT_NOFILE, &limit));
}
PROBE(no_new_privs) {
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? refused("SET") : allowed("no_new_privs is not set");
}
PROBE(seccomp_on) { return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2 ? refused("FILTER") : allowed("no seccomp filter"); }
/* Opens a terminal pair and takes the slave as controlling terminal. */
static int terminal(void) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    int zero = 0;
    if (master < 0 || ioctl(master, TIOCSPTLCK, &zero) < 0) {
        printf("no terminal: %s\n", strerrorname_np(errno));
        exit(2);
    }
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    setsid();
    if (slave < 0 || ioctl(slave, TIOCSCTTY, 0) < 0) {
        printf("no slave: %s\n", strerrorname_np(errno));
        exit(2);
    }
    return slave;
}
PROBE(tiocsti) { return verdict(syscall(SYS_ioctl, terminal(), (unsigned long)TIOCSTI, "x")); }
PROBE(tiocsti_high_bits) {
    return verdict(syscall(SYS_ioctl, terminal(), 0xdeadbeef00000000ul | TIOCSTI, "x"));
}
PROBE(tioclinux) {
    char shift_state = 6;
    return verdict_unless(syscall(SYS_ioctl, terminal(), (unsigned long)TIOCLINUX, &shift_state), ENOTTY);
}
PROBE(tioclinux_high_bits) {
    char shift_state = 6;
    return verdict_unless(syscall(SYS_ioctl, terminal(), 0x100000000ul | TIOCLINUX, &shift_state), ENOTTY);
}

const struct probe kernel_probes[] = {
    {"keyctl", keyctl_}, {"add_key", add_key_}, {"request_key", request_key_}, {"bpf", bpf_},
    {"userfaultfd", userfaultfd_}, {"perf_event_open", perf_event_open_}, {"io_uring_setup", io_uring_setup_},
    {"io_uring_enter", io_uring_enter_}, {"io_uring_register", io_uring_register_},
    {"open_by_handle_at", open_by_handle_at_}, {"io_setup", io_setup_}, {"init_module", init_module_}, {"finit_module", finit_module_},
    {"delete_module", delete_module_}, {"kexec_load", kexec_load_}, {"kexec_file_load", kexec_file_load_},
    {"syslog", syslog_}, {"syslog_read", syslog_read_}, {"reboot", reboot_}, {"swapon", swapon_},
    {"swapoff", swapoff_}, {"acct", acct_}, {"settimeofday", settimeofday_}, {"clock_settime", clock_settime_},
    {"adjtimex", adjtimex_}, {"iopl", iopl_}, {"ioperm", ioperm_}, {"quotactl", quotactl_},
    {"fanotify_init", fanotify_init_}, {"vhangup", vhangup_}, {"file_setattr", file_setattr_},
    {"listmount", statmount_}, {"sethostname", sethostname_}, {"setdomainname", setdomainname_}, {"int80", int80}, {"int80_unshare", int80_unshare}, {"x32", x32},
    {"x32_unshare", x32_unshare}, {"sched_fifo", sched_fifo}, {"nice", nice_}, {"ioprio", ioprio_},
    {"rlimit", rlimit_}, {"no_new_privs", no_new_privs}, {"seccomp_on", seccomp_on},
    {"tiocsti", tiocsti}, {"tiocsti_high_bits", tiocsti_high_bits},
    {"tioclinux", tioclinux}, {"tioclinux_high_bits", tioclinux_high_bits}, {NULL, NULL},
};
