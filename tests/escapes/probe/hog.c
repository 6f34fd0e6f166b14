/*
 * Using up what is shared, hiding processes, and racing the host for files (items 12 to 21).
 *
 * Every hog has a bound of its own on its command line, and holds what it took until its standard input ends.
 */
#include "probe.h"

#include <sched.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#define PROBE(name) static int name(int argc __attribute__((unused)), char **argv __attribute__((unused)))

static void hold(void) {
    char byte;
    fflush(stdout);
    alarm(60);
    while (read(0, &byte, 1) > 0) {
    }
}
static int took(long count) {
    printf("%ld %s\n", count, strerrorname_np(errno));
    hold();
    return 0;
}

PROBE(forks) {
    long max = atol(argument(argc, argv, 1)), count = 0;
    errno = 0;
    for (; count < max; count++) {
        pid_t pid = fork();
        if (pid < 0) {
            break;
        }
        if (pid == 0) {
            signal(SIGTERM, SIG_IGN);
            alarm(60);
            for (;;) {
                pause();
            }
        }
    }
    return took(count);
}
PROBE(memory) {
    size_t max = atol(argument(argc, argv, 1)), step = 1 << 20;
    for (size_t used = 0; used < max; used += step) {
        char *block = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED) {
            return took(used);
        }
        memset(block, 1, step);
    }
    return took(max);
}
PROBE(fill) {
    static char block[1 << 18];
    long max = atol(argument(argc, argv, 2)), used = 0;
    int fd = open(argument(argc, argv, 1), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    memset(block, 1, sizeof block);
    errno = 0;
    while (fd >= 0 && used < max) {
        ssize_t n = write(fd, block, sizeof block);
        if (n < 0) {
            break;
        }
        used += n;
    }
    if (fd >= 0 && errno == 0 && fsync(fd) == 0) {
        errno = 0;
    }
    return took(used);
}
PROBE(inodes) {
    long max = atol(argument(argc, argv, 2)), count = 0;
    if (mkdir(argument(argc, argv, 1), 0700) < 0 || chdir(argv[1]) < 0) {
        return verdict(-1);
    }
    errno = 0;
    for (; count < max; count++) {
        char name[32];
        snprintf(name, sizeof name, "%ld", count);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        if (fd < 0) {
            break;
        }
        close(fd);
    }
    return took(count);
}
PROBE(descriptors) {
    long max = atol(argument(argc, argv, 1)), count = 0;
    errno = 0;
    while (count < max && dup(0) >= 0) {
        count++;
    }
    return took(count);
}
PROBE(pipes) {
    long max = atol(argument(argc, argv, 1)), count = 0;
    static char page[65536];
    int ends[2];
    errno = 0;
    while (count < max && pipe2(ends, O_NONBLOCK) == 0) {
        if (write(ends[1], page, sizeof page) < 0) {
            break;
        }
        count++;
    }
    return took(count);
}
PROBE(terminals) {
    long max = atol(argument(argc, argv, 1)), count = 0;
    errno = 0;
    while (count < max && open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0) {
        count++;
    }
    return took(count);
}
PROBE(inotify) {
    long max = atol(argument(argc, argv, 1)), count = 0;
    errno = 0;
    while (count < max && inotify_init() >= 0) {
        count++;
    }
    return took(count);
}
/* spin SECONDS PROCESSES: prints the CPU time that all of them got, in milliseconds. */
PROBE(spin) {
    double seconds = atof(argument(argc, argv, 1));
    int count = atoi(argument(argc, argv, 2));
    int ends[2];
    long total_ms = 0, ms;
    if (pipe(ends) < 0) {
        return verdict(-1);
    }
    for (int i = 0; i < count; i++) {
        if (fork() == 0) {
            struct timespec start, now, cpu;
            clock_gettime(CLOCK_MONOTONIC, &start);
            do {
                clock_gettime(CLOCK_MONOTONIC, &now);
            } while ((now.tv_sec - start.tv_sec) + (now.tv_nsec - start.tv_nsec) / 1e9 < seconds);
            clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
            ms = cpu.tv_sec * 1000 + cpu.tv_nsec / 1000000;
            if (write(ends[1], &ms, sizeof ms) < 0) {
                _exit(1);
            }
            _exit(0);
        }
    }
    close(ends[1]);
    while (read(ends[0], &ms, sizeof ms) == sizeof ms) {
        total_ms += ms;
    }
    printf("%ld\n", total_ms);
    return 0;
}
/* daemons N: double-forked, in sessions of their own, deaf to everything that can be ignored. */
PROBE(daemons) {
    int count = atoi(argument(argc, argv, 1));
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            setsid();
            if (fork() == 0) {
                for (int signum = 1; signum < 32; signum++) {
                    signal(signum, SIG_IGN);
                }
                for (int fd = 0; fd < 3; fd++) {
                    close(fd);
                }
                for (int second = 0; second < 60; second++) {
                    sleep(1);
                }
            }
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    printf("%d\n", count);
    return 0;
}
/* Counts the processes that are visible here and whose name is this program's, itself left out. */
PROBE(census) {
    int count = 0;
    for (int pid = 2; pid < 32768; pid++) {
        char path[64], name[64] = "";
        snprintf(path, sizeof path, "/proc/%d/comm", pid);
        int fd = open(path, O_RDONLY);
        if (fd >= 0) {
            if (read(fd, name, sizeof name - 1) > 0 && strncmp(name, "probe", 5) == 0 && pid != getpid()) {
                count++;
            }
            close(fd);
        }
    }
    printf("%d\n", count);
    return 0;
}

/* swap A B: exchanges two names until standard input ends, at most 30 s. Prints how often. */
PROBE(swap) {
    const char *a = argument(argc, argv, 1), *b = argument(argc, argv, 2);
    long count = 0;
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    fcntl(0, F_SETFL, O_NONBLOCK);
    printf("ready\n");
    fflush(stdout);
    do {
        for (int i = 0; i < 64; i++) {
            if (syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 2 /* RENAME_EXCHANGE */) < 0) {
                return verdict(-1);
            }
            count++;
            sched_yield();
        }
        char byte;
        if (read(0, &byte, 1) == 0) {
            break;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec < 30);
    printf("%ld\n", count);
    return 0;
}
PROBE(deep) {
    int levels = atoi(argument(argc, argv, 2));
    if (mkdir(argument(argc, argv, 1), 0700) < 0 || chdir(argv[1]) < 0) {
        return verdict(-1);
    }
    for (int i = 0; i < levels; i++) {
        if (mkdir("a", 0700) < 0 || chdir("a") < 0) {
            return verdict(-1);
        }
    }
    printf("%d\n", levels);
    return 0;
}
/* Makes what is not a regular file: fifo, socket, and links to devices and kernel files. */
PROBE(specials) {
    static const char *const links[][2] = {
        {"zero", "/dev/zero"}, {"ptmx", "/dev/ptmx"}, {"kmsg", "/proc/kmsg"}, {"mem", "/proc/self/mem"},
        {"init-mem", "/proc/1/mem"}, {"init-root", "/proc/1/root"}, {"self-root", "/proc/self/root"},
        {"tty", "/dev/tty"}, {"fd", "/proc/self/fd"}, {"loop", "loop"},
    };
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (mkdir(argument(argc, argv, 1), 0755) < 0 || chdir(argv[1]) < 0 || mkfifo("fifo", 0666) < 0 ||
        bind(fd, (struct sockaddr *)&name, sizeof name) < 0) {
        return verdict(-1);
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        if (symlink(links[i][1], links[i][0]) < 0) {
            return verdict(-1);
        }
    }
    printf("made\n");
    return 0;
}
/* symlink TARGET PATH; directory PATH MODE UID; owner PATH. */
PROBE(symlink_) { return verdict(symlink(argument(argc, argv, 1), argument(argc, argv, 2))); }
PROBE(directory) {
    mode_t mode = strtol(argument(argc, argv, 2), NULL, 8);
    uid_t uid = atoi(argument(argc, argv, 3));
    if (mkdir(argv[1], 0700) < 0 || chown(argv[1], uid, uid) < 0) {
        return verdict(-1);
    }
    return verdict(chmod(argv[1], mode));
}
PROBE(owner) {
    struct stat st;
    if (lstat(argument(argc, argv, 1), &st) < 0) {
        return verdict(-1);
    }
    printf("%d %d %o\n", st.st_uid, st.st_gid, st.st_mode & 07777);
    return 0;
}
PROBE(wait_) {
    printf("ready\n");
    hold();
    return 0;
}

const struct probe hogs[] = {
    {"forks", forks}, {"memory", memory}, {"fill", fill}, {"inodes", inodes}, {"descriptors", descriptors},
    {"pipes", pipes}, {"inotify", inotify}, {"terminals", terminals}, {"spin", spin}, {"daemons", daemons}, {"census", census}, {"swap", swap},
    {"deep", deep}, {"specials", specials}, {"symlink", symlink_}, {"directory", directory}, {"owner", owner},
    {"wait", wait_}, {NULL, NULL},
};
