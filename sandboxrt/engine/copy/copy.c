/* Copies a tree of files that nobody vouches for into a layer: owners shifted, links, holes and attributes kept.
 *
 * The tree is a sandbox's: whoever wrote it may have meant harm. So no name is ever resolved but one component at a
 * time, from a descriptor, without following links; what a name turns out to be is checked on the opened file; depth
 * costs no descriptors and no stack. What is copied stands still meanwhile: the sandbox is frozen or stopped.
 *
 *   copy SOCKET TARGET THAW TEXT SOURCE FIRST COUNT RESERVE OVERLAY
 *
 *   SOCKET   descriptor: to the owner goes "ready", from it comes one byte when to begin, to it goes the result;
 *            when the owner is gone, this program thaws and ends
 *   TARGET   descriptor of an empty folder that nobody else writes to; gets "tree", the copy, and "links" meanwhile
 *   THAW     descriptor of a control group's file that TEXT is written into when all is copied, whatever came of it;
 *            -1 for none
 *   SOURCE   the folder to copy
 *   FIRST    owners FIRST to FIRST+COUNT-1 become 0 to COUNT-1; others are refused. COUNT 0: every owner stays
 *   RESERVE  how many bytes must stay free where TARGET is
 *   OVERLAY  "trusted" or "user": where overlayfs keeps its attributes here
 *
 * Results, one line: "done FILES BYTES NANOSECONDS" (of CLOCK_MONOTONIC, when it thawed), or "failed ERRNO STAGE NAME".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum {
	CHUNK = 4 << 20,
	FALLBACK = 1 << 18,
	CHECK_EVERY = 32,
	MIN_INODES = 1000,
	NAMES = 1 << 16,
	VALUE = 1 << 16,
	CAPABILITY_2 = 20,
	CAPABILITY_3 = 24,
};
#define REVISION_MASK 0xff000000u
#define REVISION_2 0x02000000u
#define REVISION_3 0x03000000u

/* One folder on the way from the top to where the walk is. */
struct level {
	dev_t source_device, target_device;
	ino_t source_inode, target_inode;
	char **pending; /* names of folders in it that are still to be copied */
	size_t count, room;
	char *name; /* its own, above */
};

static int owner, target, thaw, links, since_check;
static const char *thaw_text, *overlay;
static uint64_t first, count, reserve, files, bytes, unchecked;
static struct level *levels;
static size_t depth, levels_room;
static int source_fd, target_fd; /* the folder where the walk is, in both trees */

