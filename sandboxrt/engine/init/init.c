/*
 * The first process of a container.
 *
 * It holds no policy. An OCI runtime starts it as pid 1 of a fresh pid namespace with one end of a SEQPACKET socket as
 * descriptor 3; the host holds the other end. What it does with its rights is what the host asks for, and its rights
 * are those of the container: every child inherits the namespaces, seccomp filter, capabilities and cgroup of pid 1.
 * It reads no environment, no file and no argument, parses nothing but fixed-size records, and exits when the socket
 * closes, whereupon the kernel ends everything else inside.
 *
 * Requests come with descriptors. The first is the gate: one end of a socket made for this request, on which the
 * answer goes. SPAWN, OPEN and REPLACE are carried out in a child of their own, which speaks on its gate itself; pid 1
 * never touches a path, a string or a terminal.
 *
 * Nothing in here can be traced or robbed of a descriptor by the processes of the sandbox: pid 1 is not dumpable, its
 * children inherit that, and exec gives it up only after every descriptor but 0, 1 and 2 is closed.
 *
 * System calls (the container's seccomp filter must allow them): poll, signalfd4, recvmsg, recvfrom, sendmsg, wait4,
 * kill, clone/fork, close, close_range, exit_group, prctl, rt_sigprocmask, rt_sigaction, getpid, openat/open, openat2,
 * read, write, pwrite64, fstat/newfstatat, fstatfs, mmap, munmap, brk, fcntl, setsid, ioctl, fchown, dup2/dup3,
 * setgroups, setresgid, setresuid, chdir, execve, mkdir/mkdirat, readlinkat, fchmod, unlinkat, renameat/renameat2,
 * getrandom, umask, socket; and what libc's start-up uses: arch_prctl, set_tid_address, set_robust_list, rseq,
 * prlimit64, mprotect, readlink, gettid.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#define RESOLVE_NO_MAGICLINKS_ 0x02

enum {
    CONTROL = 3,
    MAX_FDS = 5,
    MAX_GROUPS = 64,
    MAX_JOBS = 1024,
    MAX_STRINGS = 8 << 20,
    MAX_LINKS = 40,
    MAGIC = 0x73627801, /* the last byte is the version */
};

enum request_kind { REQ_SPAWN = 1, REQ_OPEN = 2, REQ_REPLACE = 3, REQ_SOCKET = 4, REQ_SIGNAL = 5 };
enum request_flag { FLAG_PTY = 1, FLAG_KEEP_GROUPS = 2, FLAG_IN_SESSION = 4 /* relay.h only */ };
enum record_kind {
    REC_READY = 1,
    REC_EXITED = 2,
    REC_HELLO = 3,
    REC_RELEASE = 4,
    REC_TERMINAL = 5,
    REC_FILE = 6,
    REC_SOCKET = 7,
    REC_COMMIT = 8,
    REC_DONE = 9,
    REC_FAILED = 10,
};
enum stage {
    STAGE_FORK = 1,
    STAGE_REQUEST = 2,
    STAGE_STDIO = 3,
    STAGE_TERMINAL = 4,
    STAGE_IDENTITY = 5,
    STAGE_CHDIR = 6,
    STAGE_EXEC = 7,
    STAGE_FILE = 8,
    STAGE_FILE_TYPE = 9,
    STAGE_SOCKET = 10,
};

struct request {
    uint32_t magic;
    uint32_t kind;
    uint64_t job_id;
    uint32_t uid, gid;
    uint32_t group_count;
    uint32_t flags;
    uint32_t argc, envc;
    uint32_t strings_len;
    int32_t oom_score_adj;
    uint16_t columns, rows;
    uint32_t argument; /* SPAWN: whether there is an input; SOCKET: family; SIGNAL: number */
    uint32_t groups[MAX_GROUPS];
};

struct record {
    uint32_t magic;
    uint32_t kind;
    uint64_t job_id;
    int32_t a, b;
};

_Static_assert(sizeof(struct request) == 56 + 4 * MAX_GROUPS, "request has no padding");
_Static_assert(sizeof(struct record) == 24, "record has no padding");

struct open_how_ {
    uint64_t flags, mode, resolve;
};

