"""The built-in snapshot: this machine's own ``/usr`` under a generated root that holds nothing private.

Nothing of ``/usr`` is copied: it is a layer itself. Above it lies a mask that hides ``/usr/local`` (what the
administrator put there is not the system's) and what others may not read. Everything else is generated, and of the
machine's ``/etc`` only what every Debian has: the loader's cache, links into ``/usr``, public certificates, tables of
ports and protocols.

Source: ours.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sandboxrt.engine.base import Layer
from sandboxrt.errors import EngineUnavailableError
from sandboxrt.snapshots.content import DEFAULT_PATH, ImageConfig, SnapshotContent

__all__ = ["HOST_NAME", "OWNERS", "build_host", "fingerprint"]

HOST_NAME: Final = "host"
"""The name of the built-in snapshot; no other snapshot may have it."""

_USER_ID: Final = 1000
OWNERS: Final = {"home/user": _USER_ID}
"""What belongs to others than root. Only root can say so while it builds."""
_MERGED: Final = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")
_FOLDERS: Final = {
    "boot": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "home/user": 0o755,
    "media": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "run/lock": 0o1777,
    "srv": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "var": 0o755,
    "var/cache": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/spool": 0o755,
    "var/tmp": 0o1777,
}
_LINKS: Final = {
    "etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
    "etc/mtab": "../proc/self/mounts",
    "etc/os-release": "../usr/lib/os-release",
    "var/lock": "/run/lock",
    "var/run": "/run",
}
_FILES: Final = {
    "etc/environment": f'PATH="{DEFAULT_PATH}"\n',
    "etc/group": (
        f"root:x:0:\ndaemon:x:1:\ntty:x:5:\nstaff:x:50:\nusers:x:100:\nuser:x:{_USER_ID}:\nnogroup:x:65534:\n"
    ),
    "etc/hostname": "sandbox\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/nsswitch.conf": (
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n"
        "protocols: files\nservices: files\nethers: files\nrpc: files\n"
    ),
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        f"user:x:{_USER_ID}:{_USER_ID}:user:/home/user:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/profile": f'export PATH="{DEFAULT_PATH}"\numask 022\n',
    "etc/resolv.conf": "",
    "etc/shells": "/bin/sh\n/bin/bash\n",
    "etc/timezone": "Etc/UTC\n",
}
_COPIED: Final = (
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "magic",
    "magic.mime",
    "mime.types",
    "protocols",
    "rpc",
    "services",
)
_MAX_COPIED_BYTES: Final = 4 * 1024**2
_SEARCH_DEPTH: Final = 3
_MOUNT_TABLE: Final = "/proc/self/mountinfo"

_PACKAGE_RECORDS: Final = (
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/pacman/local",
    "/lib/apk/db/installed",
)
_WATCHED_FOLDERS: Final = (
    "/usr",
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/sbin",
    "/usr/share",
    "/usr/lib/python3/dist-packages",
    "/etc/alternatives",
    "/etc/ld.so.cache",
)


def fingerprint() -> str:
    """What changes when packages are installed, upgraded or removed: some twenty ``stat`` calls, hashed."""
    digest = hashlib.sha256()
    for path in (*_PACKAGE_RECORDS, *_WATCHED_FOLDERS):
        try:
            found = os.stat(path)
        except OSError:
            continue
        digest.update(f"{path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def build_host(folder: Path, final: Path) -> SnapshotContent:
    """Generate the layers in ``folder``, which will be moved to ``final``. Blocking, some ten milliseconds.

    Raises:
        EngineUnavailableError: This machine's layout does not allow it; the message says why and what to do.
        OSError: The folder cannot be written.
    """
    _check_layout()
    root, mask = folder / "root", folder / "usr"
    _mkdir(root)
    _mkdir(mask)
    _write_root(root)
    _write_mask(mask)
    return SnapshotContent(
        layers=(Layer(final / "root", "/"), Layer(final / "usr", "/usr"), Layer(Path("/usr"), "/usr")),
        config=ImageConfig(
            env={"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}, user=None, work_dir="/root", cmd=("/bin/bash",)
        ),
    )


def _check_layout() -> None:
    for name in ("bin", "sbin", "lib"):
        if not os.path.islink(f"/{name}"):
            raise EngineUnavailableError(
                f"The built-in snapshot needs a merged /usr, but /{name} is a folder of its own here. Install the"
                " package usrmerge, or create a snapshot from an image and name it."
            )
    with open(_MOUNT_TABLE, encoding="utf-8", errors="surrogateescape") as mounts:
        below = sorted({point for line in mounts if (point := line.split(" ")[4]).startswith("/usr/")})
    hidden = [point for point in below if point != "/usr/local" and not point.startswith("/usr/local/")]
    if hidden:
        raise EngineUnavailableError(
            "The built-in snapshot needs /usr in one piece, but there are other mounts in it here:"
            f" {', '.join(hidden)}. Unmount them, or create a snapshot from an image and name it."
        )


def _write_root(root: Path) -> None:
    for name, mode in _FOLDERS.items():
        (root / name).mkdir()
        # The umask does not count here.
        (root / name).chmod(mode)
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(f"usr/{name}")
    for name, target in _LINKS.items():
        (root / name).symlink_to(target)
    for name, text in _FILES.items():
        _write(root / name, text.encode())
    for name in _COPIED:
        content = _public_file(Path("/etc", name))
        if content is not None:
            _write(root / "etc" / name, content)
    _write_loader_folders(root / "etc")
    _write_links(Path("/etc/alternatives"), root / "etc/alternatives")
    _write_certificates(root / "etc/ssl/certs")
    if os.geteuid() == 0:
        for name, number in OWNERS.items():
            os.chown(root / name, number, number)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)


def _mkdir(path: Path) -> None:
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o755)


def _public_file(path: Path) -> bytes | None:
    """The content of a small regular file that everybody may read, else ``None``."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IROTH and found.st_size <= _MAX_COPIED_BYTES:
                return file.read(_MAX_COPIED_BYTES)
    except OSError:
        pass
    return None


