/* Host files, kernel files and devices (items 1, 2, 8 and the file part of 11). */
#include "probe.h"

#include <dirent.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define PROBE(name) static int name(int argc __attribute__((unused)), char **argv __attribute__((unused)))

/* Opening proves a hole only if there is something to read: a mask may be an empty file. */
PROBE(read_) {
    char bytes[8]; /* fewer are an error for some kernel files */
    int fd = open(argument(argc, argv, 1), O_RDONLY | O_NONBLOCK);
    if (fd < 0) {
        return verdict(fd);
    }
    ssize_t got = read(fd, bytes, sizeof bytes);
    if (got < 0 && errno == EIO) {
        return allowed("nothing is mapped at the start"); /* /proc/PID/mem */
    }
    return got == 0 ? refused("EMPTY") : verdict_unless(got, EAGAIN);
}
/* A file may be masked with the null device, which opens for writing and is not that file. */
PROBE(write_) {
    struct stat st;
    const char *path = argument(argc, argv, 1);
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3)) {
        return refused("MASKED");
    }
    return verdict(fd);
}
PROBE(list_) {
    DIR *dir = opendir(argument(argc, argv, 1));
    struct dirent *entry;
    if (!dir) {
        return verdict(-1);
    }
    errno = 0;
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] != '.') {
            return allowed(entry->d_name);
        }
    }
    return errno ? verdict(-1) : refused("EMPTY");
}
PROBE(readlink_) {
    char link[512];
    ssize_t n = readlink(argument(argc, argv, 1), link, sizeof link - 1);
    if (n < 0) {
        return verdict(n);
    }
    link[n] = 0;
    return allowed(link);
}
PROBE(dump) {
    static char buffer[1 << 17];
    int fd = open(argument(argc, argv, 1), O_RDONLY | O_NONBLOCK);
    if (fd < 0) {
        return verdict(fd);
    }
    size_t used = 0;
    ssize_t got;
    while (used < sizeof buffer && (got = read(fd, buffer + used, sizeof buffer - used)) > 0) {
        used += got;
    }
    fwrite(buffer, 1, used, stdout);
    return 0;
}
/* Lists a folder with types and device numbers, "TYPE MAJOR:MINOR NAME" a line. */
PROBE(nodes) {
    DIR *dir = opendir(argument(argc, argv, 1));
    struct dirent *entry;
    struct stat st;
    if (!dir) {
        return verdict(-1);
    }
    while ((entry = readdir(dir))) {
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            char type = S_ISCHR(st.st_mode) ? 'c' : S_ISBLK(st.st_mode) ? 'b' : S_ISDIR(st.st_mode) ? 'd' : '-';
            printf("%c %u:%u %s\n", type, major(st.st_rdev), minor(st.st_rdev), entry->d_name);
        }
    }
    return 0;
}

/* Through any descriptor that leads to a folder outside of this root. */
PROBE(fd_escape) {
    const char *canary = argument(argc, argv, 1);
    for (int fd = 0; fd < 1024; fd++) {
        char path[1024];
        snprintf(path, sizeof path, "/proc/self/fd/%d/../../../../../../../../../../%s", fd, canary);
        if (open(path, O_RDONLY) >= 0) {
            return allowed(path);
        }
    }
    return verdict(-1);
}
PROBE(climb) {
    const char *canary = argument(argc, argv, 1);
    for (int i = 0; i < 128; i++) {
        if (chdir("..") < 0) {
            break;
        }
    }
    return verdict(open(canary + 1, O_RDONLY));
}

