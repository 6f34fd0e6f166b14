/*
 * The same jobs for a host whose runtime passes no descriptors but standard input and output (gVisor, for one).
 *
 * Two ways to start this program, both with one word as argument:
 *
 *   hold    as pid 1: reap orphans, and exit when standard input ends, which its owner on the host holds open
 *   relay   by the runtime's own exec: do one job, and speak about it in frames on standard input and output
 *
 * A relay stands where the host stands for pid 1 otherwise: it makes the gate and the pipes, forks the child that does
 * the job (the same code), takes the descriptors that come out of the gate, and carries what goes through them as
 * frames. A frame is a header and `length` bytes. The first thing that the host sends is no frame but a request and its
 * strings. Neither side sends bytes of a stream beyond the other's credit, so that frames about signals and exits are
 * never stuck behind data. The end of standard input ends the job. A connection speaks in frames until it stands; then
 * standard input and output, which are one socket, are the connection.
 */

#include <termios.h>

enum { FRAME_BYTES = 1 << 16, INPUT_WINDOW = 1 << 18, STREAMS = 2 };

enum frame_kind {
    /* from the host */
    FRAME_INPUT = 1,     /* bytes for standard input or the file */
    FRAME_INPUT_END = 2, /* after them nothing */
    FRAME_CREDIT = 3,    /* a: stream, b: bytes that may come */
    FRAME_SIGNAL = 4,    /* a: number */
    FRAME_RESIZE = 5,    /* a: columns, b: rows */
    FRAME_READ = 6,      /* a: bytes; the payload is the offset */
    FRAME_COMMIT = 7,
    FRAME_DROP = 8, /* a: stream that nobody wants any more */
    /* to the host */
    FRAME_HELLO = 16,
    FRAME_STARTED = 17, /* a: process id inside */
    FRAME_FAILED = 18,  /* a: stage, b: errno */
    FRAME_EXITED = 19,  /* a: wait status */
    FRAME_OUTPUT = 20,  /* a: stream */
    FRAME_OUTPUT_END = 21,
    FRAME_TAKEN = 22,      /* b: bytes of input that went on */
    FRAME_INPUT_GONE = 23, /* nobody reads any more */
    FRAME_FILE = 24,       /* payload: size and modification time in ns, 64 bits each */
    FRAME_DATA = 25,
    FRAME_DONE = 26,
};

struct frame {
    uint32_t kind, length;
    int32_t a, b;
};

static char frame_data[FRAME_BYTES];

static struct {
    pid_t leader; /* not reaped yet; 0 for none */
    int has_terminal, has_ended;
    int is_exit_due, status; /* the leader was reaped, and the host does not know yet */
    char terminal[32]; /* the name of one that we lead the session of, and make the signals for; else empty */
    int input; /* where input goes, or -1 */
    char pending[INPUT_WINDOW];
    size_t pending_start, pending_end;
    struct {
        int fd; /* -1 after its end */
        int64_t credit;
        int64_t owed; /* bytes that the leader, or another, had written when it ended */
    } output[STREAMS];
} session = {.input = -1, .output = {{.fd = -1}, {.fd = -1}}};

/* After a failed read or write: whether to try again, once that is possible. The host's descriptors may not wait, for
   whoever else has them decides that (gVisor's kernel). */
static int may_go_on(int fd, short events)
{
    struct pollfd wait = {.fd = fd, .events = events};

    if (errno == EAGAIN)
        return poll(&wait, 1, -1) > 0;
    return errno == EINTR;
}

static int read_fully(int fd, void *into, size_t size)
{
    char *next = into;

    while (size > 0) {
        ssize_t n = read(fd, next, size);
        if (n < 0 && may_go_on(fd, POLLIN))
            continue;
        if (n <= 0)
            return -1;
        next += n;
        size -= (size_t)n;
    }
    return 0;
}

static int write_fully(int fd, const void *from, size_t size)
{
    const char *next = from;

    while (size > 0) {
        ssize_t n = write(fd, next, size);
        if (n < 0 && may_go_on(fd, POLLOUT))
            continue;
        if (n < 0)
            return -1;
        next += n;
        size -= (size_t)n;
    }
    return 0;
}

