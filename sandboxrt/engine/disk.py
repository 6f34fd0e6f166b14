"""The disks of sandboxes: ext4 images of a fixed size, and the removal of what sandboxes leave in folders.

A disk with a size of its own gives what nothing else on a stock kernel does: a real "no space left" at the limit, a
right ``df``, and inodes that run out for this sandbox alone. Making one must be cheap, so a file system of each size is
made once and copied. How the template is made was measured (4 GiB, ext4 below):

* Without the reserve for growing (``^resize_inode``) it holds 100 KiB of data instead of 2.1 MiB, and every disk costs
  as much less in copying, in writes and in page cache.
* Inode tables are initialised (``lazy_itable_init=0``): they are holes that read as zeros, and the kernel starts no
  thread that goes on to write 64 MiB of zeros into every mounted disk.
* No journal: it would be a kernel thread for each sandbox and every metadata write twice. What it protects against is a
  crash of the host, after which ``engine/damage.py`` repairs a disk before it is mounted again. A killed owner is no
  such case: the kernel unmounts properly when the last process of the sandbox is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from sandboxrt.errors import EngineUnavailableError, HostDiskFullError, ResourceCreationError
from sandboxrt.room import Room
from sandboxrt.threads import run_blocking

__all__ = [
    "MAX_DISK_BYTES",
    "MIN_DISK_BYTES",
    "DiskTemplates",
    "disk_size",
    "find_tool",
    "in_thread",
    "run_tool",
    "sparse_copy",
]

T = TypeVar("T")

MIN_DISK_BYTES = 16 * 1024**2
MAX_DISK_BYTES = 8 * 1024**4

_STEP_BYTES = 1024**2
_SMALL_BYTES = 512 * 1024**2
_MAX_TEMPLATES = 24
_MAX_TEMPLATE_BYTES = 64 * 1024**2
_MKFS_TIMEOUT_S = 60
_FICLONE = 0x40049409
_THREADS = 4
_limiters: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("disk threads")


async def in_thread(function: Callable[[], T]) -> T:
    """Work on disks, in a worker thread; few at once."""
    try:
        limiter = _limiters.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_THREADS)
        _limiters.set(limiter)
    return await run_blocking(limiter, function)


def disk_size(size_bytes: int) -> int:
    """The size that a disk of ``size_bytes`` really gets: whole MiB, at least 16.

    Raises:
        ResourceCreationError: More than 8 TiB.
    """
    if size_bytes > MAX_DISK_BYTES:
        raise ResourceCreationError(
            f"a disk can have at most {MAX_DISK_BYTES} bytes, not {size_bytes}", "sandbox", "SandboxConfig"
        )
    return max(MIN_DISK_BYTES, -(-size_bytes // _STEP_BYTES) * _STEP_BYTES)


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are not holes: start and end."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def sparse_copy(source: int, target: int) -> None:
    """Make the empty file ``target`` a copy of ``source``: with shared blocks where possible, else with its holes.

    Raises:
        OSError: ``ENOSPC`` and the like; ``target`` is then unfinished.
    """
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in _data_ranges(source, size):
        at = start
        while at < end:
            copied = os.copy_file_range(source, target, end - at, at, at)
            if copied == 0:
                raise OSError(errno.EIO, "the file to copy became shorter")
            at += copied


@contextlib.contextmanager
def _open(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def find_tool(name: str) -> str:
    """The path of one of the ext4 tools.

    Raises:
        EngineUnavailableError: It is not installed.
    """
    # Ordinary users have no sbin folder in their PATH.
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise EngineUnavailableError(f"{name} is missing; install it with: apt-get install e2fsprogs")
    return program


def run_tool(arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run one of the ext4 tools.

    Raises:
        EngineUnavailableError: It is not installed.
    """
    return subprocess.run(
        [find_tool(arguments[0]), *arguments[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def _make_file_system(image: Path, size_bytes: int) -> None:
    with _open(image, os.O_WRONLY) as fd:
        os.ftruncate(fd, size_bytes)
    bytes_per_inode = 4096 if size_bytes < _SMALL_BYTES else 16384
    options = ["-q", "-F", "-m", "0", "-b", "4096", "-i", str(bytes_per_inode)]
    features = ["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=0,nodiscard"]
    done = run_tool(["mkfs.ext4", *options, *features, str(image)], _MKFS_TIMEOUT_S)
    if done.returncode != 0:
        raise ResourceCreationError(f"mkfs.ext4 failed: {done.stdout.strip()[-400:]}", "sandbox", "Disk")


@attrs.define
class DiskTemplates:
    """Empty file systems, one a size, and disks made from them. Several processes may share the folder.

    Which sizes there are is the sandboxes' creators' choice, so the templates that were not used for longest go when
    there are too many, or they take too much room: at most 24, or 64 MiB, besides the newest.

    Attributes:
        folder: Where the templates are kept; made when it is missing.
        room: The room for disks; that of the folder above where left out.
    """

    folder: Path
    room: Room = attrs.field(default=attrs.Factory(lambda self: Room(self.folder.parent), takes_self=True))

    async def clone(self, size_bytes: int, target: Path) -> None:
        """Make the disk image ``target``, which must not exist, of :func:`disk_size` bytes.

        Raises:
            HostDiskFullError: The host has too little room.
            ResourceCreationError: The file system could not be made.
            EngineUnavailableError: ``mkfs.ext4`` is missing.
            OSError: Anything else (``EEXIST``). Nothing is left behind by a failure.

        Cancellation: atomic; a copy that runs is finished (milliseconds).
        """
        await in_thread(lambda: self.clone_blocking(size_bytes, target))

    def clone_blocking(self, size_bytes: int, target: Path) -> None:
        """The same for callers that are on a thread of their own."""
        try:
            # Disks are sparse: one that is made on a full host fails later.
            if self.room.is_low:
                raise self._full()
            with (
                self._template(disk_size(size_bytes)) as source,
                _open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL) as copy,
            ):
                try:
                    sparse_copy(source, copy)
                except BaseException:
                    target.unlink()
                    raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full() from error
            raise

    def _full(self) -> HostDiskFullError:
        return self.room.refuse("sandbox can be made", "sandbox")

    @contextlib.contextmanager
    def _template(self, size_bytes: int) -> Iterator[int]:
        """The template of that size, open: then it does not matter whether somebody removes it meanwhile."""
        path = self.folder / f"ext4-1-{size_bytes}.img"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _open(self.folder / "lock", os.O_RDWR | os.O_CREAT) as lock:
                # Held for the milliseconds of a mkfs, by at most a minute of it.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    self._make(path, size_bytes)
                    self._evict(path)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.utime(fd)  # When it was last used.
            yield fd
        finally:
            os.close(fd)

    def _evict(self, newest: Path) -> None:
        """Remove the templates that were not used for longest; called with the lock held."""
        kept, room = 0, _MAX_TEMPLATE_BYTES
        found = {path: path.stat() for path in self.folder.glob("ext4-*.img") if path != newest}
        for path, stat in sorted(found.items(), key=lambda item: item[1].st_mtime, reverse=True):
            kept, room = kept + 1, room - stat.st_blocks * 512
            if kept >= _MAX_TEMPLATES or room < 0:
                path.unlink()

    def remove_unused(self) -> int:
        """Remove all templates, which cost milliseconds to make again. Blocking. Returns the bytes that they took."""
        freed = 0
        with contextlib.suppress(FileNotFoundError), _open(self.folder / "lock", os.O_RDWR) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in self.folder.glob("ext4-*.img"):
                freed += path.stat().st_blocks * 512
                path.unlink()
        return freed

    def _make(self, path: Path, size_bytes: int) -> None:
        """Make a template; called with the lock held, so that temporary folders found here are of the dead."""
        for left in self.folder.glob("tmp-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=self.folder) as name:
            made, packed = Path(name, "made"), Path(name, "packed")
            made.touch(mode=0o600)
            _make_file_system(made, size_bytes)
            # mkfs leaves space allocated for what is zero anyway; a sparse copy does not.
            with _open(made, os.O_RDONLY) as source, _open(packed, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
                sparse_copy(source, target)
                os.fsync(target)
            packed.rename(path)