static int budget;
/* Looks for a file below `dir` that opens for writing; fills `found`. */
static int walk(int at, const char *dir, int depth, char *found, size_t size) {
    int fd = openat(at, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    int hit = 0;
    if (!stream) {
        return 0;
    }
    while (!hit && budget-- > 0 && (entry = readdir(stream))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        if (entry->d_type == DT_DIR && depth < 24) {
            hit = walk(fd, entry->d_name, depth + 1, found, size);
        } else if (entry->d_type == DT_REG && openat(fd, entry->d_name, O_WRONLY | O_NONBLOCK | O_NOFOLLOW) >= 0) {
            snprintf(found, size, "%s/%s", dir, entry->d_name);
            hit = 1;
        }
    }
    closedir(stream);
    return hit;
}
PROBE(writable_below) {
    char found[512];
    struct stat st;
    const char *root = argument(argc, argv, 1);
    budget = 60000;
    if (stat(root, &st) < 0) {
        return verdict(-1);
    }
    return walk(AT_FDCWD, root, 0, found, sizeof found) ? allowed(found) : refused("NONE");
}

/* grep TEXT FOLDER: looks through every readable file below it, the caller's own command line left out. */
static int holds(int fd, const char *text) {
    static char buffer[1 << 16];
    size_t kept = 0, overlap = strlen(text);
    for (int chunk = 0; chunk < 16; chunk++) {
        ssize_t got = read(fd, buffer + kept, sizeof buffer - kept);
        if (got <= 0) {
            return 0;
        }
        kept += got;
        if (memmem(buffer, kept, text, overlap)) {
            return 1;
        }
        if (kept > overlap) {
            memmove(buffer, buffer + kept - overlap, overlap);
            kept = overlap;
        }
    }
    return 0;
}
static int search(int at, const char *dir, int depth, const char *text, char *found, size_t size) {
    int fd = openat(at, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    int hit = 0;
    while (stream && !hit && budget-- > 0 && (entry = readdir(stream))) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, "task") == 0 || strcmp(name, "map_files") == 0 ||
            strcmp(name, "cmdline") == 0 || strcmp(name, "mem") == 0 || strcmp(name, "pagemap") == 0) {
            continue;
        }
        if (entry->d_type == DT_DIR && depth < 24) {
            hit = search(fd, name, depth + 1, text, found, size);
        } else if (entry->d_type == DT_REG) {
            int file = openat(fd, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
            if (file >= 0 && holds(file, text)) {
                snprintf(found, size, "%s/%s", dir, name);
                hit = 1;
            }
            close(file);
        }
    }
    if (stream) {
        closedir(stream);
    }
    return hit;
}
PROBE(grep) {
    char found[512];
    const char *text = argument(argc, argv, 1);
    budget = 200000;
    return search(AT_FDCWD, argument(argc, argv, 2), 0, text, found, sizeof found) ? allowed(found) : refused("NONE");
}

