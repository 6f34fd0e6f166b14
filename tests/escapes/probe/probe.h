/*
 * Escape attempts, one per subcommand.
 *
 * Every attempt passes arguments that the kernel accepts, so that only policy can refuse it, and prints one line:
 * "refused <ERRNO>" or "ALLOWED <detail>". Attempts stop at the point where success is proven: files are opened, never
 * written, and calls that would change the machine are made in a form that changes nothing.
 */
#ifndef PROBE_H
#define PROBE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

struct probe {
    const char *name;
    int (*run)(int argc, char **argv); /* argv[0] is the name */
};

extern const struct probe kernel_probes[];
extern const struct probe process_probes[];
extern const struct probe mount_probes[];
extern const struct probe net_probes[];
extern const struct probe file_probes[];
extern const struct probe hogs[];
extern const struct probe neighbour_probes[];

/* Says whether a call that returned `ret` was refused; errno is the call's. */
int verdict(long ret);
/* The same for a call whose arguments are meant to fail after the permission check, with `passed`. */
int verdict_unless(long ret, int passed);
int refused(const char *why);
int allowed(const char *detail);
/* argv[index], or ends the process with a message. */
const char *argument(int argc, char **argv, int index);

#endif
