/* Prepares what an OCI runtime needs and cannot do itself, in a mount namespace of its own, and executes the runtime.
 *
 * Everything mounted here vanishes with the container: the host's mount table never changes, so a killed owner leaves
 * no mount behind. Input is one file on descriptor 0, written by our own host side: instructions and their arguments,
 * each ended by a NUL, executed in order. Descriptors that instructions refer to are given by number. The first failure
 * ends the program with status 125 and one line on descriptor 2, "stage: path: reason".
 *
 *   ns                          private mount namespace, nothing propagates either way
 *   userns FD                   user and mount namespace; writes a byte to the socket FD and waits for one (the maps)
 *   enter FD                    join the user namespace FD
 *   block SLOT ID COUNT TEXT    make a user namespace in which ids 0.. are ID.. out here, as descriptor SLOT; processes
 *                               in it get TEXT inotify instances at most (unless empty) and no user namespaces
 *   pin PATH FD                 give the namespace FD the name PATH
 *   hide PATH                   take the mount at PATH out of sight
 *   veil PATH                   an empty tmpfs over PATH (where "hide" is not permitted)
 *   open SLOT PATH              open the folder PATH as descriptor SLOT
 *   clone SLOT PATH             detached, read-only copy of the mount at the folder PATH, as descriptor SLOT
 *   idmap SLOT FD               map the ids of the detached mount SLOT with the user namespace FD
 *   cover PATH                  an empty tmpfs over PATH, which becomes the working directory
 *   attach SLOT                 mount the detached mount SLOT at the folder layers/SLOT, which is made
 *   dir PATH MODE ID            make a folder owned by ID:ID (kept when it exists)
 *   file PATH MODE ID TEXT      make a file owned by ID:ID
 *   copy PATH MODE FD           copy the file FD
 *   disk PATH FD OPTIONS NOTE   mount the ext4 image open at FD at PATH; prints "loop N" on descriptor 2, and writes N
 *                               into the new file NOTE (unless empty) before the device has the image
 *   share PATH NUMBER FD        mount at PATH, read-only, what loop device NUMBER holds, if it is the image open at FD
 *   bind PATH FD                mount the folder open at FD at PATH
 *   overlay PATH OPTIONS        mount an overlay
 *   limit RESOURCE VALUE        soft and hard resource limit, inherited by everything below
 *   devices ID                  a /dev with nothing but the usual devices, owned by ID:ID, or read-only where none can be made
 *   stdio IN OUT                what is executed gets these as standard input and output, instead of an empty pipe and
 *                               what the launcher has
 *   put PATH TEXT               write TEXT into the existing file PATH (a cgroup, a sysctl)
 *   exec ARGUMENT...            execute (to the end of the input)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* Kernel interfaces, written down here so that neither old headers nor a C library without them are a hindrance. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef OPEN_TREE_CLOEXEC
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#define FROM_DESCRIPTOR 0x04 /* MOVE_MOUNT_F_EMPTY_PATH */
#define RESOLVE_NO_SYMLINKS_ 0x04
#define RESOLVE_BENEATH_ 0x08

struct how {
	uint64_t flags, mode, resolve;
};

#define LOOP_CTL_GET_FREE 0x4C82
#define LOOP_GET_STATUS64 0x4C05
#define LOOP_CONFIGURE 0x4C0A
#define LO_FLAGS_AUTOCLEAR 4

struct loop_info {
	uint64_t device, inode, rdevice, offset, sizelimit;
	uint32_t number, encrypt_type, encrypt_key_size, flags;
	uint8_t file_name[64], crypt_name[64], encrypt_key[32];
	uint64_t init[2];
};

struct loop_config {
	uint32_t fd, block_size;
	struct loop_info info;
	uint64_t reserved[8];
};

struct attributes {
	uint64_t set, clear, propagation, userns;
};
#define ATTR_RDONLY 0x1
#define ATTR_NODEV 0x4
#define ATTR_IDMAP 0x00100000

enum { MAX_INPUT = 1 << 18, MAX_WORDS = 4096, LOOP_TRIES = 200, FIRST_SLOT = 20, LAST_SLOT = 999, CHUNK = 1 << 16 };

static char input[MAX_INPUT + 1];
static char *words[MAX_WORDS + 1];
static int word_count, next_word;
extern char **environ;

static _Noreturn void fail(const char *stage, const char *subject)
{
	dprintf(2, "%s: %s: %s\n", stage, subject, strerror(errno));
	_exit(125);
}