static struct {
    pid_t pid;
    uint64_t job_id;
} jobs[MAX_JOBS];
static int job_count;
static int signal_fd, oom_fd, null_fd;
static char oom_own[16];

/* ---- messages ---------------------------------------------------------------------------------------------------- */

static int send_record(int sock, const struct record *rec, int fd, int flags)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = (void *)rec, .iov_len = sizeof *rec};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control;
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof fd);
    }
    do
        n = sendmsg(sock, &msg, flags | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == sizeof *rec ? 0 : -1;
}

static int tell(int sock, uint32_t kind, uint64_t job_id, int32_t a, int32_t b, int fd)
{
    struct record rec = {.magic = MAGIC, .kind = kind, .job_id = job_id, .a = a, .b = b};
    return send_record(sock, &rec, fd, 0);
}

/* The same for pid 1, which must not wait on a gate. */
static void tell_at_once(int sock, uint32_t kind, uint64_t job_id, int32_t a, int32_t b, int fd)
{
    struct record rec = {.magic = MAGIC, .kind = kind, .job_id = job_id, .a = a, .b = b};
    send_record(sock, &rec, fd, MSG_DONTWAIT);
}

static _Noreturn void fail(int gate, const struct request *req, int stage, int error)
{
    tell(gate, REC_FAILED, req->job_id, stage, error, -1);
    _exit(127);
}

/* Wait for one record of that kind; anything else, or the end, means that the host has lost interest. */
static int await_record(int gate, uint32_t kind)
{
    struct record rec;
    ssize_t n;

    do
        n = recv(gate, &rec, sizeof rec, MSG_TRUNC);
    while (n < 0 && errno == EINTR);
    return n == sizeof rec && rec.magic == MAGIC && rec.kind == kind ? 0 : -1;
}

/* ---- what the children share ------------------------------------------------------------------------------------- */

/* Map the strings of a request: `count` of them, each ended by NUL, filling the sealed memfd exactly. */
static char *load_strings(int gate, const struct request *req, int fd, uint32_t count)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    struct stat st;
    int have = fcntl(fd, F_GET_SEALS);
    uint32_t found = 0;

    if (have < 0 || (have & seals) != seals || fstat(fd, &st) < 0 || st.st_size != req->strings_len ||
        req->strings_len == 0 || req->strings_len > MAX_STRINGS)
        fail(gate, req, STAGE_REQUEST, EINVAL);
    char *text = mmap(NULL, req->strings_len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (text == MAP_FAILED)
        fail(gate, req, STAGE_REQUEST, errno);
    for (uint32_t i = 0; i < req->strings_len; i++)
        found += text[i] == 0;
    if (found != count || text[req->strings_len - 1] != 0)
        fail(gate, req, STAGE_REQUEST, EINVAL);
    close(fd);
    return text;
}

static void assume_identity(int gate, const struct request *req)
{
    gid_t groups[MAX_GROUPS];

    for (uint32_t i = 0; i < req->group_count; i++)
        groups[i] = req->groups[i];
    if (!(req->flags & FLAG_KEEP_GROUPS) && setgroups(req->group_count, groups) < 0)
        fail(gate, req, STAGE_IDENTITY, errno);
    if (setresgid(req->gid, req->gid, req->gid) < 0 || setresuid(req->uid, req->uid, req->uid) < 0)
        fail(gate, req, STAGE_IDENTITY, errno);
    /* A change of user sets this to fs.suid_dumpable, which an administrator may have opened. */
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        fail(gate, req, STAGE_IDENTITY, errno);
}

static void default_signals(void)
{
    struct sigaction plain;
    sigset_t none;

    memset(&plain, 0, sizeof plain);
    plain.sa_handler = SIG_DFL;
    for (int signum = 1; signum < NSIG; signum++)
        sigaction(signum, &plain, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static int open_beneath(int dir, const char *path, uint64_t flags)
{
    struct open_how_ how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS_};
    int fd = syscall(SYS_openat2, dir, path, &how, sizeof how);

    /* A kernel without that call (gVisor's) has no link either that leads out of it. */
    return fd < 0 && errno == ENOSYS ? openat(dir, path, (int)flags | O_CLOEXEC) : fd;
}

/* Kernel file systems: their files are not data, and reading or writing them may act on the host. */
static int is_kernel_fs(int fd)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) < 0)
        return 1;
    switch ((uint32_t)fs.f_type) {
    case 0x9fa0u:     /* proc */
    case 0x62656572u: /* sysfs */
    case 0x27e0ebu:   /* cgroup */
    case 0x63677270u: /* cgroup2 */
    case 0x64626720u: /* debugfs */
    case 0x74726163u: /* tracefs */
    case 0x73636673u: /* securityfs */
    case 0x6e736673u: /* nsfs */
        return 1;
    }
    return 0;
}