static const char *scratch_path(const char *name) {
    static char path[4096];
    const char *parent = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/probe-%s-%d", parent ? parent : "/tmp", name, getpid());
    return path;
}
static int made_node(mode_t type, unsigned major_, unsigned minor_) {
    const char *path = scratch_path("node");
    if (mknod(path, type | 0600, makedev(major_, minor_)) < 0) {
        return verdict(-1);
    }
    unlink(path);
    return allowed("node made");
}
PROBE(mknod_char) { return made_node(S_IFCHR, 1, 1); }
PROBE(mknod_block) { return made_node(S_IFBLK, 7, 0); }
/* The one node that needs no privilege elsewhere: overlayfs's whiteout. */
PROBE(mknod_whiteout) {
    if (mknod("/whiteout-probe", S_IFCHR | 0600, makedev(0, 0)) < 0) {
        return verdict(-1);
    }
    unlink("/whiteout-probe");
    return allowed("whiteout made");
}
PROBE(overlay_xattr) {
    const char *path = scratch_path("opaque");
    mkdir(path, 0700);
    return verdict(setxattr(path, "trusted.overlay.opaque", "y", 1, 0));
}
PROBE(immutable) {
    const char *path = argument(argc, argv, 1);
    int flags = 0;
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    if (fd < 0 || ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0) {
        return verdict(-1);
    }
    flags |= FS_IMMUTABLE_FL;
    long ret = ioctl(fd, FS_IOC_SETFLAGS, &flags);
    int saved = errno;
    if (ret == 0) {
        flags &= ~FS_IMMUTABLE_FL;
        ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
    unlink(path);
    errno = saved;
    return verdict(ret);
}
PROBE(immutable_xattr) {
    const char *path = argument(argc, argv, 1);
    struct fsxattr attr = {0};
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    if (fd < 0 || ioctl(fd, FS_IOC_FSGETXATTR, &attr) < 0) {
        return verdict(-1);
    }
    attr.fsx_xflags |= FS_XFLAG_IMMUTABLE;
    long ret = ioctl(fd, FS_IOC_FSSETXATTR, &attr);
    int saved = errno;
    if (ret == 0) {
        attr.fsx_xflags &= ~FS_XFLAG_IMMUTABLE;
        ioctl(fd, FS_IOC_FSSETXATTR, &attr);
    }
    unlink(path);
    errno = saved;
    return verdict(ret);
}
PROBE(hard_link) { return verdict(link(argument(argc, argv, 1), argument(argc, argv, 2))); }
PROBE(unlink_) { return verdict(unlink(argument(argc, argv, 1))); }
/* Puts a new name in the place of an old one: what takes a program over without writing into it. */
PROBE(replace) {
    char path[128];
    const char *slash = strrchr(argument(argc, argv, 1), '/');
    snprintf(path, sizeof path, "%.*s/probe-new-%d", (int)(slash - argv[1]), argv[1], getpid());
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    if (fd < 0) {
        return verdict(-1);
    }
    long ret = rename(path, argv[1]);
    int saved = errno;
    unlink(path);
    errno = saved;
    return verdict(ret);
}
PROBE(mkdir_) { return verdict(mkdir(argument(argc, argv, 1), 0700)); }

/* Every way to change what an inode says of itself, each put back at once. Prints "NAME WAY" for those that work. */
static void change(int at, const char *path, const char *name) {
    struct stat st;
    char proc[64];
    int flags;
    int fd = openat(at, path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        close(fd);
        return;
    }
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    struct timespec old[2] = {st.st_atim, st.st_mtim};
    if (utimensat(AT_FDCWD, proc, NULL, 0) == 0) {
        printf("%s touch\n", name);
    }
    if (utimensat(AT_FDCWD, proc, old, 0) == 0) {
        printf("%s times\n", name);
    }
    if (chmod(proc, (st.st_mode & 07777) ^ S_ISVTX) == 0) {
        printf("%s chmod\n", name);
        chmod(proc, st.st_mode & 07777);
    }
    if (chown(proc, st.st_uid, st.st_gid) == 0) {
        printf("%s chown\n", name);
    }
    if (setxattr(proc, "user.probe", "x", 1, 0) == 0) {
        printf("%s xattr\n", name);
        removexattr(proc, "user.probe");
    }
    int plain = S_ISFIFO(st.st_mode) ? -1 : open(proc, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (plain >= 0 && ioctl(plain, FS_IOC_GETFLAGS, &flags) == 0) {
        int changed = flags ^ FS_NODUMP_FL;
        if (ioctl(plain, FS_IOC_SETFLAGS, &changed) == 0) {
            printf("%s flags\n", name);
            ioctl(plain, FS_IOC_SETFLAGS, &flags);
        }
    }
    close(plain);
    close(fd);
}
/* change_all [PATH...]: those, everything in /dev, every place that something is mounted at, and every descriptor. */
PROBE(change_all) {
    static char mounts[1 << 16];
    DIR *dir = opendir("/dev");
    struct dirent *entry;
    for (int i = 1; i < argc; i++) {
        change(AT_FDCWD, argv[i], argv[i]);
    }
    while (dir && (entry = readdir(dir))) {
        change(dirfd(dir), entry->d_name, entry->d_name);
    }
    int info = open("/proc/self/mountinfo", O_RDONLY);
    ssize_t got, used = 0;
    while (info >= 0 && (got = read(info, mounts + used, sizeof mounts - 1 - used)) > 0) {
        used += got;
    }
    for (char *line = strtok(mounts, "\n"); line; line = strtok(NULL, "\n")) {
        char place[512];
        if (sscanf(line, "%*s %*s %*s %*s %511s", place) == 1) {
            change(AT_FDCWD, place, place);
        }
    }
    for (int fd = 0; fd < 64; fd++) {
        char name[16];
        struct stat st;
        snprintf(name, sizeof name, "%d", fd);
        if (fstat(fd, &st) < 0) {
            continue;
        }
        if (futimens(fd, NULL) == 0) {
            printf("%s touch\n", name);
        }
        if (fchmod(fd, st.st_mode & 07777) == 0) {
            printf("%s chmod\n", name);
        }
        if (fchown(fd, st.st_uid, st.st_gid) == 0) {
            printf("%s chown\n", name);
        }
    }
    return 0;
}

const struct probe file_probes[] = {
    {"read", read_}, {"write", write_}, {"list", list_}, {"readlink", readlink_}, {"dump", dump}, {"nodes", nodes},
    {"fd_escape", fd_escape}, {"climb", climb}, {"writable_below", writable_below}, {"mknod_char", mknod_char},
    {"mknod_block", mknod_block}, {"mknod_whiteout", mknod_whiteout}, {"overlay_xattr", overlay_xattr},
    {"immutable", immutable}, {"immutable_xattr", immutable_xattr}, {"mkdir", mkdir_}, {"grep", grep},
    {"hard_link", hard_link}, {"unlink", unlink_}, {"replace", replace},
    {"change_all", change_all}, {NULL, NULL},
};