def _write_loader_folders(etc: Path) -> None:
    _mkdir(etc / "ld.so.conf.d")
    for path in sorted(Path("/etc/ld.so.conf.d").glob("*.conf")):
        content = _public_file(path)
        if content is not None:
            _write(etc / "ld.so.conf.d" / path.name, content)


def _write_links(source: Path, target: Path) -> None:
    """Copy the links of a folder that end in ``/usr``, and nothing else of it."""
    _mkdir(target)
    for link in sorted(source.iterdir()) if source.is_dir() else ():
        if link.is_symlink():
            destination = os.readlink(link)
            normal = os.path.normpath(destination)
            if normal.startswith("/usr/") and not normal.startswith("/usr/local/"):
                (target / link.name).symlink_to(destination)


def _write_certificates(target: Path) -> None:
    """The CA certificates of the distribution: links into ``/usr``, links to those, and all in one file."""
    _mkdir(target)
    _write_links(Path("/etc/ssl/certs"), target)
    named = {path.name for path in target.iterdir()}
    bundle = []
    for name in sorted(named):
        content = _public_file(Path(os.readlink(target / name)))
        if content is not None and b"PRIVATE KEY" not in content:
            bundle.append(content.rstrip() + b"\n")
    for link in sorted(Path("/etc/ssl/certs").glob("*.[0-9]")) if named else ():
        if link.is_symlink() and os.readlink(link) in named:
            (target / link.name).symlink_to(os.readlink(link))
    if bundle:
        _write(target / "ca-certificates.crt", b"".join(bundle))


def _write_mask(mask: Path) -> None:
    _opaque_folder(mask / "local")
    for name in ("bin", "etc", "games", "include", "lib", "sbin", "share", "src"):
        (mask / "local" / name).mkdir()
        (mask / "local" / name).chmod(0o755)
    (mask / "local/man").symlink_to("share/man")
    if os.geteuid() != 0:
        return  # What others may not read, the sandboxes of an ordinary user cannot read either.
    for path, is_folder in _unreadable(Path("/usr"), _SEARCH_DEPTH):
        hidden = mask / path.relative_to("/usr")
        _mkdir(hidden.parent)
        if is_folder:
            _opaque_folder(hidden)
        else:
            os.mknod(hidden, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def _opaque_folder(path: Path) -> None:
    """A folder through which nothing beneath it shows."""
    path.mkdir()
    path.chmod(0o755)
    try:
        os.setxattr(path, "trusted.overlay.opaque", b"y")
    except PermissionError:
        # Without privilege on the host, overlays are mounted with ``userxattr`` and look here.
        os.setxattr(path, "user.overlay.opaque", b"y")


def _unreadable(folder: Path, depth: int) -> Iterator[tuple[Path, bool]]:
    """What others may not read in ``folder``, except ``/usr/local``, not deeper than ``depth``.

    The whole of ``/usr`` has hundreds of thousands of files; reading all their modes takes seconds with a cold cache.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_symlink() or entry.path == "/usr/local":
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            is_folder = stat.S_ISDIR(mode)
            wanted = stat.S_IROTH | stat.S_IXOTH if is_folder else stat.S_IROTH
            if mode & wanted != wanted:
                yield Path(entry.path), is_folder
            elif is_folder and depth > 1:
                yield from _unreadable(Path(entry.path), depth - 1)
