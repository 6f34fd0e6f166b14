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
 *   hide PATH                   take the mount at PATH out of sight
 *   veil PATH                   an empty tmpfs over PATH (where "hide" is not permitted)
 *   open SLOT PATH              open the folder PATH as descriptor SLOT
 *   clone SLOT PATH             detached, read-only copy of the mount at the folder PATH, as descriptor SLOT
 *   idmap SLOT FD               map the ids of the detached mount SLOT with the user namespace FD
 *   cover PATH                  an empty tmpfs over PATH, which becomes the working directory
 *   dir PATH MODE ID            make a folder owned by ID:ID (kept when it exists)
 *   file PATH MODE ID TEXT      make a file owned by ID:ID
 *   copy PATH MODE FD           copy the file FD
 *   disk PATH FD                mount the ext4 image open at FD at PATH; prints "loop N" on descriptor 2
 *   bind PATH FD                mount the folder open at FD at PATH
 *   overlay PATH OPTIONS        mount an overlay
 *   put PATH TEXT               write TEXT into the existing file PATH (a cgroup, a sysctl)
 *   exec ARGUMENT...            execute (to the end of the input)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Kernel interfaces, written down here so that neither old headers nor a C library without them are a hindrance. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
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
#define LOOP_CTL_GET_FREE 0x4C82
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

static void set_attributes(int fd, struct attributes *wanted, const char *stage)
{
	if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, wanted, sizeof *wanted) != 0)
		fail(stage, "mount_setattr");
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

static void hide(void)
{
	const char *path = argument();
	if (umount2(path, MNT_DETACH) != 0 && errno != EINVAL && errno != ENOENT)
		fail("hide", path);
}

static void mount_tmpfs(const char *path, const char *stage)
{
	if (mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755") != 0)
		fail(stage, path);
}

static void open_folder(void)
{
	long slot = number(10, LAST_SLOT);
	const char *path = argument();
	settle(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), slot, "folder", path);
}

static void clone_layer(void)
{
	long slot = number(10, LAST_SLOT);
	const char *path = argument();
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	settle(tree, slot, "layer", path);
	struct attributes wanted = { .set = ATTR_RDONLY | ATTR_NODEV };
	set_attributes((int)slot, &wanted, "layer");
}

static void map_layer(void)
{
	int slot = descriptor();
	struct attributes wanted = { .set = ATTR_IDMAP, .userns = (uint64_t)descriptor() };
	set_attributes(slot, &wanted, "idmap");
}

static void cover(void)
{
	const char *path = argument();
	mount_tmpfs(path, "cover");
	if (chdir(path) != 0)
		fail("cover", path);
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
static int attach_loop(int image)
{
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
		struct loop_config config = { .fd = (uint32_t)image };
		config.info.flags = LO_FLAGS_AUTOCLEAR;
		if (ioctl(device, LOOP_CONFIGURE, &config) == 0) {
			close(control);
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
	int device = attach_loop(descriptor());
	char source[32];
	struct stat st;
	if (fstat(device, &st) != 0)
		fail("disk", "fstat");
	snprintf(source, sizeof source, "/dev/loop%u", (unsigned)((st.st_rdev & 0xff) | ((st.st_rdev >> 12) & 0xfff00)));
	if (mount(source, path, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, "") != 0)
		fail("disk", source);
	close(device); /* after the mount: closing before it would free the device */
}

static void bind_folder(void)
{
	char source[40];
	const char *path = argument();
	snprintf(source, sizeof source, "/proc/self/fd/%d", descriptor());
	if (mount(source, path, NULL, MS_BIND, NULL) != 0)
		fail("bind", path);
	if (mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV, NULL) != 0)
		fail("bind", path);
}

static void mount_overlay(void)
{
	const char *path = argument(), *options = argument();
	if (mount("overlay", path, "overlay", MS_NODEV, options) != 0)
		fail("overlay", path);
}

static void put(void)
{
	const char *path = argument(), *text = argument();
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		fail("put", path);
	close(fd);
}

static _Noreturn void execute(void)
{
	const char *path = argument();
	int null = open("/dev/null", O_RDWR);
	if (null < 0 || dup2(null, 0) < 0)
		fail("exec", "/dev/null");
	if (null > 2)
		close(null);
	umask(022);
	if (chdir("/") != 0)
		fail("exec", "/");
	execve(path, words + next_word - 1, environ);
	fail("exec", path);
}

static void tmpfs_over(void)
{
	mount_tmpfs(argument(), "veil");
}

static const struct {
	const char *name;
	void (*run)(void);
} instructions[] = {
	{ "ns", private_namespace }, { "userns", mapped_namespace }, { "enter", enter },  { "hide", hide },
	{ "veil", tmpfs_over },      { "open", open_folder },        { "clone", clone_layer }, { "idmap", map_layer },
	{ "cover", cover },          { "dir", make_folder },         { "file", make_file },    { "copy", copy_file },
	{ "disk", mount_disk },      { "bind", bind_folder },        { "overlay", mount_overlay }, { "put", put },
	{ "exec", execute },
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
