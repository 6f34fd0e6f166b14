/*
 * probe NAME [ARG...]            makes one attempt and prints its verdict
 * probe batch NAME[,ARG...]...   makes many, each in a child of its own, and prints "NAME,ARG... <length>\n<output>\n"
 * probe control NAME[,ARG...]... the same, each child in namespaces of its own: for the host's root
 */
#include "probe.h"

#include <sched.h>
#include <sys/mount.h>

static const struct probe *const tables[] = {
    kernel_probes, process_probes, mount_probes, net_probes, file_probes, hogs, neighbour_probes,
};

int verdict(long ret) {
    if (ret >= 0) {
        printf("ALLOWED %ld\n", ret);
    } else {
        printf("refused %s\n", strerrorname_np(errno));
    }
    return 0;
}

int verdict_unless(long ret, int passed) {
    if (ret < 0 && errno == passed) {
        printf("ALLOWED as far as %s\n", strerrorname_np(passed));
        return 0;
    }
    return verdict(ret);
}

int refused(const char *why) {
    printf("refused %s\n", why);
    return 0;
}

int allowed(const char *detail) {
    printf("ALLOWED %s\n", detail);
    return 0;
}

const char *argument(int argc, char **argv, int index) {
    if (index >= argc) {
        fprintf(stderr, "%s: argument %d is missing\n", argv[0], index);
        exit(2);
    }
    return argv[index];
}

static int dispatch(int argc, char **argv) {
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++) {
        for (const struct probe *p = tables[t]; p->name; p++) {
            if (strcmp(p->name, argv[0]) == 0) {
                return p->run(argc, argv);
            }
        }
    }
    printf("no such probe\n");
    return 2;
}

/* Splits "NAME,ARG,ARG" in place. */
static int split(char *text, char **argv, int max) {
    int argc = 0;
    for (char *word = strtok(text, ","); word && argc < max; word = strtok(NULL, ",")) {
        argv[argc++] = word;
    }
    argv[argc] = NULL;
    return argc;
}

/* What an attempt that is not refused mounts, unmounts and names must not stay on the host. */
static void confine(void) {
    if (unshare(CLONE_NEWNS | CLONE_NEWUTS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        printf("no namespaces: %s\n", strerrorname_np(errno));
        exit(2);
    }
}

static void batch_one(const char *spec, int confined) {
    int pipefd[2];
    if (pipe(pipefd) < 0) {
        exit(3);
    }
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0) {
        exit(3);
    }
    if (pid == 0) {
        char *text = strdup(spec);
        char *argv[16];
        dup2(pipefd[1], 1);
        close(pipefd[0]);
        close(pipefd[1]);
        alarm(confined ? 60 : 8); /* what is allowed may load modules first */
        if (confined) {
            confine();
        }
        int rc = dispatch(split(text, argv, 15), argv);
        fflush(stdout);
        _exit(rc);
    }
    close(pipefd[1]);
    static char output[1 << 18];
    size_t used = 0;
    ssize_t got;
    while (used < sizeof output - 64 && (got = read(pipefd[0], output + used, sizeof output - 64 - used)) > 0) {
        used += got;
    }
    close(pipefd[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) {
        used += sprintf(output + used, "refused SIG%s\n", sigabbrev_np(WTERMSIG(status)));
    }
    printf("%s %zu\n", spec, used);
    fwrite(output, 1, used, stdout);
    printf("\n");
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: probe NAME [ARG...] | probe batch NAME[,ARG...]...\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    int confined = strcmp(argv[1], "control") == 0;
    if (!confined && strcmp(argv[1], "batch") != 0) {
        int rc = dispatch(argc - 1, argv + 1);
        fflush(stdout);
        return rc;
    }
    for (int i = 2; i < argc; i++) {
        batch_one(argv[i], confined);
    }
    return 0;
}
