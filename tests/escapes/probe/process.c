/* Reaching other processes: the host's, the sandbox's first process (item 3), and gaining privileges (11). */
#include "probe.h"

#include <grp.h>
#include <linux/kcmp.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>

#define PROBE(name) static int name(int argc __attribute__((unused)), char **argv __attribute__((unused)))

static pid_t target(int argc, char **argv) { return atoi(argument(argc, argv, 1)); }

PROBE(kill_pid) { return verdict(kill(target(argc, argv), SIGCONT)); }
PROBE(kill_init) {
    static const int signals[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGSEGV, SIGUSR1, SIGALRM, SIGPIPE, SIGSTOP, SIGKILL};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        kill(1, signals[i]);
    }
    usleep(50000);
    return kill(1, 0) == 0 || errno == EPERM ? refused("SURVIVED") : allowed("pid 1 is gone");
}
PROBE(kill_everyone) {
    kill(-1, SIGKILL); /* all but pid 1 and the caller */
    return refused("SURVIVED");
}
PROBE(ptrace_attach) { return verdict(ptrace(PTRACE_ATTACH, target(argc, argv), 0, 0)); }
PROBE(ptrace_seize) { return verdict(ptrace(PTRACE_SEIZE, target(argc, argv), 0, 0)); }
PROBE(vm_readv) {
    char byte;
    struct iovec mine = {&byte, 1}, theirs = {(void *)0x400000, 1};
    return verdict_unless(process_vm_readv(target(argc, argv), &mine, 1, &theirs, 1, 0), EFAULT);
}
PROBE(vm_writev) {
    char byte = 0;
    struct iovec mine = {&byte, 1}, theirs = {(void *)0x8, 1}; /* nothing is mapped there */
    return verdict_unless(process_vm_writev(target(argc, argv), &mine, 1, &theirs, 1, 0), EFAULT);
}
PROBE(pidfd_getfd_) {
    int pidfd = syscall(SYS_pidfd_open, target(argc, argv), 0);
    if (pidfd < 0) {
        return verdict(pidfd);
    }
    for (int fd = 0; fd < 64; fd++) {
        if (syscall(SYS_pidfd_getfd, pidfd, fd, 0) >= 0 || errno == EBADF) {
            return allowed("a descriptor was within reach");
        }
    }
    return verdict(-1);
}
PROBE(kcmp_) { return verdict(syscall(SYS_kcmp, target(argc, argv), getpid(), KCMP_VM, 0, 0)); }
PROBE(process_madvise_) {
    int pidfd = syscall(SYS_pidfd_open, target(argc, argv), 0);
    struct iovec theirs = {(void *)0x400000, 4096};
    if (pidfd < 0) {
        return verdict(pidfd);
    }
    return verdict_unless(syscall(SYS_process_madvise, pidfd, &theirs, 1, 20 /* COLD */, 0), ENOMEM);
}
PROBE(move_pages_) {
    void *page = (void *)0x400000;
    int status;
    return verdict(syscall(SYS_move_pages, target(argc, argv), 1, &page, NULL, &status, 0));
}
PROBE(setns_of) {
    int pidfd = syscall(SYS_pidfd_open, target(argc, argv), 0);
    if (pidfd < 0) {
        return verdict(pidfd);
    }
    return verdict(syscall(SYS_setns, pidfd, 0x00020000 /* CLONE_NEWNS */));
}
PROBE(starve_init) {
    /* The payload may spoil its own sandbox; it must not be able to hang the host that way. */
    struct rlimit none = {0, 0};
    return verdict(syscall(SYS_prlimit64, 1, RLIMIT_NOFILE, &none, NULL));
}

PROBE(setuid_) { return verdict(setuid(0)); }
PROBE(setgroups_) {
    gid_t root = 0;
    return verdict(setgroups(1, &root));
}
PROBE(euid) {
    char detail[64];
    snprintf(detail, sizeof detail, "euid %d", geteuid());
    return geteuid() == 0 ? allowed(detail) : refused("EUID");
}
/* Runs argv[1], a setuid-root copy of this program, and lets it say what it became. */
PROBE(run_setuid) {
    const char *program = argument(argc, argv, 1);
    fflush(stdout);
    execl(program, program, "euid", (char *)NULL);
    return verdict(-1);
}
PROBE(oom_score) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    if (fd < 0) {
        return verdict(fd);
    }
    return verdict(write(fd, "-1000", 5));
}
PROBE(init_oom_score) {
    int fd = open("/proc/1/oom_score_adj", O_WRONLY);
    if (fd < 0) {
        return verdict(fd);
    }
    return verdict(write(fd, "-1000", 5));
}

/* Lists what is open here, "FD LINK" a line; the folder itself is left out. */
PROBE(fds) {
    for (int fd = 0; fd < 4096; fd++) {
        char path[64], link[512];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n >= 0) {
            link[n] = 0;
            printf("%d %s\n", fd, link);
        }
    }
    return 0;
}

const struct probe process_probes[] = {
    {"kill", kill_pid}, {"kill_init", kill_init}, {"kill_everyone", kill_everyone}, {"ptrace_attach", ptrace_attach},
    {"ptrace_seize", ptrace_seize}, {"process_vm_readv", vm_readv}, {"process_vm_writev", vm_writev},
    {"pidfd_getfd", pidfd_getfd_}, {"kcmp", kcmp_}, {"process_madvise", process_madvise_}, {"move_pages", move_pages_},
    {"setns_of", setns_of}, {"starve_init", starve_init}, {"setuid", setuid_}, {"setgroups", setgroups_},
    {"euid", euid}, {"run_setuid", run_setuid}, {"oom_score_adj", oom_score}, {"init_oom_score_adj", init_oom_score},
    {"fds", fds}, {NULL, NULL},
};