static void end_session(void);

/* Signals are blocked, so a host that has gone is an error here and not the end by SIGPIPE. */
static void say(uint32_t kind, int32_t a, int32_t b, const void *data, uint32_t length)
{
    struct frame head = {.kind = kind, .length = length, .a = a, .b = b};

    if (write_fully(1, &head, sizeof head) < 0 || (length && write_fully(1, data, length) < 0)) {
        end_session();
        _exit(1);
    }
}

static _Noreturn void give_up(int stage, int error)
{
    say(FRAME_FAILED, stage, error, NULL, 0);
    _exit(1);
}

static int hear(struct frame *head)
{
    if (read_fully(0, head, sizeof *head) < 0 || head->length > FRAME_BYTES)
        return -1;
    return head->length ? read_fully(0, frame_data, head->length) : 0;
}

/* One record from the child, with its descriptor if it has one. -1 at the end. */
static int receive_record(int gate, struct record *rec, int *fd)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = rec, .iov_len = sizeof *rec};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;

    do
        n = recvmsg(gate, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    *fd = -1;
    struct cmsghdr *cmsg = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(cmsg), sizeof *fd);
    return n == sizeof *rec && rec->magic == MAGIC ? 0 : -1;
}

/* ---- a running program, or a connection -------------------------------------------------------------------------- */

static void end_session(void)
{
    if (session.leader > 0) {
        kill(-session.leader, SIGKILL);
        kill(session.leader, SIGKILL);
    }
}

static void drop_input(void)
{
    if (session.input >= 0)
        close(session.input);
    session.input = -1;
    session.pending_start = session.pending_end = 0;
}

static void finish_input(void)
{
    if (!session.has_terminal) /* there the character that was typed says it */
        drop_input();
}

static void take_input(const struct frame *head)
{
    if (session.input < 0)
        return;
    if (session.pending_start > 0) {
        memmove(session.pending, session.pending + session.pending_start, session.pending_end - session.pending_start);
        session.pending_end -= session.pending_start;
        session.pending_start = 0;
    }
    if (head->length > INPUT_WINDOW - session.pending_end) {
        end_session();
        _exit(1);
    }
    memcpy(session.pending + session.pending_end, frame_data, head->length);
    session.pending_end += head->length;
}

/* gVisor's terminals make no signals of ^C and the like: for those, we do. Returns how much of the input comes before
   such a character; with none before it, the signal was sent and `*signum` says which. */
static size_t until_signal(const char *data, size_t size, int *signum)
{
    static const struct {
        int index, signum;
    } keys[] = {{VINTR, SIGINT}, {VQUIT, SIGQUIT}, {VSUSP, SIGTSTP}};
    struct termios mode;

    *signum = 0;
    if (!session.terminal[0] || tcgetattr(session.input, &mode) < 0 || !(mode.c_lflag & ISIG))
        return size;
    for (size_t i = 0; i < size; i++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            if ((cc_t)data[i] == mode.c_cc[keys[k].index] && data[i] != 0) {
                if (i == 0)
                    *signum = keys[k].signum;
                return i;
            }
    return size;
}

static void signal_foreground(int signum)
{
    int fd = open(session.terminal, O_RDWR | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    pid_t group = 0;

    if (fd >= 0 && ioctl(fd, TIOCGPGRP, &group) == 0 && group > 1)
        kill(-group, signum);
    if (fd >= 0)
        close(fd);
}

static void pass_input(void)
{
    int signum;
    const char *data = session.pending + session.pending_start;
    size_t size = until_signal(data, session.pending_end - session.pending_start, &signum);
    ssize_t n = signum ? 1 : write(session.input, data, size);

    if (signum)
        signal_foreground(signum);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        drop_input();
        say(FRAME_INPUT_GONE, 0, 0, NULL, 0);
        return;
    }
    session.pending_start += (size_t)n;
    say(FRAME_TAKEN, 0, (int32_t)n, NULL, 0);
    if (session.pending_start == session.pending_end) {
        session.pending_start = session.pending_end = 0;
        if (session.has_ended)
            finish_input();
    }
}

static void drop_output(int stream)
{
    if (session.output[stream].fd >= 0)
        close(session.output[stream].fd);
    session.output[stream].fd = -1;
}

static void pass_output(int stream)
{
    static char data[FRAME_BYTES];
    int64_t most = session.output[stream].credit < FRAME_BYTES ? session.output[stream].credit : FRAME_BYTES;
    ssize_t n = read(session.output[stream].fd, data, (size_t)most);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0) {
        session.output[stream].credit -= n;
        session.output[stream].owed -= n;
        say(FRAME_OUTPUT, stream, 0, data, (uint32_t)n);
        return;
    }
    drop_output(stream);
    say(FRAME_OUTPUT_END, stream, 0, NULL, 0);
}

