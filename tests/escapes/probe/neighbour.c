/* What one sandbox offers and another must not find: every way in which two processes of one machine can meet. */
#include "probe.h"

#include <arpa/inet.h>
#include <mqueue.h>
#include <stddef.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PROBE(name) static int name(int argc __attribute__((unused)), char **argv __attribute__((unused)))

enum { KEY = 0x5b0ca7 };

static void need(long ret, const char *what) {
    if (ret < 0) {
        printf("%s: %s\n", what, strerrorname_np(errno));
        exit(2);
    }
}
static void listen_unix(const char *name, int abstract) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(at.sun_path + abstract, name, sizeof at.sun_path - 2);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name);
    need(bind(fd, (struct sockaddr *)&at, length), name);
    need(listen(fd, 10), name);
}
/* occupy NAME PORT: takes the name in every name space that there is, until standard input ends. */
PROBE(occupy) {
    const char *name = argument(argc, argv, 1);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argument(argc, argv, 2)))};
    char path[128], byte;
    static const char *const files[] = {"/tmp/%s", "/dev/shm/%s", "/root/%s"};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    need(bind(fd, (struct sockaddr *)&at, sizeof at), "tcp");
    need(listen(fd, 10), "tcp");
    listen_unix(name, 1);
    snprintf(path, sizeof path, "/tmp/%s.socket", name);
    listen_unix(path, 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, files[i], name);
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
        need(fd, path);
        need(write(fd, "secret", 6), path);
    }
    snprintf(path, sizeof path, "/%s", name);
    need(mq_open(path, O_RDWR | O_CREAT | O_EXCL, 0644, NULL), "mq_open");
    need(shmget(KEY, 4096, IPC_CREAT | IPC_EXCL | 0666), "shmget");
    need(msgget(KEY, IPC_CREAT | IPC_EXCL | 0666), "msgget");
    need(semget(KEY, 1, IPC_CREAT | IPC_EXCL | 0666), "semget");
    printf("ready\n");
    fflush(stdout);
    alarm(60);
    while (read(0, &byte, 1) > 0) {
    }
    return 0;
}
PROBE(queue) { return verdict(mq_open(argument(argc, argv, 1), O_RDONLY)); }
PROBE(shared_memory) { return verdict(shmget(KEY, 0, 0)); }
PROBE(messages) { return verdict(msgget(KEY, 0)); }
PROBE(semaphores) { return verdict(semget(KEY, 0, 0)); }

const struct probe neighbour_probes[] = {
    {"occupy", occupy}, {"queue", queue}, {"shared_memory", shared_memory}, {"messages", messages},
    {"semaphores", semaphores}, {NULL, NULL},
};
