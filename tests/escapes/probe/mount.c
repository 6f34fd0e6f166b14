/* Mounts, namespaces and roots (item 4, and the chroot escape of 11). */
#include "probe.h"

#include <linux/mount.h>
#include <sched.h>

#define PROBE(name) static int name(int argc __attribute__((unused)), char **argv __attribute__((unused)))

/* <sys/mount.h> and <linux/mount.h> do not go together everywhere. */
static long do_mount(const char *from, const char *to, const char *type, unsigned long flags) {
    return syscall(SYS_mount, from, to, type, flags, NULL);
}
static const char *scratch(void) {
    static char path[4096];
    const char *parent = getenv("TMPDIR"); /* the control's, which removes what was left in it */
    snprintf(path, sizeof path, "%s/probe-XXXXXX", parent ? parent : "/tmp");
    if (!mkdtemp(path)) {
        printf("no scratch folder: %s\n", strerrorname_np(errno));
        exit(2);
    }
    return path;
}

PROBE(mount_tmpfs) { return verdict(do_mount("none", scratch(), "tmpfs", 0)); }
PROBE(mount_proc) { return verdict(do_mount("none", scratch(), "proc", 0)); }
PROBE(mount_sysfs) { return verdict(do_mount("none", scratch(), "sysfs", 0)); }
PROBE(mount_cgroup) { return verdict_unless(do_mount("none", scratch(), "cgroup2", 0), EBUSY); }
/* Kernels may have no memory controller for the first version: who may mount is asked before what. */
PROBE(mount_cgroup1) {
    long ret = syscall(SYS_mount, "none", scratch(), "cgroup", 0, "memory");
    return ret < 0 && errno == EINVAL ? allowed("as far as EINVAL") : verdict_unless(ret, EBUSY);
}
PROBE(mount_bind) { return verdict(do_mount("/proc/self", scratch(), NULL, MS_BIND)); }
PROBE(mount_overlay) {
    const char *dir = scratch();
    return verdict(syscall(SYS_mount, "none", dir, "overlay", 0, "lowerdir=/proc:/dev"));
}
PROBE(remount) { return verdict(do_mount("none", "/proc", NULL, MS_REMOUNT | MS_BIND)); }
PROBE(make_shared) { return verdict(do_mount("none", "/proc", NULL, MS_SHARED)); }
PROBE(umount_) { return verdict(syscall(SYS_umount2, argument(argc, argv, 1), 2 /* MNT_DETACH */)); }
PROBE(fsopen_) { return verdict(syscall(SYS_fsopen, "tmpfs", 0)); }
PROBE(fspick_) { return verdict(syscall(SYS_fspick, AT_FDCWD, "/proc", 0)); }
PROBE(fsconfig_) { return verdict_unless(syscall(SYS_fsconfig, -1, 6, NULL, NULL, 0), EINVAL); }
PROBE(fsmount_) { return verdict_unless(syscall(SYS_fsmount, -1, 0, 0), EBADF); }
PROBE(open_tree_) { return verdict(syscall(SYS_open_tree, AT_FDCWD, "/proc", OPEN_TREE_CLONE)); }
PROBE(move_mount_) { return verdict(syscall(SYS_move_mount, AT_FDCWD, "/proc", AT_FDCWD, scratch(), 0)); }
PROBE(mount_setattr_) {
    struct mount_attr attr = {.attr_clr = MOUNT_ATTR_RDONLY};
    return verdict(syscall(SYS_mount_setattr, AT_FDCWD, "/proc", 0, &attr, sizeof attr));
}
PROBE(pivot_root_) { return verdict_unless(syscall(SYS_pivot_root, "/proc", "/proc"), EBUSY); }

static unsigned long namespace_flag(const char *name) {
    static const struct {
        const char *name;
        unsigned long flag;
    } flags[] = {
        {"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS}, {"net", CLONE_NEWNET}, {"pid", CLONE_NEWPID},
        {"ipc", CLONE_NEWIPC}, {"uts", CLONE_NEWUTS}, {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
    };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (strcmp(flags[i].name, name) == 0) {
            return flags[i].flag;
        }
    }
    printf("no such namespace\n");
    exit(2);
}
PROBE(unshare_) { return verdict(syscall(SYS_unshare, namespace_flag(argument(argc, argv, 1)))); }
static int cloned(unsigned long extra, unsigned long flag) {
    long pid = syscall(SYS_clone, extra | flag | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        _exit(0);
    }
    return verdict(pid);
}
PROBE(clone_) { return cloned(0, namespace_flag(argument(argc, argv, 1))); }
PROBE(clone_high_bits) { return cloned(0xdead00000000ul, namespace_flag(argument(argc, argv, 1))); }
PROBE(clone3_) {
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    } args = {.exit_signal = SIGCHLD};
    args.flags = argc > 1 ? namespace_flag(argv[1]) : 0;
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) {
        _exit(0);
    }
    return verdict(pid);
}
PROBE(setns_) {
    char path[64];
    const char *name = argument(argc, argv, 1);
    snprintf(path, sizeof path, "/proc/self/ns/%s", name);
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        printf("%s: %s\n", path, strerrorname_np(errno));
        return 2;
    }
    return verdict_unless(syscall(SYS_setns, fd, namespace_flag(name)), EINVAL);
}

/* Leaves a chroot by the textbook: a second chroot below the working directory, then up and up. */
PROBE(chroot_escape) {
    const char *canary = argument(argc, argv, 1);
    const char *dir = scratch();
    if (chdir("/") < 0 || chroot(dir) < 0) {
        return verdict(-1);
    }
    for (int i = 0; i < 128; i++) {
        if (chdir("..") < 0) {
            break;
        }
    }
    if (chroot(".") < 0) {
        return verdict(-1);
    }
    return verdict(open(canary, O_RDONLY));
}
/* A chroot that the caller holds a folder outside of: needs the right to chroot, and proves the method. */
PROBE(chroot_leave) {
    const char *dir = scratch();
    struct stat before, after;
    stat("/", &before);
    if (chdir("/") < 0 || chroot(dir) < 0 || chdir("..") < 0 || chroot(".") < 0) {
        return verdict(-1);
    }
    stat("/", &after);
    return before.st_ino == after.st_ino && before.st_dev == after.st_dev ? allowed("left") : refused("INSIDE");
}

const struct probe mount_probes[] = {
    {"mount_tmpfs", mount_tmpfs}, {"mount_proc", mount_proc}, {"mount_sysfs", mount_sysfs},
    {"mount_cgroup", mount_cgroup}, {"mount_cgroup1", mount_cgroup1}, {"mount_bind", mount_bind},
    {"mount_overlay", mount_overlay}, {"remount", remount}, {"make_shared", make_shared}, {"umount", umount_},
    {"fsopen", fsopen_}, {"fspick", fspick_}, {"fsconfig", fsconfig_}, {"fsmount", fsmount_},
    {"open_tree", open_tree_}, {"move_mount", move_mount_}, {"mount_setattr", mount_setattr_},
    {"pivot_root", pivot_root_}, {"unshare", unshare_}, {"clone", clone_}, {"clone_high_bits", clone_high_bits},
    {"clone3", clone3_}, {"setns", setns_}, {"chroot_escape", chroot_escape}, {"chroot_leave", chroot_leave},
    {NULL, NULL},
};