static void obey(const struct frame *head)
{
    struct winsize size = {.ws_col = (unsigned short)head->a, .ws_row = (unsigned short)head->b};

    switch (head->kind) {
    case FRAME_INPUT:
        take_input(head);
        break;
    case FRAME_INPUT_END:
        session.has_ended = 1;
        if (session.pending_start == session.pending_end)
            finish_input();
        break;
    case FRAME_CREDIT:
        if (head->a >= 0 && head->a < STREAMS && head->b > 0)
            session.output[head->a].credit += head->b;
        break;
    case FRAME_SIGNAL:
        if (session.leader > 0 && kill(-session.leader, head->a) < 0)
            kill(session.leader, head->a);
        break;
    case FRAME_DROP:
        if (head->a >= 0 && head->a < STREAMS)
            drop_output(head->a);
        break;
    case FRAME_RESIZE:
        if (session.has_terminal && session.output[0].fd >= 0)
            ioctl(session.output[0].fd, TIOCSWINSZ, &size);
        if (session.terminal[0])
            signal_foreground(SIGWINCH);
        break;
    }
}

/* What the end of a session's leader does to its terminal, where we lead in place of the program. */
static void hang_up(void)
{
    signal_foreground(SIGHUP);
    for (int passes = 0; session.output[0].fd >= 0 && session.output[0].credit > 0 && passes < 64; passes++) {
        struct pollfd rest = {.fd = session.output[0].fd, .events = POLLIN};
        if (poll(&rest, 1, 0) <= 0)
            break;
        pass_output(0);
    }
    if (session.output[0].fd >= 0) {
        drop_output(0);
        say(FRAME_OUTPUT_END, 0, 0, NULL, 0);
    }
    drop_input();
}

static int waiting_in(int fd)
{
    int size = 0;

    return fd >= 0 && ioctl(fd, FIONREAD, &size) == 0 ? size : 0;
}

/* The host takes an exit for the end of what the leader had to say. So whatever was in the pipes when it was reaped goes
   before, as credit allows; what others write on and on does not hold it up. */
static void say_exit_when_due(void)
{
    if (!session.is_exit_due)
        return;
    for (int i = 0; i < STREAMS; i++)
        if (session.output[i].fd >= 0 && session.output[i].owed > 0)
            return;
    session.is_exit_due = 0;
    say(FRAME_EXITED, session.status, 0, NULL, 0);
}

static void reap_leader(void)
{
    struct signalfd_siginfo info;
    int status;
    pid_t pid;

    while (read(signal_fd, &info, sizeof info) > 0)
        ;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == session.leader) {
            session.leader = 0;
            if (session.terminal[0])
                hang_up();
            session.is_exit_due = 1;
            session.status = status;
            for (int i = 0; i < STREAMS; i++)
                session.output[i].owed = waiting_in(session.output[i].fd);
        }
}