/* ---- SPAWN ------------------------------------------------------------------------------------------------------- */

static void take_terminal(int gate, const struct request *req)
{
    struct winsize size = {.ws_col = req->columns, .ws_row = req->rows};
    int unlock = 0, number;
    /* The device inside the mount first: unlike the link in /dev, no process of the sandbox can replace it. */
    int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

    if (master < 0)
        master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0 || ioctl(master, TIOCGPTN, &number) < 0)
        fail(gate, req, STAGE_TERMINAL, errno);
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0 || ioctl(slave, TIOCSWINSZ, &size) < 0 || (req->uid != 0 && fchown(slave, req->uid, -1) < 0) ||
        ioctl(slave, TIOCSCTTY, 0) < 0)
        fail(gate, req, STAGE_TERMINAL, errno);
    if (tell(gate, REC_TERMINAL, req->job_id, number, 0, master) < 0)
        _exit(127);
    close(master);
    for (int fd = 0; fd < 3; fd++)
        if (dup2(slave, fd) < 0)
            fail(gate, req, STAGE_STDIO, errno);
    close(slave);
}

/* Of the session that we were born into, whose terminal `fd` is. Signals are blocked, so it does not stop us. */
static void lead_foreground(int fd)
{
    pid_t me = getpid();

    setpgid(0, 0);
    ioctl(fd, TIOCSPGRP, &me);
}

/* execvpe without its excursion to /bin/sh: a file that is no program is an error. */
static _Noreturn void execute(int gate, const struct request *req, char **argv, char **envp)
{
    const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    const char *name = argv[0];
    char full[PATH_MAX];
    int error = ENOENT;

    if (*name == 0)
        fail(gate, req, STAGE_EXEC, ENOENT);
    if (strchr(name, '/')) {
        execve(name, argv, envp);
        fail(gate, req, STAGE_EXEC, errno);
    }
    for (char **entry = envp; *entry; entry++)
        if (strncmp(*entry, "PATH=", 5) == 0) {
            path = *entry + 5;
            break;
        }
    for (;;) {
        size_t len = strcspn(path, ":");
        int n = len ? snprintf(full, sizeof full, "%.*s/%s", (int)(len < PATH_MAX ? len : PATH_MAX), path, name)
                    : snprintf(full, sizeof full, "./%s", name);
        if (n > 0 && (size_t)n < sizeof full) {
            execve(full, argv, envp);
            if (errno == EACCES)
                error = EACCES;
            else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP && errno != ENAMETOOLONG)
                fail(gate, req, STAGE_EXEC, errno);
        }
        if (path[len] == 0)
            break;
        path += len + 1;
    }
    fail(gate, req, STAGE_EXEC, error);
}

static _Noreturn void run_spawn(const struct request *req, const int *fds)
{
    const int gate = fds[0];
    const uint64_t count = 1 + (uint64_t)req->argc + req->envc;

    if (tell(gate, REC_HELLO, req->job_id, getpid(), 0, -1) < 0 || await_record(gate, REC_RELEASE) < 0)
        _exit(127);
    if (req->argc == 0 || count > MAX_STRINGS)
        fail(gate, req, STAGE_REQUEST, EINVAL);
    char *cwd = load_strings(gate, req, fds[1], count);
    char **pointers = calloc(count + 1, sizeof *pointers);
    if (pointers == NULL)
        fail(gate, req, STAGE_REQUEST, ENOMEM);
    char *next = cwd + strlen(cwd) + 1;
    for (uint32_t i = 0; i < req->argc + req->envc; i++) {
        pointers[i < req->argc ? i : i + 1] = next; /* a NULL stands between the two */
        next += strlen(next) + 1;
    }
    if (req->flags & FLAG_IN_SESSION)
        lead_foreground(fds[2]);
    else
        setsid();
    if (req->flags & FLAG_PTY)
        take_terminal(gate, req);
    else
        for (int fd = 0; fd < 3; fd++)
            if (dup2(fds[2 + fd], fd) < 0)
                fail(gate, req, STAGE_STDIO, errno);
    assume_identity(gate, req);
    if (chdir(cwd) < 0)
        fail(gate, req, STAGE_CHDIR, errno);
    if ((gate > 3 && syscall(SYS_close_range, 3, gate - 1, 0) < 0) || syscall(SYS_close_range, gate + 1, INT_MAX, 0) < 0)
        fail(gate, req, STAGE_STDIO, errno);
    default_signals();
    execute(gate, req, pointers, pointers + req->argc + 1);
}