static _Noreturn void malformed(const char *what)
{
	errno = EINVAL;
	fail("instructions", what);
}

static void read_input(void)
{
	size_t used = 0;
	ssize_t got;
	while (used < MAX_INPUT && (got = read(0, input + used, MAX_INPUT - used)) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			fail("instructions", "read");
		used += (size_t)got;
	}
	if (used == 0 || used == MAX_INPUT || input[used - 1] != '\0')
		malformed("length");
	for (char *at = input; at < input + used; at += strlen(at) + 1) {
		if (word_count == MAX_WORDS)
			malformed("count");
		words[word_count++] = at;
	}
	words[word_count] = NULL;
}

static const char *argument(void)
{
	if (next_word >= word_count)
		malformed("missing argument");
	return words[next_word++];
}

static long number(int base, long most)
{
	const char *text = argument();
	char *end;
	errno = 0;
	long value = strtol(text, &end, base);
	if (errno != 0 || *text == '\0' || *end != '\0' || value < 0 || value > most)
		malformed(text);
	return value;
}

static int descriptor(void)
{
	return (int)number(10, LAST_SLOT);
}

/* Moves a new descriptor to the slot that later instructions (and overlay options) know it by. */
static void settle(int fd, long slot, const char *stage, const char *path)
{
	if (slot < FIRST_SLOT)
		malformed("slot");
	if (fd < 0)
		fail(stage, path);
	if (fd != slot) {
		if (dup3(fd, (int)slot, O_CLOEXEC) < 0)
			fail(stage, path);
		close(fd);
	}
}

static void set_attributes(int fd, struct attributes *wanted, const char *stage, const char *path)
{
	if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, wanted, sizeof *wanted) != 0)
		fail(stage, path);
}

static int detached_copy(int at, const char *path)
{
	return (int)syscall(SYS_open_tree, at, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
}

static void attach_at(int tree, const char *path, const char *stage)
{
	if (syscall(SYS_move_mount, tree, "", AT_FDCWD, path, FROM_DESCRIPTOR) != 0)
		fail(stage, path);
}

static void private_namespace(void)
{
	if (unshare(CLONE_NEWNS) != 0)
		fail("namespace", "mount");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		fail("namespace", "/");
}

static void mapped_namespace(void)
{
	int sock = descriptor();
	char byte = 'u';
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
		fail("namespace", "user");
	if (write(sock, &byte, 1) != 1 || read(sock, &byte, 1) != 1)
		fail("namespace", "id maps");
	if (setgid(0) != 0 || setuid(0) != 0)
		fail("namespace", "setuid");
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		fail("namespace", "/");
}

static void enter(void)
{
	if (setns(descriptor(), CLONE_NEWUSER) != 0)
		fail("namespace", "user");
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t done = write(fd, text, strlen(text));
	int reason = errno;
	close(fd);
	errno = reason;
	return done == (ssize_t)strlen(text) ? 0 : -1;
}

/* The first process of a new user namespace: it alone may set the namespace's limits. It lives until it is killed. */
static _Noreturn void hold_namespace(int answer, const char *instances)
{
	char result = 'u';
	/* Changing ids made it undumpable, and its files in /proc the host root's: an unprivileged user could not write the
	 * maps. It holds nothing that others may not see. */
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0)
		_exit(1);
	if (*instances != '\0' && write_text("/proc/sys/user/max_inotify_instances", instances) != 0)
		result = 'f';
	(void)write_text("/proc/sys/user/max_user_namespaces", "0"); /* seccomp refuses them too */
	if (write(answer, &result, 1) == 1)
		for (;;)
			pause();
	_exit(1);
}

/* Starts the holder of a new user namespace that belongs to the user OWNER: what is used up in it counts against him,
 * so that sandboxes do not use up what root has. Returns 0 where such a user may not have one. */
static pid_t start_holder(uid_t owner, const char *instances)
{
	int answer[2];
	char result = 'f';
	if (pipe2(answer, O_CLOEXEC) != 0)
		fail("block", "pipe");
	if (syscall(SYS_setresuid, -1, owner, -1) != 0)
		fail("block", "setresuid");
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		hold_namespace(answer[1], instances);
	int reason = errno;
	if (syscall(SYS_setresuid, -1, 0, -1) != 0)
		fail("block", "setresuid");
	close(answer[1]);
	if (pid > 0 && (read(answer[0], &result, 1) != 1 || result != 'u')) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		pid = 0;
		reason = EPERM;
	}
	close(answer[0]);
	errno = reason;
	return pid > 0 ? pid : 0;
}