static uint64_t thaw_now(void)
{
	struct timespec now;
	if (thaw >= 0 && write(thaw, thaw_text, strlen(thaw_text)) < 0) {
		/* The group is gone, or the owner will do it: it does so whatever this says. */
	}
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static _Noreturn void fail(const char *stage, const char *name)
{
	int reason = errno;
	thaw_now();
	/* A name is the sandbox's choice: what could end the line or is no text is left out. */
	char line[512];
	int length = snprintf(line, sizeof line, "failed %d %s %.300s", reason, stage, name);
	for (int i = 0; i < length; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 127)
			line[i] = '?';
	dprintf(owner, "%s\n", line);
	_exit(1);
}

static _Noreturn void refuse(const char *why, const char *name)
{
	errno = EPERM;
	fail(why, name);
}

static void *must(void *memory)
{
	if (memory == NULL)
		fail("memory", "");
	return memory;
}

/* Whether the owner lives and there is room: asked now and then, for both cost a system call. */
static void check_surroundings(void)
{
	struct pollfd asked = { .fd = owner, .events = POLLIN };
	struct statvfs found;
	since_check = 0;
	unchecked = 0;
	if (poll(&asked, 1, 0) != 0) {
		thaw_now();
		_exit(2);
	}
	if (fstatvfs(target, &found) != 0)
		fail("space", "");
	if ((uint64_t)found.f_bavail * found.f_frsize < reserve || (found.f_files != 0 && found.f_favail < MIN_INODES)) {
		errno = ENOSPC;
		fail("space", "");
	}
}

static void account(uint64_t written)
{
	unchecked += written;
	if (++since_check >= CHECK_EVERY || unchecked >= CHUNK)
		check_surroundings();
}

static uint32_t shifted(uint32_t id, const char *name)
{
	if (count == 0)
		return id;
	if (id < first || id >= first + count)
		refuse("owner", name);
	return (uint32_t)(id - first);
}

/* -- attributes -- */

static int is_kept(const char *attribute)
{
	if (strncmp(attribute, "user.", 5) == 0)
		return strncmp(attribute, "user.overlay.", 13) != 0 ||
		       (strcmp(overlay, "user") == 0 && strcmp(attribute, "user.overlay.opaque") == 0);
	if (strcmp(attribute, "trusted.overlay.opaque") == 0)
		return strcmp(overlay, "trusted") == 0;
	return strcmp(attribute, "security.capability") == 0 || strcmp(attribute, "system.posix_acl_access") == 0 ||
	       strcmp(attribute, "system.posix_acl_default") == 0;
}

static uint32_t get32(const unsigned char *at)
{
	return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put32(unsigned char *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (unsigned char)(value >> (8 * i));
}

/* Capabilities of a file say whose root they are for. That root is the layer's, so the form without it is right. */
static ssize_t shift_capability(unsigned char *value, ssize_t size, const char *name)
{
	if (size != CAPABILITY_3 || (get32(value) & REVISION_MASK) != REVISION_3)
		return size;
	if (shifted(get32(value + CAPABILITY_2), name) != 0)
		refuse("capability", name);
	put32(value, (get32(value) & ~REVISION_MASK) | REVISION_2);
	return CAPABILITY_2;
}

/* Entries of eight bytes after a header of four: tag, permissions, id; named users and groups have an id. */
static void shift_acl(unsigned char *value, ssize_t size, const char *name)
{
	for (ssize_t at = 4; at + 8 <= size; at += 8) {
		unsigned tag = value[at] | (unsigned)value[at + 1] << 8;
		if (tag == 0x02 || tag == 0x08)
			put32(value + at + 4, shifted(get32(value + at + 4), name));
	}
}

static void copy_attributes(int from, int to, const char *name)
{
	static char names[NAMES];
	static unsigned char value[VALUE];
	ssize_t length = flistxattr(from, names, sizeof names);
	if (length < 0 && errno != ENOTSUP)
		fail("attributes", name);
	for (ssize_t at = 0; at < length; at += (ssize_t)strlen(names + at) + 1) {
		const char *attribute = names + at;
		if (!is_kept(attribute))
			continue;
		ssize_t size = fgetxattr(from, attribute, value, sizeof value);
		if (size < 0)
			fail("attribute", name);
		if (strcmp(attribute, "security.capability") == 0)
			size = shift_capability(value, size, name);
		else if (strncmp(attribute, "system.posix_acl_", 17) == 0)
			shift_acl(value, size, name);
		else if (strstr(attribute, ".overlay.opaque") != NULL && !(size == 1 && value[0] == 'y'))
			continue;
		if (fsetxattr(to, attribute, value, (size_t)size, 0) != 0)
			fail("attribute", name);
	}
}

/* Owner before mode, for a new owner costs a file its setuid bit; times last. */
static void settle(int from, int to, const struct stat *st, const char *name)
{
	struct timespec times[2] = { st->st_atim, st->st_mtim };
	if (fchown(to, shifted(st->st_uid, name), shifted(st->st_gid, name)) != 0)
		fail("chown", name);
	copy_attributes(from, to, name);
	if (fchmod(to, st->st_mode & 07777) != 0)
		fail("chmod", name);
	if (futimens(to, times) != 0)
		fail("times", name);
}

static void settle_special(const struct stat *st, const char *name)
{
	struct timespec times[2] = { st->st_atim, st->st_mtim };
	if (fchownat(target_fd, name, shifted(st->st_uid, name), shifted(st->st_gid, name), AT_SYMLINK_NOFOLLOW) != 0)
		fail("chown", name);
	if (!S_ISLNK(st->st_mode) && fchmodat(target_fd, name, st->st_mode & 07777, 0) != 0)
		fail("chmod", name);
	if (utimensat(target_fd, name, times, AT_SYMLINK_NOFOLLOW) != 0)
		fail("times", name);
}

/* -- content -- */

static void copy_range(int from, int to, off_t at, off_t end, const char *name)
{
	static char buffer[FALLBACK];
	int plain = 0;
	if (lseek(to, at, SEEK_SET) < 0)
		fail("seek", name);
	while (at < end) {
		size_t wanted = (size_t)(end - at < CHUNK ? end - at : CHUNK);
		off_t place = at;
		ssize_t done = plain ? -1 : sendfile(to, from, &place, wanted);
		if (done < 0 && !plain && (errno == EINVAL || errno == ENOSYS)) {
			plain = 1;
			continue;
		}
		if (plain) {
			done = pread(from, buffer, wanted < FALLBACK ? wanted : FALLBACK, at);
			for (ssize_t written = 0; written < done;) {
				ssize_t part = write(to, buffer + written, (size_t)(done - written));
				if (part < 0)
					fail("write", name);
				written += part;
			}
		}
		if (done < 0)
			fail("copy", name);
		if (done == 0) {
			errno = EIO; /* It became shorter, and it was to stand still. */
			fail("read", name);
		}
		at += done;
		account((uint64_t)done);
	}
}

static void copy_content(int from, int to, const struct stat *st, const char *name)
{
	off_t size = st->st_size, at = 0;
	if ((uint64_t)st->st_blocks * 512 >= (uint64_t)size) {
		copy_range(from, to, 0, size, name);
		return;
	}
	if (ftruncate(to, size) != 0)
		fail("write", name);
	while (at < size) {
		off_t start = lseek(from, at, SEEK_DATA);
		if (start < 0 && errno == ENXIO)
			return;
		off_t end = start < 0 ? -1 : lseek(from, start, SEEK_HOLE);
		if (end < 0)
			fail("seek", name);
		copy_range(from, to, start, end, name);
		at = end;
	}
}

static void copy_file(const char *name, const struct stat *seen)
{
	struct stat st;
	int from = openat(source_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
	if (from < 0 && errno == EPERM) /* only owners may ask for it; in a user namespace that is not everybody's root */
		from = openat(source_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (from < 0 || fstat(from, &st) != 0)
		fail("open", name);
	if (!S_ISREG(st.st_mode) || st.st_ino != seen->st_ino || st.st_dev != seen->st_dev)
		refuse("changing", name);
	int to = openat(target_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (to < 0)
		fail("create", name);
	copy_content(from, to, &st, name);
	settle(from, to, &st, name);
	if (close(to) != 0)
		fail("write", name);
	close(from);
}

static void copy_link(const char *name, const struct stat *st)
{
	char *text = must(malloc((size_t)st->st_size + 2));
	ssize_t length = readlinkat(source_fd, name, text, (size_t)st->st_size + 1);
	if (length < 0)
		fail("readlink", name);
	text[length] = '\0';
	if (symlinkat(text, target_fd, name) != 0)
		fail("create", name);
	free(text);
	settle_special(st, name);
}

static int is_whiteout(const struct stat *st)
{
	return S_ISCHR(st->st_mode) && st->st_rdev == makedev(0, 0);
}

static void copy_special(const char *name, const struct stat *st)
{
	if (S_ISCHR(st->st_mode) && !is_whiteout(st))
		refuse("device", name);
	if (S_ISBLK(st->st_mode))
		refuse("device", name);
	mode_t mode = (st->st_mode & S_IFMT) | 0600;
	if (mknodat(target_fd, name, mode, is_whiteout(st) ? makedev(0, 0) : 0) != 0)
		fail("create", name);
	if (!is_whiteout(st))
		settle_special(st, name);
}

static void copy_one(const char *name, const struct stat *st)
{
	char key[64];
	int is_linked = st->st_nlink > 1;
	if (S_ISSOCK(st->st_mode))
		return; /* Nobody listens any more where it is copied to. */
	if (is_linked) {
		snprintf(key, sizeof key, "%llx-%llx", (unsigned long long)st->st_dev, (unsigned long long)st->st_ino);
		if (linkat(links, key, target_fd, name, 0) == 0)
			return;
		/* Not seen before; or one more than this file system can count, and then it is a file of its own. */
		if (errno != ENOENT && errno != EMLINK)
			fail("link", name);
		is_linked = errno == ENOENT;
	}
	if (S_ISREG(st->st_mode))
		copy_file(name, st);
	else if (S_ISLNK(st->st_mode))
		copy_link(name, st);
	else
		copy_special(name, st);
	if (is_linked && linkat(target_fd, name, links, key, 0) != 0)
		fail("link", name);
	files++;
	bytes += (uint64_t)st->st_blocks * 512;
	account(0);
}

/* -- the walk -- */

static void note_folder(struct level *level, const char *name)
{
	if (level->count == level->room) {
		level->room = level->room ? 2 * level->room : 16;
		level->pending = must(realloc(level->pending, level->room * sizeof *level->pending));
	}
	level->pending[level->count++] = must(strdup(name));
}

/* Copies all of the folder where the walk is but the folders in it, which are noted. */
static void copy_entries(struct level *level)
{
	struct stat st;
	int copy = openat(source_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = copy < 0 ? NULL : fdopendir(copy);
	if (folder == NULL)
		fail("list", level->name);
	for (;;) {
		errno = 0;
		struct dirent *entry = readdir(folder);
		if (entry == NULL && errno != 0)
			fail("list", level->name);
		if (entry == NULL)
			break;
		const char *name = entry->d_name;
		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
			continue;
		if (fstatat(source_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
			fail("stat", name);
		if (S_ISDIR(st.st_mode))
			note_folder(level, name);
		else
			copy_one(name, &st);
	}
	closedir(folder);
}

static int open_folder(int parent, const char *name)
{
	return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void enter(int source, int to, char *name)
{
	struct stat from_st, to_st;
	if (source < 0 || to < 0 || fstat(source, &from_st) != 0 || fstat(to, &to_st) != 0)
		fail("folder", name);
	if (depth == levels_room) {
		levels_room = levels_room ? 2 * levels_room : 64;
		levels = must(realloc(levels, levels_room * sizeof *levels));
	}
	struct level *level = &levels[depth++];
	*level = (struct level){
		.source_device = from_st.st_dev, .source_inode = from_st.st_ino,
		.target_device = to_st.st_dev,   .target_inode = to_st.st_ino,
		.name = name,
	};
	source_fd = source;
	target_fd = to;
	copy_entries(level);
}

static void go_down(char *name)
{
	if (mkdirat(target_fd, name, 0700) != 0)
		fail("create", name);
	int source = open_folder(source_fd, name), to = open_folder(target_fd, name);
	close(source_fd);
	close(target_fd);
	enter(source, to, name);
	bytes += 4096;
	account(0);
}

/* Gives the folder that is done its owner and times, and goes to the one above, which must be where it was. */
static void go_up(void)
{
	struct stat st;
	struct level *done = &levels[depth - 1], *above = &levels[depth - 2];
	if (fstat(source_fd, &st) != 0)
		fail("stat", done->name);
	settle(source_fd, target_fd, &st, done->name);
	int source = open_folder(source_fd, ".."), to = open_folder(target_fd, "..");
	close(source_fd);
	close(target_fd);
	if (source < 0 || fstat(source, &st) != 0)
		fail("folder", done->name);
	if (st.st_dev != above->source_device || st.st_ino != above->source_inode)
		refuse("changing", done->name);
	if (to < 0 || fstat(to, &st) != 0)
		fail("folder", done->name);
	if (st.st_dev != above->target_device || st.st_ino != above->target_inode)
		refuse("changing", done->name);
	source_fd = source;
	target_fd = to;
	free(done->pending);
	free(done->name);
	depth--;
}

static void copy_tree(const char *path)
{
	if (mkdirat(target, "tree", 0755) != 0 || mkdirat(target, "links", 0700) != 0)
		fail("create", "tree");
	links = open_folder(target, "links");
	if (links < 0)
		fail("create", "links");
	enter(open_folder(AT_FDCWD, path), open_folder(target, "tree"), must(strdup("")));
	while (depth > 1 || levels[0].count > 0) {
		struct level *level = &levels[depth - 1];
		if (level->count > 0)
			go_down(level->pending[--level->count]);
		else
			go_up();
	}
}

static uint64_t number(const char *text)
{
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (errno != 0 || *text == '\0' || *end != '\0') {
		errno = EINVAL;
		fail("arguments", text);
	}
	return value;
}

int main(int argc, char **argv)
{
	char byte;
	if (argc != 10)
		return 125;
	umask(0);
	signal(SIGPIPE, SIG_IGN);
	owner = atoi(argv[1]);
	target = atoi(argv[2]);
	thaw = atoi(argv[3]);
	thaw_text = argv[4];
	first = number(argv[6]);
	count = number(argv[7]);
	reserve = number(argv[8]);
	overlay = argv[9];
	if (write(owner, "ready\n", 6) != 6 || read(owner, &byte, 1) != 1) {
		thaw_now(); /* The owner may have come so far as to freeze. */
		return 2;
	}
	check_surroundings();
	copy_tree(argv[5]);
	uint64_t when = thaw_now();
	dprintf(owner, "done %llu %llu %llu\n", (unsigned long long)files, (unsigned long long)bytes,
		(unsigned long long)when);
	return 0;
}