/* ---- OPEN and REPLACE -------------------------------------------------------------------------------------------- */

static int type_error(mode_t mode)
{
    return S_ISDIR(mode) ? EISDIR : EINVAL;
}

static _Noreturn void run_open(const struct request *req, const int *fds)
{
    const int gate = fds[0];
    char *path = load_strings(gate, req, fds[1], 1);
    struct stat st;

    assume_identity(gate, req);
    int fd = open_beneath(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        fail(gate, req, errno == ENXIO || errno == ENODEV ? STAGE_FILE_TYPE : STAGE_FILE, errno);
    if (fstat(fd, &st) < 0)
        fail(gate, req, STAGE_FILE, errno);
    if (!S_ISREG(st.st_mode))
        fail(gate, req, STAGE_FILE_TYPE, type_error(st.st_mode));
    if (is_kernel_fs(fd))
        fail(gate, req, STAGE_FILE, EACCES);
    tell(gate, REC_FILE, req->job_id, 0, 0, fd);
    _exit(0);
}

static void make_parents(int gate, const struct request *req, char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            fail(gate, req, STAGE_FILE, errno);
        *slash = '/';
    }
}

/* Split off the last component and open the folder it is in, from `dir` for a relative path. Returns the folder. */
static int open_folder(int gate, const struct request *req, int dir, char *path, char **name)
{
    char *slash = strrchr(path, '/');
    const char *folder = slash == NULL ? "." : slash == path ? "/" : path;

    *name = slash == NULL ? path : slash + 1;
    if (slash && slash != path)
        *slash = 0;
    if (**name == 0 || strcmp(*name, ".") == 0 || strcmp(*name, "..") == 0)
        fail(gate, req, STAGE_FILE_TYPE, EISDIR);
    int fd = open_beneath(dir, folder, O_PATH | O_DIRECTORY);
    if (fd < 0)
        fail(gate, req, STAGE_FILE, errno);
    if (is_kernel_fs(fd))
        fail(gate, req, STAGE_FILE, EACCES);
    return fd;
}

static void random_name(char *name, size_t size)
{
    uint64_t number = 0;

    if (syscall(SYS_getrandom, &number, sizeof number, 0) != sizeof number)
        number = (uint64_t)getpid();
    snprintf(name, size, ".sandboxrt-%016llx", (unsigned long long)number);
}

