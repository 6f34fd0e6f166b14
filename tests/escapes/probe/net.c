/* Socket families and addresses (items 6 and 7). */
#include "probe.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define PROBE(name) static int name(int argc __attribute__((unused)), char **argv __attribute__((unused)))

/* socket FAMILY TYPE PROTOCOL, numbers; "high" as a fourth argument sets bits that the kernel ignores. */
PROBE(socket_) {
    long family = atol(argument(argc, argv, 1));
    long type = atol(argument(argc, argv, 2));
    long protocol = atol(argument(argc, argv, 3));
    if (argc > 4) {
        family |= 0x1234500000000l;
    }
    return verdict(syscall(SYS_socket, family, type, protocol));
}
/* Every other family, every type: none may open. */
PROBE(socket_sweep) {
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_RDM};
    int last = EAFNOSUPPORT;
    for (int family = 0; family < 64; family++) {
        if (family == AF_UNIX || family == AF_INET || family == AF_INET6 || family == AF_NETLINK) {
            continue;
        }
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            char detail[64];
            if (syscall(SYS_socket, family, types[t], 0) >= 0) {
                snprintf(detail, sizeof detail, "family %d type %d", family, types[t]);
                return allowed(detail);
            }
            if (errno == EPERM || errno == EACCES) {
                last = errno;
            } else if (errno != EAFNOSUPPORT) {
                snprintf(detail, sizeof detail, "family %d type %d as far as %s", family, types[t], strerrorname_np(errno));
                return allowed(detail);
            }
        }
    }
    return refused(strerrorname_np(last));
}

static int address(const char *host, int port, struct sockaddr_storage *out, socklen_t *length) {
    struct sockaddr_in *four = (struct sockaddr_in *)out;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        *length = sizeof *four;
        return AF_INET;
    }
    if (inet_pton(AF_INET6, host, &six->sin6_addr) != 1) {
        printf("not an address: %s\n", host);
        exit(2);
    }
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    *length = sizeof *six;
    return AF_INET6;
}
PROBE(tcp) {
    struct sockaddr_storage to;
    socklen_t length;
    int family = address(argument(argc, argv, 1), atoi(argument(argc, argv, 2)), &to, &length);
    int fd = socket(family, SOCK_STREAM, 0);
    return verdict(connect(fd, (struct sockaddr *)&to, length));
}
/* Connecting a datagram socket asks for a route and sends nothing. */
PROBE(route) {
    struct sockaddr_storage to;
    socklen_t length;
    int family = address(argument(argc, argv, 1), 80, &to, &length);
    int fd = socket(family, SOCK_DGRAM, 0);
    return verdict(connect(fd, (struct sockaddr *)&to, length));
}
PROBE(abstract) {
    const char *name = argument(argc, argv, 1);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memcpy(to.sun_path + 1, name, strlen(name));
    return verdict(connect(fd, (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)));
}
PROBE(unix_path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(to.sun_path, argument(argc, argv, 1), sizeof to.sun_path - 1);
    return verdict(connect(fd, (struct sockaddr *)&to, sizeof to));
}
PROBE(interfaces) {
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *one = all; one && one->if_index; one++) {
        printf("%s\n", one->if_name);
    }
    return 0;
}
/* Takes loopback down and up again: what CAP_NET_ADMIN gives. */
PROBE(interface_flags) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0) {
        return verdict(-1);
    }
    return verdict(ioctl(fd, SIOCSIFFLAGS, &request));
}

const struct probe net_probes[] = {
    {"socket", socket_}, {"socket_sweep", socket_sweep}, {"tcp", tcp}, {"route", route}, {"abstract", abstract},
    {"unix_path", unix_path}, {"interfaces", interfaces}, {"interface_flags", interface_flags}, {NULL, NULL},
};