static _Noreturn void carry(void)
{
    enum { HOST, CHILDREN, INPUT, OUTPUT };
    struct frame head;

    for (;;) {
        struct pollfd fds[OUTPUT + STREAMS] = {{.fd = 0, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
        int is_pending = session.pending_end > session.pending_start;
        int is_open = session.output[0].fd >= 0 || session.output[1].fd >= 0;

        if (!is_open && session.leader == 0)
            _exit(0);
        fds[INPUT] = (struct pollfd){.fd = is_pending ? session.input : -1, .events = POLLOUT};
        for (int i = 0; i < STREAMS; i++)
            fds[OUTPUT + i] =
                (struct pollfd){.fd = session.output[i].credit > 0 ? session.output[i].fd : -1, .events = POLLIN};
        if (poll(fds, OUTPUT + STREAMS, -1) < 0 && errno != EINTR)
            _exit(1);
        /* What was said before the end is passed on before the end is: output first, then the exit. */
        for (int i = 0; i < STREAMS; i++)
            if (fds[OUTPUT + i].revents)
                pass_output(i);
        if (fds[INPUT].revents)
            pass_input();
        if (fds[CHILDREN].revents)
            reap_leader();
        if (fds[HOST].revents) {
            if (hear(&head) < 0) {
                end_session();
                _exit(0);
            }
            obey(&head);
        }
        say_exit_when_due();
    }
}

/* ---- the jobs ---------------------------------------------------------------------------------------------------- */

static int strings_file(const struct request *req)
{
    int fd = memfd_create("job", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    char *strings = malloc(req->strings_len ? req->strings_len : 1);

    if (fd < 0 || strings == NULL)
        give_up(STAGE_REQUEST, errno);
    if (read_fully(0, strings, req->strings_len) < 0)
        _exit(0);
    if (write_fully(fd, strings, req->strings_len) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        give_up(STAGE_REQUEST, errno);
    free(strings);
    return fd;
}

/* Start the child of a job with `fds`, of which the first becomes its gate. Returns our end of that. */
static int start_child(const struct request *req, int *fds, int count, pid_t *child)
{
    int gate[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, gate) < 0)
        give_up(STAGE_REQUEST, errno);
    fds[0] = gate[1];
    *child = fork();
    if (*child < 0)
        give_up(STAGE_FORK, errno);
    if (*child == 0) {
        close(gate[0]);
        close(signal_fd);
        if (req->kind == REQ_SPAWN)
            run_spawn(req, fds);
        if (req->kind == REQ_OPEN)
            run_open(req, fds);
        run_replace(req, fds);
    }
    for (int i = 0; i < count; i++)
        close(fds[i]);
    return gate[0];
}

static void make_pipe(const struct request *req, int *inside, int *ours, int is_input)
{
    int both[2];

    if (pipe2(both, O_CLOEXEC) < 0)
        give_up(STAGE_STDIO, errno);
    *inside = both[!is_input];
    *ours = both[is_input];
    if (fcntl(*ours, F_SETFL, O_NONBLOCK) < 0)
        give_up(STAGE_STDIO, errno);
    /* So that the program can open its streams again by name (/dev/stderr). */
    if (req->uid != 0)
        (void)!fchown(*inside, req->uid, req->gid);
}

/* Make a terminal and lead its session, where the kernel's terminals can neither be opened without their names nor make
   signals (gVisor's, for both). Returns whether that is so. */
static int lead_terminal(const struct request *req, int *fds)
{
    struct winsize size = {.ws_col = req->columns, .ws_row = req->rows};
    int unlock = 0, number, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0 || ioctl(master, TIOCGPTN, &number) < 0)
        give_up(STAGE_TERMINAL, errno);
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave >= 0) {
        close(slave);
        close(master);
        return 0;
    }
    snprintf(session.terminal, sizeof session.terminal, "/dev/pts/%d", number);
    setsid(); /* an error means that we lead one already */
    slave = open(session.terminal, O_RDWR | O_NOCTTY | O_NOFOLLOW | O_CLOEXEC);
    if (slave < 0 || ioctl(slave, TIOCSCTTY, 0) < 0 || ioctl(slave, TIOCSWINSZ, &size) < 0 ||
        (req->uid != 0 && fchown(slave, req->uid, -1) < 0))
        give_up(STAGE_TERMINAL, errno);
    fds[2] = slave;
    fds[3] = fcntl(slave, F_DUPFD_CLOEXEC, 3);
    fds[4] = fcntl(slave, F_DUPFD_CLOEXEC, 3);
    session.has_terminal = 1;
    session.output[0].fd = master;
    session.input = fcntl(master, F_DUPFD_CLOEXEC, 3);
    return 1;
}

static _Noreturn void relay_spawn(struct request *req, int strings)
{
    int fds[MAX_FDS] = {-1, strings}, count = 2, fd;
    struct record rec;

    if (req->flags & FLAG_PTY && lead_terminal(req, fds)) {
        count = MAX_FDS;
        req->flags = (req->flags & ~(uint32_t)FLAG_PTY) | FLAG_IN_SESSION;
    } else if (!(req->flags & FLAG_PTY)) {
        count = MAX_FDS;
        if (req->argument)
            make_pipe(req, &fds[2], &session.input, 1);
        else
            fds[2] = null_fd;
        make_pipe(req, &fds[3], &session.output[0].fd, 0);
        make_pipe(req, &fds[4], &session.output[1].fd, 0);
    }
    int gate = start_child(req, fds, count, &session.leader);
    if (receive_record(gate, &rec, &fd) < 0 || rec.kind != REC_HELLO || tell(gate, REC_RELEASE, 0, 0, 0, -1) < 0)
        give_up(STAGE_FORK, ESRCH);
    while (receive_record(gate, &rec, &fd) == 0) {
        if (rec.kind == REC_TERMINAL && fd >= 0) {
            session.has_terminal = 1;
            session.output[0].fd = fd;
            session.input = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        } else
            give_up(rec.a, rec.b);
    }
    close(gate);
    say(FRAME_STARTED, session.leader, 0, NULL, 0);
    carry();
}

static _Noreturn void relay_open(const struct request *req, int strings)
{
    int fds[MAX_FDS] = {-1, strings}, fd;
    struct record rec;
    struct frame head;
    struct stat st;
    pid_t child;
    int gate = start_child(req, fds, 2, &child);

    if (receive_record(gate, &rec, &fd) < 0)
        give_up(STAGE_FILE, ECHILD);
    if (rec.kind != REC_FILE || fd < 0 || fstat(fd, &st) < 0)
        give_up(rec.a, rec.b);
    int64_t facts[2] = {st.st_size, (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec};
    say(FRAME_FILE, 0, 0, facts, sizeof facts);
    while (hear(&head) == 0 && head.kind == FRAME_READ && head.length == 8) {
        int64_t offset;
        memcpy(&offset, frame_data, sizeof offset);
        ssize_t n = head.a > 0 ? pread(fd, frame_data, head.a < FRAME_BYTES ? head.a : FRAME_BYTES, offset) : 0;
        if (n < 0)
            say(FRAME_FAILED, STAGE_FILE, errno, NULL, 0);
        else
            say(FRAME_DATA, 0, 0, frame_data, (uint32_t)n);
    }
    _exit(0);
}

static _Noreturn void relay_replace(const struct request *req, int strings)
{
    int fds[MAX_FDS] = {-1, strings}, fd, ignored, error = 0, is_complete = 0;
    struct record rec;
    struct frame head;
    pid_t child;
    int gate = start_child(req, fds, 2, &child);

    if (receive_record(gate, &rec, &fd) < 0)
        give_up(STAGE_FILE, ECHILD);
    if (rec.kind != REC_FILE || fd < 0)
        give_up(rec.a, rec.b);
    say(FRAME_STARTED, 0, 0, NULL, 0);
    while (!error && !is_complete && hear(&head) == 0) {
        if (head.kind == FRAME_COMMIT)
            is_complete = 1;
        else if (head.kind == FRAME_INPUT && write_fully(fd, frame_data, head.length) < 0)
            error = errno;
        else
            say(FRAME_TAKEN, 0, (int32_t)head.length, NULL, 0);
    }
    if (close(fd) < 0 && !error)
        error = errno;
    if (is_complete && !error && tell(gate, REC_COMMIT, 0, 0, 0, -1) == 0 &&
        receive_record(gate, &rec, &ignored) == 0) {
        if (rec.kind == REC_DONE)
            say(FRAME_DONE, 0, 0, NULL, 0);
        else
            error = rec.b;
    } else {
        shutdown(gate, SHUT_WR); /* the child removes what it made */
        if (!error)
            error = EIO;
    }
    waitpid(child, NULL, 0);
    if (error)
        give_up(STAGE_FILE, error);
    _exit(0);
}

/* Carry bytes between the host's socket and `sock` until both directions have ended, or the host has closed its end. */
static _Noreturn void splice_sockets(int sock)
{
    static struct {
        char data[FRAME_BYTES];
        ssize_t start, end;
        int has_ended;
    } way[2];

    for (;;) {
        const int from[2] = {0, sock}, to[2] = {sock, 1};
        struct pollfd fds[3] = {{.fd = -1}, {.fd = -1}, {.fd = 1}};

        if (way[0].has_ended && way[1].has_ended)
            _exit(0);
        for (int i = 0; i < 2; i++)
            if (!way[i].has_ended) {
                int is_full = way[i].end > way[i].start;
                fds[i].fd = is_full ? to[i] : from[i];
                fds[i].events = is_full ? POLLOUT : POLLIN;
            }
        if (poll(fds, 3, -1) < 0 && errno != EINTR)
            _exit(1);
        if (fds[2].revents & (POLLHUP | POLLERR | POLLNVAL))
            _exit(0);
        for (int i = 0; i < 2; i++) {
            if (!fds[i].revents)
                continue;
            ssize_t n;
            if (way[i].end == way[i].start) {
                way[i].start = way[i].end = 0;
                n = recv(from[i], way[i].data, FRAME_BYTES, MSG_DONTWAIT);
                way[i].end = n > 0 ? n : 0;
                if (n == 0) {
                    way[i].has_ended = 1;
                    shutdown(to[i], SHUT_WR);
                }
            } else {
                n = send(to[i], way[i].data + way[i].start, (size_t)(way[i].end - way[i].start),
                         MSG_DONTWAIT | MSG_NOSIGNAL);
                way[i].start += n > 0 ? n : 0;
            }
            if (n < 0 && errno != EAGAIN && errno != EINTR)
                _exit(0); /* reset by one side: the other sees the end */
        }
    }
}

static int connect_to(int family, const void *address, socklen_t size)
{
    int sock = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (sock >= 0 && connect(sock, address, size) == 0)
        return sock;
    int error = errno;
    if (sock >= 0)
        close(sock);
    errno = error;
    return -1;
}

static _Noreturn void relay_connection(const struct request *req)
{
    struct sockaddr_in old = {.sin_family = AF_INET, .sin_port = htons((uint16_t)req->argument)};
    struct sockaddr_in6 new = {.sin6_family = AF_INET6, .sin6_port = old.sin_port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};

    old.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int sock = connect_to(AF_INET, &old, sizeof old), error = errno;
    if (sock < 0)
        sock = connect_to(AF_INET6, &new, sizeof new);
    if (sock < 0)
        give_up(STAGE_SOCKET, error);
    say(FRAME_STARTED, 0, 0, NULL, 0);
    splice_sockets(sock);
}

static _Noreturn void relay(void)
{
    static struct request req;
    int strings = -1;

    say(FRAME_HELLO, getpid(), 0, NULL, 0);
    if (read_fully(0, &req, sizeof req) < 0)
        _exit(0);
    if (req.magic != MAGIC || req.group_count > MAX_GROUPS || req.strings_len > MAX_STRINGS)
        give_up(STAGE_REQUEST, EINVAL);
    if (req.kind == REQ_SOCKET)
        relay_connection(&req);
    strings = strings_file(&req);
    if (req.kind == REQ_SPAWN)
        relay_spawn(&req, strings);
    if (req.kind == REQ_OPEN)
        relay_open(&req, strings);
    if (req.kind == REQ_REPLACE)
        relay_replace(&req, strings);
    give_up(STAGE_REQUEST, EINVAL);
}

/* ---- pid 1 without a socket -------------------------------------------------------------------------------------- */

static _Noreturn void hold(void)
{
    for (;;) {
        struct pollfd fds[2] = {{.fd = 0, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
        struct signalfd_siginfo info;
        char ignored[64];

        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            _exit(1);
        if (fds[1].revents)
            while (read(signal_fd, &info, sizeof info) > 0)
                ;
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (fds[0].revents) {
            ssize_t n = read(0, ignored, sizeof ignored);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
                _exit(0);
        }
    }
}