static _Noreturn void run_replace(const struct request *req, const int *fds)
{
    static char target[2][PATH_MAX];
    const int gate = fds[0];
    char *path = load_strings(gate, req, fds[1], 1), *name;
    char temp[32];
    mode_t mode = 0644;
    struct stat st;

    assume_identity(gate, req);
    umask(0);
    if (strlen(path) >= PATH_MAX)
        fail(gate, req, STAGE_FILE, ENAMETOOLONG);
    if (path[0] != '/')
        fail(gate, req, STAGE_REQUEST, EINVAL);
    make_parents(gate, req, path);
    int dir = open_folder(gate, req, AT_FDCWD, path, &name);
    for (int links = 0;; links++) {
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
            if (errno != ENOENT)
                fail(gate, req, STAGE_FILE, errno);
            break;
        }
        if (S_ISREG(st.st_mode)) {
            mode = st.st_mode & 0777; /* as after any write by another: no set-user-id */
            break;
        }
        if (!S_ISLNK(st.st_mode))
            fail(gate, req, STAGE_FILE_TYPE, type_error(st.st_mode));
        if (links == MAX_LINKS)
            fail(gate, req, STAGE_FILE, ELOOP);
        char *to = target[links & 1]; /* `name` may still point into the other one */
        ssize_t n = readlinkat(dir, name, to, PATH_MAX);
        if (n < 0 || n >= PATH_MAX)
            fail(gate, req, STAGE_FILE, n < 0 ? errno : ENAMETOOLONG);
        to[n] = 0;
        int from = dir;
        dir = open_folder(gate, req, from, to, &name);
        close(from);
    }
    random_name(temp, sizeof temp);
    int fd = openat(dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        fail(gate, req, STAGE_FILE, errno);
    int error = fchmod(fd, mode) < 0 ? errno : 0;
    if (error == 0 && tell(gate, REC_FILE, req->job_id, 0, 0, fd) == 0 && await_record(gate, REC_COMMIT) == 0) {
        if (renameat(dir, temp, dir, name) == 0) {
            tell(gate, REC_DONE, req->job_id, 0, 0, -1);
            _exit(0);
        }
        error = errno;
    }
    unlinkat(dir, temp, 0);
    fail(gate, req, STAGE_FILE, error);
}

/* ---- pid 1 ------------------------------------------------------------------------------------------------------- */

static void write_oom(const char *text)
{
    /* For those who read along: the value a child is born with is its parent's. Failure is harmless, the host's
       kernel then chooses by size alone. */
    if (oom_fd >= 0)
        (void)!pwrite(oom_fd, text, strlen(text), 0);
}

static pid_t fork_job(const struct request *req)
{
    char text[16];

    /* Raised around the fork, through a descriptor opened at the start: the child is born with its parent's value and
       needs no right of its own to that file, which may belong to somebody else while it is not dumpable. */
    if (req->oom_score_adj != 0) {
        snprintf(text, sizeof text, "%d", (int)req->oom_score_adj);
        write_oom(text);
    }
    pid_t pid = fork();
    int error = errno;
    if (pid != 0 && req->oom_score_adj != 0)
        write_oom(oom_own);
    errno = error;
    return pid;
}

static void start_job(const struct request *req, const int *fds)
{
    const int tracked = req->kind == REQ_SPAWN;

    if (tracked && job_count == MAX_JOBS) {
        tell_at_once(fds[0], REC_FAILED, req->job_id, STAGE_FORK, EAGAIN, -1);
        return;
    }
    pid_t pid = fork_job(req);
    if (pid < 0) {
        tell_at_once(fds[0], REC_FAILED, req->job_id, STAGE_FORK, errno, -1);
        return;
    }
    if (pid == 0) {
        close(CONTROL);
        close(signal_fd);
        if (oom_fd >= 0)
            close(oom_fd);
        if (req->kind == REQ_SPAWN)
            run_spawn(req, fds);
        if (req->kind == REQ_OPEN)
            run_open(req, fds);
        run_replace(req, fds);
    }
    if (tracked) {
        jobs[job_count].pid = pid;
        jobs[job_count++].job_id = req->job_id;
    }
}