static void make_block(void)
{
	char path[64], map[64];
	static const char *const files[] = { "uid_map", "gid_map" };
	long slot = number(10, LAST_SLOT), first = number(10, 0xfffffffeL), count = number(10, 0xfffffffeL);
	const char *instances = argument();
	pid_t pid = start_holder((uid_t)first, instances);
	if (pid == 0)
		pid = start_holder(0, instances);
	if (pid == 0)
		fail("block", "user namespace");
	snprintf(map, sizeof map, "0 %ld %ld\n", first, count);
	for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, files[i]);
		if (write_text(path, map) != 0) {
			int reason = errno;
			kill(pid, SIGKILL);
			errno = reason;
			fail("block", files[i]);
		}
	}
	snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int reason = errno;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	errno = reason;
	settle(fd, slot, "block", path);
}

static void pin(void)
{
	char source[40];
	const char *path = argument();
	snprintf(source, sizeof source, "/proc/self/fd/%d", descriptor());
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || close(fd) != 0 || mount(source, path, NULL, MS_BIND, NULL) != 0)
		fail("pin", path);
}

static void hide(void)
{
	const char *path = argument();
	if (umount2(path, MNT_DETACH) != 0 && errno != EINVAL && errno != ENOENT)
		fail("hide", path);
}

static void mount_tmpfs(const char *path, unsigned long flags, const char *stage)
{
	if (mount("tmpfs", path, "tmpfs", MS_NOSUID | flags, "mode=755") != 0)
		fail(stage, path);
}

static void open_folder(void)
{
	long slot = number(10, LAST_SLOT);
	const char *path = argument();
	settle(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), slot, "folder", path);
}

static const char *layers[LAST_SLOT + 1];

static void clone_layer(void)
{
	long slot = number(10, LAST_SLOT);
	const char *path = argument();
	settle(detached_copy(AT_FDCWD, path), slot, "layer", path);
	struct attributes wanted = { .set = ATTR_RDONLY | ATTR_NODEV };
	set_attributes((int)slot, &wanted, "layer", path);
	layers[slot] = path;
}

static int layer(void)
{
	int slot = descriptor();
	if (layers[slot] == NULL)
		malformed("slot without a layer");
	return slot;
}

static void map_layer(void)
{
	int slot = layer();
	struct attributes wanted = { .set = ATTR_IDMAP, .userns = (uint64_t)descriptor() };
	set_attributes(slot, &wanted, "idmap", layers[slot]);
}

/* Kernels as old as 6.12 refuse an overlay whose layer is not mounted in the mount namespace of whoever mounts it. */
static void attach_layer(void)
{
	char path[32];
	int slot = layer();
	snprintf(path, sizeof path, "layers/%d", slot);
	if ((mkdir("layers", 0755) != 0 && errno != EEXIST) || mkdir(path, 0755) != 0)
		fail("layer", path);
	attach_at(slot, path, "layer");
	close(slot);
}

static void cover(void)
{
	const char *path = argument();
	mount_tmpfs(path, MS_NODEV, "cover");
	if (chdir(path) != 0)
		fail("cover", path);
}

/* Mounts on a folder. One below the working directory is never reached through a symbolic link: an earlier run of the
 * sandbox may have put one there, and what is mounted where it points would be in the runtime's way. */
static void mount_at(const char *source, const char *path, const char *type, unsigned long flags, const char *options)
{
	char target[40];
	struct how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC };
	if (path[0] != '/')
		how.resolve = RESOLVE_NO_SYMLINKS_ | RESOLVE_BENEATH_;
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
	if (fd < 0)
		fail("mount point", path);
	snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
	if (mount(source, target, type, flags, options) != 0)
		fail(type == NULL ? "bind" : type, path);
	close(fd);
}

static void make_folder(void)
{
	const char *path = argument();
	mode_t mode = (mode_t)number(8, 07777);
	uid_t id = (uid_t)number(10, 0xfffffffeL);
	if (mkdir(path, 0700) != 0) {
		if (errno != EEXIST)
			fail("folder", path);
		return; /* an earlier run of the same sandbox made it, and what it did to it stays */
	}
	if (chown(path, id, id) != 0 || chmod(path, mode) != 0)
		fail("folder", path);
}

