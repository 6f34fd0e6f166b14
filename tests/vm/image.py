"""A system's disk: a fresh Debian that boots, made by mmdebstrap, with nothing of this project on it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from tests.vm.cache import key_of
from tests.vm.debian import KEYRING, Release, mirror

__all__ = ["build_system", "make_disk", "run_quietly", "system_key"]

_DISK_BYTES = 12 * 1024**3
_BUILD_S = 1200
_TOLD_CHARACTERS = 8000
_USERS = {"alice": 1000, "bob": 1001}
_SUPPLIES = "/srv/supplies"

_NETWORK = "[Match]\nName=en* eth*\n[Network]\nAddress=10.0.2.15/24\n"
# Never checked: both file systems were made a moment ago, and what is written to them goes with the guest.
_FSTAB = f"/dev/vda / ext4 errors=remount-ro 0 0\nLABEL=supplies {_SUPPLIES} ext4 ro,nofail 0 0\n"
_SOURCES = f"deb [trusted=yes] file:{_SUPPLIES}/packages ./\n"
_PIP = f"[global]\nno-index = true\nfind-links = {_SUPPLIES}/wheels\ndisable-pip-version-check = true\n"

# What runs in the folder of the new system (its path is $1), and the files that it is given.
_FILES = {
    "etc/hostname": "{codename}\n",
    "etc/hosts": "127.0.0.1 localhost {codename}\n::1 localhost\n",
    "etc/fstab": _FSTAB,
    "etc/pip.conf": _PIP,
    "etc/systemd/network/10-vm.network": _NETWORK,
    # An installer that waits for the disk after each file protects nothing on a disk that is thrown away.
    "etc/dpkg/dpkg.cfg.d/unsafe-io": "force-unsafe-io\n",
    "etc/sudoers.d/alice": "alice ALL=(ALL) NOPASSWD:ALL\n",
}
_COMMANDS = (
    *(f"useradd --create-home --shell /bin/bash --uid {uid} {name}" for name, uid in _USERS.items()),
    "passwd --delete root",
    "systemctl enable systemd-networkd ssh",
    # Work of its own that a machine of ten minutes does not need, and that would blur what is measured.
    "systemctl mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service",
)


def system_key(release: Release) -> str:
    """All that a system's disk is made from."""
    return key_of(release.codename, release.packages, _FILES, _COMMANDS, _DISK_BYTES, Path(__file__).read_text())


def build_system(release: Release, folder: Path) -> None:
    """Make a system in ``folder``: ``system.img``, ``vmlinuz``, ``initrd``, and what is asked about it later.

    That is ``status`` (dpkg's), ``python`` (its version), and ``key``, with which everybody in it can be logged in.
    """
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f", str(key)], check=True)
    root, files = folder / "root", folder / "files"
    _lay(files, {name: text.format(codename=release.codename) for name, text in _FILES.items()})
    login = "; ".join(
        f'mkdir -p -m 700 "$1/{home}/.ssh"; cp {shlex.quote(str(key))}.pub "$1/{home}/.ssh/authorized_keys"; '
        f'chroot "$1" chown -R {name}: /{home}/.ssh'
        for name, home in {"root": "root", **{name: f"home/{name}" for name in _USERS}}.items()
    )
    hooks = [
        f'cp -r {shlex.quote(str(files))}/. "$1/"; chmod 440 "$1/etc/sudoers.d/alice"; mkdir -p "$1{_SUPPLIES}"',
        *(f'chroot "$1" {command}' for command in _COMMANDS),
        login,
        # mmdebstrap writes its mirror's address here when it starts: the guest has one of its own.
        f'printf %s {shlex.quote(_SOURCES)} > "$1/etc/apt/sources.list"',
    ]
    # Namespaces of its own, which end with this process: whatever ends it, no mount and no process is left.
    run_quietly(
        [
            *(
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ),
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"),
            f"--keyring={KEYRING}",
            f"--include={','.join(release.packages)}",
            *(f"--customize-hook={hook}" for hook in hooks),
            *(release.codename, str(root), f"deb {mirror()} {release.codename} main"),
        ],
        limit_s=_BUILD_S,
    )
    for name, pattern in {
        "vmlinuz": "boot/vmlinuz-*",
        "initrd": "boot/initrd.img-*",
        "status": "var/lib/dpkg/status",
    }.items():
        (found,) = root.glob(pattern)
        shutil.copyfile(found, folder / name)
    version = subprocess.run(
        ["chroot", str(root), "python3", "-c", "import platform; print(platform.python_version())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (folder / "python").write_text(version)
    make_disk(folder / "system.img", root, _DISK_BYTES, "system")
    shutil.rmtree(root)
    shutil.rmtree(files)


def run_quietly(command: list[str], *, limit_s: float, environment: dict[str, str] | None = None) -> None:
    """Run a program whose output nobody wants to see unless it fails: RuntimeError has its end then."""
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=limit_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-_TOLD_CHARACTERS:]}")


def make_disk(image: Path, content: Path, size: int, label: str) -> None:
    """An ext4 file system with what lies in ``content``, as a file with holes."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-L", label, "-d", str(content), str(image)],
        check=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )


def _lay(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