static void make_socket(const struct request *req, int gate)
{
    int sock = socket(req->argument, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (sock < 0)
        tell_at_once(gate, REC_FAILED, req->job_id, STAGE_SOCKET, errno, -1);
    else
        tell_at_once(gate, REC_SOCKET, req->job_id, 0, 0, sock);
    if (sock >= 0)
        close(sock);
}

static void signal_job(const struct request *req)
{
    for (int i = 0; i < job_count; i++)
        if (jobs[i].job_id == req->job_id) {
            /* Before its setsid the leader has no group of its own yet: then the signal is for it alone. */
            if (kill(-jobs[i].pid, (int)req->argument) < 0)
                kill(jobs[i].pid, (int)req->argument);
            return;
        }
}

static void handle(const struct request *req, const int *fds, int fd_count)
{
    static const int plain_fds[] = {
        [REQ_SPAWN] = 5, [REQ_OPEN] = 2, [REQ_REPLACE] = 2, [REQ_SOCKET] = 1, [REQ_SIGNAL] = 0};

    if (req->magic != MAGIC || req->kind < REQ_SPAWN || req->kind > REQ_SIGNAL || req->group_count > MAX_GROUPS)
        return;
    const int has_null_input = req->kind == REQ_SPAWN && !(req->flags & FLAG_PTY) && !req->argument;
    if (fd_count != (req->kind == REQ_SPAWN && (req->flags & FLAG_PTY) ? 2 : plain_fds[req->kind] - has_null_input))
        return;
    if (has_null_input) {
        const int all[MAX_FDS] = {fds[0], fds[1], null_fd, fds[2], fds[3]};
        start_job(req, all);
        return;
    }
    if (req->kind == REQ_SOCKET)
        make_socket(req, fds[0]);
    else if (req->kind == REQ_SIGNAL)
        signal_job(req);
    else
        start_job(req, fds);
}

/* Take one request. What is malformed is dropped with its descriptors, which the host sees as the end of the gate. */
static int serve_one(void)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    static struct request req;
    struct iovec iov = {.iov_base = &req, .iov_len = sizeof req};
    /* The length, not the space: its padding would have room for one descriptor more. */
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = CMSG_LEN(MAX_FDS * sizeof(int))};
    int fds[MAX_FDS], fd_count = 0;
    ssize_t n = recvmsg(CONTROL, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : -1;
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        int count = (int)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < count && fd_count < MAX_FDS; i++)
            memcpy(&fds[fd_count++], CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
    }
    if (n == 0 && fd_count == 0)
        return -1; /* the end; an empty message from the host does not exist */
    if (n == sizeof req && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        handle(&req, fds, fd_count);
    for (int i = 0; i < fd_count; i++)
        close(fds[i]);
    return 0;
}

static int reap(void)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < job_count; i++)
            if (jobs[i].pid == pid) {
                uint64_t job_id = jobs[i].job_id;
                jobs[i] = jobs[--job_count];
                if (tell(CONTROL, REC_EXITED, job_id, status, 0, -1) < 0)
                    return -1;
                break;
            }
    return 0;
}

/* The container's own null device: the host's is never passed in, for its node could be changed through it. Where the
 * sandbox's root has put something else in its place, an empty pipe. Not blocking, because that may be a FIFO. */
static int open_null(void)
{
    int fd = open("/dev/null", O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), ends[2];
    struct stat st;

    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3) &&
        fcntl(fd, F_SETFL, O_RDONLY) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    close(ends[1]);
    return ends[0];
}

static void remember_oom(void)
{
    ssize_t n = -1;

    oom_fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (oom_fd >= 0)
        n = read(oom_fd, oom_own, sizeof oom_own - 1);
    if (oom_fd >= 0 && n <= 0) {
        close(oom_fd);
        oom_fd = -1;
    }
}

#include "relay.h"

int main(int argc, char **argv)
{
    const int is_socket_served = argc < 2;
    sigset_t all;

    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return 1;
    if (syscall(SYS_close_range, is_socket_served ? CONTROL + 1 : CONTROL, INT_MAX, 0) < 0)
        return 1;
    if (is_socket_served && fcntl(CONTROL, F_SETFD, FD_CLOEXEC) < 0)
        return 1;
    oom_fd = -1;
    if (is_socket_served)
        remember_oom();
    null_fd = open_null();
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        return 1;
    sigfillset(&all);
    if (sigprocmask(SIG_SETMASK, &all, NULL) < 0)
        return 1;
    sigemptyset(&all);
    sigaddset(&all, SIGCHLD);
    /* A parent that ignored SIGCHLD would have the kernel reap in our stead. */
    if (signal(SIGCHLD, SIG_DFL) == SIG_ERR || (signal_fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
        return 1;
    if (!is_socket_served && strcmp(argv[1], "relay") == 0)
        relay();
    if (!is_socket_served)
        hold();
    if (tell(CONTROL, REC_READY, 0, 0, 0, -1) < 0)
        return 0;
    for (;;) {
        struct pollfd fds[2] = {{.fd = CONTROL, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
        struct signalfd_siginfo info;

        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return 1;
        if (fds[1].revents) {
            while (read(signal_fd, &info, sizeof info) > 0)
                ;
            if (reap() < 0)
                return 0;
        }
        if (fds[0].revents && serve_one() < 0)
            return 0;
    }
}