static void write_all(int fd, const char *data, size_t left, const char *path)
{
	while (left > 0) {
		ssize_t done = write(fd, data, left);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			fail("write", path);
		data += done;
		left -= (size_t)done;
	}
}

static int create_file(const char *path, mode_t mode, uid_t id)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0 || fchown(fd, id, id) != 0 || fchmod(fd, mode) != 0)
		fail("file", path);
	return fd;
}

static void make_file(void)
{
	const char *path = argument();
	mode_t mode = (mode_t)number(8, 07777);
	uid_t id = (uid_t)number(10, 0xfffffffeL);
	const char *text = argument();
	int fd = create_file(path, mode, id);
	write_all(fd, text, strlen(text), path);
	close(fd);
}

static void copy_file(void)
{
	static char chunk[CHUNK];
	const char *path = argument();
	mode_t mode = (mode_t)number(8, 07777);
	int from = descriptor(), to = create_file(path, mode, geteuid());
	off_t at = 0;
	ssize_t got;
	while ((got = pread(from, chunk, sizeof chunk, at)) != 0) {
		if (got < 0)
			fail("copy", path);
		write_all(to, chunk, (size_t)got, path);
		at += got;
	}
	close(to);
}

/* The device frees itself when the last mount is gone (AUTOCLEAR). Finding a free number and taking it are two steps
 * for the kernel, so others who attach at the same time make this fail with EBUSY: try the next one. */
static int attach_loop(int image, const char *note)
{
	int noted = -1;
	if (*note != '\0') {
		unlink(note); /* an earlier start's */
		noted = create_file(note, 0600, geteuid());
	}
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		fail("disk", "/dev/loop-control");
	for (int attempt = 0; attempt < LOOP_TRIES; attempt++) {
		char path[32];
		int index = ioctl(control, LOOP_CTL_GET_FREE);
		if (index < 0)
			fail("disk", "LOOP_CTL_GET_FREE");
		snprintf(path, sizeof path, "/dev/loop%d", index);
		int device = open(path, O_RDWR | O_CLOEXEC);
		if (device < 0)
			fail("disk", path);
		/* Whoever clears up after a killed owner looks at this device alone, not at all that there are. */
		char text[16];
		int length = snprintf(text, sizeof text, "%9d\n", index);
		if (noted >= 0 && pwrite(noted, text, (size_t)length, 0) != length)
			fail("disk", note);
		struct loop_config config = { .fd = (uint32_t)image };
		config.info.flags = LO_FLAGS_AUTOCLEAR;
		if (ioctl(device, LOOP_CONFIGURE, &config) == 0) {
			close(control);
			close(noted);
			dprintf(2, "loop %d\n", index);
			return device;
		}
		if (errno != EBUSY)
			fail("disk", path);
		close(device);
		usleep(1000 + (unsigned)(attempt * 100));
	}
	errno = EBUSY;
	fail("disk", "no free loop device");
}

static void mount_disk(void)
{
	const char *path = argument();
	int image = descriptor();
	const char *options = argument(), *note = argument();
	int device = attach_loop(image, note);
	char source[32];
	struct stat st;
	if (fstat(device, &st) != 0)
		fail("disk", "fstat");
	snprintf(source, sizeof source, "/dev/loop%u", (unsigned)((st.st_rdev & 0xff) | ((st.st_rdev >> 12) & 0xfff00)));
	mount_at(source, path, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, options);
	close(device); /* after the mount: closing before it would free the device */
}

/* A disk that is mounted for a sandbox already: the same file system once more, so that its newest content is seen. An
 * open device can no longer be freed and taken by another; only then is it asked what it holds. */
static void share_disk(void)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOATIME;
	const char *path = argument();
	char source[32];
	struct stat st;
	struct loop_info info;
	snprintf(source, sizeof source, "/dev/loop%ld", number(10, 1 << 20));
	int image = descriptor(), device = open(source, O_RDONLY | O_CLOEXEC);
	if (device < 0 || fstat(image, &st) != 0 || ioctl(device, LOOP_GET_STATUS64, &info) != 0)
		fail("disk", source);
	if (info.device != st.st_dev || info.inode != st.st_ino) {
		errno = ENODEV;
		fail("disk", source);
	}
	mount_at(source, path, "ext4", flags, "");
	mount_at(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL);
	close(device);
}

static void bind_folder(void)
{
	char source[40];
	const char *path = argument();
	snprintf(source, sizeof source, "/proc/self/fd/%d", descriptor());
	mount_at(source, path, NULL, MS_BIND, NULL);
}

static void mount_overlay(void)
{
	const char *path = argument(), *options = argument();
	mount_at("overlay", path, "overlay", MS_NODEV, options);
}

static void limit(void)
{
	int resource = (int)number(10, RLIM_NLIMITS - 1);
	rlim_t value = (rlim_t)number(10, 1L << 40);
	struct rlimit both = { .rlim_cur = value, .rlim_max = value };
	if (setrlimit(resource, &both) != 0)
		fail("limit", "setrlimit");
}

static void put(void)
{
	const char *path = argument(), *text = argument();
	if (write_text(path, text) != 0)
		fail("put", path);
}

static const struct {
	const char *path;
	unsigned major, minor;
} devices[] = {
	{ "/dev/null", 1, 3 },   { "/dev/zero", 1, 5 },    { "/dev/full", 1, 7 },
	{ "/dev/random", 1, 8 }, { "/dev/urandom", 1, 9 }, { "/dev/tty", 5, 0 },
};

/* A node that was made is no use where a control group or a mount's owner forbids devices. No terminal is no refusal. */
static int make_device(size_t i, uid_t owner)
{
	if (mknod(devices[i].path, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)) != 0)
		return -1;
	int fd = open(devices[i].path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	else if (errno == EPERM || errno == EACCES) {
		unlink(devices[i].path);
		return -1;
	}
	return chown(devices[i].path, owner, owner);
}

/* Runtimes bind the devices of a container's /dev from here: never the host's own nodes, whose mode, owner and times a
 * sandbox could change for the whole machine. Where nodes cannot be made, the host's are mounted read-only: that keeps
 * nobody from reading and writing a device, but everybody from changing the node. */
static void own_devices(void)
{
	uid_t owner = (uid_t)number(10, 0xfffffffeL);
	int host = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (host < 0)
		fail("devices", "/dev");
	mount_tmpfs("/dev", MS_NOEXEC, "devices");
	for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
		const char *path = devices[i].path;
		if (make_device(i, owner) == 0)
			continue;
		struct attributes wanted = { .set = ATTR_RDONLY };
		int tree = detached_copy(host, path + strlen("/dev/"));
		if (tree < 0 || mknod(path, S_IFREG | 0600, 0) != 0)
			fail("devices", path);
		set_attributes(tree, &wanted, "devices", path);
		attach_at(tree, path, "devices");
		close(tree);
	}
	close(host);
}

static int standard_input = -1;

static void take_stdio(void)
{
	int output;
	standard_input = descriptor();
	output = descriptor();
	if (output != 1 && (dup2(output, 1) < 0 || close(output) != 0))
		fail("stdio", "output");
}

/* Runtimes give their standard streams to the container's root, so they must be nothing of the host's. */
static int empty_input(void)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) != 0)
		return -1;
	close(ends[1]);
	return ends[0];
}

static _Noreturn void execute(void)
{
	const char *path = argument();
	int input = standard_input >= 0 ? standard_input : empty_input();
	if (input < 0 || dup2(input, 0) < 0)
		fail("exec", "standard input");
	if (input > 2)
		close(input);
	umask(022);
	if (chdir("/") != 0)
		fail("exec", "/");
	execve(path, words + next_word - 1, environ);
	fail("exec", path);
}

static void tmpfs_over(void)
{
	mount_tmpfs(argument(), MS_NODEV, "veil");
}

static const struct {
	const char *name;
	void (*run)(void);
} instructions[] = {
	{ "ns", private_namespace }, { "userns", mapped_namespace }, { "enter", enter },  { "hide", hide },
	{ "veil", tmpfs_over },      { "open", open_folder },        { "clone", clone_layer }, { "idmap", map_layer },
	{ "cover", cover },          { "dir", make_folder },         { "file", make_file },    { "copy", copy_file },
	{ "disk", mount_disk },      { "share", share_disk },        { "bind", bind_folder },  { "overlay", mount_overlay },
	{ "put", put },              { "block", make_block },        { "pin", pin },           { "limit", limit },
	{ "stdio", take_stdio },     { "exec", execute },            { "attach", attach_layer }, { "devices", own_devices },
};

int main(void)
{
	umask(0);
	read_input();
	while (next_word < word_count) {
		const char *name = argument();
		size_t i = 0, known = sizeof instructions / sizeof instructions[0];
		while (i < known && strcmp(instructions[i].name, name) != 0)
			i++;
		if (i == known)
			malformed(name);
		instructions[i].run();
	}
	return 0;
}
